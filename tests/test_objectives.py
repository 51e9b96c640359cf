"""The pieces of the two objectives, on cases worked by hand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attnkd import objectives
from captum_attnkd.attention import LevelAttention, attended_area
from captum_attnkd.explanation import Mask, squashed, standardise
from captum_attnkd.objectives import (
    Distillation,
    Explanation,
    Pixels,
    conviction,
    divergence,
    draw_areas,
    draw_query,
    foretelling,
    kept_softly,
    through,
)
from captum_attnkd.perturbation import blended, blurred, random_fills, random_grid_masks, randomly_masked
from captum_attnkd.student import ConvTrunk, Student
from captum_attnkd.surrogate import Query, Surrogate


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- distillation ------------------------------------------------------------------------------------------------------


def test_divergence_is_the_kl_at_temperature_one_and_zero_where_nothing_differs() -> None:
    wanted, logits = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    by_hand = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert float(divergence(wanted, logits)) == pytest.approx(by_hand, abs=1e-6)
    assert float(divergence(wanted, wanted + 3, 2.0)) == pytest.approx(0, abs=1e-6), (
        "a shift of all logits says nothing"
    )


def test_divergence_at_a_temperature_compares_softened_answers_and_keeps_its_scale() -> None:
    wanted, logits = (
        torch.tensor([[3.0, 0.0, -1.0], [0.0, 1.0, 0.0]]).log_softmax(1),
        torch.randn(2, 3, generator=drawn()),
    )
    p, q = (wanted / 4).softmax(1), (logits / 4).softmax(1)
    by_hand = 16 * (p * (p.log() - q.log())).sum(dim=1).mean()
    torch.testing.assert_close(divergence(wanted, logits, 4.0), by_hand)


PIXELS = Pixels(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([1.0, 2.0, 3.0]))


def small_student() -> Student:
    """A student of our own with two levels, of 6 classes; its attention has learned something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        trunk = ConvTrunk(3, (24, 24), width=8)
        student = Student(trunk, trunk.widths, 6)
        for head in student.heads:
            torch.nn.init.normal_(head.attention.spatial.weight, std=0.3)
        torch.nn.init.normal_(student.voices)
    return student.eval()


def answer_of(images: Tensor) -> Tensor:
    """Log-probabilities (B, 6) that depend on where an image is bright."""
    return F.adaptive_avg_pool2d(3 * images.mean(dim=1, keepdim=True), (2, 3)).flatten(1).log_softmax(dim=1)


@pytest.mark.parametrize("settings", [{}, {"temperature": 3.0, "supervision": 0.7, "attention_charge": 0.4}])
def test_distillation_adds_up_the_answer_the_levels_and_the_charge_for_attention(settings: dict[str, float]) -> None:
    student, images = small_student(), torch.rand(4, 3, 24, 24, generator=drawn())
    seen, _ = student(images)
    temperature = settings.get("temperature", 2.0)
    wanted = answer_of(images)
    levels = [divergence(wanted, logits, temperature) for logits in seen.level_logits]
    areas = [attended_area(attention) for attention in seen.attention]
    by_hand = (
        divergence(wanted, seen.logits, temperature)
        + settings.get("supervision", 0.3) * (levels[0] + levels[1]) / 2
        + settings.get("attention_charge", 0.1) * (areas[0] + areas[1]) / 2
    )
    torch.testing.assert_close(Distillation(student, answer_of, PIXELS, **settings).loss(images), by_hand)


def test_the_target_is_asked_without_gradients_and_in_the_context_for_that() -> None:
    inside: list[bool] = []
    asked: list[bool] = []

    @contextlib.contextmanager
    def fast() -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    def target(images: Tensor) -> Tensor:
        asked.append(bool(inside) and not torch.is_grad_enabled())
        return answer_of(images)

    loss = Distillation(small_student(), target, PIXELS, fast=fast).loss(torch.rand(2, 3, 24, 24, generator=drawn()))
    assert asked == [True]
    assert loss.requires_grad


