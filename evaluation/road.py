"""ROAD, remove and debias (Rong et al., 2022): pixels are removed by noisy linear imputation, so that no hole tells the class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .faithfulness import Ask, ranks_of

SHARES = (0.2, 0.4, 0.6, 0.8)
_DIRECT, _DIAGONAL = 1 / 6, 1 / 12  # weights of a pixel's neighbours, as in the paper
_NEIGHBOURS = torch.tensor([[_DIAGONAL, _DIRECT, _DIAGONAL], [_DIRECT, 0.0, _DIRECT], [_DIAGONAL, _DIRECT, _DIAGONAL]])


@torch.no_grad()
def road_curve(
    ask: Ask,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    most_relevant_first: bool,
    generator: torch.Generator,
    shares: Sequence[float] = SHARES,
) -> Tensor:
    """Probability of the class when growing shares of the pixels are removed.

    A faithful map makes it fall fast with the most relevant pixels removed first, and slowly with the least relevant first.

    Args:
        ask: log-probabilities of images.
        images: (B, C, H, W).
        maps: saliency (B, 1, H, W); only its order counts.
        targets: class indices (B,).
        most_relevant_first: the order in which pixels are removed.
        generator: of the imputation's noise; on the CPU.
        shares: of the pixels to remove, each in (0, 1).

    Returns:
        Probabilities (B, len(shares)), on the CPU.
    """
    ranks = ranks_of(maps if most_relevant_first else -maps)
    points = []
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f"shares to remove must lie in (0, 1), got {share}")
        removed = ranks < round(share * ranks[0].numel())
        answer = ask(imputed(images, removed, generator))
        points.append(answer.gather(1, targets[:, None])[:, 0].exp().cpu())
    return torch.stack(points, dim=1)


def imputed(
    images: Tensor,
    removed: Tensor,
    generator: torch.Generator,
    noise: float = 0.01,
    tolerance: float = 1e-4,
    most: int = 1000,
) -> Tensor:
    """Replace removed pixels by the weighted mean of their eight neighbours, all at once, and add a little noise.

    The means are a linear system, symmetric and positive definite; conjugate gradients solve it for all images and channels
    together, from a first guess by ever coarser means of what is left.

    Args:
        images: (B, C, H, W).
        removed: (B, 1, H, W), bool; some pixel of every image must be left.
        generator: of the noise; on the CPU.
        noise: deviation of the noise on removed pixels.
        tolerance: residual at which to stop, against that of a black guess.
        most: iterations at most.

    Raises:
        ValueError: nothing is left of an image.
        RuntimeError: no solution to that tolerance was found.
    """
    if bool(removed.flatten(1).all(dim=1).any()):
        raise ValueError("every pixel of an image is removed; nothing is left to impute from")
    gone = removed.to(images.dtype)
    kept = 1 - gone
    kernel = _NEIGHBOURS.to(images).expand(images.shape[1], 1, 3, 3)

    def neighbours(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel[: values.shape[1]], padding=1, groups=values.shape[1])

    total = neighbours(torch.ones_like(gone))  # less at the border, where neighbours are missing

    def apply(values: Tensor) -> Tensor:
        return gone * (total * values - neighbours(values))

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum(dim=(2, 3), keepdim=True)

    wanted = gone * neighbours(kept * images)
    solution = gone * _filled(images, kept)
    residual = wanted - apply(solution)
    step = residual / total
    length = dot(residual, step)
    enough = tolerance * dot(wanted, wanted).sqrt() + 1e-12
    for _ in range(most):
        if bool((dot(residual, residual).sqrt() <= enough).all()):
            break
        along = apply(step)
        size = length / dot(step, along).clamp_min(1e-30)
        solution, residual = solution + size * step, residual - size * along
        following = residual / total
        before, length = length, dot(residual, following)
        step = following + length / before.clamp_min(1e-30) * step
    else:
        raise RuntimeError(f"the imputation did not converge to {tolerance} in {most} iterations")
    drawn = noise * torch.randn(images.shape, generator=generator).to(images)
    return kept * images + gone * (solution + drawn)


def _filled(images: Tensor, kept: Tensor) -> Tensor:
    """Images whose holes are filled from ever coarser means of what is kept."""
    if bool((kept > 0).all()) or max(images.shape[-2:]) == 1:
        return images
    share = F.avg_pool2d(kept, 2, ceil_mode=True)
    means = F.avg_pool2d(images * kept, 2, ceil_mode=True) / share.clamp_min(1e-6)
    size = (images.shape[-2], images.shape[-1])
    coarse = F.interpolate(_filled(means, (share > 0).to(images.dtype)), size=size, mode="nearest")
    return torch.where(kept > 0, images, coarse)
