"""Insertion and deletion (Petsiuk et al., 2018, RISE), batched, always on the target itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Ask = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> log-probabilities (B, K)


@torch.no_grad()
def perturbation_curve(
    ask: Ask, images: Tensor, maps: Tensor, targets: Tensor, fills: Tensor, insert: bool, steps: int = 20
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

    Returns:
        Probabilities (B, steps + 1), on the CPU.
    """
    flat = maps.reshape(len(maps), -1).float()
    order = flat.argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(flat.shape[1], device=order.device).expand_as(order))
    ranks = ranks.reshape(maps.shape)
    points = []
    for step in range(steps + 1):
        top = ranks < round(step * flat.shape[1] / steps)
        shown = top if insert else ~top
        answer = ask(torch.where(shown, images, fills))
        points.append(answer.gather(1, targets[:, None])[:, 0].exp().cpu())
    return torch.stack(points, dim=1)


def area(curve: Tensor) -> Tensor:
    """Area under curves (B, steps + 1) by the trapezoid rule, over a share axis from 0 to 1: (B,)."""
    return (curve[:, 1:] + curve[:, :-1]).mean(dim=1) / 2
