"""Sensitivity: how the features of the deeper levels bear on a class, by one backward pass to them (gradient x features)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Recorded(NamedTuple):
    """A forward pass that autograd recorded from some level on, kept so that it can be gone back.

    Attributes:
        outputs: what was tapped, finest level first, each in the network's own layout.
        first: the finest level that was recorded.
        fold: from such outputs to maps per level, each (B, C_l, h_l, w_l).
        log_probabilities: (B, K), where the pass ended.
    """

    outputs: tuple[Tensor, ...]
    first: int
    fold: Callable[[list[Tensor]], list[Tensor]]
    log_probabilities: Tensor


def sensitivity(recorded: Recorded, directions: Callable[[Tensor], Iterable[Tensor]]) -> list[Tensor]:
    """Gradient x features of each class asked about, summed over channels: to first order, what each position adds.

    One backward pass a class, no further than the finest level that was recorded. Only gradients with regard to outputs are taken:
    no parameter's `.grad` is touched.

    Args:
        recorded: the pass.
        directions: from log-probabilities (B, K) to the slopes of what is asked with regard to them, (B, K) per question.

    Returns:
        Maps (B, Q, h_l, w_l) of the levels that were recorded, float32, finest first.
    """
    wanted = list(recorded.outputs[recorded.first :])
    finer = recorded.outputs[: recorded.first]  # folded with the rest, and left out again
    maps = []
    with torch.inference_mode(False), torch.enable_grad():
        for weights in directions(recorded.log_probabilities.detach()):
            slopes = torch.autograd.grad(
                recorded.log_probabilities, wanted, weights, retain_graph=True, allow_unused=True
            )
            products = [
                torch.zeros_like(at, dtype=torch.float32) if slope is None else at.detach().float() * slope.float()
                for at, slope in zip(wanted, slopes, strict=True)
            ]
            levels = recorded.fold([*finer, *products])[recorded.first :]
            maps.append([level.sum(dim=1) for level in levels])
    return [torch.stack(level, dim=1) for level in zip(*maps, strict=True)]
