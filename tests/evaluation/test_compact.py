"""The compact student's curve: what it learns from, how it is judged, and that a stopped one goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from captum_attnkd.evaluation.benchmarks import compact
from captum_attnkd.evaluation.benchmarks.compact import Augmented, Learned, OutputsOnly, curve
from captum_attnkd.evaluation.classifiers import Classifier
from captum_attnkd.evaluation.preparing import Prepared
from captum_attnkd.evaluation.sources import ImageSet
from captum_attnkd.evaluation.subject import Subject
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from toy_task import TinyNet, single_squares

from captum_attnkd import AttentiveKDAttribution


@pytest.fixture
def learned_of(tmp_path: Path) -> Callable[[int], Learned]:
    """So many images in a folder, to learn from."""

    def made(count: int) -> Learned:
        folder = tmp_path / "learned"
        folder.mkdir()
        for place, image in enumerate(single_squares(count, seed=1)[0]):
            to_pil_image((image * 64 + 128).clamp(0, 255).byte()).save(folder / f"{place:03}.png")
        return Learned(f"folder:{folder}", lambda image: pil_to_tensor(image).float() / 64 - 2)

    return made


@pytest.fixture
def prepared(session_model: TinyNet) -> Prepared:
    images, labels, _ = single_squares(8, seed=3)
    subject = Subject(session_model, session_model.features, torch.zeros(3), torch.ones(3), precision="fp32")
    return Prepared(subject, ImageSet(images, tuple("abcdefgh"), labels), Classifier(session_model, 24))


def test_more_steps_agree_more_and_what_is_there_is_not_fitted_again(
    prepared: Prepared, learned_of: Callable[[int], Learned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = learned_of(160)

    def run(counts: list[int], **steps: int) -> pd.DataFrame:
        told: list[str] = []
        table = curve(
            prepared, learned, counts, tmp_path / str(steps["distil_steps"]), kinds=["plain"], told=told.append,
            explain_steps=2, **steps,
        )  # fmt: skip
        assert [line.split(",")[0] for line in told] == [f"{count} images" for count in counts]
        return table

    one, many = (run([160], distil_steps=steps).loc[(160, "plain")] for steps in (1, 80))
    assert one["agreement"] < 0.8 <= many["agreement"]
    for name in ("all fills", "unseen fills"):
        assert many[f"{name}, low"] <= many[f"{name}, less Grad-CAM"] <= many[f"{name}, high"]
    assert many["all fills, low"] != many["unseen fills, low"]
    monkeypatch.setattr(AttentiveKDAttribution, "fit", None)
    again = curve(prepared, learned, [160], tmp_path / "80", kinds=["plain"], distil_steps=80, explain_steps=2)
    pd.testing.assert_series_equal(again.loc[(160, "plain")], many)


def test_a_fit_sees_outputs_alone_and_only_so_many_images(
    prepared: Prepared, learned_of: Callable[[int], Learned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[AttentiveKDAttribution] = []
    save = AttentiveKDAttribution.save
    monkeypatch.setattr(AttentiveKDAttribution, "save", lambda self, path: made.append(self) or save(self, path))
    learned = learned_of(60)
    table = curve(prepared, learned, [20, 60], tmp_path, distil_steps=1, explain_steps=1)
    assert table.index.to_list() == [(20, "plain"), (60, "plain"), (20, "stronger"), (60, "stronger")]
    for one, count in zip(made, (20, 60, 20, 60), strict=True):
        assert one.report_ is not None
        assert (one.report_.student, one.report_.judge) == ("compact", "student")
        assert (one.report_.images, one.report_.held_out) == (count * 9 // 10, count // 10)
    with pytest.raises(ValueError, match="60 images to learn from, not 61"):
        curve(prepared, learned, [61], tmp_path)
    with pytest.raises(ValueError, match="got strong"):
        curve(prepared, learned, [60], tmp_path, kinds=["strong"])


def test_a_model_of_outputs_gives_no_gradients(session_model: TinyNet, images: Tensor) -> None:
    answer = OutputsOnly(session_model)(images.clone().requires_grad_())
    torch.testing.assert_close(answer, session_model(images).detach())
    assert not answer.requires_grad


def test_augmented_images_are_others_each_time_and_the_same_from_the_same_seed() -> None:
    images = single_squares(32, seed=1)[0]
    one, same, other = (list(Augmented([images], seed)) for seed in (0, 0, 1))
    assert one[0].shape == images.shape
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])
    again = Augmented([images], 0)
    assert not torch.equal(next(iter(again)), next(iter(again)))
    before = torch.get_rng_state()
    list(Augmented([images], 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(compact.KINDS) == 2
