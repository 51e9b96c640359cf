"""What replaces pixels when a map is put to the test. Two kinds, smooth noise and pixels of another image, fitting never saw."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_attnkd.perturbation import blurred

Fill = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


def blur(images: Tensor, mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """The image itself, strongly blurred (Petsiuk et al., 2018)."""
    return blurred(images, 0.05 * min(images.shape[-2:]))


def grey(images: Tensor, mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """The data's mean colour."""
    return mean[:, None, None].to(images).expand_as(images)


def colour(images: Tensor, mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """One random colour an image."""
    drawn = torch.randn(len(images), len(mean), 1, 1, generator=generator).to(images)
    return (mean[:, None, None].to(images) + 1.5 * deviation[:, None, None].to(images) * drawn).expand_as(images)


def smooth_noise(images: Tensor, mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Coloured clouds: noise on a coarse grid, enlarged. Never used in fitting."""
    rows, columns = (max(side // 16, 2) for side in images.shape[-2:])
    coarse = torch.randn(len(images), images.shape[1], rows, columns, generator=generator).to(images)
    clouds = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=False)
    return mean[:, None, None].to(images) + 1.2 * deviation[:, None, None].to(images) * clouds


def other_image(images: Tensor, mean: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels of the next image of the set that is another one. Never used in fitting.

    Raises:
        ValueError: there is none.
    """
    return images[[_another(images, index) for index in range(len(images))]]


def _another(images: Tensor, index: int) -> int:
    for step in range(1, len(images)):
        other = (index + step) % len(images)
        if not torch.equal(images[other], images[index]):
            return other
    raise ValueError("the fill 'other image' needs at least two different images")


FILLS: dict[str, Fill] = {
    "blur": blur,
    "grey": grey,
    "colour": colour,
    "smooth noise": smooth_noise,
    "other image": other_image,
}
UNSEEN = ("smooth noise", "other image")
