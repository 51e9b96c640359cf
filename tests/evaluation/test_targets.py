"""Models for claims that go beyond those that settings were chosen on: trained once, and then read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from captum_attnkd.evaluation.benchmarks import targets
from captum_attnkd.evaluation.datasets.birds import Birds, birds
from torch import nn


def test_the_birds_resnet_is_trained_at_its_first_use_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []

    def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, **how: Any) -> nn.Module:
        trained.append((len(images), int(labels.max()), how))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        return network

    def few(count: int, seed: int) -> Birds:
        assert (count, seed) == (3600, 0)
        return birds(24, seed)

    monkeypatch.setattr(targets, "KEPT", tmp_path / "kept" / "net.safetensors")
    monkeypatch.setattr(targets, "train", train)
    monkeypatch.setattr(targets, "birds", few)
    before = torch.get_rng_state()
    first, again = targets.birds_resnet18(), targets.birds_resnet18()
    assert torch.equal(torch.get_rng_state(), before)
    assert trained == [(24, 23, {"epochs": 10, "mirror": True})]
    images = torch.rand(2, 3, first.size, first.size, generator=torch.Generator().manual_seed(0))
    assert isinstance(first.model, nn.Module)
    assert not first.model.training
    with torch.no_grad():
        answer = first.model(images)
        assert answer.shape == (2, len(first.classes or ()))
        assert torch.equal(answer, again.model(images))
