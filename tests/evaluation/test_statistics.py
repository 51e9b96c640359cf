"""Intervals, tests and corrections, against hand and textbook."""

from __future__ import annotations

import pytest
import torch
from captum_attnkd.evaluation.statistics import holm, paired_interval, paired_test


def normal(count: int, mean: float, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) + mean


def test_a_paired_interval_holds_the_mean_and_narrows_with_more_images() -> None:
    differences = normal(4000, 0.3, seed=2)
    mean, low, high = paired_interval(differences)
    assert low < mean < high
    assert mean == pytest.approx(float(differences.mean()), abs=1e-6)
    # The normal distribution's own interval, a bootstrap's should be close to it.
    assert (high - low) / 2 == pytest.approx(1.96 * float(differences.std()) / 4000**0.5, rel=0.1)
    _, low_of_few, high_of_few = paired_interval(differences[:40])
    assert high_of_few - low_of_few > 5 * (high - low)


def test_chance_is_found_significant_as_often_as_promised_and_a_difference_nearly_always() -> None:
    by_chance = [paired_test(normal(30, 0, seed), repeats=400) < 0.05 for seed in range(200)]
    real = [paired_test(normal(30, 0.8, seed), repeats=400) < 0.05 for seed in range(50)]
    assert 0.01 < sum(by_chance) / 200 < 0.11
    assert sum(real) / 50 > 0.9


def test_a_test_by_hand_on_three_images() -> None:
    # Of eight ways to sign 1, 2 and 3, two are as far from zero as all of one sign.
    assert paired_test(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(0.25, abs=0.02)
    assert paired_test(torch.zeros(5)) == 1


def test_holm_by_hand() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert corrected == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.5})
    assert list(corrected) == ["a", "b", "c", "d"]
    assert holm({}) == {}


@pytest.mark.parametrize("bad", [torch.tensor([]), torch.tensor([1.0, float("nan")]), torch.ones(2, 2)])
def test_what_is_no_list_of_differences_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_interval(bad)
