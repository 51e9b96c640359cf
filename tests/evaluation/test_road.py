"""ROAD: the imputation against a direct solution, and what the curves say of good and bad maps."""

from __future__ import annotations

import pytest
import torch
from captum_attnkd.evaluation.faithfulness import drop_and_increase
from captum_attnkd.evaluation.road import imputed, road_curve
from torch import Tensor


def solved_directly(image: Tensor, removed: Tensor) -> Tensor:
    """The same means (H, W) by one dense linear system, written down pixel by pixel."""
    height, width = image.shape
    places = [(y, x) for y in range(height) for x in range(width) if removed[y, x]]
    number = {place: index for index, place in enumerate(places)}
    matrix, wanted = (
        torch.zeros(len(places), len(places), dtype=torch.float64),
        torch.zeros(len(places), dtype=torch.float64),
    )
    for (y, x), row in number.items():
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                if (down, right) == (0, 0) or not (0 <= y + down < height and 0 <= x + right < width):
                    continue
                weight = 1 / 12 if down and right else 1 / 6
                matrix[row, row] += weight
                if (y + down, x + right) in number:
                    matrix[row, number[y + down, x + right]] -= weight
                else:
                    wanted[row] += weight * float(image[y + down, x + right])
    found = image.clone()
    for place, value in zip(places, torch.linalg.solve(matrix, wanted).tolist(), strict=True):
        found[place] = value
    return found


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_the_imputation_is_the_solution_of_the_linear_system(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 11, 14, generator=generator)
    removed = torch.rand(2, 1, 11, 14, generator=generator) < share
    removed[:, :, 5, 5] = False
    found = imputed(images, removed, generator, noise=0, tolerance=1e-6)
    for index in range(2):
        for channel in range(3):
            wanted = solved_directly(images[index, channel], removed[index, 0])
            torch.testing.assert_close(found[index, channel], wanted, atol=1e-4, rtol=0)


def test_a_hole_that_reaches_the_border_converges_as_fast_as_any() -> None:
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    removed = torch.ones(1, 1, 224, 224, dtype=torch.bool)
    removed[:, :, 120:, 130:] = False  # 224 is no power of two: blocks at the border are incomplete
    imputed(images, removed, torch.Generator(), most=150)


def test_large_images_converge_and_kept_pixels_stay() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 224, 224, generator=generator)
    removed = torch.zeros(2, 1, 224, 224, dtype=torch.bool)
    removed[:, :, 4:220, 4:220] = True  # one hole, the worst case
    found = imputed(images, removed, generator)
    assert torch.equal(found[~removed.expand_as(found)], images[~removed.expand_as(images)])
    assert float(found[:, :, 112, 112].std()) < 0.1, "far from what is left, only its mean is known"
    assert not torch.equal(imputed(images, removed, generator), found), "noise is drawn anew"


def test_an_image_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is left"):
        imputed(torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.Generator())
    with pytest.raises(ValueError, match=r"\(0, 1\), got 1.0"):
        road_curve(
            brightness,
            torch.rand(1, 1, 4, 4),
            torch.rand(1, 1, 4, 4),
            torch.tensor([0]),
            True,
            torch.Generator(),
            [1.0],
        )


def brightness(shown: Tensor) -> Tensor:
    """A model that looks for a bright spot in its middle."""
    spot = shown[:, :, 6:10, 6:10].mean(dim=(1, 2, 3)).clamp(1e-3, 1 - 1e-3)
    return torch.stack([spot, 1 - spot], dim=1).log()


def test_a_good_map_falls_fast_in_one_order_and_slowly_in_the_other() -> None:
    images = 0.1 * torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    images[:, :, 6:10, 6:10] = 1
    target = torch.zeros(3, dtype=torch.int64)
    curves = {
        (name, first): road_curve(brightness, images, maps, target, first, torch.Generator().manual_seed(3)).mean()
        for name, maps in (("good", images), ("bad", -images))
        for first in (True, False)
    }
    assert float(curves["good", True]) < 0.2
    assert float(curves["good", False]) > 0.9
    torch.testing.assert_close(curves["bad", True], curves["good", False], atol=0.02, rtol=0)


def test_drop_and_increase_by_hand() -> None:
    def share(shown: Tensor) -> Tensor:
        seen = (shown[:, 0, 0, 0] - shown[:, 0, 0, 1] / 2).clamp(0.01, 0.99)
        return torch.stack([seen, 1 - seen], dim=1).log()

    images = torch.tensor([0.8, 0.4]).reshape(1, 1, 1, 2).repeat(3, 1, 1, 1)  # probability 0.6
    maps = torch.tensor([[5.0, 1.0], [1.0, 5.0], [2.0, 2.0]]).reshape(3, 1, 1, 2)
    drop, rose = drop_and_increase(share, images, maps, torch.zeros(3, dtype=torch.int64), torch.zeros_like(images))
    # The first map shows what speaks for the class and hides what speaks against: 0.8. The others leave nothing.
    torch.testing.assert_close(drop, torch.tensor([0.0, 0.59 / 0.6, 0.59 / 0.6]))
    assert rose.tolist() == [1.0, 0.0, 0.0]
