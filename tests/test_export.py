"""The exported graph answers as PyTorch does, for any number of images and any class."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_task import CLASSES, TinyNet

from captum_attnkd import AttentiveKDAttribution, MissingExtraError, NotFittedError

ort = pytest.importorskip("onnxruntime", reason="export is an extra")


def answers(path: Path, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores, saliency = session.run(None, {"images": images.numpy(), "target": target.numpy()})
    return torch.from_numpy(np.asarray(scores)), torch.from_numpy(np.asarray(saliency))


def test_a_grafted_graph_holds_model_and_map_for_any_batch(
    fitted: AttentiveKDAttribution, model: TinyNet, images: Tensor, tmp_path: Path
) -> None:
    before = fitted._target.queries
    fitted.export(tmp_path / "explainer.onnx")
    assert fitted._target.queries == before
    assert isinstance(fitted._target.queries, int)
    assert [path.name for path in tmp_path.iterdir()] == ["explainer.onnx"]
    for batch in (1, 2, 5):
        some = images[:batch]
        predicted = model(some).argmax(1)
        target = (predicted + torch.arange(batch)) % CLASSES
        scores, saliency = answers(tmp_path / "explainer.onnx", some, target)
        torch.testing.assert_close(scores, model(some).log_softmax(1).detach(), atol=1e-4, rtol=0)
        torch.testing.assert_close(saliency, fitted.saliency(some, target), atol=1e-4, rtol=0)
        _, top = answers(tmp_path / "explainer.onnx", some, torch.full_like(target, -1))
        torch.testing.assert_close(top, fitted.saliency(some), atol=1e-4, rtol=0)


def test_a_graph_for_two_images_and_a_compact_student(
    compact: AttentiveKDAttribution, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    compact.export(tmp_path / "compact.onnx", dynamic_batch=False)
    scores, saliency = answers(tmp_path / "compact.onnx", images[:2], labels[:2])
    torch.testing.assert_close(saliency, compact.saliency(images[:2], labels[:2]), atol=1e-4, rtol=0)
    student = compact.surrogate.student(images[:2])[0].logits.log_softmax(1)
    torch.testing.assert_close(scores, student, atol=1e-4, rtol=0)


def test_what_cannot_be_written_leaves_the_old_file(
    fitted: AttentiveKDAttribution, untrained: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFittedError):
        AttentiveKDAttribution(untrained).export(tmp_path / "none.onnx")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("long work before the path is looked at"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fitted.export(tmp_path / "no such folder" / "explainer.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(
    fitted: AttentiveKDAttribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"onnx and onnxscript: pip install 'captum-attnkd\[onnx\]'"):
        fitted.export(tmp_path / "explainer.onnx")
    assert not list(tmp_path.iterdir())
