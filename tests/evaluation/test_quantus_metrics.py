"""Quantus' metrics: known scores where the answer is known by hand, and our own metrics beside theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import quantus
import torch
from captum_attnkd.evaluation import explainers
from captum_attnkd.evaluation.faithfulness import area, perturbation_curve
from captum_attnkd.evaluation.localisation import pointing_game, relevance_rank, saliency_share
from captum_attnkd.evaluation.metrics import Case, Measured
from captum_attnkd.evaluation.quantus_metrics import QUANTUS
from captum_attnkd.evaluation.subject import Subject, fingerprint
from torch import Tensor, nn
from toy_task import TinyNet, changes, state_of

BY_NAME = {metric.name: metric for metric in QUANTUS}
ON_MASKS = {
    "PointingGame",
    "RelevanceMassAccuracy",
    "RelevanceRankAccuracy",
    "TopKIntersection",
    "AttributionLocalisation",
    "AUC",
}
DRAWING = {"FaithfulnessCorrelation", "SensitivityN", "MaxSensitivity", "AvgSensitivity", "RandomLogit"}
DRAWING |= {"MPRT", "EfficientMPRT"}
SIDE = 16
DRAWN = torch.Generator().manual_seed(0)
WEIGHTS = 0.004 * torch.rand(SIDE, SIDE, generator=DRAWN)
IMAGES = torch.rand(6, 1, SIDE, SIDE, generator=DRAWN)


class Sum(nn.Module):
    """The probability of class 0 is a weighted sum of pixels, never near 0 or 1."""

    def forward(self, images: Tensor) -> Tensor:
        share = (images * WEIGHTS).sum(dim=(1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([share, 1 - share], dim=1).log()


def case_of(model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor | None = None, **more: Any) -> Case:
    mean, deviation = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    subject = Subject(model.eval(), None, mean, deviation, batch=more.pop("batch", 4), precision="fp32")
    targets = torch.zeros(len(images), dtype=torch.int64) if targets is None else targets
    return Case(subject, images, targets, maps, more.pop("explain", lambda x, t: x.mean(dim=1, keepdim=True)), **more)


def scores(name: str, case: Case) -> Tensor:
    measured = BY_NAME[name].of(case)
    assert set(measured.better) == {name}
    return measured.scores[name]


@pytest.fixture
def case(model: TinyNet, held_out: tuple[Tensor, Tensor, Tensor]) -> Case:
    """Saliency on seven images of squares, the last one without a mask; batches of four do not divide them."""
    images, labels, places = (part[:7] for part in held_out)
    masks = places[:, 0] > 0
    masks[6] = False
    explain = explainers.saliency(model)
    maps = explain(images, labels)
    return case_of(model, images, maps, labels, masks=masks, explain=explain, anew=explainers.saliency)


# -- all of them -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(BY_NAME))
def test_every_metric_gives_one_number_an_image_the_same_twice_and_changes_nothing(name: str, case: Case) -> None:
    before, given = state_of(case.subject.model), (case.images.clone(), case.maps.clone())
    found = BY_NAME[name].of(case)
    assert changes(before, state_of(case.subject.model)) == [], "weights, flags, hooks and global generators"
    assert torch.equal(case.images, given[0])
    assert torch.equal(case.maps, given[1])
    values = found.scores[name]
    assert values.shape == (7,)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).tolist() == [True] * 6 + [name not in ON_MASKS]
    assert len(set(values[:6].tolist())) > 1 or name == "PointingGame", "an image's own number"
    again = BY_NAME[name].of(case).scores[name]
    torch.testing.assert_close(again, values, rtol=0, atol=0, equal_nan=True)
    for curve in found.curves.values():
        assert curve.shape[0] == 7


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - DRAWING))
def test_the_batch_size_changes_no_score_that_is_not_drawn(name: str, case: Case) -> None:
    one = scores(name, replace(case, subject=replace(case.subject, batch=1)))
    all_at_once = scores(name, replace(case, subject=replace(case.subject, batch=50)))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["FaithfulnessCorrelation", "SensitivityN", "AvgSensitivity"])
def test_another_seed_draws_otherwise(name: str, case: Case) -> None:
    other = scores(name, replace(case, subject=replace(case.subject, seed=5)))
    assert not torch.allclose(other, scores(name, case))


@pytest.mark.parametrize("name", sorted(ON_MASKS))
def test_images_without_a_mask_have_no_score(name: str, case: Case) -> None:
    assert case.masks is not None
    nowhere = replace(case, masks=torch.zeros_like(case.masks))
    assert bool(torch.isnan(scores(name, nowhere)).all())
    with pytest.raises(ValueError, match="needs masks"):
        BY_NAME[name].of(replace(case, masks=None))
    torch.testing.assert_close(scores(name, case)[:6], scores(name, sixth(case)), msg="the others keep theirs")


def sixth(case: Case) -> Case:
    assert case.masks is not None
    return replace(case, images=case.images[:6], targets=case.targets[:6], maps=case.maps[:6], masks=case.masks[:6])


def test_an_answer_that_is_not_one_number_an_image_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantus.Sparseness, "__call__", lambda self, **settings: [0.5] * 14)
    with pytest.raises(ValueError, match=r"\(14,\) numbers for 7 images"):
        BY_NAME["Sparseness"].of(case)


# -- known by hand -----------------------------------------------------------------------------------------------------------


def corner(rows: int = 4) -> Tensor:
    """Masks of the lower right corner."""
    masks = torch.zeros(6, SIDE, SIDE, dtype=torch.bool)
    masks[:, SIDE - rows :, SIDE - rows :] = True
    return masks


def test_ties_are_no_hits() -> None:
    maps = torch.ones(6, 1, SIDE, SIDE)
    maps[5] = corner()[5]  # Quantus refuses a set of nothing but constant maps
    case = case_of(Sum(), IMAGES, maps, masks=corner())
    for name, flat in (
        ("PointingGame", 0),
        ("RelevanceRankAccuracy", 0),
        ("TopKIntersection", 0),
        ("AUC", 0.5),
        ("RelevanceMassAccuracy", 16 / 256),
    ):
        assert scores(name, case).tolist() == pytest.approx([flat] * 5 + [1]), name


def test_ties_stand_in_the_order_of_reading() -> None:
    generator = torch.Generator().manual_seed(8)
    maps = torch.randint(0, 3, (6, 1, SIDE, SIDE), generator=generator).float()
    masks = torch.rand(6, SIDE, SIDE, generator=generator) < 0.3
    case = case_of(Sum(), IMAGES, maps, masks=masks)
    torch.testing.assert_close(scores("RelevanceRankAccuracy", case), relevance_rank(maps, masks))
    first = torch.stack([torch.nonzero(one.flatten() == 2)[:5, 0] for one in maps])
    known = masks.flatten(1).gather(1, first).float().mean(dim=1)
    torch.testing.assert_close(scores("TopKIntersection", case), known)


def test_a_map_that_is_the_mask_finds_it_and_its_reverse_does_not() -> None:
    masks = corner()
    right = case_of(Sum(), IMAGES, masks[:, None].float(), masks=masks)
    wrong = replace(right, maps=1 - right.maps)
    for name in ON_MASKS:
        assert scores(name, right).tolist() == pytest.approx([1.0] * 6), name
        assert scores(name, wrong).tolist() == pytest.approx([0.0] * 6), name


def test_shares_of_mass_count_negative_values_as_none() -> None:
    maps = torch.zeros(6, 1, SIDE, SIDE)
    maps[:, :, 0, 0], maps[:, :, -1, -1], maps[:, :, 3, 3] = 1, 3, -9
    case = case_of(Sum(), IMAGES, maps, masks=corner())
    for name in ("RelevanceMassAccuracy", "AttributionLocalisation"):
        torch.testing.assert_close(scores(name, case), torch.full((6,), 0.75))


def test_the_top_of_a_map_is_a_fiftieth_of_it() -> None:
    maps = torch.zeros(6, 1, SIDE, SIDE)
    maps[:, :, -1, -2:] = 3  # two of the five highest of 256 lie inside, three outside
    maps[:, :, 0, :3] = 2
    torch.testing.assert_close(
        scores("TopKIntersection", case_of(Sum(), IMAGES, maps, masks=corner())), torch.full((6,), 0.4)
    )


def test_our_localisation_agrees_with_theirs_on_maps_without_ties() -> None:
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(40, 1, SIDE, SIDE, generator=generator)
    masks = torch.rand(40, SIDE, SIDE, generator=generator) < torch.linspace(0.1, 0.9, 40)[:, None, None]
    case = case_of(Sum(), torch.rand(40, 1, SIDE, SIDE, generator=generator), maps, masks=masks)
    for name, ours in (
        ("PointingGame", pointing_game),
        ("RelevanceMassAccuracy", saliency_share),
        ("RelevanceRankAccuracy", relevance_rank),
    ):
        found = scores(name, case)
        torch.testing.assert_close(found, ours(maps, masks), rtol=1e-5, atol=1e-6)
        assert len(set(found.tolist())) > 1


def test_complexity_by_hand() -> None:
    maps = torch.ones(6, 1, SIDE, SIDE)
    maps[3:] = 0
    maps[3:, :, 5, 5] = 7
    case = case_of(Sum(), IMAGES, maps)
    for name, of_spread, of_pointed in (
        ("Complexity", float(np.log(SIDE * SIDE)), 0.0),
        ("Sparseness", 0.0, 1 - 1 / SIDE**2),
    ):
        assert scores(name, case).tolist() == pytest.approx([of_spread] * 3 + [of_pointed] * 3, abs=1e-3)
    assert BY_NAME["Complexity"].of(case).better == {"Complexity": "lower"}
    assert BY_NAME["Sparseness"].of(case).better == {"Sparseness": "higher"}


def test_attributions_of_a_sum_are_perfectly_faithful() -> None:
    exact = WEIGHTS * (IMAGES - IMAGES.mean(dim=(1, 2, 3), keepdim=True))
    right, wrong = (case_of(Sum(), IMAGES, maps) for maps in (exact, -exact))
    for name in ("FaithfulnessCorrelation", "SensitivityN"):
        torch.testing.assert_close(scores(name, right), torch.ones(6), rtol=0, atol=1e-3)
        torch.testing.assert_close(scores(name, wrong), -torch.ones(6), rtol=0, atol=1e-3)
        assert BY_NAME[name].of(right).better == {name: "higher"}
    # The sum of weights times what was taken away is what the probability loses; maps are scaled to a maximum of one.
    images = 0.004 * IMAGES
    gradient = (WEIGHTS / WEIGHTS.max()).expand(6, 1, SIDE, SIDE).contiguous()
    scaled = case_of(Scaled(), images, gradient)
    torch.testing.assert_close(scores("Infidelity", scaled), torch.zeros(6), rtol=0, atol=1e-8)
    assert bool((scores("Infidelity", replace(scaled, maps=gradient.flip(2))) > 1e-6).all())
    assert BY_NAME["Infidelity"].of(scaled).better == {"Infidelity": "lower"}


class Scaled(nn.Module):
    """A sum whose highest weight is one."""

    def forward(self, images: Tensor) -> Tensor:
        share = (images * WEIGHTS / WEIGHTS.max()).sum(dim=(1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([share, 1 - share], dim=1).log()


def test_sensitivity_by_hand() -> None:
    still = case_of(Sum(), IMAGES, IMAGES, explain=lambda x, t: WEIGHTS.expand(len(x), 1, SIDE, SIDE))
    moved = case_of(Sum(), IMAGES, IMAGES, explain=lambda x, t: x)
    # Uniform noise within a tenth, on a map that is the image itself.
    expected = 0.1 / 3**0.5 * SIDE / IMAGES.flatten(1).norm(dim=1)
    for name in ("AvgSensitivity", "MaxSensitivity"):
        assert scores(name, still).tolist() == [0.0] * 6
        torch.testing.assert_close(scores(name, moved), expected, rtol=0.15, atol=0)
        assert BY_NAME[name].asks_method
        assert BY_NAME[name].of(still).better == {name: "lower"}
    assert bool((scores("MaxSensitivity", moved) > scores("AvgSensitivity", moved)).all())


def test_a_method_that_ignores_the_class_has_the_same_map_for_another_one() -> None:
    images, targets = IMAGES, torch.tensor([0, 1, 2, 0, 1, 2])
    calls: list[list[int]] = []

    def deaf(images: Tensor, classes: Tensor) -> Tensor:
        calls.append(classes.tolist())
        return images

    def keen(images: Tensor, classes: Tensor) -> Tensor:
        turned = (images, images.flip(2), images.flip(3))
        return torch.stack([turned[int(name)][index] for index, name in enumerate(classes)])

    three = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)).eval()
    assert scores("RandomLogit", case_of(three, images, images, targets, explain=deaf)).tolist() == pytest.approx(
        [1] * 6
    )
    own, asked = ([name for call in some for name in call] for some in (calls[::2], calls[1::2]))
    assert own == targets.tolist()
    assert len(asked) == 6
    assert all(one != other for one, other in zip(own, asked, strict=True)), "another class than its own"
    assert len(set(asked)) > 1
    assert (
        float(scores("RandomLogit", case_of(three, images, keen(images, targets), targets, explain=keen)).max()) < 0.6
    )


@pytest.mark.parametrize("name", ["MPRT", "EfficientMPRT"])
def test_methods_are_made_anew_for_randomised_models(name: str, case: Case) -> None:
    made: list[str] = []

    def anew(model: nn.Module) -> explainers.Explainer:
        assert not model.training
        made.append(fingerprint(model))
        return explainers.saliency(model)

    found = scores(name, replace(case, anew=anew))
    assert len(made) == len(set(made)) >= 2
    assert fingerprint(case.subject.model) in made, "the model as it is, by the same means as those put at random"
    assert BY_NAME[name].asks_method
    with pytest.raises(ValueError, match="cannot be made anew"):
        BY_NAME[name].of(replace(case, anew=None))
    if name == "MPRT":  # a method that looks at the image alone has the same map whatever the weights
        blind = replace(case, explain=explainers.edges, anew=lambda model: explainers.edges)
        blind = replace(blind, maps=explainers.edges(case.images, case.targets))
        assert scores(name, blind).tolist() == pytest.approx([1.0] * 7)
        assert float(found.max()) < 0.95


def test_regions_that_matter_cost_more_the_higher_the_better() -> None:
    """Eight by eight patches are replaced: half of them hold all of what the model sums up."""
    images = 0.5 + 0.1 * torch.randn(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    images[:, :, :4, :4] += 1
    right = images.clone()
    found: dict[str, Measured] = {
        name: BY_NAME["RegionPerturbation"].of(case_of(Sum(), images, maps))
        for name, maps in (("right", WEIGHTS * right), ("wrong", 0.01 - WEIGHTS * right))
    }
    good, bad = (found[name].scores["RegionPerturbation"] for name in ("right", "wrong"))
    assert bool((good > bad).all())
    assert found["right"].better == {"RegionPerturbation": "higher"}
    assert float(found["right"].curves["RegionPerturbation"].min()) > 0, "what is lost, step by step"


# -- our deletion curve beside pixel flipping ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_our_deletion_curve_is_their_pixel_flipping(channels: int) -> None:
    """Theirs flips one channel of a pixel after the other and leaves out the whole image; ours flips pixels."""
    generator = torch.Generator().manual_seed(4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(channels, 6, 3),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 3),
        ).eval()
        model[-1].weight.data.mul_(6)
    images = torch.rand(5, channels, SIDE, SIDE, generator=generator)
    maps, targets = torch.randn(5, 1, SIDE, SIDE, generator=generator), torch.tensor([0, 1, 2, 2, 1])
    subject = case_of(model, images, maps).subject
    fills = torch.full_like(images, 0.3)
    ours = perturbation_curve(subject.ask, images, maps, targets, fills, insert=False, steps=16)
    metric = quantus.PixelFlipping(
        features_in_step=SIDE, perturb_baseline=0.3, disable_warnings=True, return_aggregate=False
    )
    theirs = metric(
        model=model, x_batch=images.numpy(), y_batch=targets.numpy(), a_batch=maps.numpy(), channel_first=True,
        softmax=True, device="cpu", batch_size=5,
    )  # fmt: skip
    theirs = torch.tensor(np.asarray(theirs), dtype=torch.float32)
    assert theirs.shape == (5, 16 * channels)
    torch.testing.assert_close(ours[:, 1:], theirs[:, channels - 1 :: channels], rtol=0, atol=1e-5)
    assert float((ours.amax(dim=1) - ours.amin(dim=1)).min()) > 0.05, "the curves are not flat"


def test_pixel_flipping_here_is_a_loop_that_sets_pixels_to_the_mean() -> None:
    maps = torch.randn(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    case = case_of(Sum(), IMAGES, maps)
    found = BY_NAME["PixelFlipping"].of(case)
    left, points = IMAGES.flatten(1).clone(), []
    for pixels in maps.flatten(1).argsort(dim=1, descending=True).split(16, dim=1):
        left.scatter_(1, pixels, left.mean(dim=1, keepdim=True).expand(-1, 16))
        points.append(Sum()(left.reshape(IMAGES.shape)).softmax(dim=1)[:, 0])
    curves = torch.stack(points, dim=1)
    torch.testing.assert_close(found.curves["PixelFlipping"], curves, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.scores["PixelFlipping"], area(curves), rtol=0, atol=1e-5)
    assert found.better == {"PixelFlipping": "lower"}
    tied = replace(case, maps=maps.round())
    first = BY_NAME["PixelFlipping"].of(replace(tied, subject=replace(case.subject, batch=1))).scores["PixelFlipping"]
    torch.testing.assert_close(first, BY_NAME["PixelFlipping"].of(tied).scores["PixelFlipping"])
