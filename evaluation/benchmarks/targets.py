"""Models that no setting was chosen on, for claims that go beyond those that settings were chosen on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18

from ..classifiers import Classifier, train_once
from ..datasets.birds import SPECIES, birds
from ..training import train

KEPT = Path("out/birds-resnet18.safetensors")


def birds_resnet18() -> Classifier:
    """A ResNet-18 for the drawn birds, trained at the first use, in some minutes: `--model ...targets:birds_resnet18`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = resnet18(num_classes=len(SPECIES))

    def trained() -> nn.Module:
        data = birds(3600, seed=0)
        return train(network, data.images, data.labels, epochs=10, mirror=True)

    train_once(network, KEPT, trained)
    network = network.eval().to(memory_format=torch.channels_last)
    return Classifier(network, 128, (0.0,) * 3, (1.0,) * 3, tuple(species.name for species in SPECIES))
