"""The pieces of the two objectives, on cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from captum_attnkd.attention import LevelAttention, attended_area
from captum_attnkd.explanation import Mask, squashed, standardise
from captum_attnkd.objectives import divergence, draw_areas, draw_query, foretelling, kept_softly, through
from captum_attnkd.perturbation import blended, blurred, random_fills, random_grid_masks, random_shift, randomly_masked
from captum_attnkd.surrogate import Query


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


def test_attention_begins_flat_and_passes_features_unchanged() -> None:
    features = torch.randn(2, 16, 5, 7, generator=drawn())
    attended, attention = LevelAttention(16)(features, standardise(features))
    torch.testing.assert_close(attended, features)
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


def test_a_shift_moves_the_whole_batch_by_a_few_pixels() -> None:
    images = torch.rand(2, 1, 50, 50, generator=drawn())
    shifts = {tuple(divmod(int(find_shift(images, random_shift(images, drawn(seed)))), 7)) for seed in range(20)}
    assert len(shifts) > 5


def find_shift(images: torch.Tensor, moved: torch.Tensor) -> int:
    """Which of the 7 x 7 shifts by up to three pixels it was; the middle of the image tells."""
    for down in range(7):
        for right in range(7):
            if torch.equal(moved[:, :, 10:40, 10:40], images[:, :, 7 + down : 37 + down, 7 + right : 37 + right]):
                return 7 * down + right
    raise AssertionError("moved by more than three pixels, or otherwise changed")
