"""Scattered digits: what is drawn is what the masks and labels say."""

from __future__ import annotations

import pytest
import torch
from captum_attnkd.evaluation.datasets.digits import DigitNet, scattered_digits


def test_a_set_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    one, again, other = (scattered_digits(8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.masks, again.masks)
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("digits", [1, 2])
def test_masks_lie_on_ink_and_do_not_overlap(digits: int) -> None:
    data = scattered_digits(20, seed=3, digits=digits)
    assert data.images.shape == (20, 1, 64, 64)
    assert data.labels.shape == (20, digits)
    assert data.masks.shape == (20, digits, 64, 64)
    assert int(data.masks.sum(dim=1).max()) == 1, "no pixel belongs to two digits"
    for image, masks in zip(data.images[:, 0], data.masks, strict=True):
        for mask in masks:
            assert float(image[mask].mean()) > 0.4
            assert 0.01 < float(mask.float().mean()) < 0.15
    if digits == 2:
        assert bool((data.labels[:, 0] != data.labels[:, 1]).all())


def test_distractors_are_as_bright_as_digits_but_outside_the_mask() -> None:
    data = scattered_digits(20, seed=4)
    outside = data.images[:, 0].masked_fill(data.masks[:, 0], 0)
    assert bool((outside.flatten(1).amax(dim=1) > 0.6).all())
    empty = scattered_digits(20, seed=4, pieces=0)
    assert float(empty.images[:, 0].masked_fill(empty.masks[:, 0], 0).mean()) < 0.05


def test_the_two_splits_share_no_handwriting() -> None:
    train, test = (scattered_digits(30, seed=5, split=split, pieces=0) for split in ("train", "test"))
    assert not any(torch.equal(one, other) for one in train.images for other in test.images)


def test_the_users_model_answers_with_ten_logits() -> None:
    assert DigitNet().eval()(torch.rand(3, 1, 64, 64)).shape == (3, 10)
