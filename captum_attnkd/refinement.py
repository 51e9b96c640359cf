"""A few steps of optimisation for single images, begun from the network's own map: for the images that need it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .explanation import Mask, resized, standardise
from .objectives import Ask, Pixels, kept_softly, through
from .perturbation import blended, random_fills, random_shift
from .surrogate import Query

GOLDEN = (math.sqrt(5) - 1) / 2


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

    All that keeps the network's mask from fooling the judge is kept here: areas, kinds of fill, shifts and noise are drawn anew at
    every step. Areas run evenly over the logarithmic scale. All images meet the same draws, and none meets its neighbours. The
    answer is the mean over the second half of the steps (Polyak & Juditsky, 1992): what single draws left averages out.

    Args:
        mask: to begin from, for one class an image.
        images: (B, C, H, W).
        query: which classes, (B, 1).
        judge: differentiable log-probabilities of images; only gradients with regard to images are asked of it.
        pixels: statistics for the fills.
        steps: two images a step and image are sent to the judge.
        rate: how far a step goes, in deviations of the map.
    """
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
                fill = random_fills(image, pixels.mean, pixels.deviation, drawn)
                pair = random_shift(torch.cat([blended(part, image, fill), blended(1 - part, image, fill)]), drawn)
                shown.append(pair + noise * torch.randn(pair.shape, generator=drawn).to(pair))
            _, carried = through(torch.cat(shown), lambda leaf: twice.score(judge(leaf))[:, 0])
            kept, hidden = carried.reshape(-1, 2).unbind(dim=1)
            (correction.grad,) = torch.autograd.grad((hidden - kept).sum(), correction)
            optimiser.step()
            if step >= steps // 2:
                late += correction.detach()
    return mask._replace(logits=standardise(begun + late / max(steps - steps // 2, 1)))
