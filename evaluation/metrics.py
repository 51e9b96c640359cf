"""The metrics of a study: what is measured of maps, an image at a time, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from .faithfulness import area, drop_and_increase, perturbation_curve, probabilities_at, probability, ranks_of
from .fills import FILLS, UNSEEN, grey
from .localisation import boundary_precision, pointing_game, relevance_rank, saliency_share
from .measuring import Case, Measured, Metric
from .methods import named
from .quantus_metrics import QUANTUS
from .road import road_curve

GAP = "insertion less deletion"
UNSEEN_GAP = f"{GAP}, unseen fills"


# -- faithfulness ------------------------------------------------------------------------------------------------------------


def _filled(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Each fill (N, C, H, W), the same for every method: they depend on images and seed alone."""
    subject = case.subject
    for name, make in FILLS.items():
        if name != "other image" or len(case.images) > 1:
            yield name, make(case.images, subject.mean, subject.deviation, torch.Generator().manual_seed(subject.seed))


def _faithful(case: Case, steps: int) -> Measured:
    subject = case.subject
    inserted, deleted = {}, {}
    whole = probability(subject.ask, case.images, case.targets)
    for fill, replaced in _filled(case):
        hidden = probability(subject.ask, replaced, case.targets)
        parts = (case.images, case.maps, case.targets, replaced, hidden, whole)
        curves: tuple[list[Tensor], list[Tensor]] = ([], [])
        for x, m, t, r, none, all_ in zip(*(part.split(subject.batch) for part in parts), strict=True):
            for found, insert, ends in zip(curves, (True, False), ((none, all_), (all_, none)), strict=True):
                found.append(perturbation_curve(subject.ask, x, m, t, r, insert, steps, ends))
        inserted[fill], deleted[fill] = (torch.cat(found) for found in curves)
    insertion = {fill: area(curve) for fill, curve in inserted.items()}
    deletion = {fill: area(curve) for fill, curve in deleted.items()}
    gap = {fill: insertion[fill] - deletion[fill] for fill in insertion}
    scores = {
        "insertion": torch.stack(list(insertion.values())).mean(dim=0),
        "deletion": torch.stack(list(deletion.values())).mean(dim=0),
        GAP: torch.stack(list(gap.values())).mean(dim=0),
        UNSEEN_GAP: torch.stack([gap[fill] for fill in UNSEEN if fill in gap]).mean(dim=0),
    }
    for fill in gap:
        scores |= {f"insertion, {fill}": insertion[fill], f"deletion, {fill}": deletion[fill]}
    better = {name: "lower" if name.startswith("deletion") else "higher" for name in list(scores)[:4]}
    curves = {f"insertion, {fill}": curve for fill, curve in inserted.items()}
    curves |= {f"deletion, {fill}": curve for fill, curve in deleted.items()}
    return Measured(scores, better, curves)


def _first_pixels(case: Case, shares: Sequence[float]) -> Measured:
    subject = case.subject
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for _, replaced in _filled(case):
        parts = (t.split(subject.batch) for t in (case.images, case.maps, case.targets, replaced))
        for x, m, t, r in zip(*parts, strict=True):
            for insert, kept in found.items():
                kept.append(probabilities_at(shares, subject.ask, x, m, t, r, insert))
    # Of each fill one after the other, all images: back to (fills, N, shares).
    inserted, deleted = (
        torch.cat(kept).reshape(-1, len(case.images), len(shares)).mean(dim=0) for kept in found.values()
    )
    scores = {f"{GAP} at {100 * share:g} %": (inserted - deleted)[:, place] for place, share in enumerate(shares)}
    return Measured(scores, dict.fromkeys(scores, "higher"))


def _road(case: Case) -> Measured:
    curves = {}
    for name, most_first in (("ROAD, most relevant first", True), ("ROAD, least relevant first", False)):
        drawn = torch.Generator().manual_seed(case.subject.seed)
        parts = zip(*(t.split(case.subject.batch) for t in (case.images, case.maps, case.targets)), strict=True)
        curves[name] = torch.cat([road_curve(case.subject.ask, x, m, t, most_first, drawn) for x, m, t in parts])
    better = dict(zip(curves, ("lower", "higher"), strict=True))
    return Measured({name: curve.mean(dim=1) for name, curve in curves.items()}, better, curves)


