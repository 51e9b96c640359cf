"""Mosaics for the grid pointing game (Böhle et al., 2021): four images of four classes in one, so the right quarter is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mosaics:
    """A set of mosaics.

    Attributes:
        images: (N, C, H, W).
        labels: classes of the cells in the order of reading (N, cells).
        masks: where each cell is (cells, H, W), bool; the same for all.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.images)


def mosaics(images: Tensor, labels: Tensor, count: int, seed: int = 0, side: int = 2, shrunk: bool = False) -> Mosaics:
    """Put images of different classes together, each at its own size, as the model knows them.

    Take images that the model is sure of: a map cannot find what the model does not see. The score of a map is
    `saliency_share(maps, masks of the cell asked about)`.

    Args:
        images: (M, C, H, W).
        labels: what is on each (M,), int64.
        count: N.
        seed: the same seed gives the same mosaics.
        side: cells along each side.
        shrunk: for models of one size: shrink each image to its cell, so that a mosaic is as large as an image.

    Raises:
        ValueError: there are fewer classes than cells, or cells are smaller than a pixel.
    """
    cells, (height, width) = side * side, images.shape[-2:]
    by_class = {name: torch.nonzero(labels == name)[:, 0].numpy() for name in sorted(set(labels.tolist()))}
    if len(by_class) < cells:
        raise ValueError(f"a mosaic of {side}x{side} needs {cells} classes, the images have {len(by_class)}")
    if not shrunk:
        height, width = side * height, side * width
    if side < 1 or min(height, width) < side:
        raise ValueError(f"images of {height}x{width} cannot be put together {side}x{side}")
    rng = np.random.default_rng(seed)
    borders = [[round(place * length / side) for place in range(side + 1)] for length in (height, width)]
    spans = [
        (slice(borders[0][row], borders[0][row + 1]), slice(borders[1][column], borders[1][column + 1]))
        for row in range(side)
        for column in range(side)
    ]
    made, names = torch.empty(count, images.shape[1], height, width), torch.empty(count, cells, dtype=torch.int64)
    masks = torch.zeros(cells, height, width, dtype=torch.bool)
    for cell, (rows, columns) in enumerate(spans):
        masks[cell, rows, columns] = True
    known = np.array(list(by_class))
    for index in range(count):
        for cell, name in enumerate(rng.choice(known, size=cells, replace=False).tolist()):
            image = images[int(rng.choice(by_class[name]))]
            size = (spans[cell][0].stop - spans[cell][0].start, spans[cell][1].stop - spans[cell][1].start)
            fitting = F.interpolate(
                image[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False
            )
            made[index, :, spans[cell][0], spans[cell][1]] = fitting[0]
            names[index, cell] = name
    return Mosaics(made, names, masks)
