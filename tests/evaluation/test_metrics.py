"""Insertion, deletion and localisation on cases worked by hand; fills; the metrics of a study that are made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from captum_attnkd.evaluation import explainers, fills
from captum_attnkd.evaluation.faithfulness import area, drop_and_increase, perturbation_curve
from captum_attnkd.evaluation.localisation import boundary_precision, pointing_game, relevance_rank, saliency_share
from captum_attnkd.evaluation.metrics import OWN, Case, Measured, Metric
from captum_attnkd.evaluation.road import road_curve
from captum_attnkd.evaluation.subject import Subject
from torch import Tensor, nn

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


def test_relevance_rank_by_hand() -> None:
    maps = torch.tensor([[[[9.0, 8.0, 1.0], [7.0, 2.0, 0.0]]], [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]])
    masks = torch.tensor([[[True, False, True], [True, False, False]], [[False, True, True], [True, False, False]]])
    # Of the three highest, 9, 8 and 7, two are the object's; ties stand in the order of reading, which holds two as well.
    torch.testing.assert_close(relevance_rank(maps, masks), torch.tensor([2 / 3, 2 / 3]))
    assert relevance_rank(masks[:, None].float(), masks).tolist() == [1, 1]
    assert relevance_rank(-masks[:, None].float(), masks).tolist() == [0, 0]


def test_boundary_precision_by_hand() -> None:
    masks = torch.zeros(3, 12, 12, dtype=torch.bool)
    masks[:, 2:6, 2:6] = True
    maps = torch.zeros(3, 1, 12, 12)
    maps[0, 0, 2:6, 2:6] = 1  # the object itself
    maps[1, 0, 4:8, 4:8] = (
        1  # two to the right and down: all of its outline is at most two from the object's but its far corner's
    )
    maps[2, 0, 8:12, 8:12] = 1  # elsewhere, at the image's border
    far = sum(max(x, y) > 7 for x in range(4, 8) for y in range(4, 8)) / 12
    torch.testing.assert_close(boundary_precision(maps, masks), torch.tensor([1.0, 1 - far, 0.0]))
    exact = boundary_precision(maps, masks, tolerance=0)
    torch.testing.assert_close(exact, torch.tensor([1.0, 2 / 12, 0.0]))  # where the two outlines cross
    whole = torch.ones(1, 5, 5, dtype=torch.bool)
    assert boundary_precision(torch.rand(1, 1, 5, 5), whole).tolist() == [1.0]


@pytest.mark.parametrize("metric", [pointing_game, saliency_share, relevance_rank, boundary_precision])
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


# -- of a study -----------------------------------------------------------------------------------------------------------


class Share(nn.Module):
    """The probability of class 0 is the share of brightness that is shown, of class 1 the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, shown: Tensor) -> Tensor:
        self.asked.append(len(shown))
        share = (shown.sum(dim=(1, 2, 3)) / 60).clamp(1e-6, 1 - 1e-6)
        return torch.stack([share, 1 - share], dim=1).log()


BY_NAME = {metric.name: metric for metric in OWN}
DRAWN = torch.Generator().manual_seed(1)
BRIGHT = torch.rand(7, 1, 16, 16, generator=DRAWN) ** 4
BRIGHTEST = (torch.quantile(BRIGHT.flatten(1), 0.9, dim=1).reshape(-1, 1, 1, 1) < BRIGHT)[:, 0]
CLASSES = torch.tensor([0, 0, 1, 0, 1, 0, 0])


def case_of(maps: Tensor, targets: Tensor | None = None, **more: Tensor) -> Case:
    subject = Subject(Share(), None, torch.full((1,), 0.2), torch.full((1,), 0.1), batch=3, seed=4, precision="fp32")
    targets = torch.zeros(7, dtype=torch.int64) if targets is None else targets
    return Case(subject, BRIGHT, targets, maps, lambda x, t: x, **({"masks": BRIGHTEST, "parts": BRIGHTEST} | more))


@pytest.mark.parametrize("name", list(BY_NAME))
def test_every_metric_gives_one_number_an_image_the_same_each_time_in_batches(name: str) -> None:
    case = case_of(explainers.random_map(BRIGHT, CLASSES), CLASSES)
    assert isinstance(case.subject.model, Share)
    found, again = BY_NAME[name].of(case), BY_NAME[name].of(case)
    assert max(case.subject.model.asked, default=0) <= 3
    assert set(found.better) <= set(found.scores)
    assert set(found.better.values()) <= {"higher", "lower"}
    for label, values in found.scores.items():
        assert values.shape == (7,)
        assert bool(torch.isfinite(values).all())
        assert torch.equal(values, again.scores[label])
    for curve in found.curves.values():
        assert len(curve) == 7


@pytest.mark.parametrize("name", list(BY_NAME))
def test_every_metric_ranks_a_perfect_map_before_chance_and_chance_before_the_reverse(name: str) -> None:
    maps = {"perfect": BRIGHT, "random": explainers.random_map(BRIGHT, CLASSES), "reverse": 1 - BRIGHT}
    found = {label: BY_NAME[name].of(case_of(one)) for label, one in maps.items()}
    for column, better in found["perfect"].better.items():
        sign = 1 if better == "higher" else -1
        perfect, chance, reverse = (sign * float(found[label].scores[column].mean()) for label in maps)
        if column == "increase in confidence":
            continue  # no part of an image is brighter than the whole
        if column == "boundary precision":  # chance scatters its outline over all of a small image, some of it near
            assert perfect > max(chance, reverse), column
            continue
        assert perfect > chance >= reverse, column


