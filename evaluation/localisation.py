"""Does the map lie on the object? Localisation is not faithfulness: the two are reported apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .faithfulness import ranks_of


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether each map's maximum lies inside its object (Zhang et al., 2018): (B,), float32, 0 or 1.

    Args:
        maps: saliency (B, 1, H, W).
        masks: where the objects are (B, H, W), bool; none may be empty.
    """
    _refuse_empty(masks)
    peaks = maps.flatten(1).argmax(dim=1, keepdim=True)
    return masks.flatten(1).gather(1, peaks)[:, 0].float()


def saliency_share(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive saliency that lies inside the object (relevance mass): (B,), in [0, 1].

    Args:
        maps: saliency (B, 1, H, W); negative values count as none.
        masks: where the objects are (B, H, W), bool; none may be empty.
    """
    _refuse_empty(masks)
    positive = maps[:, 0].clamp_min(0)
    return (positive * masks).sum(dim=(1, 2)) / positive.sum(dim=(1, 2)).clamp_min(1e-12)


def relevance_rank(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the object's K pixels among the map's K highest (Arras et al., 2022): (B,), in [0, 1].

    Args:
        maps: saliency (B, 1, H, W); ties stand in the order of reading.
        masks: where the objects are (B, H, W), bool; none may be empty.
    """
    _refuse_empty(masks)
    sizes = masks.flatten(1).sum(dim=1)
    among = ranks_of(maps)[:, 0].flatten(1) < sizes[:, None]
    return (among & masks.flatten(1)).sum(dim=1) / sizes


def boundary_precision(maps: Tensor, masks: Tensor, tolerance: int = 2) -> Tensor:
    """Share of the outline of the map's K highest pixels that runs near the object's outline (after Csurka et al., 2013): (B,).

    Args:
        maps: saliency (B, 1, H, W); ties stand in the order of reading.
        masks: where the objects are (B, H, W), bool, of K pixels each; none may be empty.
        tolerance: how far, in pixels along each axis, is near.
    """
    _refuse_empty(masks)
    highest = ranks_of(maps)[:, 0] < masks.flatten(1).sum(dim=1)[:, None, None]
    found, true = (_outline(shapes[:, None].float()) for shapes in (highest, masks))
    near = F.max_pool2d(true, 2 * tolerance + 1, stride=1, padding=tolerance)
    return (found * near).sum(dim=(1, 2, 3)) / found.sum(dim=(1, 2, 3))


def _outline(shapes: Tensor) -> Tensor:
    """Pixels of shapes (B, 1, H, W) that touch what is outside; the image's border is outside."""
    return shapes - (1 - F.max_pool2d(F.pad(1 - shapes, (1, 1, 1, 1), value=1.0), 3, stride=1))


def _refuse_empty(masks: Tensor) -> None:
    if not bool(masks.flatten(1).any(dim=1).all()):
        empty = torch.nonzero(~masks.flatten(1).any(dim=1)).flatten().tolist()
        raise ValueError(f"the masks of images {empty[:5]} are empty; an object that is nowhere cannot be pointed at")
