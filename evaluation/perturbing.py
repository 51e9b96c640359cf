"""Two explainers that pay with many queries: RISE, and masks optimised an image at a time with our own objective."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_attnkd.explanation import resized, standardise
from captum_attnkd.objectives import Pixels, conviction, kept_softly, through
from captum_attnkd.perturbation import blended, random_fills

from .explainers import Explainer
from .subject import Contrast


def probability_of(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Probability of each image's class (B,); of `Contrast`, that the class wins against its rival."""
    scores = model(images).float()
    scores = scores.sigmoid() if isinstance(model, Contrast) else scores.softmax(dim=1)
    return scores.gather(1, classes[:, None])[:, 0]


def rise(model: nn.Module, masks: int = 1000, cells: int = 7, share: float = 0.5, batch: int = 50) -> Explainer:
    """RISE (Petsiuk et al., 2018): the mean of random masks, weighted by the class's probability behind them.

    Args:
        model: images -> logits.
        masks: queries an image.
        cells: of the coarse grid along each side.
        share: of the cells that are kept.
        batch: masks at a time.
    """

    @torch.no_grad()
    def explain(images: Tensor, classes: Tensor) -> Tensor:
        drawn = torch.Generator().manual_seed(0)
        total = images.new_zeros(len(images), 1, *images.shape[-2:])
        for start in range(0, masks, batch):
            some = rise_masks(min(batch, masks - start), (images.shape[-2], images.shape[-1]), cells, share, drawn)
            some = some.to(images)
            for index, image in enumerate(images):
                answer = probability_of(model, image * some, classes[index].expand(len(some)))
                total[index, 0] += torch.einsum("n,nhw->hw", answer, some[:, 0])
        return total / (masks * share)

    return explain


def rise_masks(count: int, size: tuple[int, int], cells: int, share: float, generator: torch.Generator) -> Tensor:
    """Random grids (count, 1, H, W) in [0, 1], enlarged smoothly and shifted by less than a cell."""
    steps = [-(-side // cells) for side in size]
    grid = (torch.rand(count, 1, cells, cells, generator=generator) < share).float()
    fields = resized(grid, ((cells + 1) * steps[0], (cells + 1) * steps[1]))
    made = torch.empty(count, 1, *size)
    for index in range(count):
        top, left = (int(torch.randint(step, (), generator=generator)) for step in steps)
        made[index] = fields[index, :, top : top + size[0], left : left + size[1]]
    return made


def optimised_masks(
    model: nn.Module, pixels: Pixels, steps: int = 60, resolution: int = 28, rate: float = 0.1
) -> Explainer:
    """Mask logits of each image optimised by our own stage-2 objective: the ceiling of that objective, not of the truth.

    Such masks fool the judge where an amortised network cannot: look at the fills they never saw.

    Args:
        model: images -> logits.
        pixels: statistics for the fills.
        steps: of the optimisation.
        resolution: of the mask.
        rate: learning rate.
    """

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        draws = [torch.Generator().manual_seed(0) for _ in images]  # an image's mask depends on that image alone
        size = (images.shape[-2], images.shape[-1])
        logits = 0.01 * torch.stack([torch.randn(1, resolution, resolution, generator=drawn) for drawn in draws])
        logits = logits.to(images).requires_grad_()
        optimiser = torch.optim.Adam([logits], lr=rate)
        both = classes.to(images.device).repeat_interleave(2)

        def score(shown: Tensor) -> Tensor:
            return probability_of(model, shown, both)

        with torch.enable_grad():
            for _ in range(steps):
                areas = 0.02 ** torch.cat([torch.rand(1, generator=drawn) for drawn in draws])
                keep = resized(kept_softly(standardise(logits), areas.clamp_max(0.95).to(images)), size)
                each = list(zip(images.split(1), draws, strict=True))
                fills = torch.cat([random_fills(image, pixels.mean, pixels.deviation, drawn) for image, drawn in each])
                shown = torch.stack([blended(keep, images, fills), blended(1 - keep, images, fills)], dim=1)
                _, carried = through(shown.flatten(0, 1), score)
                kept, hidden = carried.unflatten(0, (-1, 2)).unbind(dim=1)
                smooth = (logits[..., 1:] - logits[..., :-1]).abs().mean((1, 2, 3)) + (
                    logits[..., 1:, :] - logits[..., :-1, :]
                ).abs().mean((1, 2, 3))
                optimiser.zero_grad()
                (conviction(hidden) - conviction(kept) + 0.02 * smooth).sum().backward()
                optimiser.step()
        return resized(standardise(logits.detach()), size)

    return explain
