"""What a fit does with the images it is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_task import fit_quickly, single_squares

from captum_attnkd import AttentiveKDAttribution


class Sides:
    """A model that is only a function: which side of an image is brighter, or (then mirrored images are alike) which end."""

    def __init__(self, symmetric: bool) -> None:
        self.axis = 2 if symmetric else 3
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += list(images.clone())
        one, other = images.chunk(2, dim=self.axis)
        return 50 * torch.stack([one.mean(dim=(1, 2, 3)), other.mean(dim=(1, 2, 3))], dim=1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_images_are_mirrored_only_where_the_model_names_the_same_class(symmetric: bool) -> None:
    learned, _, _ = single_squares(48, seed=5)
    held_out, _, _ = single_squares(24, seed=6)
    target = Sides(symmetric)
    attribution = AttentiveKDAttribution(target, student="compact")
    fit_quickly(attribution, [learned], steps=8, val_loader=[held_out])

    def was_sent(images: Tensor) -> bool:
        return any(torch.equal(sent, image) for sent in target.seen for image in images)

    assert was_sent(learned), "clean images are sent as they are"
    assert was_sent(learned.flip(3)) == symmetric
