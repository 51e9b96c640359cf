"""What may be said of differences between explainers: intervals and tests over images, paired, corrected for many comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from torch import Tensor


def paired_interval(differences: Tensor, repeats: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences (N,), with its bootstrap 95 % interval over images."""
    values = _values(differences)
    means = values[_drawn(len(values), repeats, seed)].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def paired_test(differences: Tensor, repeats: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of paired differences (N,): how often the mean is as far from zero when signs are drawn at random."""
    values = _values(differences)
    as_far = np.abs(_signs(len(values), repeats, seed) @ values) >= abs(values.sum()) * (1 - 1e-12)
    return float((1 + as_far.sum()) / (1 + repeats))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number by Holm's method (1979): the chance of a single false finding among all is kept."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


# A report asks for hundreds of intervals over the same images.
@lru_cache(maxsize=2)
def _drawn(count: int, repeats: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (repeats, count))


@lru_cache(maxsize=2)
def _signs(count: int, repeats: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 1.0], (repeats, count))


def _values(differences: Tensor) -> np.ndarray:
    values = differences.double().numpy()
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"differences must be finite, one an image, got shape {values.shape}")
    return values
