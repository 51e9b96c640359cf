"""Insertion, deletion and localisation on cases worked by hand; fills; the comparison that puts them together."""

from __future__ import annotations

import pytest
import torch
from captum_attnkd.evaluation import baselines, fills
from captum_attnkd.evaluation.comparison import compare, table
from captum_attnkd.evaluation.faithfulness import area, perturbation_curve
from captum_attnkd.evaluation.localisation import pointing_game, saliency_share
from torch import Tensor

IMAGES = torch.tensor([[4.0, 2.0], [1.0, 1.0]]).reshape(1, 1, 2, 2)
NOTHING = torch.zeros_like(IMAGES)


def share_seen(shown: Tensor) -> Tensor:
    """A model whose probability of class 0 is the share of the image's brightness that it is shown."""
    share = (shown.sum(dim=(1, 2, 3)) / 8).clamp(1e-6, 1 - 1e-6)
    return torch.stack([share, 1 - share], dim=1).log()


@pytest.mark.parametrize(
    ("order", "insertion", "deletion"),
    [
        # The brightest first: 0, 4, 6, 7, 8 of 8 shown; hidden, it is 8, 4, 2, 1, 0.
        ([[9.0, 5.0], [3.0, 2.0]], [0, 0.5, 0.75, 0.875, 1], [1, 0.5, 0.25, 0.125, 0]),
        # The brightest last.
        ([[2.0, 3.0], [5.0, 9.0]], [0, 0.125, 0.25, 0.5, 1], [1, 0.875, 0.75, 0.5, 0]),
    ],
)
def test_curves_of_a_model_that_adds_up_pixels(
    order: list[list[float]], insertion: list[float], deletion: list[float]
) -> None:
    maps, target = torch.tensor(order).reshape(1, 1, 2, 2), torch.tensor([0])
    for insert, wanted in ((True, insertion), (False, deletion)):
        curve = perturbation_curve(share_seen, IMAGES, maps, target, NOTHING, insert, steps=4)
        torch.testing.assert_close(curve, torch.tensor([wanted]), atol=1e-5, rtol=0)


def test_only_the_order_of_a_map_counts() -> None:
    maps, target = torch.tensor([[9.0, 5.0], [3.0, 2.0]]).reshape(1, 1, 2, 2), torch.tensor([0])
    plain = perturbation_curve(share_seen, IMAGES, maps, target, NOTHING, True, steps=4)
    assert torch.equal(
        plain, perturbation_curve(share_seen, IMAGES, maps.exp() * 7 - 3, target, NOTHING, True, steps=4)
    )


def test_the_area_is_by_the_trapezoid_rule() -> None:
    curves = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(area(curves), torch.tensor([0.75, 0.25, 0.5]))


def test_pointing_and_share_by_hand() -> None:
    maps = torch.tensor([[[[0.9, 0.1], [0.0, -5.0]]], [[[0.2, 0.6], [0.2, 0.0]]]])
    masks = torch.tensor([[[True, False], [False, True]], [[True, False], [True, False]]])
    assert pointing_game(maps, masks).tolist() == [1.0, 0.0]
    torch.testing.assert_close(saliency_share(maps, masks), torch.tensor([0.9, 0.4]))


@pytest.mark.parametrize("metric", [pointing_game, saliency_share])
def test_an_object_that_is_nowhere_is_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=r"images \[1\]"):
        metric(torch.rand(2, 1, 2, 2), torch.tensor([[[True, False]] * 2, [[False, False]] * 2]))


@pytest.mark.parametrize("name", list(fills.FILLS))
def test_a_fill_says_the_same_for_the_same_seed_and_hides_the_image(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 64, 64, generator=generator)
    mean, deviation = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))

    def made() -> Tensor:
        return fills.FILLS[name](images, mean, deviation, torch.Generator().manual_seed(4))

    assert made().shape == images.shape
    assert torch.equal(made(), made())
    together = torch.stack([made().flatten(), images.flatten()])
    assert float(torch.corrcoef(together)[0, 1]) < 0.3


def test_the_fills_kept_for_evaluation_are_no_fills_of_fitting() -> None:
    from captum_attnkd import perturbation

    assert set(fills.UNSEEN) <= set(fills.FILLS)
    assert not set(fills.UNSEEN) & set(perturbation.FILLS)
    assert len(fills.UNSEEN) >= 2


def test_a_comparison_ranks_a_perfect_map_before_chance_and_chance_before_the_reverse() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(12, 1, 16, 16, generator=generator) ** 4
    brightest = (images > torch.quantile(images.flatten(1), 0.9, dim=1).reshape(-1, 1, 1, 1))[:, 0]

    def ask(shown: Tensor) -> Tensor:
        share = (shown.sum(dim=(1, 2, 3)) / 60).clamp(1e-6, 1 - 1e-6)
        return torch.stack([share, 1 - share], dim=1).log()

    scores = compare(
        {"perfect": lambda x, t: x, "random": baselines.random_map, "reverse": lambda x, t: 1 - x},
        ask, images, torch.zeros(12, dtype=torch.int64), torch.zeros(1), torch.zeros(1), brightest, batch=6, steps=8,
    )  # fmt: skip
    rows = table(scores)
    assert rows.index.tolist() == ["perfect", "random", "reverse"]
    for column, better in (("insertion ↑", 1), ("deletion ↓", -1), ("pointing ↑", 1), ("share inside ↑", 1)):
        perfect, chance, reverse = (better * rows[column]).tolist()
        assert perfect > chance >= reverse, column
    assert scores["perfect"].pointing.tolist() == [1.0] * 12
