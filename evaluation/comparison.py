"""Several explainers on the same images: faithfulness on the target over several fills, localisation, and time."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from .explainers import Explainer
from .faithfulness import Ask, area, perturbation_curve
from .fills import FILLS, UNSEEN
from .localisation import pointing_game, saliency_share


@dataclass(frozen=True)
class Scores:
    """One explainer's scores, per image.

    Attributes:
        insertion: area under the insertion curve per fill, each (N,).
        deletion: likewise; the lower the better.
        pointing: (N,), empty where there are no masks.
        share: likewise.
        seconds: per image, the median of interleaved repeats.
    """

    insertion: dict[str, Tensor]
    deletion: dict[str, Tensor]
    pointing: Tensor
    share: Tensor
    seconds: float

    def gap(self, fills: tuple[str, ...] = tuple(FILLS)) -> Tensor:
        """Insertion less deletion area, mean over fills (N,)."""
        return torch.stack([self.insertion[fill] - self.deletion[fill] for fill in fills]).mean(dim=0)


def compare(
    explainers: Mapping[str, Explainer],
    ask: Ask,
    images: Tensor,
    targets: Tensor,
    mean: Tensor,
    deviation: Tensor,
    masks: Tensor | None = None,
    batch: int = 50,
    steps: int = 20,
) -> dict[str, Scores]:
    """Score explainers on the same images with the same fills.

    Args:
        explainers: by name.
        ask: log-probabilities (B, K) of images, from the model that is explained.
        images: (N, C, H, W).
        targets: class indices (N,).
        mean: of the data per channel (C,), for fills.
        deviation: likewise.
        masks: where the objects are (N, H, W), bool.
        batch: images at a time; every explainer sees the same batches.
        steps: points of a curve, less one.
    """
    parts = list(zip(images.split(batch), targets.split(batch), strict=True))
    maps = {name: torch.cat([explain(x, t).detach() for x, t in parts]) for name, explain in explainers.items()}
    seconds = timed(explainers, images[:16], targets[:16])
    areas: dict[tuple[str, str, bool], list[Tensor]] = defaultdict(list)
    for fill, make in FILLS.items():
        drawn = torch.Generator().manual_seed(0)
        for place, (x, t) in enumerate(parts):
            replaced = make(x, mean, deviation, drawn)
            for name, insert in product(maps, (True, False)):
                m = maps[name][place * batch : (place + 1) * batch]
                areas[name, fill, insert].append(area(perturbation_curve(ask, x, m, t, replaced, insert, steps)))
    nothing = torch.empty(0)
    return {
        name: Scores(
            {fill: torch.cat(areas[name, fill, True]) for fill in FILLS},
            {fill: torch.cat(areas[name, fill, False]) for fill in FILLS},
            nothing if masks is None else pointing_game(saliency, masks),
            nothing if masks is None else saliency_share(saliency, masks),
            seconds[name],
        )
        for name, saliency in maps.items()
    }


def timed(explainers: Mapping[str, Explainer], images: Tensor, targets: Tensor, repeats: int = 3) -> dict[str, float]:
    """Seconds an image of each explainer: medians of repeats taken in turn, so that drift of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in explainers}
    for repeat in range(repeats + 1):
        for name, explain in explainers.items():
            start = time.perf_counter()
            explain(images, targets)
            if repeat:  # the first is a warm-up
                taken[name].append((time.perf_counter() - start) / len(images))
    return {name: statistics.median(times) for name, times in taken.items()}


def table(scores: Mapping[str, Scores]) -> pd.DataFrame:
    """Means over images, a row an explainer."""
    rows = {}
    for name, one in scores.items():
        row = {
            "insertion ↑": float(torch.stack(list(one.insertion.values())).mean()),
            "deletion ↓": float(torch.stack(list(one.deletion.values())).mean()),
            "gap, unseen fills ↑": float(one.gap(UNSEEN).mean()),
        }
        if one.pointing.numel():
            row |= {"pointing ↑": float(one.pointing.mean()), "share inside ↑": float(one.share.mean())}
        rows[name] = row | {"ms/image ↓": 1e3 * one.seconds}
    return pd.DataFrame.from_dict(rows, orient="index")
