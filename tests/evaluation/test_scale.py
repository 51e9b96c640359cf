"""What fits cost, and what is foretold of longer ones."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from captum_attnkd.evaluation.benchmarks.scale import Cost, Simulated, measure_cost
from toy_task import random_net

from captum_attnkd.fitting import FitSettings
from captum_attnkd.images import content_hashes, survey


def test_simulated_images_are_as_many_as_asked_for_and_no_two_alike() -> None:
    batches = list(Simulated(150, (3, 8, 8)))
    assert [len(batch) for batch in batches] == [64, 64, 22]
    assert len(set(content_hashes(torch.cat(batches)))) == 150
    assert survey(Simulated(150, (3, 8, 8))).count == 135


def test_fits_are_timed_and_more_images_take_longer_to_look_at() -> None:
    cost = measure_cost(random_net(0), (3, 16, 16), [6400, 64], steps=2, progress=False)
    assert list(cost.table["images"]) == [64, 6400]
    assert cost.look_s > 0
    assert (cost.table["fit_s"] > cost.table["survey_s"]).all()
    with pytest.raises(ValueError, match="two numbers of images"):
        measure_cost(random_net(0), (3, 16, 16), [64, 64])


def test_the_slower_of_loading_and_working_counts() -> None:
    cost = Cost(pd.DataFrame(), look_s=0.001, step_s=0.5, once_s=8.0)
    settings = FitSettings(distil_steps=100, explain_steps=500, batch_size=16, check_every=50)
    hours = cost.estimate(3_600_000, 8, 500.0, settings)
    assert hours == pytest.approx(
        {
            "look through all images": 2.0,  # 500 a second are loaded, 1,000 could be looked at
            "600 steps": 600 * 0.5 / 3600,  # 128 images a step are loaded in 0.256 s
            "held-out checks": 8.0 * 14 / 4 / 3600,
        }
    )
    assert cost.estimate(3_600_000, 8, 4000.0, settings)["look through all images"] == pytest.approx(1.0)
    assert cost.estimate(3_600_000, 80, 500.0, settings)["600 steps"] == pytest.approx(600 * 2.56 / 3600)
