"""A study's scores as tables: means with intervals, and every method against a reference, paired and corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .measuring import Measured
from .statistics import holm, paired_interval, paired_test
from .study import Outcome

ALPHA = 0.05


def scores(outcomes: Mapping[str, Outcome], names: tuple[str, ...]) -> pd.DataFrame:
    """Every score of every image: columns method, metric, column (of the metric), image, score; NaN where there is none."""
    # A file's name need not be text; with pyarrow pandas takes nothing else.
    names = tuple(name.encode(errors="backslashreplace").decode() for name in names)
    rows = [
        {"method": method, "metric": metric, "column": column, "image": image, "score": value}
        for method, outcome in outcomes.items()
        for metric, measured in outcome.measured.items()
        for column, values in measured.scores.items()
        for image, value in zip(names, values.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["method", "metric", "column", "image", "score"])


def summary(outcomes: Mapping[str, Outcome], reference: str | None = None) -> pd.DataFrame:
    """One row a method and column of a metric.

    Args:
        outcomes: of a study.
        reference: the method all others are compared with, on the images where both have a score; None compares none.

    Returns:
        Columns: method; metric; column; better ("higher" or "lower"); n, images with a score; mean, low, high: of the score, with
        its bootstrap 95 % interval over images; less, less_low, less_high: of the method's scores less the reference's, paired;
        p: two-sided, corrected by Holm's method over the methods of that column; failure: why there is none, else "".
    """
    rows = []
    for name, outcome in outcomes.items():
        for metric, measured in outcome.measured.items():
            for column, better in measured.better.items():
                values = measured.scores[column]
                rows.append(
                    {"method": name, "metric": metric, "column": column, "better": better, "failure": ""}
                    | _mean(values)
                    | _less(values, _of(outcomes, reference, metric, column) if name != reference else None)
                )
        failures = outcome.failures or {"": outcome.failure}
        for metric, why in failures.items():
            if why:
                rows.append({"method": name, "metric": metric, "column": "", "better": "", "n": 0, "failure": why})
    order = ["method", "metric", "column", "better", "n", "mean", "low", "high", "less", "less_low", "less_high", "p"]
    table = pd.DataFrame(rows, columns=[*order, "failure"])
    for _, rows_of in table[table["p"].notna()].groupby(["metric", "column"], sort=False):
        corrected = holm(dict(zip(rows_of["method"], rows_of["p"], strict=True)))
        table.loc[rows_of.index, "p"] = [corrected[name] for name in rows_of["method"]]
    return table


def means(outcomes: Mapping[str, Outcome], metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Means over images: a row a method, a column a score, with an arrow towards what is better.

    Args:
        outcomes: of a study.
        metrics: only these, by name.
    """
    rows: dict[str, dict[str, float]] = {name: {} for name in outcomes}
    for name, outcome in outcomes.items():
        for metric, measured in outcome.measured.items():
            if metrics is None or metric in metrics:
                for column, better in measured.better.items():
                    arrow = "↑" if better == "higher" else "↓"
                    rows[name][f"{column} {arrow}"] = mean_of(measured.scores[column])
    return pd.DataFrame(list(rows.values()), index=list(rows))  # from_dict leaves out empty rows in pandas before 3


def leaders(outcomes: Mapping[str, Outcome], metric: str, column: str) -> tuple[str | None, set[str]]:
    """The method with the best mean, and those not significantly worse (paired, Holm over methods, at 0.05), itself among them."""
    found = {name: one for name in outcomes if (one := _measured(outcomes, name, metric, column)) is not None}
    found = {name: one for name, one in found.items() if bool(torch.isfinite(one.scores[column]).any())}
    if not found:
        return None, set()
    sign = 1.0 if next(iter(found.values())).better.get(column, "higher") == "higher" else -1.0
    best = max(found, key=lambda name: sign * mean_of(found[name].scores[column]))
    p_values = {}
    for name, one in found.items():
        both = (found[best].scores[column] - one.scores[column])[
            _finite(found[best].scores[column], one.scores[column])
        ]
        if name != best and len(both):
            p_values[name] = paired_test(both)
    corrected = holm(p_values)
    return best, {best} | {name for name, p in corrected.items() if p >= ALPHA}


def mean_of(values: Tensor) -> float:
    """Mean over the images that have a score; NaN where none has."""
    return float(values[torch.isfinite(values)].mean())


def _measured(outcomes: Mapping[str, Outcome], name: str | None, metric: str, column: str) -> Measured | None:
    found = outcomes[name].measured.get(metric) if name in outcomes else None
    return found if found is not None and column in found.scores else None


def _of(outcomes: Mapping[str, Outcome], name: str | None, metric: str, column: str) -> Tensor | None:
    found = _measured(outcomes, name, metric, column)
    return None if found is None else found.scores[column]


def _finite(*values: Tensor) -> Tensor:
    return torch.stack([torch.isfinite(one) for one in values]).all(dim=0)


def _mean(values: Tensor) -> dict[str, float]:
    known = values[torch.isfinite(values)]
    if not len(known):
        return {"n": 0, "mean": np.nan, "low": np.nan, "high": np.nan}
    mean, low, high = paired_interval(known)
    return {"n": len(known), "mean": mean, "low": low, "high": high}


def _less(values: Tensor, reference: Tensor | None) -> dict[str, float]:
    nothing = dict.fromkeys(("less", "less_low", "less_high", "p"), np.nan)
    if reference is None:
        return nothing
    both = (values - reference)[_finite(values, reference)]
    if not len(both):
        return nothing
    mean, low, high = paired_interval(both)
    return {"less": mean, "less_low": low, "less_high": high, "p": paired_test(both)}