class Grafted:
    """A trunk that brings the target's answer along."""

    trained = False

    def __call__(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        return [images], answer_of(images)


def test_a_target_that_was_run_for_its_features_is_not_asked_again() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError("asked again")

    images = torch.rand(2, 3, 8, 8, generator=drawn())
    loss = Distillation(Student(Grafted(), (3,), 6), never, PIXELS).loss(images)
    own = Distillation(Student(Grafted(), (3,), 6), never, PIXELS)
    assert torch.isfinite(loss)
    with torch.no_grad():
        for parameter in own.student.parameters():
            parameter.zero_()
    charge = 0.1  # attention is flat
    uniform = divergence(answer_of(images), torch.zeros(2, 6), 2.0)
    torch.testing.assert_close(own.loss(images), 1.3 * uniform + charge)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_student_that_will_judge_sees_every_third_image_whole_and_the_others_in_parts(
    mirror: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr(Distillation, "loss", lambda self, images: shown.append(images) or torch.zeros(()))
    images = torch.rand(24, 3, 24, 24, generator=drawn())
    Distillation(small_student(), answer_of, PIXELS, masked=True, mirror=mirror)(images, drawn(1))
    (seen,) = shown
    whole = (seen == images).flatten(1).all(dim=1)
    mirrored = (seen == images.flip(3)).flatten(1).all(dim=1)
    assert (whole | mirrored).nonzero().flatten().tolist() == list(range(0, 24, 3))
    assert bool(mirrored.any()) == mirror
    assert bool((whole & ~mirrored).any()), "some as they are"


def test_a_student_beside_another_judge_sees_whole_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr(Distillation, "loss", lambda self, images: shown.append(images) or torch.zeros(()))
    images = torch.rand(6, 3, 24, 24, generator=drawn())
    Distillation(small_student(), answer_of, PIXELS)(images, drawn(1))
    assert torch.equal(shown[0], images)


def test_attention_begins_flat_and_passes_features_unchanged() -> None:
    features = torch.randn(2, 16, 5, 7, generator=drawn())
    attended, attention = LevelAttention(16)(features, standardise(features))
    torch.testing.assert_close(attended.maps(), features)
    assert torch.equal(attention, torch.full((2, 1, 5, 7), 0.5))


def test_the_attended_area_counts_where_attention_is_high_not_how_high() -> None:
    quarter = torch.zeros(1, 1, 4, 4)
    quarter[..., :2, :2] = 1
    assert float(attended_area(quarter)) == pytest.approx(0.25)
    assert float(attended_area(0.01 * quarter)) == pytest.approx(0.25, rel=1e-3)
    assert float(attended_area(torch.full((1, 1, 4, 4), 0.3))) == pytest.approx(1)


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_the_top_share_of_positions_is_kept(share: float) -> None:
    logits = standardise(torch.randn(3, 1, 20, 20, generator=drawn()))
    kept = kept_softly(logits, torch.full((3,), share), softness=1e-4)
    torch.testing.assert_close(kept.mean(dim=(1, 2, 3)), torch.full((3,), share), atol=0.01, rtol=0)
    for one, of in zip(kept, logits, strict=True):
        assert float(of[one > 0.99].min()) >= float(of[one < 0.01].max())


def test_what_is_kept_has_a_soft_border_and_carries_a_gradient() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0]]).reshape(2, 1, 1, 5).requires_grad_()
    kept = kept_softly(logits, torch.tensor([0.5, 0.2]))
    by_hand = torch.stack([torch.sigmoid((logits[0] - 3) / 0.2), torch.sigmoid((logits[1] - 4) / 0.2)])
    torch.testing.assert_close(kept, by_hand)
    kept[0].sum().backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 0, 0, 2]) == pytest.approx(0.25 / 0.2), "the border itself is not moved"


