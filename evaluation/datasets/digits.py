"""Scattered digits: real handwritten digits (scikit-learn's, UCI) among distractor pieces, with the digit's true mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ..training import train

SIZE = 64  # side of the canvas, in pixels


@dataclass(frozen=True)
class ScatteredDigits:
    """A set of canvases.

    Attributes:
        images: (N, 1, 64, 64), float32 in [0, 1].
        labels: the digits on each canvas (N, D), int64 in 0..9.
        masks: where each digit is (N, D, 64, 64), bool.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.images)


def scattered_digits(
    count: int, seed: int = 0, split: Literal["train", "test"] = "train", digits: int = 1, pieces: int = 10
) -> ScatteredDigits:
    """Scatter digits and distractors on canvases.

    Distractors are fragments of other digits: like in stroke and brightness, too small to be read.

    Args:
        count: N.
        seed: the same seed gives the same set.
        split: from which handwritten digits it is made; no digit is in both.
        digits: D on each canvas, all different, in cells of their own so that none hides another.
        pieces: distractors on each canvas.
    """
    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    data = load_digits()
    of_split = np.arange(len(data.target)) % 5 != 0 if split == "train" else np.arange(len(data.target)) % 5 == 0
    glyphs = torch.from_numpy(data.images[of_split] / 16.0).float()
    names = data.target[of_split]
    images = torch.zeros(count, SIZE, SIZE)
    masks = torch.zeros(count, digits, SIZE, SIZE, dtype=torch.bool)
    labels = torch.zeros(count, digits, dtype=torch.int64)
    for index in range(count):
        for _ in range(pieces):
            _add_piece(images[index], glyphs[rng.integers(len(glyphs))], rng)
        chosen = rng.choice(10, size=digits, replace=False)
        # Halves of the canvas keep several digits apart.
        for place, name in enumerate(chosen):
            glyph = glyphs[rng.choice(np.flatnonzero(names == name))]
            side = int(rng.integers(20, 29))
            drawn = _enlarged(glyph, side)
            width = SIZE // digits
            top = int(rng.integers(0, SIZE - side + 1))
            left = place * width + int(rng.integers(0, width - side + 1))
            ink = drawn > 0.25
            canvas = images[index, top : top + side, left : left + side]
            # The ground around the digit is cleared, so that it can be read.
            near = F.max_pool2d(ink[None, None].float(), 5, stride=1, padding=2)[0, 0] > 0
            canvas.copy_(torch.where(near, drawn, canvas))
            masks[index, place, top : top + side, left : left + side] = ink
            labels[index, place] = int(name)
    noise = torch.from_numpy(rng.normal(0, 0.03, images.shape)).float()
    return ScatteredDigits((images + noise).clamp(0, 1)[:, None], labels, masks)


def _enlarged(glyph: Tensor, side: int) -> Tensor:
    return F.interpolate(glyph[None, None], size=(side, side), mode="bicubic", align_corners=False)[0, 0].clamp(0, 1)


def _add_piece(canvas: Tensor, glyph: Tensor, rng: np.random.Generator) -> None:
    height, width = int(rng.integers(3, 5)), int(rng.integers(3, 5))
    row, column = int(rng.integers(0, 9 - height)), int(rng.integers(0, 9 - width))
    scale = float(rng.uniform(2.2, 3.2))
    piece = F.interpolate(
        glyph[None, None, row : row + height, column : column + width],
        scale_factor=scale,
        mode="bicubic",
        align_corners=False,
    )[0, 0].clamp(0, 1)
    high, wide = piece.shape
    top, left = int(rng.integers(0, SIZE - high + 1)), int(rng.integers(0, SIZE - wide + 1))
    spot = canvas[top : top + high, left : left + wide]
    spot.copy_(torch.maximum(spot, piece))


class DigitNet(nn.Module):
    """The "user's model" of the examples: a small convolutional network on canvases (B, C, 64, 64), logits (B, 10).

    Args:
        channels: C.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 32, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.stage1 = self._stage(32, 32)
        self.stage2 = nn.Sequential(nn.MaxPool2d(2), self._stage(32, 64))
        self.stage3 = nn.Sequential(nn.MaxPool2d(2), self._stage(64, 128))
        self.head = nn.Linear(128, 10)

    @staticmethod
    def _stage(in_channels: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10)."""
        features: Tensor = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return self.head(features.mean(dim=(2, 3)))


def train_digit_net(data: ScatteredDigits, epochs: int = 3, seed: int = 0) -> DigitNet:
    """Train a classifier of single scattered digits; returns it in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return train(DigitNet(), data.images, data.labels[:, 0], epochs, seed)
