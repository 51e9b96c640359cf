"""Ablations: every part that is switched off changes the fit, nothing stays switched off, and the table is right by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from captum_attnkd.evaluation.benchmarks import ablation
from captum_attnkd.evaluation.benchmarks.ablation import PARTS, WHOLE, ablate, ablation_table
from captum_attnkd.evaluation.measuring import Case, Measured, Metric
from captum_attnkd.evaluation.metrics import find_metric
from captum_attnkd.evaluation.sources import ImageSet
from captum_attnkd.evaluation.subject import Subject
from torch import Tensor, nn
from toy_task import TinyNet, loader_of

from captum_attnkd import AttentiveKDAttribution

Made = tuple[Subject, ImageSet, Tensor]


@pytest.fixture(scope="module")
def made(session_model: TinyNet) -> Made:
    """A trained model: of a random one there is nothing to learn, and whether a part changes that hangs on rounding."""
    (images, labels), *_ = loader_of(6, 3)

    def refit(model: nn.Module, seed: int, shift: float = 0.0, **steps: int) -> AttentiveKDAttribution:
        return AttentiveKDAttribution(model).fit(
            loader_of(40, 1), seed=seed, progress=False, batch_size=8, learning_rate=0.01, **steps
        )

    subject = Subject(session_model, None, torch.zeros(3), torch.ones(3), precision="fp32", refit=refit)
    return subject, ImageSet(images, tuple(map(str, range(len(images))))), labels


@pytest.fixture
def maps_of(made: Made) -> Callable[[str], Tensor]:
    def fitted(name: str) -> Tensor:
        subject, data, targets = made
        kept: list[Tensor] = []

        def noted(case: Case) -> Measured:
            kept.append(case.maps)
            return Measured({}, {})

        ablation._judged(
            subject, data, targets, [Metric("maps", "faithfulness", noted)], name, 0,
            {"distil_steps": 12, "explain_steps": 40},
        )  # fmt: skip
        return kept[0]

    return fitted


def test_each_part_that_is_off_changes_the_maps_and_none_stays_off(maps_of: Callable[[str], Tensor]) -> None:
    whole = maps_of(WHOLE)
    for name in PARTS:
        assert torch.equal(maps_of(name), whole) == (name == WHOLE), name
    assert torch.equal(maps_of(WHOLE), whole)


def test_scores_are_kept_and_a_stopped_study_goes_on(made: Made, tmp_path: Path) -> None:
    subject, data, targets = made
    told: list[str] = []

    def run(*parts: str) -> pd.DataFrame:
        return ablate(
            subject, data, targets, [find_metric("insertion-deletion")], parts, range(2), tmp_path, told.append,
            distil_steps=1, explain_steps=1,
        )  # fmt: skip

    first = run("no attention")
    assert told == [f"seed {seed}, {name}" for seed in (0, 1) for name in (WHOLE, "no attention")]
    again = run("no attention", "one fill")
    assert told[4:] == ["seed 0, one fill", "seed 1, one fill"]
    pd.testing.assert_frame_equal(again[again["part"] != "one fill"].reset_index(drop=True), first)
    with pytest.raises(ValueError, match="no part 'attention'"):
        run("attention")


def test_the_table_by_hand() -> None:
    rows = [
        {"part": part, "seed": seed, "column": "gap", "better": "higher", "image": image, "value": value}
        for part, seed, values in ((WHOLE, 0, (0.5, 0.7)), (WHOLE, 1, (0.3, 0.5)), ("a", 0, (0.4, 0.6)), ("a", 1, (0.0, 0.2)))
        for image, value in enumerate(values)
    ]  # fmt: skip
    table = ablation_table(pd.DataFrame(rows), "gap")
    assert table.loc[WHOLE, "mean"] == pytest.approx(0.5)
    assert table.loc["a"].to_dict() == pytest.approx(
        {"mean": 0.3, "less": -0.2, "low": -0.2, "high": -0.2, "seed 0": -0.1, "seed 1": -0.3}
    )
