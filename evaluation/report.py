"""A study as a page to read and files to reckon with: report.html, scores.csv, summary.csv, study.json.

The page is one file that asks for nothing from anywhere. What a reader must not miss stands first: what failed, and where the
method the report is about loses.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import math
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from captum_attnkd import checkpoint

from .measuring import Family, Measured, Metric
from .methods import Kind, Method, unknown
from .road import SHARES
from .speed import FORWARD, break_even, machine
from .study import Outcome, Study
from .summary import ALPHA, leaders, scores, summary

PACKAGES = ("torch", "torchvision", "captum", "quantus", "grad-cam", "captum-attnkd", "numpy")
TILE = 128  # longer side of a gallery's pictures, in pixels
WIDE, HIGH = 240, 160  # of a curve's panel, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 32, 8, 8, 30  # its margins
COLOURS = 6  # of curves, in the style sheet; from the seventh method on lines are dashed as well

FAMILIES = {
    "faithfulness": "Does what the map marks carry the model's answer? The model itself is asked; where objects are plays no part.",
    "localisation": "Does the map lie on the object? This says where a map points, not whether the model looked there: "
    "localisation is not faithfulness.",
    "complexity": "How concentrated a map is, whatever it shows.",
    "robustness": "How much a map changes where the image hardly does.",
    "randomisation": "Whether a map depends on what it should depend on.",
}


@dataclass(frozen=True)
class About:
    """What a report says of the run itself.

    Attributes:
        title: of the page.
        command: that reproduces the run.
        model: how it was named.
        source: how the images were named.
        classes: names, in the model's order; None where they are not known.
        fit: what the fit of our surrogate told of itself, as `FitReport.as_dict` gives it; None where there was none.
        seconds: that the run took; NaN where it is not known.
    """

    title: str
    command: str
    model: str
    source: str
    classes: tuple[str, ...] | None = None
    fit: Mapping[str, Any] | None = None
    seconds: float = math.nan

    def class_name(self, index: int) -> str:
        """A class in words."""
        return self.classes[index] if self.classes is not None and index < len(self.classes) else f"class {index}"


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what comes out, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_report(
    folder: Path,
    study: Study,
    outcomes: Mapping[str, Outcome],
    about: About,
    reference: str | None = None,
    costs: pd.DataFrame | None = None,
    gallery: int = 8,
) -> Path:
    """Write a study's page and files, each whole or not at all.

    Args:
        folder: made if missing.
        study: that was run.
        outcomes: what it found.
        about: the run.
        reference: the method the page is about, which all others are compared with; by default the first.
        costs: what `speed` returned; without it the page has only what the maps took in this run.
        gallery: images to show, spread evenly over the set.

    Returns:
        The path of report.html.

    Raises:
        ValueError: there is no method of the reference's name.
        OSError: the folder cannot be written.
    """
    reference = study.methods[0].name if reference is None else reference
    if reference not in outcomes:
        raise ValueError(unknown("method", reference, list(outcomes)))
    table = summary(outcomes, reference)
    run = _Run(study, outcomes, about, reference, table)
    page = _page(run, costs, gallery)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "scores.csv", scores(outcomes, study.data.names).to_csv(index=False))
    _write(folder / "summary.csv", table.to_csv(index=False))
    _write(folder / "study.json", json.dumps(_plain(_record(run, costs)), indent=1, allow_nan=False))
    _write(folder / "report.html", page)
    return folder / "report.html"


# -- what the page is made from ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of a table: one number that a metric gives an image."""

    metric: Metric
    name: str
    better: str  # "higher", "lower", or "" where no method could be measured

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")


