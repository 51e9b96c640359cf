"""The explanation network: fuses attention and class evidence of all levels, coarse to fine, into one saliency map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Pointwise

QUERY_WIDTH = 16  # channels of the query decoder
FIRST_EXTENT = math.log(0.1)  # before fitting, a tenth of the image
TOGETHER = 32  # classes that are decoded at a time: what lies between the layers stays in the cache
EDGES_ONLY = 56  # longer sides: a level that only sharpens, narrow and without the class's evidence
SOFTNESS = 0.2  # width of a mask's border, in deviations of its logits; the same when the judge sees it in fitting


class FusedLevel(NamedTuple):
    """One level as the explanation network sees it: features (B, C, h, w) of unit scale, attention (B, 1, h, w)."""

    features: Tensor
    attention: Tensor


class Mask(NamedTuple):
    """What the explanation network answers.

    Attributes:
        logits: (B, Q, h, w) at the finest level, zero mean and unit deviation per map. Their order over the positions is
            the explanation.
        extent: natural logarithm of the share of the image (B, Q) at which the two sides balance: with the most salient
            positions up to this share kept, or else hidden, the class is expected to be equally probable.
        spread: how widely that share scatters, on the logarithmic scale; a positive scalar.
    """

    logits: Tensor
    extent: Tensor
    spread: Tensor

    def saliency(self, size: tuple[int, int]) -> Tensor:
        """The saliency mask (B, Q, H, W) in [0, 1] at a size of H x W pixels: one quarter at the border of the extent.

        So its size is learned, not set: a small object has a small mask and a large one a large mask. The share of a
        position in what is kept is squared, so that what is doubtful stays faint.
        """
        flat = self.logits.float().flatten(2)
        ranks = ((1 - self.extent.float().exp().clamp(1e-3, 0.999)) * (flat.shape[2] - 1)).round().long()
        borders = flat.sort(dim=2).values.gather(2, ranks[:, :, None])
        return resized(squashed((flat - borders) / SOFTNESS).square().reshape(self.logits.shape), size)


class ExplanationNetwork(nn.Module):
    """Class-agnostic in its weights: a class enters only as its evidence maps and its probability.

    Two decoders run side by side, from the deepest level to the finest. The *scene* decoder sees features and attention
    and runs once an image. The *query* decoder is narrow and runs once a class asked about: it sees the class's evidence
    and the scene; at the deepest levels, if it is to be told, also how sensitive the class is to each position. Its last layer
    is zero at initialisation, so that an unfitted network gives the class activation map of the local log-posterior.

    Args:
        channels: feature channels of each level, finest first.
        sizes: (h, w) of each level; the finer, the narrower the scene decoder.
        sensitive: how many of the deepest levels' sensitivity to the class it is told.
    """

    def __init__(
        self,
        channels: Sequence[int],
        sizes: Sequence[tuple[int, int]],
        sensitive: int = 0,
    ) -> None:
        super().__init__()
        self._told = len(sizes) - sensitive  # the finest level of those
        widths = [48 if max(size) <= 16 else 32 if max(size) <= EDGES_ONLY else 16 for size in sizes]
        self.lateral = nn.ModuleList(Pointwise(c + 1, w) for c, w in zip(channels, widths, strict=True))
        self.smooth = nn.ModuleList(_block(w) for w in widths)
        # From a deeper level to the next finer one, narrowed before it is enlarged.
        self.rise = nn.ModuleList(Pointwise(deep, w) for w, deep in pairwise(widths))
        # Where a class is, levels of moderate size say; at the finest, with most of the cost, it only remains where edges run.
        self._asks = asks = [max(size) <= EDGES_ONLY for size in sizes]
        self.context = nn.ModuleList(Pointwise(w, QUERY_WIDTH) for w in widths)
        # The prior at first, later what came from the deeper level; the class's evidence; its sensitivity.
        below = [QUERY_WIDTH] * (len(widths) - 1) + [1]
        self.query = nn.ModuleList(
            nn.Conv2d(channels + int(ask) + int(level >= self._told), QUERY_WIDTH, 3, padding=1)
            for level, (channels, ask) in enumerate(zip(below, asks, strict=True))
        )
        self.certainty = nn.Linear(1, QUERY_WIDTH)
        self.readout = Pointwise(QUERY_WIDTH, 1)
        self.extent = nn.Linear(2 * QUERY_WIDTH, 1)
        self.spread = nn.Parameter(torch.tensor(-0.5))
        for last_layer in (self.readout, self.extent):
            nn.init.zeros_(last_layer.weight)
            nn.init.zeros_(last_layer.bias)  # type: ignore[arg-type]

    def forward(
        self,
        levels: Sequence[FusedLevel],
        evidence: Sequence[Tensor],
        posterior: Tensor,
        probability: Tensor,
        sensitivity: Sequence[Tensor] = (),
    ) -> Mask:
        """Explain.

        Args:
            levels: features and attention of B images, finest first.
            evidence: class evidence per level, finest first, each (B, Q, h_l, w_l), for Q classes an image.
            posterior: local log-posterior (B, Q, h, w) at the deepest level.
            probability: of the classes (B, Q), in [0, 1].
            sensitivity: gradient x features of the deepest levels, finest first, each (B, Q, h_l, w_l), for a network told of it.
        """
        contexts = [
            context(scene).contiguous(memory_format=torch.channels_last)
            for context, scene in zip(self.context, self._scenes(levels), strict=True)
        ]
        answers = []
        for start in range(0, posterior.shape[1], TOGETHER):
            some = slice(start, start + TOGETHER)
            told, slopes = [maps[:, some] for maps in evidence], [maps[:, some] for maps in sensitivity]
            answers.append(self._ask(contexts, told, posterior[:, some], probability[:, some], slopes))
        logits, extent = (torch.cat(part, dim=1) for part in zip(*answers, strict=True))
        return Mask(logits, extent, F.softplus(self.spread))

    def _ask(
        self,
        contexts: Sequence[Tensor],
        evidence: Sequence[Tensor],
        posterior: Tensor,
        probability: Tensor,
        sensitivity: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Logits and extent of the masks, as in `Mask`, of some classes, from what queries are told of the scene."""
        batch, queries = posterior.shape[:2]
        prior = standardise(posterior)
        below = _channel(prior)
        for level, context in reversed(list(enumerate(contexts))):
            looks = [resized(below, (context.shape[-2], context.shape[-1]))]
            if self._asks[level]:
                looks.append(_channel(standardise(evidence[level])))
            if level >= self._told:
                looks.append(_channel(standardise(unit(sensitivity[level - self._told]))))
            hidden = self.query[level](torch.cat(looks, dim=1)).unflatten(0, (batch, queries)) + context[:, None]
            if level == len(contexts) - 1:
                hidden = hidden + self.certainty(probability[:, :, None])[:, :, :, None, None]
            below = F.relu(hidden.flatten(0, 1))
        refined = self.readout(below).reshape(batch, queries, *below.shape[-2:])
        logits = standardise(resized(prior, (refined.shape[-2], refined.shape[-1])) + refined)
        # Learned from, but not shaping, the decoder: so no weight has to balance it against the maps.
        highest = F.max_pool2d(below, below.shape[-2:]).flatten(1)  # `amax` is slow where channels lie last
        summary = torch.cat([below.mean(dim=(2, 3)), highest], dim=1).detach()
        return logits, FIRST_EXTENT + self.extent(summary).reshape(batch, queries)

    def _scenes(self, levels: Sequence[FusedLevel]) -> list[Tensor]:
        """Class-agnostic decoder features per level, finest first, each (B, width_l, h_l, w_l)."""
        scenes: list[Tensor] = []
        for level in reversed(range(len(levels))):
            features, attention = levels[level]
            scene = self.lateral[level](features, 2 * attention - 1)
            if scenes:
                scene = scene + resized(self.rise[level](scenes[-1]), (scene.shape[-2], scene.shape[-1]))
            scenes.append(self.smooth[level](scene))
        return scenes[::-1]


