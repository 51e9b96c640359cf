"""ROAD, remove and debias (Rong et al., 2022): pixels are removed by noisy linear imputation, so that no hole tells the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .faithfulness import Ask, probability, ranks_of

SHARES = (0.2, 0.4, 0.6, 0.8)


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
        points.append(probability(ask, imputed(images, removed, generator), targets))
    return torch.stack(points, dim=1)


def imputed(
    images: Tensor,
    removed: Tensor,
    generator: torch.Generator,
    noise: float = 0.01,
    tolerance: float = 5e-4,
    most: int = 1000,
) -> Tensor:
    """Replace removed pixels by the weighted mean of their eight neighbours, all at once, and add a little noise.

    The means are a linear system, symmetric and positive definite. Conjugate gradients solve it an image at a time (which stays in
    the processor's cache), from a first guess by ever coarser means of what is left, and preconditioned over levels (Bramble,
    Pasciak & Xu, 1990), without which large holes take hundreds of iterations.

    Args:
        images: (B, C, H, W).
        removed: (B, 1, H, W), bool; some pixel of every image must be left.
        generator: of the noise; on the CPU.
        noise: deviation of the noise on removed pixels.
        tolerance: residual at which to stop, against that of a black guess. On photographs the probabilities of the default are
            within 0.001 of those at a fifth of it.
        most: iterations at most.

    Raises:
        ValueError: nothing is left of an image.
        RuntimeError: no solution to that tolerance was found.
    """
    if bool(removed.flatten(1).all(dim=1).any()):
        raise ValueError("every pixel of an image is removed; nothing is left to impute from")
    solved = [_solved(*one, tolerance, most) for one in zip(images.split(1), removed.split(1), strict=True)]
    drawn = noise * torch.randn(images.shape, generator=generator).to(images)
    return torch.where(removed, torch.cat(solved) + drawn, images)


def _solved(image: Tensor, removed: Tensor, tolerance: float, most: int) -> Tensor:
    """An image (1, C, H, W) whose removed pixels (1, 1, H, W) are the weighted means of their neighbours."""
    gone = removed.to(image.dtype)
    kept = 1 - gone
    total = neighbours(torch.ones_like(gone))  # less at the border, where neighbours are missing
    precondition = _preconditioner(gone, total, total - neighbours(gone))

    def apply(values: Tensor) -> Tensor:
        return gone * (total * values - neighbours(values))

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum(dim=(2, 3), keepdim=True)

    wanted = gone * neighbours(kept * image)
    solution = gone * _filled(image, kept)
    residual = wanted - apply(solution)
    step = precondition(residual)
    length = dot(residual, step)
    enough = tolerance * dot(wanted, wanted).sqrt() + 1e-12
    for _ in range(most):
        if bool((dot(residual, residual).sqrt() <= enough).all()):
            return kept * image + gone * solution
        along = apply(step)
        size = length / dot(step, along).clamp_min(1e-30)
        solution, residual = solution + size * step, residual - size * along
        following = precondition(residual)
        before, length = length, dot(residual, following)
        step = following + length / before.clamp_min(1e-30) * step
    raise RuntimeError(f"the imputation did not converge to {tolerance} in {most} iterations")


def neighbours(values: Tensor) -> Tensor:
    """Sum over the eight neighbours (..., H, W), those at a side times 1/6 and those at a corner times 1/12, as in the paper.

    That is [1 2 1] along both axes, over 12, less the pixel's own share: on a CPU a twentieth of the time of a convolution.
    """
    down = values + values
    down[..., 1:, :] += values[..., :-1, :]
    down[..., :-1, :] += values[..., 1:, :]
    both = down + down
    both[..., 1:] += down[..., :-1]
    both[..., :-1] += down[..., 1:]
    return both.div_(12).sub_(values, alpha=1 / 3)


def _preconditioner(gone: Tensor, total: Tensor, ties: Tensor) -> Callable[[Tensor], Tensor]:
    """Residuals (1, C, H, W) divided by the system's diagonal, at full size and summed over ever larger blocks.

    Args:
        gone: 1 where pixels are removed (1, 1, H, W).
        total: weight of a pixel's neighbours.
        ties: weight of those that are kept.
    """
    diagonals: list[Tensor] = []
    tied, count, side = gone * ties, gone, 1
    while side < max(gone.shape[-2:]) and len(diagonals) < 7:
        side *= 2
        tied, count = (_sums(values) for values in (tied, count))
        # A block is tied to what is kept, and along its border to other blocks: about a third a pixel, on four sides.
        border = 4 / 3 * side * (count / side**2).sqrt()
        diagonals.append(torch.where(count > 0, 1 / (tied + border).clamp_min(1e-6), 0.0))

    def precondition(residual: Tensor) -> Tensor:
        parts, sums = [], residual
        for diagonal in diagonals:
            sums = _sums(sums)
            parts.append(sums * diagonal)
        found = residual / total
        coarse: Tensor | None = None
        for part, finer in zip(reversed(parts), [*reversed(parts[:-1]), found], strict=True):
            both = part if coarse is None else part + coarse
            coarse = F.interpolate(both, size=finer.shape[-2:], mode="nearest")
        return gone * (found if coarse is None else found + coarse)

    return precondition


def _sums(values: Tensor) -> Tensor:
    """Over blocks of 2x2; at an odd border over what there is of them, so that enlarging is exactly the adjoint."""
    return F.avg_pool2d(values, 2, ceil_mode=True, divisor_override=1)


def _filled(images: Tensor, kept: Tensor) -> Tensor:
    """Images whose holes are filled from ever coarser means of what is kept."""
    if bool((kept > 0).all()) or max(images.shape[-2:]) == 1:
        return images
    share = F.avg_pool2d(kept, 2, ceil_mode=True)
    means = F.avg_pool2d(images * kept, 2, ceil_mode=True) / share.clamp_min(1e-6)
    size = (images.shape[-2], images.shape[-1])
    coarse = F.interpolate(_filled(means, (share > 0).to(images.dtype)), size=size, mode="nearest")
    return torch.where(kept > 0, images, coarse)
