"""A few steps of optimisation for single images, begun from the network's own map: for the images that need it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .explanation import Mask, resized, standardise
from .objectives import Ask, Pixels, conviction, kept_softly, through
from .perturbation import blended, random_fills
from .surrogate import Query

GOLDEN = (math.sqrt(5) - 1) / 2
TRIED = (0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8)  # shares at which a map must prove itself in the end


def refined(
    mask: Mask,
    images: Tensor,
    query: Query,
    judge: Ask,
    pixels: Pixels,
    steps: int,
    rate: float = 0.1,
) -> Mask:
    """The mask after some steps of stage 2's objective on these very images, each for itself.

    All that keeps the network's mask from fooling the judge is kept here: areas, kinds of fill and noise are drawn anew at every
    step. Areas run evenly over the logarithmic scale. All images meet the same draws, and none meets its neighbours. The
    answer is the mean over the second half of the steps (Polyak & Juditsky, 1992): what single draws left averages out. It is
    given only where it does better than the map it began from when both are tried once more (`_worth`); elsewhere that map is.

    Args:
        mask: to begin from, for one class an image.
        images: (B, C, H, W).
        query: which classes, (B, 1).
        judge: differentiable log-probabilities of images; only gradients with regard to images are asked of it.
        pixels: statistics for the fills.
        steps: two images a step and image are sent to the judge, and 28 at the end.
        rate: how far a step goes, in deviations of the map.
    """
    if not steps:
        return mask
    size = (images.shape[-2], images.shape[-1])
    begun = mask.logits.detach().float()
    correction = torch.zeros_like(begun).requires_grad_()
    optimiser = torch.optim.Adam([correction], lr=rate, betas=(0.9, 0.99))
    draws = [torch.Generator().manual_seed(0) for _ in images]
    rivals = None if query.negative is None else query.negative.repeat_interleave(2, dim=0)
    twice = Query(query.positive.repeat_interleave(2, dim=0), rivals)
    noise = 0.05 * pixels.deviation[:, None, None].to(images)
    late = torch.zeros_like(begun)

    with torch.enable_grad():
        for step in range(steps):
            share = 0.01 * 95 ** ((0.5 + GOLDEN * step) % 1)  # evenly over [0.01, 0.95], on the logarithmic scale
            keep = resized(kept_softly(standardise(begun + correction), images.new_full((len(images),), share)), size)
            shown = []
            for image, part, drawn in zip(torch.split(images, 1), torch.split(keep, 1), draws, strict=True):
                pair = _sides(part, image, pixels, drawn)
                shown.append(pair + noise * torch.randn(pair.shape, generator=drawn).to(pair))
            _, carried = through(torch.cat(shown), lambda leaf: twice.score(judge(leaf))[:, 0])
            kept, hidden = carried.reshape(-1, 2).unbind(dim=1)
            (correction.grad,) = torch.autograd.grad((conviction(hidden) - conviction(kept)).sum(), correction)
            optimiser.step()
            if step >= steps // 2:
                late += correction.detach()
    tried = standardise(begun + late / (steps - steps // 2))
    with torch.no_grad():
        before, after = (_worth(logits, images, twice, judge, pixels) for logits in (begun, tried))
    return mask._replace(logits=torch.where((after > before)[:, None, None, None], tried, begun))


def _sides(part: Tensor, image: Tensor, pixels: Pixels, drawn: torch.Generator) -> Tensor:
    """An image (1, C, H, W) with a part alone, and without it (2, C, H, W); a fill that is drawn hides the rest."""
    fill = random_fills(image, pixels.mean, pixels.deviation, drawn)
    return torch.cat([blended(part, image, fill), blended(1 - part, image, fill)])


def _worth(logits: Tensor, images: Tensor, twice: Query, judge: Ask, pixels: Pixels) -> Tensor:
    """The score with the most salient pixels alone less that without them, over several shares (B,); higher is better.

    Draws are others than those a map was refined with, and borders are hard: behind soft ones an order of neighbouring pixels that
    is noise does not show.
    """
    size = (images.shape[-2], images.shape[-1])
    order = resized(logits, size).flatten(1).argsort(dim=1, descending=True, stable=True)
    total = images.new_zeros(len(images), dtype=torch.float32)
    for place, share in enumerate(TRIED):
        first = order[:, : max(round(share * order.shape[1]), 1)]
        keep = torch.zeros_like(order, dtype=images.dtype).scatter_(1, first, 1).reshape(-1, 1, *size)
        shown = []
        for image, part in zip(torch.split(images, 1), torch.split(keep, 1), strict=True):
            drawn = torch.Generator().manual_seed(1 + place)
            shown.append(_sides(part, image, pixels, drawn))
        kept, hidden = twice.score(judge(torch.cat(shown)))[:, 0].reshape(-1, 2).unbind(dim=1)
        total += kept - hidden
    return total