@dataclass(frozen=True)
class _Run:
    """A study with what was found, looked up by method and column."""

    study: Study
    outcomes: Mapping[str, Outcome]
    about: About
    reference: str
    table: pd.DataFrame

    @cached_property
    def methods(self) -> list[Method]:
        """Grouped by kind, controls last."""
        kinds = _ordered((method.kind for method in self.study.methods), get_args(Kind))
        found = [method for method in self.study.methods if method.name in self.outcomes]
        return sorted(found, key=lambda method: (method.kind == "control", kinds.index(method.kind)))

    @cached_property
    def families(self) -> list[str]:
        """Of the metrics, in the order of their tables."""
        return _ordered((metric.family for metric in self.study.metrics), get_args(Family))

    @cached_property
    def columns(self) -> list[_Column]:
        """Of all metrics, by family; a metric that failed for every method has one, so that it is not silently left out."""
        found = []
        for metric in sorted(self.study.metrics, key=lambda metric: self.families.index(metric.family)):
            better = {name: way for one in self._measured(metric) for name, way in one.better.items()}
            found += [_Column(metric, name, way) for name, way in (better or {metric.name: ""}).items()]
        return found

    def _measured(self, metric: Metric) -> list[Measured]:
        return [one.measured[metric.name] for one in self.outcomes.values() if metric.name in one.measured]

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        return {(row["method"], row["metric"], row["column"]): row for row in self.table.to_dict("records")}

    def row(self, method: str, column: _Column) -> dict[str, Any] | None:
        """Of the summary; None where the method has no score there."""
        row = self._rows.get((method, column.metric.name, column.name))
        return row if row is not None and row["n"] > 0 else None

    def verdict(self, method: str, column: _Column) -> str:
        """Of a method beside the reference: "better", "worse", "level", or "" where they cannot be compared."""
        row = self.row(method, column)
        if row is None or not math.isfinite(row["p"]):
            return ""
        if row["p"] >= ALPHA:
            return "level"
        return "better" if (row["less"] > 0) == (column.better == "higher") else "worse"

    def why(self, method: str, metric: str) -> tuple[str, str] | None:
        """What failed, "" for the method as a whole, and why; None where nothing did."""
        outcome = self.outcomes[method]
        if outcome.failure:
            return "", outcome.failure
        return (metric, outcome.failures[metric]) if metric in outcome.failures else None

    @cached_property
    def failures(self) -> dict[tuple[str, str], list[str]]:
        """Methods by what failed and why."""
        found: dict[tuple[str, str], list[str]] = {}
        for method in self.methods:
            reasons = {self.why(method.name, metric.name) for metric in self.study.metrics} or {
                self.why(method.name, "")
            }
            for reason in sorted(reason for reason in reasons if reason is not None):
                found.setdefault(reason, []).append(method.name)
        return found

    def letter(self, reason: tuple[str, str]) -> str:
        """A footnote's sign: a letter, since a failing cell must not look like a number."""
        return _letters(list(self.failures).index(reason))

    @cached_property
    def fitted(self) -> str | None:
        """The method whose fit is to be paid for; None where nothing was fitted."""
        learned = [method.name for method in self.methods if method.learned and method.kind == "ours"]
        if self.about.fit is None or not learned:
            return None
        return self.reference if self.reference in learned else learned[0]


def _page(run: _Run, costs: pd.DataFrame | None, gallery: int) -> str:
    """The page's text."""
    curves = _curves(run)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": _duration, "short": _short, "p": _p_value, "fixed": _fixed}
    return environment.get_template("report.html").render(
        run=run,
        about=run.about,
        study=run.study,
        machine=machine(run.study.subject.device),
        versions=versions(),
        failures=[
            {"letter": run.letter(reason), "metric": reason[0], "why": reason[1], "methods": methods}
            for reason, methods in run.failures.items()
        ],
        standing=_standing(run),
        tables=_tables(run),
        legend=_legend(run),
        curves=curves,
        drawn={line["name"] for group in curves for panel in group["panels"] for line in panel["lines"]},
        gallery=_gallery(run, gallery),
        costs=_costs(run, costs),
        nan=math.nan,
        inf=math.inf,
        size=(WIDE, HIGH),
        box={"left": LEFT, "right": WIDE - RIGHT, "bottom": HIGH - BOTTOM},
        powerless=_powerless(run),
    )


# -- in short ------------------------------------------------------------------------------------------------------------------


