"""Does low trust foretell poor maps? Trust of single maps against their measured faithfulness, also on images that were spoilt."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from captum_attnkd.perturbation import blurred

from .measuring import Case
from .methods import METHODS
from .metrics import GAP, UNSEEN_GAP, find_metric
from .subject import Subject

CLEAN = "as they are"
COVERED = (1.0, 0.9, 0.7, 0.5, 0.3)

Spoil = Callable[[Tensor, Tensor], Tensor]  # images (B, C, H, W), deviation per channel (C,) -> images


def noisy(images: Tensor, deviation: Tensor) -> Tensor:
    """White noise of half the data's deviation."""
    drawn = torch.Generator().manual_seed(0)
    return images + 0.5 * deviation[:, None, None].to(images) * torch.randn(images.shape, generator=drawn).to(images)


def soft(images: Tensor, deviation: Tensor) -> Tensor:
    """A blur of a fiftieth of the shorter side."""
    return blurred(images, 0.02 * min(images.shape[-2:]))


def jpeg(images: Tensor, deviation: Tensor, quality: int = 10) -> Tensor:
    """What JPEG leaves of each channel, as an image of its own between its least and its greatest value."""
    made = torch.empty_like(images)
    for place in np.ndindex(*images.shape[:2]):
        channel = images[place]
        low, span = channel.min(), (channel.max() - channel.min()).clamp_min(1e-6)
        file = io.BytesIO()
        Image.fromarray(((channel - low) / span * 255).round().byte().cpu().numpy()).save(file, "JPEG", quality=quality)
        made[place] = torch.from_numpy(np.array(Image.open(file))).to(images) / 255 * span + low
    return made


SPOILT: dict[str, Spoil] = {"noise": noisy, "blur": soft, "JPEG, quality 10": jpeg}


