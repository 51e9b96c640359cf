"""Insertion and deletion (Petsiuk et al., 2018, RISE), batched, always on the target itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_attnkd.perturbation import blended

Ask = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> log-probabilities (B, K)


@torch.no_grad()
def perturbation_curve(
    ask: Ask,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    fills: Tensor,
    insert: bool,
    steps: int = 20,
    ends: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Probability of the class while pixels are replaced, the most relevant first.

    Args:
        ask: log-probabilities of images.
        images: (B, C, H, W).
        maps: saliency (B, 1, H, W); only its order counts. Ties are broken by position.
        targets: class indices (B,).
        fills: what stands for a hidden pixel (B, C, H, W).
        insert: start from the fill and show pixels; else start from the image and hide them.
        steps: the curve has steps + 1 points, at shares 0, 1/steps, ..., 1.
        ends: probabilities (B,) at the first and the last share, which no map changes, where they are known.

    Returns:
        Probabilities (B, steps + 1), on the CPU.
    """
    shares = [step / steps for step in range(steps + 1)]
    inner = probabilities_at(shares if ends is None else shares[1:-1], ask, images, maps, targets, fills, insert)
    return inner if ends is None else torch.cat([ends[0][:, None], inner, ends[1][:, None]], dim=1)


@torch.no_grad()
def probabilities_at(
    shares: Sequence[float], ask: Ask, images: Tensor, maps: Tensor, targets: Tensor, fills: Tensor, insert: bool
) -> Tensor:
    """Probability of the class (B, shares), on the CPU, with only these shares of the pixels shown, or else hidden."""
    ranks = ranks_of(maps)
    points = [torch.empty(len(images), 0)]
    for share in shares:
        top = ranks < round(share * ranks[0].numel())
        shown = top if insert else ~top
        points.append(probability(ask, torch.where(shown, images, fills), targets)[:, None])
    return torch.cat(points, dim=1)


def probability(ask: Ask, images: Tensor, targets: Tensor) -> Tensor:
    """Probability of each image's class (B,), on the CPU."""
    return ask(images).gather(1, targets[:, None])[:, 0].exp().cpu()


def area(curve: Tensor) -> Tensor:
    """Area under curves (B, steps + 1) by the trapezoid rule, over a share axis from 0 to 1: (B,)."""
    return (curve[:, 1:] + curve[:, :-1]).mean(dim=1) / 2


def ranks_of(maps: Tensor) -> Tensor:
    """Place of every position (B, 1, H, W), int64, the most salient at 0; ties stand in the order of reading."""
    order = maps.flatten(1).float().argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).reshape(maps.shape)


@torch.no_grad()
def drop_and_increase(ask: Ask, images: Tensor, maps: Tensor, targets: Tensor, fills: Tensor) -> tuple[Tensor, Tensor]:
    """How the class fares when the image is seen through the map alone (Chattopadhay et al., 2018, Grad-CAM++).

    Args:
        ask: log-probabilities of images.
        images: (B, C, H, W).
        maps: saliency (B, 1, H, W); each is brought to [0, 1] by its own range, a constant map hides everything.
        targets: class indices (B,).
        fills: what stands for a hidden pixel (B, C, H, W).

    Returns:
        The drop in probability as a share of the probability on the image (B,), in [0, 1]: the lower the better; and whether
        it rose (B,), 0 or 1. Both on the CPU.
    """
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    seen = (maps - low) / (high - low).clamp_min(1e-12)
    before, after = (probability(ask, shown, targets) for shown in (images, blended(seen, images, fills)))
    return (before - after).clamp_min(0) / before.clamp_min(1e-12), (after > before).float()