def _standing(run: _Run) -> dict[str, Any]:
    """Where the reference wins and loses: per column, over all, and to whom."""
    rows = []
    totals, losses = Counter[str](), Counter[str]()
    for column in run.columns:
        names: dict[str, list[str]] = {"worse": [], "level": [], "better": [], "": []}
        for method in run.methods:
            if method.name != run.reference:
                names[run.verdict(method.name, column)].append(method.name)
        # Said of the reference: it wins where the others are worse.
        found = {"wins": names["worse"], "level": names["level"], "losses": names["better"], "unknown": names[""]}
        totals.update({what: len(those) for what, those in found.items()})
        losses.update(found["losses"])
        rows.append({"column": column, **found})
    compared = totals.total() - totals["unknown"]
    return {"rows": rows, "totals": totals, "losses": losses.most_common(), "compared": compared}


def _powerless(run: _Run) -> bool:
    """Whether there are too few images for any difference to be told: even if all of them agree."""
    return 2 * 0.5 ** len(run.study.data) * (len(run.methods) - 1) >= ALPHA


# -- tables --------------------------------------------------------------------------------------------------------------------


def _tables(run: _Run) -> list[dict[str, Any]]:
    """One a family."""
    return [
        {"family": family, "about": FAMILIES.get(family, ""), **_table(run, columns)}
        for family in run.families
        if (columns := [column for column in run.columns if column.metric.family == family])
    ]


def _table(run: _Run, columns: list[_Column]) -> dict[str, Any]:
    cells: dict[str, list[dict[str, Any]]] = {method.name: [] for method in run.methods}
    heads = []
    for column in columns:
        best, near = leaders(run.outcomes, column.metric.name, column.name)
        found = {method.name: run.row(method.name, column) for method in run.methods}
        decimals = _decimals(row["mean"] for row in found.values() if row is not None)
        counts = sorted({int(row["n"]) for row in found.values() if row is not None})
        heads.append({"column": column, "n": "" if counts in ([], [len(run.study.data)]) else _range(counts)})
        for name, row in found.items():
            as_good = row is not None and (name == best or row["mean"] == found[best]["mean"])
            mark = "best" if as_good else "near" if name in near else ""
            cells[name].append(_cell(run, name, column, row, decimals) | {"mark": mark})
    letters = {cell["letter"] for row in cells.values() for cell in row if cell.get("letter")}
    notes = [(run.letter(reason), reason) for reason in run.failures if run.letter(reason) in letters]
    return {"heads": heads, "rows": [(method, cells[method.name]) for method in run.methods], "notes": notes}


def _cell(run: _Run, name: str, column: _Column, row: dict[str, Any] | None, decimals: int) -> dict[str, Any]:
    """A mean with its interval and its difference to the reference, or why there is none."""
    reason = run.why(name, column.metric.name)
    if row is None:
        return {"failed": reason is not None} | (
            {"why": "no image has a score"} if reason is None else {"why": reason[1], "letter": run.letter(reason)}
        )
    shown = {key: _fixed(row[key], decimals) for key in ("mean", "low", "high")}
    less = {key: _fixed(row[key], decimals, sign=True) for key in ("less", "less_low", "less_high")}
    return shown | less | {"value": row["mean"], "p": row["p"], "verdict": run.verdict(name, column)}


# -- curves --------------------------------------------------------------------------------------------------------------------


