"""What each part of ours is worth: the same fit with one part off, judged on the same images, over several seeds.

A part is switched off from outside, in place, for the time of a fit and of its maps: the package carries no switches that only
a study would use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from captum_attnkd import checkpoint, fitting, objectives, perturbation, plan
from captum_attnkd.attention import Attended, LevelAttention
from captum_attnkd.student import Student

from ..measuring import Case, Metric
from ..methods import METHODS
from ..options import (
    Batch,
    Deviation,
    Device,
    Download,
    Gradients,
    HeldOut,
    Images,
    Limit,
    Mean,
    Metrics,
    Model,
    Out,
    Precision,
    Size,
    Weights,
    for_prepare,
    metrics_named,
    single_classes,
    split,
    told,
)  # fmt: skip
from ..options import (
    Student as StudentOption,
)
from ..preparing import prepare
from ..sources import ImageSet
from ..speed import machine
from ..statistics import paired_interval
from ..store import key
from ..subject import Subject

app = typer.Typer(
    add_completion=False, rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]}
)
WHOLE = "all of it"
Off = Callable[[], AbstractContextManager[Any]]


def _without_attention(self: LevelAttention, features: Tensor, scaled: Tensor) -> tuple[Attended, Tensor]:
    flat = torch.ones_like(scaled[:, :1])
    return Attended(features, flat.new_ones(features.shape[:2]), flat), 0.5 * flat + 0 * self.spatial.bias


def _without_evidence(testimony: Callable[..., Any], *args: Any) -> tuple[list[Tensor], Tensor]:
    evidence, posterior = testimony(*args)
    return [torch.zeros_like(one) for one in evidence], posterior


def _one_side(through: Callable[..., Any], side: int) -> AbstractContextManager[Any]:
    sides = cycle((0, 1))  # what is kept is judged first, what is hidden second

    def replaced(shown: Tensor, score: Any) -> tuple[Tensor, Tensor]:
        values, carried = through(shown, score)
        return values, carried if next(sides) == side else carried.detach()

    return mock.patch.object(objectives, "through", replaced)


def _evenly(extent: Tensor, generator: torch.Generator) -> Tensor:
    return (0.05 + 0.9 * torch.rand(len(extent), generator=generator)).to(extent.device)


def _method(owner: type, name: str, replacement: Callable[..., Any]) -> Off:
    """Replace a method by a function of the original, bound or not, and its arguments."""
    original = getattr(owner, name)

    def replaced(self: Any, *args: Any) -> Any:
        return replacement(partial(original, self), *args)

    return lambda: mock.patch.object(owner, name, replaced)


def _argument(module: Any, name: str, **given: Any) -> Off:
    made = getattr(module, name)
    return lambda: mock.patch.object(module, name, lambda *args, **named: made(*args, **named | given))


PARTS: dict[str, Off] = {
    WHOLE: nullcontext,
    "no distillation": nullcontext,  # by its steps
    "no explanation network": nullcontext,  # likewise: the class activation map of the local log-posterior
    "deepest level only": _argument(plan, "Surrogate", longest_side=1),
    "no attention": lambda: mock.patch.object(LevelAttention, "forward", _without_attention),
    "no class evidence": _method(Student, "testimony", _without_evidence),
    "distilled on masked images too": _argument(fitting, "Distillation", masked=True),
    "no supervision of each level": _argument(fitting, "Distillation", supervision=0.0),
    "no charge for attention": _argument(fitting, "Distillation", attention_charge=0.0),
    "keep only": partial(_one_side, objectives.through, 0),
    "delete only": partial(_one_side, objectives.through, 1),
    "one fill": lambda: mock.patch.object(perturbation, "FILLS", ("mean",)),
    "areas drawn evenly": lambda: mock.patch.object(objectives, "draw_areas", _evenly),
    "probabilities, no log-odds": lambda: mock.patch.object(objectives, "conviction", lambda score: score),
    "no questions against a rival": _argument(fitting, "Explanation", contrastive=0.0),
}
_STEPS = {"no distillation": {"distil_steps": 0}, "no explanation network": {"explain_steps": 0}}


def ablate(
    subject: Subject,
    data: ImageSet,
    targets: Tensor,
    metrics: Sequence[Metric],
    parts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    told: Callable[[str], None] = lambda _: None,
    **steps: int,
) -> pd.DataFrame:
    """Fit with each part off in turn.

    Args:
        subject: the model, with `refit`.
        data: images to judge by.
        targets: classes asked about (N,).
        metrics: judged by.
        parts: names of `PARTS`; the whole is always among them.
        seeds: of the fits.
        folder: where scores are kept, so that a study that was stopped goes on.
        told: is handed a line after each fit.
        steps: `distil_steps`, `explain_steps`; defaults as in `AttentiveKDAttribution.fit`.

    Returns:
        One row a part, seed, score and image: part, seed, column, better, image, value.

    Raises:
        ValueError: a part is not known, or ours cannot be fitted anew.
    """
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise ValueError(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    if subject.refit is None:
        raise ValueError("ours is fitted anew with each part off: name images to learn from with --fit")
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for seed in seeds:
        for name in dict.fromkeys([WHOLE, *parts]):
            of = key(subject.fingerprint, data.images, targets, [metric.name for metric in metrics], name, seed, steps)
            path = folder / f"ablation-{of}.csv"
            if not path.exists():
                table = _judged(subject, data, targets, metrics, name, seed, steps)
                with checkpoint.replacing(path) as draft:
                    table.to_csv(draft, index=False)
                told(f"seed {seed}, {name}")
            tables.append(pd.read_csv(path))
    return pd.concat(tables, ignore_index=True)


def _judged(
    subject: Subject,
    data: ImageSet,
    targets: Tensor,
    metrics: Sequence[Metric],
    name: str,
    seed: int,
    steps: dict[str, int],
) -> pd.DataFrame:
    assert subject.refit is not None
    with PARTS[name]():
        fitted = replace(subject, surrogate=subject.refit(subject.model, seed, **(steps | _STEPS.get(name, {}))))
        explain = METHODS["ours"].on(fitted)
        maps = fitted.explained(explain, data.images, targets)
    rows = []
    for metric in metrics:
        measured = metric.of(Case(subject, data.images, targets, maps, explain, data.masks, data.parts))
        for column, better in measured.better.items():
            values = measured.scores[column].tolist()
            made = {"part": name, "seed": seed, "column": column, "better": better}
            rows.append(pd.DataFrame(made | {"image": range(len(values)), "value": values}))
    return pd.concat(rows) if rows else pd.DataFrame()


def ablation_table(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Of one score: a row a part, with its mean and what it is less than the whole's.

    Returns:
        mean, over images and seeds; less, low, high: of the score less the whole's, a mean over seeds image by image, with its
        bootstrap 95 % interval over images; then that difference in each seed.
    """
    wide = table[table["column"] == column].pivot(index="image", columns=["part", "seed"], values="value").dropna()
    seeds, rows = table["seed"].unique(), {}
    for name in table["part"].unique():
        less = wide[name] - wide[WHOLE]
        low, high = (np.nan, np.nan) if name == WHOLE else paired_interval(_tensor(less.mean(axis=1)))[1:]
        rows[name] = {"mean": wide[name].to_numpy().mean(), "less": less.to_numpy().mean(), "low": low, "high": high}
        rows[name] |= {f"seed {seed}": less[seed].mean() for seed in seeds}
    return pd.DataFrame(rows).T