def _channel(maps: Tensor) -> Tensor:
    """Maps (B, Q, h, w) as one channel each (B Q, 1, h, w), laid out channels last: few channels are convolved faster so."""
    return maps.flatten(0, 1)[..., None].permute(0, 3, 1, 2)


def squashed(logits: Tensor) -> Tensor:
    """A sigmoid with slower ends: strictly rising from 0 to 1 over all that occurs, so that ranks survive in float32."""
    deep = torch.where(logits < -8, -8 - torch.log1p((-8 - logits).clamp_min(0)), logits)
    return torch.where(logits < 0, torch.sigmoid(deep), 1 - 0.5 / (1 + logits.clamp_min(0) / 2))


def unit(maps: Tensor) -> Tensor:
    """Scale each map (..., h, w) so that its largest magnitude is one; what is hardly more than rounding stays small."""
    return maps / maps.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1e-4)


def standardise(maps: Tensor) -> Tensor:
    """Bring each map (..., h, w) to zero mean and unit deviation; a constant map becomes zero."""
    return F.layer_norm(maps, maps.shape[-2:], eps=1e-6)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample maps (B, C, h, w) bilinearly to `size`."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _block(channels: int) -> nn.Sequential:
    # One group: statistics of the image itself, never of the batch.
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.ReLU())