def trust_table(
    subject: Subject, images: Tensor, labels: Tensor | None = None, other: Tensor | None = None
) -> pd.DataFrame:
    """One row for each image and what was done to it: its trust, and how faithful its map is by insertion and deletion.

    Args:
        subject: with a fitted surrogate.
        images: (N, C, H, W).
        labels: true classes (N,), where they are known.
        other: images of another kind, likewise; None for none.

    Returns:
        Columns: set, image, right (whether the model names the true class; NA where that is not known), confidence (of the class
        explained), trust, agrees, divergence, kept, deleted, `GAP`, `UNSEEN_GAP`.
    """
    explain, surrogate = METHODS["ours"].on(subject), subject.surrogate
    assert surrogate is not None  # ours says so first
    sets = {CLEAN: images} | {name: spoil(images, subject.deviation) for name, spoil in SPOILT.items()}
    if other is not None:
        sets["other data"] = other
    tables = []
    for name, some in sets.items():
        answers = subject.ask(some)
        named = answers.argmax(dim=1)
        parts = [
            surrogate.trust(x, t) for x, t in zip(some.split(subject.batch), named.split(subject.batch), strict=True)
        ]
        maps = subject.explained(explain, some, named)
        scores = find_metric("insertion-deletion").of(Case(subject, some, named, maps, explain)).scores
        known = labels is not None and name != "other data"
        tables.append(
            pd.DataFrame(
                {
                    "set": name,
                    "image": range(len(some)),
                    "right": (named == labels).tolist() if known else pd.NA,
                    "confidence": answers.max(dim=1).values.exp().tolist(),
                    **{
                        column: torch.cat([getattr(part, field) for part in parts]).tolist()
                        for column, field in (
                            ("trust", "score"), ("agrees", "agrees"), ("divergence", "divergence"),
                            ("kept", "kept"), ("deleted", "deleted"),
                        )
                    },
                    GAP: scores[GAP].tolist(),
                    UNSEEN_GAP: scores[UNSEEN_GAP].tolist(),
                }
            )
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def sets_table(table: pd.DataFrame) -> pd.DataFrame:
    """Means of each set of images, and of those the model names wrong."""
    rows = {str(name): part for name, part in table.groupby("set", sort=False)}
    if table["right"].notna().any():
        known = table[table["right"].notna()]
        rows |= {"named right": known[known["right"].astype(bool)], "named wrong": known[~known["right"].astype(bool)]}
    columns = ["confidence", "trust", "agrees", "kept", "deleted", GAP, UNSEEN_GAP]
    made = pd.DataFrame({name: part[columns].astype(float).mean() for name, part in rows.items()}).T
    made.insert(0, "images", [len(part) for part in rows.values()])
    return made


def _guides(table: pd.DataFrame) -> dict[str, pd.Series]:
    """By what images can be ordered; the model's confidence costs nothing."""
    trust, confidence = table["trust"], table["confidence"]
    return {"trust": trust, "confidence": confidence, "trust x confidence": trust * confidence}


def foretelling_table(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How well trust orders images by the faithfulness of their maps, beside the model's confidence, which costs nothing.

    Faithfulness is also given as a share of the class's probability: an image the model is sure of has more to lose.

    Returns:
        One row a measure and a guide: Spearman's correlation with its bootstrap 95 % interval, and the means
        of the half that the guide puts first and of the other.
    """
    rows = []
    drawn = np.random.default_rng(seed)
    for measure in (GAP, UNSEEN_GAP, f"{GAP}, relative", f"{UNSEEN_GAP}, relative"):
        truth = table[measure.removesuffix(", relative")]
        truth = truth / table["confidence"] if measure.endswith("relative") else truth
        for guide, values in _guides(table).items():
            pairs = pd.DataFrame({"guide": values, "truth": truth}).reset_index(drop=True)
            found = pairs["guide"].corr(pairs["truth"], method="spearman")
            again = [pairs.iloc[drawn.integers(0, len(pairs), len(pairs))] for _ in range(1000)]
            spread = [some["guide"].corr(some["truth"], method="spearman") for some in again]
            low, high = np.nanpercentile(spread, [2.5, 97.5])
            order = pairs.sort_values("guide", ascending=False, kind="stable")["truth"].to_numpy()
            half = len(order) // 2
            rows.append(
                {
                    "measure": measure, "guide": guide, "Spearman": found, "low": low, "high": high,
                    "upper half": order[:half].mean(), "lower half": order[half:].mean(),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def coverage(truth: np.ndarray, guide: np.ndarray) -> np.ndarray:
    """Mean faithfulness of the images trusted most, for one of them, two, ... all: (N,)."""
    order = np.argsort(-guide, kind="stable")
    mean: np.ndarray = np.cumsum(truth[order]) / np.arange(1, len(order) + 1)
    return mean


def coverage_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean faithfulness when only the most trusted share of the images is shown, by what they are ordered; the best order last."""
    truth = table[GAP].to_numpy()
    guides = {f"by {name}": values.to_numpy() for name, values in _guides(table).items()} | {"the best order": truth}
    at = [max(round(share * len(truth)), 1) - 1 for share in COVERED]
    curves: Mapping[str, np.ndarray] = {name: coverage(truth, guide)[at] for name, guide in guides.items()}
    return pd.DataFrame(curves, index=[f"{share:.0%} shown" for share in COVERED]).T


def draw_coverage(table: pd.DataFrame, path: Path) -> None:
    """The risk-coverage curve: what is gained by not showing the maps that are trusted least."""
    from matplotlib.figure import Figure

    truth = table[GAP].to_numpy()
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    shares = np.arange(1, len(truth) + 1) / len(truth)
    axis.plot(shares, 1 - coverage(truth, truth), label="the best order", color="#999999")
    for (name, guide), colour in zip(_guides(table).items(), ("#0072B2", "#D55E00", "#009E73"), strict=True):
        axis.plot(shares, 1 - coverage(truth, guide.to_numpy()), label=name, color=colour)
    axis.axhline(1 - truth.mean(), color="black", linewidth=0.8, linestyle=":", label="any order, on average")
    axis.set(xlabel="share of the maps that is shown", ylabel=f"risk: 1 - {GAP}", xlim=(0, 1))
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")