def _legend(run: _Run) -> list[dict[str, Any]]:
    """How each method's line is drawn: the reference heavy, controls grey and dashed, the others by colour, then by dashes too."""
    dashes = ("", "7 3", "2 2.5", "9 3 2 3")
    greys = ("2 2", "5 3", "1 3", "8 3 2 3", "11 4")
    found, others, controls = [], 0, 0
    for index, method in enumerate(run.methods):
        look = {"index": index, "name": method.name, "style": "reference", "dash": ""}
        if method.name == run.reference:
            pass
        elif method.kind == "control":
            look |= {"style": "grey", "dash": greys[controls % len(greys)]}
            controls += 1
        else:
            look |= {"style": f"c{others % COLOURS}", "dash": dashes[others // COLOURS % len(dashes)]}
            others += 1
        found.append(look)
    return found


def _curves(run: _Run) -> list[dict[str, Any]]:
    """Small multiples, a panel a curve: insertion, deletion, the others."""
    means: dict[str, dict[str, np.ndarray]] = {}
    for method in run.methods:
        for measured in run.outcomes[method.name].measured.values():
            order = [*measured.scores, *measured.curves]  # curves come from the store by the alphabet
            for name in sorted(measured.curves, key=order.index):
                mean = measured.curves[name].float().nanmean(dim=0).numpy()
                if len(mean) > 1 and np.isfinite(mean).all():
                    means.setdefault(name, {})[method.name] = mean
    groups = {
        "insertion": "Insertion: pixels are shown, the most relevant first. The sooner a line rises, the better.",
        "deletion": "Deletion: pixels are hidden, the most relevant first. The sooner a line falls, the better.",
        "": "Other curves.",
    }
    chosen: dict[str, list[str]] = {group: [] for group in groups}
    for name in means:
        group = name.partition(", ")[0]
        chosen[group if group in groups else ""].append(name)
    together = [mean for name, lines in means.items() if _probable(name) for mean in lines.values()]
    top = _round_up(max((float(mean.max()) for mean in together), default=1.0))
    looks = _legend(run)
    return [
        {"about": about, "panels": [_panel(name, means[name], looks, top, run.reference) for name in chosen[group]]}
        for group, about in groups.items()
        if chosen[group]
    ]


def _probable(name: str) -> bool:
    """Whether a curve's heights are probabilities: those of one kind share an axis."""
    return name.partition(", ")[0] in ("insertion", "deletion", "ROAD", "PixelFlipping")


def _shares(name: str, count: int) -> tuple[np.ndarray, str]:
    """Where a curve's points lie, and what that is."""
    kind = name.partition(", ")[0]
    if kind in ("insertion", "deletion"):
        return np.linspace(0, 1, count), f"share of pixels {'shown' if kind == 'insertion' else 'hidden'}"
    if kind == "ROAD" and count == len(SHARES):
        return np.array(SHARES), "share of pixels removed"
    if kind == "PixelFlipping":
        return np.arange(1, count + 1) / count, "share of pixels replaced"
    return np.arange(1, count + 1), "step"


def _panel(
    name: str, lines: dict[str, np.ndarray], looks: list[dict[str, Any]], top: float, reference: str
) -> dict[str, Any]:
    """One figure's lines and ticks in SVG units; the reference is drawn last, above all others."""
    heights = np.concatenate(list(lines.values()))
    low, high = (0.0, top) if _probable(name) else (float(heights.min()), float(heights.max()))
    x, label = _shares(name, len(next(iter(lines.values()))))
    left, right = (0.0, 1.0) if float(x.max()) <= 1 else (float(x.min()), float(x.max()))

    def across(value: float) -> float:
        return round(LEFT + (value - left) / (right - left or 1) * (WIDE - LEFT - RIGHT), 1)

    def up(value: float) -> float:
        return round(TOP + (high - value) / (high - low or 1) * (HIGH - TOP - BOTTOM), 1)

    drawn = [
        look
        | {"points": " ".join(f"{across(a)},{up(b)}" for a, b in zip(_shares(name, len(mean))[0], mean, strict=True))}
        for look in sorted(looks, key=lambda look: (look["style"] == "reference", look["style"] != "grey"))
        if (mean := lines.get(look["name"])) is not None
    ]
    ends = sorted(lines, key=lambda method: float(lines[method].mean()))
    spoken = f"{name}: {len(lines)} methods; highest on average {ends[-1]} ({lines[ends[-1]].mean():.3f})"
    spoken += f", lowest {ends[0]} ({lines[ends[0]].mean():.3f})"
    if reference in lines:
        spoken += f", {reference} {lines[reference].mean():.3f}"
    return {
        "name": name,
        "label": label,
        "spoken": spoken,
        "lines": drawn,
        "across": [(across(v), f"{v:.0%}" if right == 1.0 else f"{v:.0f}") for v in (left, (left + right) / 2, right)],
        "up": [(up(value), f"{value:.3g}") for value in (low, (low + high) / 2, high)],
    }


# -- gallery -------------------------------------------------------------------------------------------------------------------


def _gallery(run: _Run, count: int) -> list[dict[str, Any]]:
    """Images spread evenly over the set, each with every method's map."""
    study, about = run.study, run.about
    data = study.data
    outlines = data.parts if data.parts is not None else data.masks
    chosen = (
        np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)).tolist()
        if count > 0
        else []
    )
    found = []
    for index in chosen:
        target, predicted = int(study.targets[index]), int(study.predicted[index])
        pixels = _scaled(data.images[index])
        found.append(
            {
                "name": data.names[index],
                "asked": about.class_name(target),
                "rival": "" if data.rivals is None else about.class_name(int(data.rivals[index])),
                "predicted": "" if predicted == target else about.class_name(predicted),
                "probability": float(study.probabilities[index, target]),
                "picture": _uri(_outlined(pixels, None if outlines is None else outlines[index])),
                "maps": [
                    None if (maps := run.outcomes[method.name].maps) is None else _uri(_overlaid(pixels, maps[index]))
                    for method in run.methods
                ],
            }
        )
    return found