def _drop(case: Case, equal: bool = False) -> Measured:
    subject = case.subject
    maps = -ranks_of(case.maps).float() if equal else case.maps
    fills = grey(case.images, subject.mean, subject.deviation, torch.Generator())
    parts = zip(*(t.split(subject.batch) for t in (case.images, maps, case.targets, fills)), strict=True)
    drops, rises = zip(*(drop_and_increase(subject.ask, x, m, t, f) for x, m, t, f in parts), strict=True)
    size = ", maps of equal size" if equal else ""
    scores = {f"average drop{size}": torch.cat(drops), f"increase in confidence{size}": torch.cat(rises)}
    return Measured(scores, dict(zip(scores, ("lower", "higher"), strict=True)))


# -- localisation ------------------------------------------------------------------------------------------------------------


def _on_masks(
    name: str, score: Callable[[Tensor, Tensor], Tensor], where: Literal["masks", "parts"] = "masks"
) -> Callable[[Case], Measured]:
    """A localisation score; images whose mask is empty have none."""

    def measure(case: Case) -> Measured:
        masks = getattr(case, where)
        some = masks.flatten(1).any(dim=1)
        found = torch.full((len(masks),), torch.nan)
        if bool(some.any()):
            found[some] = score(case.maps[some].cpu(), masks[some].cpu()).float()
        return Measured({name: found}, {name: "higher"})

    return measure


OWN: tuple[Metric, ...] = (
    Metric(
        "insertion-deletion", "faithfulness", _faithful,
        "Pixels are shown (insertion) or hidden (deletion) from the most relevant on; area under the "
        "probability of the class, mean over five ways to fill what is hidden. No fit of ours has seen two of"
        " them, the unseen fills.", settings={"steps": 10},
    ),
    Metric(
        "first-pixels", "faithfulness", _first_pixels,
        "Probability of the class with only the most relevant pixels shown, less that with them hidden, at small shares of all "
        "pixels; mean over the same five fills.", settings={"shares": [0.05, 0.1, 0.2]}, default=False,
    ),
    Metric(
        "road", "faithfulness", _road,
        "Pixels are removed and imputed from their neighbours, so that no hole tells the class; mean "
        "probability that is left.",
    ),
    Metric(
        "drop-increase", "faithfulness", _drop,
        "The image is dimmed by its own map: by which share the probability falls, and how often it rises.",
    ),
    Metric(
        "equal-drop", "faithfulness", _drop,
        "The same with every map's values replaced by their ranks: a drop tells first of all how much of the image a map "
        "covers, and now all cover half of it.", settings={"equal": True}, default=False,
    ),
    Metric(
        "pointing", "localisation", _on_masks("pointing game", pointing_game),
        "Whether the map's maximum lies on the object.", needs="masks",
    ),
    Metric(
        "relevance-mass", "localisation", _on_masks("relevance mass", saliency_share),
        "Share of the map's mass that lies on the object.", needs="masks",
    ),
    Metric(
        "relevance-rank", "localisation", _on_masks("relevance rank", relevance_rank),
        "Share of the object among as many of the map's highest pixels as the object has.", needs="masks",
    ),
    Metric(
        "boundary-precision", "localisation", _on_masks("boundary precision", boundary_precision),
        "Share of the outline of the map's highest pixels, as many as the object has, within two pixels of the object's outline.",
        needs="masks", default=False,
    ),
    Metric(
        "part-hit", "localisation", _on_masks("discriminative part hit", pointing_game, "parts"),
        "Whether the map's maximum lies on what tells the class from its rival.", needs="parts",
    ),
    Metric(
        "part-mass", "localisation", _on_masks("mass on that part", saliency_share, "parts"),
        "Share of the map's mass on what tells the class from its rival.", needs="parts",
    ),
)  # fmt: skip


def all_metrics() -> dict[str, Metric]:
    """Ours and Quantus', by name."""
    return {metric.name: metric for metric in (*OWN, *QUANTUS)}


def find_metric(name: str) -> Metric:
    """A metric by its name, or one of the user's as `module:object`.

    Raises:
        ValueError: there is none of that name; the nearest names are told.
    """
    found, source = named("metric", name, all_metrics())
    if not isinstance(found, Metric):
        raise ValueError(f"{name} is a {type(found).__name__}; a Metric was expected")
    return replace(found, source=source) if source else found