def test_insertion_and_deletion_are_those_of_every_fill_on_the_class_itself() -> None:
    case = case_of(explainers.random_map(BRIGHT, CLASSES), CLASSES)
    found = BY_NAME["insertion-deletion"].of(case)
    areas: dict[str, Tensor] = {}
    for fill, make in fills.FILLS.items():
        hidden = make(BRIGHT, case.subject.mean, case.subject.deviation, torch.Generator().manual_seed(4))
        for kind, insert in (("insertion", True), ("deletion", False)):
            curve = perturbation_curve(case.subject.ask, BRIGHT, case.maps, CLASSES, hidden, insert, steps=10)
            torch.testing.assert_close(found.curves[f"{kind}, {fill}"], curve)
            areas[f"{kind}, {fill}"] = area(curve)
            torch.testing.assert_close(found.scores[f"{kind}, {fill}"], areas[f"{kind}, {fill}"])

    def mean(kind: str, names: tuple[str, ...]) -> Tensor:
        return torch.stack([areas[f"{kind}, {fill}"] for fill in names]).mean(dim=0)

    every = tuple(fills.FILLS)
    torch.testing.assert_close(found.scores["insertion"], mean("insertion", every))
    torch.testing.assert_close(found.scores["deletion"], mean("deletion", every))
    for label, names in (("", every), (", unseen fills", fills.UNSEEN)):
        gap = mean("insertion", names) - mean("deletion", names)
        torch.testing.assert_close(found.scores[f"insertion less deletion{label}"], gap)
    assert list(found.better.values()) == ["higher", "lower", "higher", "higher"]


def test_road_and_drop_are_those_of_the_functions() -> None:
    case = case_of(explainers.random_map(BRIGHT, CLASSES), CLASSES)
    ask = case.subject.ask
    found = BY_NAME["road"].of(case)
    for label, first, better in (("most", True, "lower"), ("least", False, "higher")):
        drawn = torch.Generator().manual_seed(4)
        parts = zip(*(part.split(3) for part in (BRIGHT, case.maps, CLASSES)), strict=True)
        curve = torch.cat([road_curve(ask, x, m, t, first, drawn) for x, m, t in parts])
        torch.testing.assert_close(found.curves[f"ROAD, {label} relevant first"], curve)
        torch.testing.assert_close(found.scores[f"ROAD, {label} relevant first"], curve.mean(dim=1))
        assert found.better[f"ROAD, {label} relevant first"] == better
    early = BY_NAME["first-pixels"].of(case)
    assert list(early.scores) == [f"insertion less deletion at {share} %" for share in (5, 10, 20)]
    curves = BY_NAME["insertion-deletion"].of(case).curves
    for share, place in ((10, 1), (20, 2)):
        wanted = torch.stack([curves[f"insertion, {n}"] - curves[f"deletion, {n}"] for n in fills.FILLS]).mean(dim=0)
        torch.testing.assert_close(early.scores[f"insertion less deletion at {share} %"], wanted[:, place])
    drop, rose = drop_and_increase(ask, BRIGHT, case.maps, CLASSES, torch.full_like(BRIGHT, 0.2))
    measured = BY_NAME["drop-increase"].of(case)
    torch.testing.assert_close(measured.scores["average drop"], drop)
    assert torch.equal(measured.scores["increase in confidence"], rose)
    assert measured.better == {"average drop": "lower", "increase in confidence": "higher"}
    equal = BY_NAME["equal-drop"].of(case)
    squeezed = BY_NAME["equal-drop"].of(replace(case, maps=case.maps.sigmoid() ** 5))
    for name, score in equal.scores.items():
        assert torch.equal(score, squeezed.scores[name]), "the order of the pixels alone counts"
    assert list(equal.scores) == [f"{name}, maps of equal size" for name in measured.scores]


@pytest.mark.parametrize(
    ("name", "where", "function"),
    [
        ("pointing", "masks", pointing_game),
        ("relevance-mass", "masks", saliency_share),
        ("relevance-rank", "masks", relevance_rank),
        ("boundary-precision", "masks", boundary_precision),
        ("part-hit", "parts", pointing_game),
        ("part-mass", "parts", saliency_share),
    ],
)
def test_images_whose_mask_is_empty_have_no_score(name: str, where: str, function: object) -> None:
    assert callable(function)
    masks = BRIGHTEST.clone()
    masks[[2, 5]] = False
    maps = explainers.random_map(BRIGHT, CLASSES)
    (found,) = BY_NAME[name].of(case_of(maps, **{where: masks})).scores.values()
    known = masks.flatten(1).any(dim=1)
    assert torch.isnan(found).tolist() == [False, False, True, False, False, True, False]
    torch.testing.assert_close(found[known], function(maps[known], masks[known]))
    (found,) = BY_NAME[name].of(case_of(maps, **{where: torch.zeros_like(masks)})).scores.values()
    assert bool(torch.isnan(found).all())
    other = {"masks", "parts"} - {where}
    (found,) = BY_NAME[name].of(case_of(maps, **{other.pop(): torch.zeros_like(masks)})).scores.values()
    assert bool(torch.isfinite(found).all()), f"looks at {where} alone"


def test_what_is_not_one_number_an_image_is_refused() -> None:
    case = case_of(BRIGHT)
    for shape in ((6,), (7, 1), ()):
        metric = Metric("wrong", "complexity", lambda case, shape=shape: Measured({"x": torch.zeros(shape)}, {}))
        with pytest.raises(ValueError, match="numbers for 7 images"):
            metric.of(case)
    with pytest.raises(ValueError, match="needs parts, which these images do not come with"):
        BY_NAME["part-hit"].of(Case(case.subject, case.images, case.targets, case.maps, case.explain, masks=BRIGHTEST))