def test_areas_are_drawn_in_three_ways_by_turns() -> None:
    wide, small, near = draw_areas(torch.full((30000,), math.log(0.1)), drawn()).reshape(-1, 3).T
    assert 0.05 <= float(wide.min()) < 0.06
    assert 0.94 < float(wide.max()) <= 0.95
    assert float(wide.mean()) == pytest.approx(0.5, abs=0.01)
    assert 0.01 <= float(small.min()) < 0.0105
    assert 0.9 < float(small.max()) <= 0.95
    assert float(small.log().mean()) == pytest.approx(math.log(0.01 * 0.95) / 2, abs=0.05)
    inner = near[(near > 0.01) & (near < 0.95)].log() - math.log(0.1)
    assert float(near.log().median()) == pytest.approx(math.log(0.1), abs=0.05)
    assert float(inner.std()) == pytest.approx(0.7, abs=0.02)
    extremes = draw_areas(torch.tensor([0.0, 0.0, -30.0, 0.0, 0.0, 30.0]), drawn())[[2, 5]]
    torch.testing.assert_close(extremes, torch.tensor([0.01, 0.95]))


def test_areas_are_shares_and_reach_the_small_the_large_and_the_foretold() -> None:
    areas = draw_areas(torch.full((3000,), math.log(0.3)), drawn())
    assert 0.01 <= float(areas.min()) < 0.02
    assert 0.9 < float(areas.max()) <= 0.95
    near = ((areas / 0.3).log().abs() < 0.7).float()
    assert float(near.mean()) > float(((areas / 0.05).log().abs() < 0.7).float().mean())


def test_a_question_is_about_top_classes_and_its_rival_is_another() -> None:
    scores = torch.randn(500, 20, generator=drawn()).log_softmax(dim=1)
    query = draw_query(scores, 0.25, drawn(1))
    top = scores.topk(5, dim=1).indices
    assert bool((query.positive == top).any(dim=1).all())
    assert query.negative is not None
    asked_against = query.negative[:, 0] >= 0
    assert 0.15 < float(asked_against.float().mean()) < 0.35
    assert bool((query.negative[asked_against] != query.positive[asked_against]).all())
    first = (query.positive[:, 0] == top[:, 0]).float().mean()
    assert 0.55 < float(first) < 0.78


def test_one_question_in_three_is_about_another_of_the_top_five_and_a_rival_is_the_first_then() -> None:
    scores = torch.randn(6000, 20, generator=drawn()).log_softmax(dim=1)
    query = draw_query(scores, 1.0, drawn(1))
    top = scores.topk(5, dim=1).indices
    assert query.negative is not None
    place = (query.positive == top).float().argmax(dim=1)
    rival = (query.negative == top).float().argmax(dim=1)
    shares = torch.stack([(place == index).float().mean() for index in range(5)])
    torch.testing.assert_close(shares, torch.tensor([2 / 3, *[1 / 12] * 4]), atol=0.02, rtol=0)
    assert bool((rival[place > 0] == 0).all()), "another class is asked about against the first"
    shares = torch.stack([(rival[place == 0] == index).float().mean() for index in range(5)])
    torch.testing.assert_close(shares, torch.tensor([0, *[1 / 4] * 4]), atol=0.03, rtol=0)
    assert draw_query(scores, 0.0, drawn()).negative.unique().tolist() == [-1]  # type: ignore[union-attr]
    pair = draw_query(scores[:, :2], 1.0, drawn())
    assert bool((pair.positive + pair.negative == 1).all()), "of two classes, always both"  # type: ignore[operator]


def test_a_score_against_a_rival_forgets_the_other_classes() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.6]]).log()
    plain = Query(torch.tensor([[0]])).score(scores)
    against = Query(torch.tensor([[0]]), torch.tensor([[1]])).score(scores)
    none = Query(torch.tensor([[0]]), torch.tensor([[-1]])).score(scores)
    assert [round(float(value), 4) for value in (plain, against, none)] == [0.3, 0.75, 0.3]


