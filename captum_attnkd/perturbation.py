"""What hides pixels: masks to distil under, and the fills that replace hidden pixels. All drawn per sample."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FILLS = ("mean", "colour", "blur", "noise")
BLURS = (0.03, 0.045, 0.07, 0.1)  # deviation of the blur, as a share of the shorter side


def random_fills(images: Tensor, mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Replacement pixels (B, C, H, W), of one kind a sample.

    Kinds: the data's mean colour; a random colour; the image's own strong blur; white noise. Smooth noise and the pixels of another
    image are left out on purpose: evaluation needs fills that fitting never saw.

    Args:
        images: (B, C, H, W).
        mean: per channel over the training images (C,).
        deviation: likewise.
        generator: on the CPU.
    """
    kinds = torch.randint(len(FILLS), (len(images),), generator=generator).tolist()
    fills = torch.empty_like(images)
    centre, spread = mean[:, None, None].to(images), deviation[:, None, None].to(images)
    for index, kind in enumerate(kinds):
        if FILLS[kind] == "mean":
            fills[index] = centre
        elif FILLS[kind] == "colour":
            fills[index] = centre + 1.5 * spread * torch.randn(len(mean), 1, 1, generator=generator).to(images)
        elif FILLS[kind] == "blur":
            share = BLURS[int(torch.randint(len(BLURS), (), generator=generator))]
            fills[index] = blurred(images[index : index + 1], share * min(images.shape[-2:]))[0]
        else:
            fills[index] = centre + spread * torch.randn(images.shape[1:], generator=generator).to(images)
    return fills


def randomly_masked(images: Tensor, mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) with random parts replaced: random grids, random fills."""
    masks = random_grid_masks(len(images), (images.shape[2], images.shape[3]), generator).to(images)
    return blended(masks, images, random_fills(images, mean, deviation, generator))


def blended(keep: Tensor, images: Tensor, fills: Tensor) -> Tensor:
    """`images` where `keep` (B, 1, H, W) is one, `fills` where it is zero."""
    return fills + keep * (images - fills)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images (B, C, H, W), reflected at the border; `sigma` in pixels."""
    down, right = (_blur_matrix(side, sigma).to(images) for side in images.shape[-2:])
    with torch.autocast(images.device.type, enabled=False):
        return down @ images @ right.T


@functools.lru_cache(maxsize=256)
def _blur_matrix(side: int, sigma: float) -> Tensor:
    """A blur along one axis as a matrix (side, side): dense products are fast everywhere, wide convolutions are not."""
    reach = max(math.ceil(3 * sigma), 1)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / max(sigma, 1e-3)) ** 2)
    places = torch.arange(side)[:, None] + offsets
    period = max(2 * (side - 1), 1)
    folded = places.remainder(period)
    folded = torch.minimum(folded, period - folded).clamp_max(side - 1)  # reflect, as often as the kernel reaches over
    return torch.zeros(side, side).scatter_add_(1, folded, (kernel / kernel.sum()).expand(side, -1).contiguous())


def random_grid_masks(
    batch: int, size: tuple[int, int], generator: torch.Generator, cells: Sequence[int] = (2, 3, 5, 8, 14)
) -> Tensor:
    """Masks (B, 1, H, W) in [0, 1], 1 = kept: random grids of several sizes, softly enlarged and shifted (after RISE).

    The kept share is drawn per sample from U(0.1, 0.9).
    """
    masks = torch.empty(batch, 1, *size)
    for index in range(batch):
        n = cells[int(torch.randint(len(cells), (), generator=generator))]
        share = 0.1 + 0.8 * torch.rand((), generator=generator)
        grid = (torch.rand(1, 1, n + 1, n + 1, generator=generator) < share).float()
        enlarged = [math.ceil(side * (n + 1) / n) for side in size]
        field = F.interpolate(grid, size=enlarged, mode="bilinear", align_corners=False)
        top, left = (
            int(torch.randint(big - side + 1, (), generator=generator))
            for big, side in zip(enlarged, size, strict=True)
        )
        masks[index] = field[0, :, top : top + size[0], left : left + size[1]]
    return masks


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)
