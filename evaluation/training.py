"""Train the small classifiers that stand for "the user's model" where the truth is known."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def train(
    network: Network,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int = 0,
    rate: float = 3e-3,
    batch: int = 64,
    mirror: bool = False,
) -> Network:
    """Train by cross-entropy (AdamW, one cycle); returns the network in evaluation mode, its weights with channels last.

    Args:
        network: of images to logits.
        images: (N, C, H, W).
        labels: (N,).
        epochs: over all images, but for the last incomplete batch.
        seed: of order and mirroring; the network's first weights are the caller's.
        rate: highest learning rate.
        batch: images a step.
        mirror: whether images are mirrored at random.
    """
    drawn = torch.Generator().manual_seed(seed)
    network = network.train().to(memory_format=torch.channels_last)  # faster for convolutions
    whole = len(images) // batch * batch
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * (whole // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=drawn)[:whole].split(batch):
            shown = images[rows].contiguous(memory_format=torch.channels_last)
            if mirror and torch.rand((), generator=drawn) < 0.5:
                shown = shown.flip(-1)
            loss = F.cross_entropy(network(shown), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()