def test_the_judges_gradient_reaches_the_images_and_not_the_judge() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    shown = torch.rand(4, 3, generator=drawn()).requires_grad_()
    plain, carried = through(shown, lambda leaf: (leaf * weight).sum(dim=1))
    torch.testing.assert_close(carried.detach(), plain)
    carried.sum().backward()
    assert shown.grad is not None
    torch.testing.assert_close(shown.grad, weight.detach().expand(4, 3))
    assert weight.grad is None


def test_an_extent_is_pulled_to_where_the_two_sides_balance() -> None:
    extent = torch.full((1, 1), math.log(0.5), requires_grad=True)
    mask = Mask(torch.zeros(1, 1, 4, 4), extent, torch.tensor(0.5))
    query = Query(torch.tensor([[0]]))
    # A tenth is kept, and is enough already: the extent is smaller than a half.
    foretelling(mask, torch.tensor([0.1]), torch.tensor([0.9]), torch.tensor([0.05]), query).backward()
    assert extent.grad is not None
    assert float(extent.grad) > 0, "downhill is towards smaller shares"


@pytest.mark.parametrize(
    ("negative", "chance"),
    [(None, 0.0), ([[-1], [-1]], 0.0), ([[3], [1]], 0.5), ([[0], [0]], 0.5)],
)
def test_what_is_foretold_is_the_kept_sides_part_in_the_class(negative: Any, chance: float) -> None:
    kept, hidden = torch.tensor([0.9, 0.55]), torch.tensor([0.6, 0.2])
    mask = Mask(torch.zeros(2, 1, 4, 4), torch.tensor([[math.log(0.5)], [math.log(0.2)]]), torch.tensor(0.5))
    query = Query(torch.tensor([[2], [2]]), None if negative is None else torch.tensor(negative))
    found = foretelling(mask, torch.tensor([0.1, 0.3]), kept, hidden, query)
    by_hand = []
    for above, below, area, extent in ((0.9, 0.6, 0.1, 0.5), (0.55, 0.2, 0.3, 0.2)):
        above, below = max(above - chance, 0) + 1e-3, max(below - chance, 0) + 1e-3
        part, odds = above / (above + below), math.log(area / extent) / 0.5
        foretold = 1 / (1 + math.exp(-odds))
        by_hand.append(-part * math.log(foretold) - (1 - part) * math.log(1 - foretold))
    assert float(found) == pytest.approx(sum(by_hand) / 2, rel=1e-4)


class Judge:
    """Keeps what it was shown, and what it answered."""

    def __init__(self) -> None:
        self.shown, self.answers = torch.empty(0), torch.empty(0)

    def __call__(self, images: Tensor) -> Tensor:
        answers = answer_of(images)
        self.shown = torch.cat([self.shown, images.detach()])
        self.answers = torch.cat([self.answers, answers.detach()])
        return answers


def surrogate_of(student: Student) -> Surrogate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        surrogate = Surrogate(student, [(12, 12), (6, 6)], (3, 24, 24)).eval()
        torch.nn.init.normal_(surrogate.explanation.readout.weight)
    return surrogate


def test_the_loss_is_what_the_hidden_side_shows_less_the_kept_and_how_well_that_is_foretold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(objectives, "foretelling", lambda *given: told.append(given) or torch.tensor(10.0))
    queries: list[Query] = []

    def draw(scores: Tensor, contrastive: float, generator: torch.Generator) -> Query:
        torch.testing.assert_close(scores, surrogate.student(images)[0].logits.log_softmax(1))
        queries.append(draw_query(scores, contrastive, generator))
        return queries[-1]

    monkeypatch.setattr(objectives, "draw_query", draw)
    judge, surrogate = Judge(), surrogate_of(small_student())
    images = torch.rand(40, 3, 24, 24, generator=drawn())
    loss = Explanation(surrogate, judge, PIXELS)(images, drawn(1))
    ((mask, areas, kept, hidden, query),) = told
    assert (len(judge.shown), len(areas), mask.logits.shape) == (80, 40, (40, 1, 24, 24))
    assert query is queries[0]
    assert 0.05 < float((query.negative >= 0).float().mean()) < 0.45, "a quarter of the questions is against a rival"
    torch.testing.assert_close(kept, query.score(judge.answers[:40])[:, 0])
    torch.testing.assert_close(hidden, query.score(judge.answers[40:])[:, 0])
    torch.testing.assert_close(loss, (conviction(hidden) - conviction(kept)).mean() + 10)