def _scaled(image: Tensor) -> Tensor:
    """An image (C, H, W) as colours (3, h, w) in [0, 1], by its own extremes; its longer side is a tile's."""
    image = image.detach().float().cpu()
    colours = image if len(image) == 3 else image.mean(dim=0, keepdim=True).expand(3, -1, -1)
    low, high = colours.min(), colours.max()
    return _resized((colours - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def _resized(values: Tensor) -> Tensor:
    """(C, H, W) with a tile's size."""
    factor = TILE / max(values.shape[-2:])
    size = [max(round(side * factor), 1) for side in values.shape[-2:]]
    return F.interpolate(values[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _outlined(pixels: Tensor, mask: Tensor | None) -> Tensor:
    """Colours with a mask's outline in them."""
    if mask is None or not bool(mask.any()):
        return pixels
    inside = (_resized(mask[None].float()) > 0.5).float()
    border = (F.max_pool2d(inside[None], 3, stride=1, padding=1)[0] > 0) & (inside == 0)
    return torch.where(border, torch.tensor([0.0, 0.85, 0.95])[:, None, None], pixels)


def _overlaid(pixels: Tensor, saliency: Tensor) -> Tensor:
    """A map (1, H, W) over the grey image: negative values as zero, and divided by its own quantile of 99.9 %."""
    positive = saliency.float().clamp_min(0)
    most = float(np.quantile(positive.numpy(), 0.999)) or float(positive.max())
    share = _resized((positive / most).clamp(0, 1) if most > 0 else positive)
    colours = torch.from_numpy(matplotlib.colormaps["magma"](share[0].numpy())[..., :3]).permute(2, 0, 1).float()
    return 0.3 * pixels.mean(dim=0, keepdim=True) + 0.7 * colours


def _uri(colours: Tensor) -> str:
    """Colours (3, H, W) as an image within the page."""
    buffer = io.BytesIO()
    shown = (colours * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(shown).save(buffer, "JPEG", quality=82, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# -- costs ---------------------------------------------------------------------------------------------------------------------


def _costs(run: _Run, costs: pd.DataFrame | None) -> dict[str, Any]:
    """Rows of time and memory a method and batch, and from how many images on the fit has paid for itself."""
    if costs is None:
        seconds = {method.name: run.outcomes[method.name].seconds for method in run.methods}
        costs = pd.DataFrame(
            {"method": name, "batch": 0, "ms": 1e3 * value, "ratio": math.nan, "peak_mib": math.nan, "failure": ""}
            for name, value in seconds.items()
        )
        measured, batches = False, [0]
    else:
        measured, batches = True, sorted(int(batch) for batch in costs["batch"].unique() if batch > 0)
    found = {(row["method"], int(row["batch"])): row for row in costs.to_dict("records") if not row["failure"]}
    paid = {
        batch: _paid(run, {name: row["ms"] / 1e3 for (name, at), row in found.items() if at == batch})
        for batch in batches
    }
    failures = dict(costs.loc[costs["failure"] != "", ["method", "failure"]].itertuples(index=False))
    shown: list[tuple[str, Method | None]] = [(method.name, method) for method in run.methods]
    rows = [
        {
            "name": name,
            "method": method,
            "failure": failures.get(name, "" if method is None else run.outcomes[name].failure),
            "cells": [(found.get((name, batch)), paid[batch].get(name, math.nan)) for batch in batches],
        }
        for name, method in ([(FORWARD, None)] if measured else []) + shown
    ]
    return {"measured": measured, "batches": batches, "rows": rows, "fitted": run.fitted}


def _paid(run: _Run, seconds: Mapping[str, float]) -> dict[str, float]:
    """Break-even of the fit, of methods whose time is known and that need no such fit themselves."""
    others = {method.name for method in run.methods if not method.learned or method.name == run.fitted}
    known = {name: value for name, value in seconds.items() if math.isfinite(value) and name in others}
    if run.fitted not in known or run.about.fit is None or not math.isfinite(run.about.fit.get("seconds", math.nan)):
        return {}
    return break_even(known, run.fitted, run.about.fit["seconds"])


# -- files ---------------------------------------------------------------------------------------------------------------------


def _record(run: _Run, costs: pd.DataFrame | None) -> dict[str, Any]:
    """All there is to say of a run."""
    study, subject = run.study, run.study.subject
    rivals = study.data.rivals
    return {
        "about": {part.name: getattr(run.about, part.name) for part in fields(run.about)},
        "versions": versions(),
        "machine": machine(subject.device),
        "device": str(subject.device),
        "precision": subject.precision,
        "layer": subject.layer_name,
        "n": len(study.data),
        "seed": subject.seed,
        "asked": "predicted" if study.data.targets is None else "given",
        "accuracy": study.right,
        "reference": run.reference,
        "methods": [
            {
                "name": method.name,
                "kind": method.kind,
                "settings": method.settings,
                "learned": method.learned,
                "seconds": run.outcomes[method.name].seconds,
            }
            for method in run.methods
        ],
        "metrics": [
            {"name": metric.name, "family": metric.family, "settings": metric.settings} for metric in study.metrics
        ],
        "images": [
            {
                "name": name,
                "asked": int(study.targets[index]),
                "rival": None if rivals is None else int(rivals[index]),
                "predicted": int(study.predicted[index]),
                "probability": float(study.probabilities[index, study.targets[index]]),
            }
            for index, name in enumerate(study.data.names)
        ],
        "skipped": study.data.skipped,
        "failures": [
            {"method": method, "metric": metric or None, "reason": why}
            for (metric, why), methods in run.failures.items()
            for method in methods
        ],
        "summary": run.table.to_dict("records"),
        "costs": None if costs is None else costs.to_dict("records"),
    }


def _plain(value: Any) -> Any:
    """As strict JSON knows it: numbers that are none become null, what is unknown becomes text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        return _plain(value.tolist())
    return str(value)


def _write(path: Path, text: str) -> None:
    """Whatever happens, `path` holds either the old content or the new."""
    with checkpoint.replacing(path) as draft:
        # Names of files may hold bytes that are no text.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


# -- words and numbers ---------------------------------------------------------------------------------------------------------


def _ordered(found: Iterable[str], known: Sequence[str]) -> list[str]:
    """Each once: the known ones in their order, then any others."""
    present = list(dict.fromkeys(found))
    return [one for one in known if one in present] + [one for one in present if one not in known]


def _decimals(values: Iterable[float]) -> int:
    """Of a column: three, or as many as its typical value needs for three digits."""
    sizes = [abs(value) for value in values if value]
    size = math.floor(math.log10(statistics.median(sizes))) if sizes else 0
    return 3 if -2 <= size <= 0 else min(max(2 - size, 0), 6)


def _fixed(value: float, decimals: int, sign: bool = False) -> str:
    """A number with a real minus; "" for NaN."""
    if not math.isfinite(value):
        return ""
    text = f"{value:{'+' if sign else ''}{f'.{decimals}f' if abs(value) < 1e6 else '.2e'}}"
    return text.replace("-", "\N{MINUS SIGN}")


def _short(value: float) -> str:
    """Three digits, thousands with commas; a dash for NaN, "never" for infinity."""
    if math.isnan(value):
        return "\N{EN DASH}"
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    """A span of time in words."""
    if not math.isfinite(seconds):
        return "not known"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _range(counts: list[int]) -> str:
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _round_up(value: float) -> float:
    """The next height of an axis that reads well."""
    return next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if value <= step), 1.0)


def _letters(index: int) -> str:
    """a to z, then aa and so on."""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)
