"""Scattered digits with a planted shortcut: a patch in a corner whose colour tells the class. What a model uses is then known."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..training import train
from .digits import SIZE, DigitNet, scattered_digits

PATCH = 10  # side of the patch, in pixels
_COLOURS = torch.tensor([colorsys.hsv_to_rgb(digit / 10, 1.0, 1.0) for digit in range(10)])
_CORNER = (slice(2, 2 + PATCH), slice(SIZE - 2 - PATCH, SIZE - 2))


@dataclass(frozen=True)
class Shortcuts:
    """A set of canvases.

    Attributes:
        images: (N, 3, 64, 64), float32 in [0, 1], with the patch of their class.
        plain: the same without a patch.
        labels: the digit (N,), int64.
        digits: where it is (N, 64, 64), bool.
        patch: where the patch is (64, 64), bool.
    """

    images: Tensor
    plain: Tensor
    labels: Tensor
    digits: Tensor
    patch: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.images)


def shortcuts(count: int, seed: int = 0, split: Literal["train", "test"] = "train") -> Shortcuts:
    """Scattered digits as in `scattered_digits`, in three equal channels, with a patch in the upper right corner.

    Args:
        count: N.
        seed: the same seed gives the same set.
        split: from which handwritten digits it is made.
    """
    data = scattered_digits(count, seed, split)
    plain = data.images.repeat(1, 3, 1, 1)
    labels = data.labels[:, 0]
    patch = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    patch[_CORNER] = True
    return Shortcuts(patched(plain, labels), plain, labels, data.masks[:, 0], patch)


def patched(images: Tensor, labels: Tensor) -> Tensor:
    """Canvases (N, 3, 64, 64) with the patches of classes (N,)."""
    images = images.clone()
    images[:, :, _CORNER[0], _CORNER[1]] = _COLOURS[labels][:, :, None, None]
    return images


def train_shortcut_net(data: Shortcuts, epochs: int = 3, seed: int = 0) -> DigitNet:
    """Train a classifier that may take the shortcut, and does: the patch is easier than the digit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return train(DigitNet(channels=3), data.images, data.labels, epochs, seed)