def test_conviction_is_the_probability_and_some_of_its_log_odds_which_have_a_slope_where_it_has_none() -> None:
    scores = torch.tensor([0.0, 1e-3, 0.5, 0.9, 1.0], dtype=torch.float64)
    held = scores.clamp(1e-4, 1 - 1e-4)
    torch.testing.assert_close(conviction(scores), scores + (held / (1 - held)).log() / 24)
    logits = torch.tensor([0.0, 6.0, 60.0], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(conviction(logits.sigmoid()).sum(), logits)
    sure = torch.sigmoid(logits.detach())
    torch.testing.assert_close(slopes[:2], (sure * (1 - sure))[:2] + 1 / 24)
    assert float(slopes[2]) == pytest.approx(0, abs=1e-9), "beyond 0.9999 nothing is gained"


def test_kept_and_hidden_together_are_the_image_and_the_fill_but_for_a_little_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objectives, "random_fills", lambda images, *_: torch.zeros_like(images))
    judge = Judge()
    colour = torch.tensor([1.0, -2.0, 3.0])[:, None, None]
    Explanation(surrogate_of(small_student()), judge, PIXELS)(colour.expand(16, 3, 24, 24), drawn(1))
    kept, hidden = judge.shown.chunk(2)
    noise = kept + hidden - colour
    torch.testing.assert_close(noise.mean(dim=(0, 2, 3)), torch.zeros(3), atol=0.02, rtol=0)
    wanted = 0.05 * math.sqrt(2) * PIXELS.deviation
    torch.testing.assert_close(noise.std(dim=(0, 2, 3)), wanted, atol=0, rtol=0.05)


def test_the_top_share_is_what_the_judge_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """With black fills and white images, the brightness of what is shown is what was kept."""
    told: list[Any] = []
    monkeypatch.setattr(objectives, "foretelling", lambda *given: told.append(given) or torch.zeros(()))
    monkeypatch.setattr(objectives, "random_fills", lambda images, *_: torch.zeros_like(images))
    judge, still = Judge(), Pixels(torch.zeros(3), torch.zeros(3))
    Explanation(surrogate_of(small_student()), judge, still)(torch.ones(12, 3, 24, 24), drawn(1))
    mask, areas = told[0][0], told[0][1]
    keep = kept_softly(mask.logits, areas).expand(-1, 3, -1, -1)
    torch.testing.assert_close(judge.shown, torch.cat([keep, 1 - keep]))


def test_teaching_changes_the_explanation_network_alone() -> None:
    surrogate = surrogate_of(small_student())
    objective = Explanation(surrogate, answer_of, PIXELS)
    assert set(objective.parameters()) == set(surrogate.explanation.parameters())
    images = torch.rand(4, 3, 24, 24, generator=drawn())
    objective(images, drawn(1)).backward()
    assert surrogate.explanation.readout.weight.grad is not None


