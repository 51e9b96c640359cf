"""How alike two saliency maps are, by their order alone: a map's scale is its author's choice."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import Tensor


def likeness(maps: Tensor, others: Tensor) -> dict[str, Tensor]:
    """Rank correlation (Spearman's) and structural similarity (SSIM of the maps' ranks), each (B,), at most 1.

    A constant map has no order: it is all alike with another constant map, and not at all with any other.

    Args:
        maps: saliency (B, 1, H, W), H and W of at least 7.
        others: likewise, of the same images.
    """
    if maps.shape != others.shape:
        raise ValueError(f"maps of shape {tuple(maps.shape)} beside others of shape {tuple(others.shape)}")
    correlations, structures = [], []
    for one, other in zip(maps[:, 0], others[:, 0], strict=True):
        first, second = (rankdata(values.flatten().double().numpy()) / values.numel() for values in (one, other))
        flat = [float(ranks.std()) < 1e-9 for ranks in (first, second)]
        if any(flat):
            correlations.append(float(all(flat)))
        else:
            correlations.append(float(np.corrcoef(first, second)[0, 1]))
        shape = tuple(one.shape)
        structures.append(float(structural_similarity(first.reshape(shape), second.reshape(shape), data_range=1.0)))
    return {"rank correlation": torch.tensor(correlations), "SSIM of ranks": torch.tensor(structures)}
