"""What a fit costs as its images grow in number: seconds, memory, and an estimate for more of them and more processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.fitting import FitSettings
from captum_attnkd.images import survey

from ..classifiers import find_classifier
from ..memory import peak
from ..options import Device, Model, Size, Weights, told, whole
from ..speed import machine

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
EACH = 64  # images a batch of the simulated loader


class Simulated:
    """A loader of images of noise (B, C, H, W), made as they are asked for: a million take no more memory than a batch.

    No two are alike, so that they are split by their content as real ones are.
    """

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self._count = count
        self._pool = torch.randn(EACH, *shape, generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self._count, EACH):
            images = self._pool[: min(EACH, self._count - start)].clone()
            images[:, 0, 0, 0] = torch.arange(start, start + len(images)) / self._count - 0.5
            yield images


@dataclass(frozen=True)
class Cost:
    """Of fits, as measured.

    Attributes:
        table: a row a number of images. Columns: images; survey_s, the look through all of them; fit_s, the whole fit, that look
            counted in; survey_mib and fit_mib, peaks of memory beyond what was in use before (NaN where it cannot be told).
        look_s: seconds an image of the survey, loading left out.
        step_s: seconds a step, loading left out.
        once_s: seconds of all else: held-out checks and figures, of which a longer fit has more.
    """

    table: pd.DataFrame
    look_s: float
    step_s: float
    once_s: float

    def estimate(
        self, images: int, processes: int, loaded: float, settings: FitSettings | None = None
    ) -> dict[str, float]:
        """Hours of a fit with the default number of steps, by part.

        Every process looks through all images and takes its share of every step's, so a step of P processes waits for P times
        `batch_size` images to be loaded; loading and the rest go on at once.

        Args:
            images: to fit on.
            processes: of the same speed as this one, each with cores of its own to load with.
            loaded: images a second that the loader of one process gives.
            settings: whose steps and batch size are meant.
        """
        settings = settings or FitSettings()
        steps = (100 if settings.distil_steps is None else settings.distil_steps) + settings.explain_steps
        checks = steps / settings.check_every + 2  # and one before each stage
        hours = {
            "look through all images": images * max(self.look_s, 1 / loaded),
            f"{steps} steps": steps * max(self.step_s, processes * settings.batch_size / loaded),
            "held-out checks": self.once_s * checks / 4,  # of which the fits that were measured had four
        }
        return {name: seconds / 3600 for name, seconds in hours.items()}


def measure_cost(
    model: nn.Module, shape: tuple[int, int, int], counts: Sequence[int], steps: int = 8, progress: bool | None = None
) -> Cost:
    """Fit to simulated loaders of growing length.

    Args:
        model: the target.
        shape: (C, H, W) of its images.
        counts: of images, at least two different ones.
        steps: of each stage; twice as many are timed too, for the time of one.
        progress: whether a bar is shown; None shows it at a terminal.

    Raises:
        ValueError: there is one count only.
    """
    counts = sorted(set(counts))
    if len(counts) < 2:
        raise ValueError(f"a slope needs two numbers of images at least, got {counts}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows = []
    with tqdm(total=len(counts) + 1, unit="fit", disable=None if progress is None else not progress) as bar:
        for count in counts:
            looked, survey_mib = peak(partial(_seconds_to_survey, count, shape), device)
            fitted, fit_mib = peak(partial(_seconds_to_fit, model, count, shape, steps), device)
            rows.append((count, looked, fitted, survey_mib, fit_mib))
            bar.update()
        longer = _seconds_to_fit(model, counts[-1], shape, 2 * steps)
        bar.update()
    table = pd.DataFrame(rows, columns=["images", "survey_s", "fit_s", "survey_mib", "fit_mib"])
    first, last = table.iloc[0], table.iloc[-1]
    look = (last["survey_s"] - first["survey_s"]) / (last["images"] - first["images"])
    step = (longer - last["fit_s"]) / (2 * steps)
    once = last["fit_s"] - last["survey_s"] - 2 * steps * step
    return Cost(
        table, *(max(seconds, 0.0) for seconds in (look, step, once))
    )  # on a busy machine a difference may fall below


def _seconds_to_survey(count: int, shape: tuple[int, int, int]) -> float:
    started = time.perf_counter()
    survey(Simulated(count, shape))
    return time.perf_counter() - started


def _seconds_to_fit(model: nn.Module, count: int, shape: tuple[int, int, int], steps: int) -> float:
    fitted = AttentiveKDAttribution(model).fit(
        Simulated(count, shape), distil_steps=steps, explain_steps=steps, progress=False
    )
    assert fitted.report_ is not None
    return fitted.report_.seconds


@app.command()
def main(
    model: Model,
    counts: Annotated[str, typer.Option(help="Images of the fits that are timed, by comma.")] = "320,640,1280",
    images: Annotated[int, typer.Option(min=1, help="Estimate a fit on so many.")] = 1_281_167,
    processes: Annotated[int, typer.Option(min=1, help="Estimate it on so many, each like this one.")] = 8,
    loaded: Annotated[
        float, typer.Option(min=1e-3, help="Images a second that the loader of one process decodes.")
    ] = 1000.0,
    steps: Annotated[int, typer.Option(min=1, help="Of each stage, in the fits that are timed.")] = 8,
    weights: Weights = None,
    size: Size = None,
    device: Device = None,
) -> None:
    """What a fit costs as images grow in number, by a simulated loader: seconds, memory, and an estimate for many more.

    python -m captum_attnkd.evaluation.benchmarks.scale -m resnet50 --images 1281167 --processes 8 --loaded 1000
    """
    with told():
        found = find_classifier(model, weights)
        if not isinstance(found.model, nn.Module):
            raise ValueError("a fit to a function is as fast as the function; this needs a torch module")
        network = found.model.to(device) if device is not None else found.model
        side = size or found.size
        cost = measure_cost(network, (3, side, side), [whole(one, "counts") for one in counts.split(",")], steps)
        where = machine(next(network.parameters()).device)
        typer.echo(f"{where}; images of 3x{side}x{side}, {steps} + {steps} steps\n")
        typer.echo(cost.table.to_string(index=False, float_format=lambda value: f"{value:.1f}"))
        typer.echo(f"\nTo look at an image takes {1e3 * cost.look_s:.2f} ms, a step {cost.step_s:.2f} s.")
        typer.echo(
            f"\nHours on {images:,} images with {processes} processes like this, {loaded:g} images a second loaded by each"
        )
        hours = cost.estimate(images, processes, loaded)
        for name, value in [*hours.items(), ("together", sum(hours.values()))]:
            typer.echo(f"   {name:<28}{value:8.2f}")


if __name__ == "__main__":
    app()
