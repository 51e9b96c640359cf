"""Mosaics: every cell shows an image of the class its label names, and scores follow the cell."""

from __future__ import annotations

import pytest
import torch
from captum_attnkd.evaluation.datasets.mosaics import mosaics
from captum_attnkd.evaluation.localisation import saliency_share

LABELS = torch.arange(6).repeat(3)
IMAGES = (LABELS / 10).reshape(-1, 1, 1, 1).expand(-1, 3, 12, 17).contiguous()  # each class is one brightness


@pytest.mark.parametrize("shrunk", [False, True])
@pytest.mark.parametrize("side", [1, 2])
def test_every_cell_shows_its_class(side: int, shrunk: bool) -> None:
    made = mosaics(IMAGES, LABELS, count=20, seed=1, side=side, shrunk=shrunk)
    assert made.images.shape == ((20, 3, 12, 17) if shrunk else (20, 3, 12 * side, 17 * side))
    assert bool((made.masks.sum(dim=0) == 1).all()), "cells tile the image"
    for image, names in zip(made.images, made.labels, strict=True):
        assert len(set(names.tolist())) == side * side
        for mask, name in zip(made.masks, names.tolist(), strict=True):
            torch.testing.assert_close(image[:, mask], torch.full((3, int(mask.sum())), name / 10))


def test_the_same_seed_gives_the_same_mosaics() -> None:
    one, again, other = (mosaics(IMAGES, LABELS, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.labels, other.labels)


def test_a_cell_is_the_image_itself_pixel_by_pixel() -> None:
    images = torch.rand(18, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    made = mosaics(images, LABELS, count=3)
    for mosaic, names in zip(made.images, made.labels, strict=True):
        cells = (mosaic[:, :6, :5], mosaic[:, :6, 5:], mosaic[:, 6:, :5], mosaic[:, 6:, 5:])
        for cell, name in zip(cells, names.tolist(), strict=True):
            assert any(torch.equal(cell, image) for image in images[name == LABELS])


def test_a_map_of_the_cell_scores_one_and_an_even_map_its_size() -> None:
    made = mosaics(IMAGES[..., :12], LABELS, count=4, shrunk=True)
    cell = made.masks[2].expand(4, -1, -1)
    torch.testing.assert_close(saliency_share(cell[:, None].float(), cell), torch.ones(4))
    torch.testing.assert_close(saliency_share(torch.ones(4, 1, 12, 12), cell), torch.full((4,), 0.25))


def test_too_few_classes_or_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 4 classes, the images have 3"):
        mosaics(IMAGES[:3], LABELS[:3], count=1)
    with pytest.raises(ValueError, match="1x17"):
        mosaics(IMAGES[:, :, :1], LABELS, count=1, shrunk=True)