def _tensor(values: pd.Series) -> Tensor:
    return torch.from_numpy(values.to_numpy(dtype=np.float64, copy=True))


@app.command()
def main(
    model: Model,
    images: Images,
    fit: Annotated[str, typer.Option(help="Images to fit on, named as in --images; or `rest`.")],
    out: Out = Path("out/ablation"),
    parts: Annotated[str, typer.Option(help="By comma, or `all`; each is switched off in turn.")] = "all",
    metrics: Metrics = "insertion-deletion",
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each, with seeds from 0 on.")] = 3,
    distil_steps: Annotated[int, typer.Option(min=0)] = 100,
    explain_steps: Annotated[int, typer.Option(min=0)] = 500,
    student: StudentOption = "auto",
    gradients: Gradients = False,
    weights: Weights = None,
    limit: Limit = None,
    held_out: HeldOut = None,
    size: Size = None,
    mean: Mean = None,
    deviation: Deviation = None,
    batch: Batch = 30,
    device: Device = None,
    precision: Precision = "auto",
    download: Download = False,
) -> None:
    """What is each part of ours worth? The same fit with one part off, judged on the same images, over several seeds.

    python -m captum_attnkd.evaluation.benchmarks.ablation -m digits -i digits:60 --fit digits-train -o out/digits
    """
    with told():
        chosen = list(PARTS) if parts == "all" else split(parts)
        prepared = prepare(**for_prepare(locals()), fitted=False)
        subject, data = prepared.subject, prepared.data
        single_classes(data)
        judged = metrics_named(metrics, data)
        targets = subject.ask(data.images).argmax(dim=1) if data.targets is None else data.targets
        table = ablate(
            subject, data, targets, judged, chosen, range(seeds), out, typer.echo,
            distil_steps=distil_steps, explain_steps=explain_steps,
        )  # fmt: skip
        table.to_csv(out / "ablation.csv", index=False)
        typer.echo(
            f"\n{len(data)} images, {seeds} seeds; {machine(subject.device)}; less: than with all of it, [95 %] over images"
        )
        for column in table["column"].unique():
            typer.echo(f"\n{column}\n{ablation_table(table, column).to_string(float_format=lambda x: f'{x:.3f}')}")
        typer.echo(f"\nScores: {out / 'ablation.csv'}")


if __name__ == "__main__":
    app()
