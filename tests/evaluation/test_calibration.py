"""The calibration study of trust: what it finds where the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from captum_attnkd.evaluation.calibration import (
    CLEAN,
    GAP,
    SPOILT,
    UNSEEN_GAP,
    coverage,
    coverage_table,
    draw_coverage,
    foretelling_table,
    jpeg,
    sets_table,
    trust_table,
)  # fmt: skip
from captum_attnkd.evaluation.subject import Subject
from toy_task import TinyNet, single_squares

from captum_attnkd import AttentiveKDAttribution


def made_up(trust: np.ndarray, gap: np.ndarray) -> pd.DataFrame:
    count = len(trust)
    return pd.DataFrame(
        {"set": CLEAN, "image": range(count), "right": pd.NA, "confidence": 0.5, "trust": trust, "agrees": True,
         "divergence": 0.0, "kept": 0.5, "deleted": 0.1, GAP: gap, UNSEEN_GAP: gap}
    )  # fmt: skip


def test_trust_that_foretells_is_told_from_trust_that_does_not() -> None:
    gap = np.random.default_rng(0).random(60)
    right, reverse = (foretelling_table(made_up(trust, gap)).iloc[0] for trust in (gap**2, -gap))
    assert right["Spearman"] == pytest.approx(1)
    assert right["upper half"] > right["lower half"]
    assert reverse["Spearman"] == pytest.approx(-1)
    assert reverse["upper half"] < reverse["lower half"]
    none = foretelling_table(made_up(np.random.default_rng(1).random(60), gap)).iloc[0]
    assert none["low"] < 0 < none["high"]


def test_coverage_by_hand() -> None:
    truth, guide = np.array([1.0, 3.0, 2.0]), np.array([0.1, 0.9, 0.5])
    np.testing.assert_allclose(coverage(truth, guide), [3, 2.5, 2])
    table = coverage_table(made_up(np.arange(10.0), np.arange(10.0)))
    assert table.loc["by trust", "30% shown"] == pytest.approx(8)
    assert table.loc["by trust", "100% shown"] == table.loc["the best order", "100% shown"] == pytest.approx(4.5)


def test_jpeg_leaves_something_like_the_image_and_not_the_image() -> None:
    images = single_squares(2, seed=3)[0]
    spoilt = jpeg(images, torch.ones(3))
    assert spoilt.shape == images.shape
    assert 0.02 < float((spoilt - images).abs().mean()) < 0.5
    assert float(spoilt.min()) >= float(images.min()) - 1e-4


def test_the_table_has_every_image_of_every_set(fitted: AttentiveKDAttribution, model: TinyNet, tmp_path: Path) -> None:
    images, labels, _ = single_squares(8, seed=9)
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 4  # one label that the model must be found to miss
    subject = Subject(model, None, images.mean((0, 2, 3)), images.std((0, 2, 3)), fitted, 4)
    table = trust_table(subject, images, labels, torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0)))
    assert table.groupby("set").size().to_dict() == {CLEAN: 8, "other data": 4, **dict.fromkeys(SPOILT, 8)}
    only = table[table["set"] == CLEAN]
    torch.testing.assert_close(
        torch.tensor(only["trust"].to_numpy()).float(), fitted.trust(images).score, atol=1e-3, rtol=0
    )
    assert not only["right"].iloc[0]
    means = sets_table(table)
    assert means.loc[CLEAN, "trust"] > means.loc["other data", "trust"]
    assert means.loc["named right", "images"] + means.loc["named wrong", "images"] == 32
    draw_coverage(table, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_without_a_surrogate_there_is_nothing_to_trust(model: TinyNet) -> None:
    with pytest.raises(ValueError, match="--surrogate"):
        trust_table(Subject(model, None, torch.zeros(3), torch.ones(3)), torch.zeros(2, 3, 24, 24))
