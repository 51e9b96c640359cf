"""Attention at one level: a gate over channels, then a gate over positions (Woo et al., 2018, CBAM's order)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pointwise(nn.Conv2d):
    """A convolution of 1x1, as a matrix product where channels come first: with few outputs a CPU is several times as fast."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, 1)

    def forward(self, maps: Tensor, beside: Tensor | None = None) -> Tensor:
        """Mix the channels.

        Args:
            maps: (B, C, h, w).
            beside: the last channel (B, 1, h, w), where it comes apart: the finest features are large, and are not copied.
        """
        assert self.bias is not None
        weight, start = self.weight[:, : maps.shape[1]], self.bias[:, None, None]
        if beside is not None:
            start = torch.addcmul(start, self.weight[:, -1], beside)
        if not maps.is_contiguous():
            return F.conv2d(maps, weight) + start
        start = start.expand(maps.shape[0], -1, *maps.shape[2:]).flatten(2)
        mixed = torch.baddbmm(start, weight.flatten(1).expand(maps.shape[0], -1, -1), maps.flatten(2))
        return mixed.reshape(maps.shape[0], -1, *maps.shape[2:])


class Attended(NamedTuple):
    """Features under both gates, as factors: the product alone costs as much as a layer of a network.

    Attributes:
        features: (B, C, h, w).
        gate: of the channels (B, C).
        places: of the positions (B, 1, h, w), relative to their mean: what counts is where it is high and low.
    """

    features: Tensor
    gate: Tensor
    places: Tensor

    def maps(self) -> Tensor:
        """The product (B, C, h, w)."""
        return self.features * self.gate[:, :, None, None] * self.places

    def pooled(self) -> Tensor:
        """Its mean over the positions (B, C): the attention-weighted mean of the features."""
        weights = self.places.flatten(1) / self.places[0].numel()
        return self.gate * torch.bmm(_positions(self.features), weights[:, :, None])[:, :, 0]

    def along(self, rows: Tensor) -> Tensor:
        """Its inner product, at every position, with rows (B, Q, C): (B, Q, h, w)."""
        inner = torch.bmm(rows * self.gate[:, None], _positions(self.features))
        return inner.reshape(*inner.shape[:2], *self.places.shape[2:]) * self.places


class LevelAttention(nn.Module):
    """Channel gate, then spatial gate. At initialisation both pass the features unchanged.

    Args:
        channels: C of the level.
        views: how many learned projections the spatial gate sees beside CBAM's mean and maximum over channels.
    """

    def __init__(self, channels: int, views: int = 6) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.view = Pointwise(channels, views)
        self.spatial = nn.Conv2d(views + 2, 1, 7, padding=3)
        for last in (self.channel[-1], self.spatial):
            assert isinstance(last, (nn.Linear, nn.Conv2d))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, scaled: Tensor) -> tuple[Attended, Tensor]:
        """Attend to features.

        Args:
            features: (B, C, h, w), as the head needs them.
            scaled: the same, brought to zero mean and unit deviation per channel; what the gates look at.

        Returns:
            The attended features; and the attention map (B, 1, h, w) in (0, 1), 0.5 at initialisation.
        """
        gate = self.channel(torch.stack([scaled.mean(dim=(2, 3)), scaled.amax(dim=(2, 3))])).sum(dim=0)
        gate = 2 * torch.sigmoid(gate)
        looks = torch.cat(
            [scaled.mean(1, keepdim=True), scaled.amax(1, keepdim=True), F.relu(self.view(scaled))], dim=1
        )
        attention = torch.sigmoid(self.spatial(looks))
        return Attended(features, gate, attention / attention.mean(dim=(2, 3), keepdim=True).clamp_min(1e-6)), attention


def _positions(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) as (B, C, h w), without a copy also where channels lie last."""
    if maps.is_contiguous():
        return maps.flatten(2)
    return maps.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)


def attended_area(attention: Tensor) -> Tensor:
    """How large a share of the positions an attention map (B, 1, h, w) takes in, counted by its peak: a scalar in (0, 1].

    1 for a uniform map, 1/(h w) for a single position.
    """
    return (attention.mean(dim=(2, 3)) / attention.amax(dim=(2, 3)).clamp_min(1e-6)).mean()
