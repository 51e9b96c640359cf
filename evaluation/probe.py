"""A mask-only probe: how well the class can be told from the saliency map alone (Jethani et al., 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .faithfulness import ranks_of

FOLDS, EPOCHS, FEWEST = 3, 60, 10


def probe(maps: Tensor, targets: Tensor, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Whether a small network, taught on other maps, names each map's class; and the same with labels shuffled.

    Args:
        maps: saliency (N, 1, H, W); only their order counts, averaged over side x side cells.
        targets: classes (N,). Only those of at least ten maps are asked about.
        side: of the maps as the network sees them.
        seed: of folds, weights and shuffle.

    Returns:
        Two of (M,), 0 or 1, for the M maps of such classes; each map is judged by a network that has not seen it.

    Raises:
        ValueError: fewer than two classes have ten maps.
    """
    counts = torch.bincount(targets)
    frequent = torch.nonzero(counts >= FEWEST)[:, 0]
    if len(frequent) < 2:
        raise ValueError(f"a probe needs two classes with at least {FEWEST} images each; there are {len(frequent)}")
    kept = torch.isin(targets, frequent)
    labels = torch.searchsorted(frequent, targets[kept])
    ranks = ranks_of(-maps[kept]).float() / maps[0].numel()
    small = F.adaptive_avg_pool2d(ranks, side)
    small = (small - small.mean()) / small.std().clamp_min(1e-6)
    drawn = torch.Generator().manual_seed(seed)
    shuffled = labels[torch.randperm(len(labels), generator=drawn)]
    folds = torch.randperm(len(labels), generator=drawn) % FOLDS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        told, by_chance = (_named(small, names, folds, len(frequent)) for names in (labels, shuffled))
    return told, by_chance


def _named(maps: Tensor, labels: Tensor, folds: Tensor, classes: int) -> Tensor:
    right = torch.zeros(len(labels))
    for fold in range(FOLDS):
        learned, judged = folds != fold, folds == fold
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, classes),
        )  # fmt: skip
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        rows = torch.nonzero(learned)[:, 0]
        for _ in range(EPOCHS):
            for part in rows[torch.randperm(len(rows))].split(64):
                loss = F.cross_entropy(network(maps[part]), labels[part])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            right[judged] = (network.eval()(maps[judged]).argmax(dim=1) == labels[judged]).float()
    return right
