"""Sensitivity: how the features at each level bear on a class, by one backward pass to the levels (gradient x features)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Recorded(NamedTuple):
    """A forward pass that autograd recorded, kept so that it can be gone back.

    Attributes:
        images: (B, C, H, W), where the pass began.
        outputs: what was tapped, finest level first, each in the network's own layout.
        fold: from such outputs to maps per level, each (B, C_l, h_l, w_l).
        log_probabilities: (B, K), where the pass ended.
    """

    images: Tensor
    outputs: tuple[Tensor, ...]
    fold: Callable[[list[Tensor]], list[Tensor]]
    log_probabilities: Tensor


def sensitivity(
    recorded: Recorded,
    directions: Callable[[Tensor], Iterable[Tensor]],
    first: int = 0,
    with_pixels: bool = False,
) -> list[Tensor]:
    """Gradient x features of each class asked about, summed over channels: to first order, what each position adds.

    One backward pass a class, no deeper than the finest level asked for. Only gradients with regard to outputs are taken: no
    parameter's `.grad` is touched.

    Args:
        recorded: the pass.
        directions: from log-probabilities (B, K) to the slopes of what is asked with regard to them, (B, K) per question.
        first: the finest level wanted.
        with_pixels: whether the images are a level too, the finest; there it is the gradient times the pixels' distance from
            their mean over the image.

    Returns:
        Maps (B, Q, h_l, w_l), float32, finest first.
    """
    outputs = list(recorded.outputs[first:])
    wanted = [recorded.images, *outputs] if with_pixels else outputs
    found: list[list[Tensor]] = []
    with torch.inference_mode(False), torch.enable_grad():
        for weights in directions(recorded.log_probabilities.detach()):
            slopes = torch.autograd.grad(
                recorded.log_probabilities, wanted, weights, retain_graph=True, allow_unused=True
            )
            found.append(
                [torch.zeros_like(at) if slope is None else slope for at, slope in zip(wanted, slopes, strict=True)]
            )
    maps = []
    for slopes_of_class in found:
        levels = []
        if with_pixels:
            images = recorded.images.detach()
            levels.append(slopes_of_class.pop(0).float() * (images - images.mean(dim=(2, 3), keepdim=True)).float())
        unasked = [at.detach() for at in recorded.outputs[:first]]  # folded with the rest, and left out again
        products = [at.detach().float() * slope.float() for at, slope in zip(outputs, slopes_of_class, strict=True)]
        levels += recorded.fold([*unasked, *products])[first:]
        maps.append([level.sum(dim=1) for level in levels])
    return [torch.stack(level, dim=1) for level in zip(*maps, strict=True)]