@pytest.mark.parametrize("mirror", [False, True])
def test_images_are_explained_mirrored_only_where_told(mirror: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = surrogate_of(small_student())
    explain, seen = surrogate.explain, []
    monkeypatch.setattr(surrogate, "explain", lambda images, *rest: seen.append(images) or explain(images, *rest))
    images = torch.rand(8, 3, 24, 24, generator=drawn())
    Explanation(surrogate, answer_of, PIXELS, mirror=mirror)(images, drawn(1))
    same = (seen[0] == images).flatten(1).all(dim=1)
    assert bool(same.all()) != mirror
    assert bool(same.any())


def test_where_the_target_answers_for_its_features_the_question_is_drawn_from_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn_from: list[Tensor] = []

    def draw(scores: Tensor, *rest: Any) -> Query:
        drawn_from.append(scores)
        return draw_query(scores, *rest)

    monkeypatch.setattr(objectives, "draw_query", draw)
    surrogate = Surrogate(Student(Grafted(), (3,), 6), [(24, 24)], (3, 24, 24))
    images = torch.rand(3, 3, 24, 24, generator=drawn())
    Explanation(surrogate, answer_of, PIXELS)(images, drawn(1))
    torch.testing.assert_close(drawn_from[0], answer_of(images))


def test_a_mask_is_small_where_its_extent_is_small_and_keeps_the_order() -> None:
    logits = standardise(torch.randn(1, 1, 12, 12, generator=drawn()))
    masks = [
        Mask(logits, torch.tensor([[math.log(share)]]), torch.tensor(0.5)).saliency((12, 12)) for share in (0.05, 0.3)
    ]
    assert float(masks[0].mean()) < 0.5 * float(masks[1].mean())
    for mask in masks:
        assert torch.equal(mask.flatten().argsort(), logits.flatten().argsort()), "no rank is lost"
        assert 0 <= float(mask.min()) < float(mask.max()) <= 1


def test_the_slow_sigmoid_rises_strictly_over_all_that_occurs() -> None:
    values = squashed(torch.linspace(-60, 60, 500))
    assert bool((values[1:] > values[:-1]).all())
    assert float(values[0]) > 0
    assert float(values[-1]) < 1


# -- what hides --------------------------------------------------------------------------------------------------------


def test_a_constant_image_stays_as_it_is_when_blurred_and_the_mean_is_kept() -> None:
    torch.testing.assert_close(blurred(torch.full((1, 2, 9, 14), 0.7), 3.0), torch.full((1, 2, 9, 14), 0.7))
    image = torch.rand(1, 1, 32, 32, generator=drawn())
    soft = blurred(image, 2.0)
    assert float(soft.std()) < 0.4 * float(image.std())
    assert float(soft.mean()) == pytest.approx(float(image.mean()), abs=0.02)


def test_a_blur_spreads_a_point_as_a_gaussian() -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    soft = blurred(point, 3.0)[0, 0]
    places = torch.arange(41) - 20.0
    assert float(soft.sum()) == pytest.approx(1, abs=1e-4)
    assert float((soft.sum(dim=0) * places.square()).sum()) == pytest.approx(9, rel=0.05)


def test_masks_keep_all_kinds_of_shares() -> None:
    masks = random_grid_masks(200, (24, 36), drawn())
    assert masks.shape == (200, 1, 24, 36)
    assert float(masks.min()) >= 0
    assert float(masks.max()) == pytest.approx(1, abs=1e-5)
    shares = masks.mean(dim=(1, 2, 3))
    assert float(shares.min()) < 0.25
    assert float(shares.max()) > 0.75


def test_fills_differ_from_image_to_image_and_masked_images_show_both() -> None:
    images = torch.rand(24, 3, 16, 16, generator=drawn())
    mean, deviation = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    fills = random_fills(images, mean, deviation, drawn(1))
    flat = (fills.flatten(2).std(dim=2) < 1e-5).all(dim=1)
    assert 0 < int(flat.sum()) < 24, "some fills are one colour, others are not"
    masked = randomly_masked(images, mean, deviation, drawn(2))
    untouched = (masked - images).abs().amax(dim=1) < 1e-6
    assert 0.05 < float(untouched.float().mean()) < 0.6, "some pixels stay, most borders are soft"


def test_blending_keeps_one_side_and_hides_the_other() -> None:
    keep = torch.zeros(1, 1, 2, 2)
    keep[..., 0] = 1
    shown = blended(keep, torch.full((1, 3, 2, 2), 5.0), torch.full((1, 3, 2, 2), -1.0))
    assert shown[0, 0].tolist() == [[5, -1], [5, -1]]
