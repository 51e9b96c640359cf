"""A compact student where only outputs can be had: what so many images give, plain and with stronger augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor, nn
from torchvision.transforms import v2

from captum_attnkd import AttentiveKDAttribution

from ..methods import METHODS
from ..metrics import find_metric
from ..options import (
    Batch,
    Device,
    Download,
    HeldOut,
    Images,
    Layer,
    Limit,
    Model,
    Out,
    Seed,
    Size,
    Weights,
    for_prepare,
    single_classes,
    split,
    told,
    whole,
)  # fmt: skip
from ..preparing import Prepared, prepare
from ..sources import Rest, square
from ..speed import machine
from ..statistics import paired_interval
from ..store import Store
from ..study import Study

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
KINDS = ("plain", "stronger")  # of augmentation
COLUMNS = {"all fills": "insertion less deletion", "unseen fills": "insertion less deletion, unseen fills"}


class Augmented:
    """Batches whose images are cropped, mirrored and mixed anew each time: the student sees no image twice.

    The model is asked about what the student is shown, so no label has to survive (Beyer et al., 2022, "Knowledge distillation:
    a good teacher is patient and consistent", whose recipe these crops and mixtures are).

    Args:
        batches: of images (B, C, H, W); gone through anew each time.
        seed: of what is drawn.
    """

    def __init__(self, batches: Iterable[Tensor], seed: int) -> None:
        self._batches = batches
        self._drawn = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:
        """Images (B, C, H, W)."""
        for images in self._batches:
            size = [images.shape[-2], images.shape[-1]]
            with torch.random.fork_rng(devices=[]):  # torchvision draws from the global state
                torch.manual_seed(int(torch.randint(2**31, (), generator=self._drawn)))
                changed = v2.Compose([v2.RandomResizedCrop(size, scale=(0.25, 1.0)), v2.RandomHorizontalFlip()])
                shown = torch.stack([changed(image) for image in images])
                share = torch.rand(len(shown), 1, 1, 1)
                mixed = torch.rand(len(shown), 1, 1, 1) < 0.5
            yield torch.where(mixed, share * shown + (1 - share) * shown.flip(0), shown)


class Learned(Rest):
    """Images to learn from, of which the first so many can be had alone."""

    def first(self, count: int) -> Learned:
        """The same, but so long."""
        fewer = copy(self)
        fewer._entries = self._entries[:count]
        fewer._made = None if self._made is None else self._made[:count]
        return fewer


def curve(
    prepared: Prepared,
    learned: Learned,
    counts: Sequence[int],
    folder: Path,
    backbone: str | None = None,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    told: Callable[[str], None] = lambda _: None,
    **steps: Any,
) -> pd.DataFrame:
    """Fit compact students to a model of which nothing is known but its outputs, and judge their maps by that model.

    Args:
        prepared: the model, and the images to judge by.
        learned: images to learn from; each fit takes the first so many of them, of which every tenth is held out.
        counts: of images.
        folder: where surrogates are kept, so that a curve that was stopped goes on.
        backbone: of torchvision, untrained; None takes our own small network.
        kinds: of augmentation, out of `KINDS`.
        seed: of the fits.
        told: is handed a line after each fit.
        steps: `distil_steps`, `explain_steps`; defaults as in `AttentiveKDAttribution.fit`.

    Returns:
        A row a fit, by images and augmentation: agreement, the share of the images judged by of which the student names the
        model's class; then, over all fills and over those never used in fitting, insertion less deletion, what it is less than
        Grad-CAM's of the model itself, and that difference's bootstrap 95 % interval over images.

    Raises:
        ValueError: there are fewer images than a fit is to have, or a kind is not known.
    """
    if max(counts) > len(learned):
        raise ValueError(f"there are {len(learned)} images to learn from, not {max(counts)}")
    if not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds of augmentation are {', '.join(KINDS)}, got {', '.join(kinds)}")
    folder.mkdir(parents=True, exist_ok=True)
    given = {name: value for name, value in steps.items() if value is not None}
    outputs = OutputsOnly(prepared.subject.model)
    rows = {}
    for kind, count in product(kinds, counts):
        path = folder / f"compact-{backbone or 'own'}-{count}-{kind}-{seed}.safetensors"
        if path.exists():
            ours = AttentiveKDAttribution.load(path, outputs)
        else:
            batches, kept = learned.first(count).split()
            ours = AttentiveKDAttribution(outputs, student="compact", backbone=backbone).fit(
                Augmented(batches, seed) if kind == "stronger" else batches, val_loader=kept, seed=seed,
                resume_from=path.with_suffix(".state"), **given,
            )  # fmt: skip
            ours.save(path)
            told(f"{count} images, {kind}\n{ours.report_}\n")
        rows[count, kind] = _judged(prepared, ours, folder)
    return pd.DataFrame(rows).T.rename_axis(["images", "augmentation"])


class OutputsOnly:
    """A model as a function without gradients or layers.

    Args:
        model: of images to logits.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        scores: Tensor = self._model(images)
        return scores


def _judged(prepared: Prepared, ours: AttentiveKDAttribution, folder: Path) -> dict[str, float]:
    subject, images = replace(prepared.subject, surrogate=ours), prepared.data.images
    methods, metric = [METHODS["ours"], METHODS["grad-cam"]], find_metric("insertion-deletion")
    study = Study(subject, prepared.data, methods, [metric], Store(folder / "cache"))
    outcomes = study.run()
    failed = [outcome.failure or outcome.failures for outcome in outcomes.values() if not outcome.measured]
    if failed:
        raise ValueError(f"the maps could not be judged: {failed[0]}")
    scores, cam = (outcomes[method.name].measured[metric.name].scores for method in methods)
    agrees = torch.cat([ours.agreement(part.to(subject.device)).agrees for part in images.split(subject.batch)])
    row = {"agreement": float(agrees.float().mean())}
    for name, column in COLUMNS.items():
        less, low, high = paired_interval(scores[column] - cam[column])
        row |= {
            name: float(scores[column].mean()),
            f"{name}, less Grad-CAM": less,
            f"{name}, low": low,
            f"{name}, high": high,
        }
    return row


@app.command()
def main(
    model: Model,
    images: Images,
    held_out: HeldOut,
    counts: Annotated[str, typer.Option(help="Images of the fits, by comma.")] = "250,500,1000",
    backbone: Annotated[
        str | None, typer.Option(help="The student's network, of torchvision, untrained; default: our own small one.")
    ] = None,
    augmentation: Annotated[str, typer.Option(help="`plain`, `stronger`, or both by comma.")] = ",".join(KINDS),
    out: Out = Path("out/compact"),
    distil_steps: Annotated[int | None, typer.Option(min=0)] = None,
    explain_steps: Annotated[int | None, typer.Option(min=0)] = None,
    seed: Seed = 0,
    weights: Weights = None,
    limit: Limit = None,
    layer: Layer = None,
    size: Size = None,
    batch: Batch = 30,
    device: Device = None,
    download: Download = False,
) -> None:
    """What can so many images give where only outputs can be had? Compact students, judged by the model itself.

    python -m captum_attnkd.evaluation.benchmarks.compact -m resnet50 --weights DEFAULT -i folder:photos --held-out 120
    """
    with told():
        prepared = prepare(**for_prepare(locals()))
        single_classes(prepared.data)
        about = prepared.classifier
        transform = square(about.size, about.mean, about.deviation)
        learned = Learned(images, transform, download, held_out or 0, prepared.data.images)
        table = curve(
            prepared, learned, [whole(one, "counts") for one in split(counts)], out, backbone, split(augmentation), seed,
            typer.echo, distil_steps=distil_steps, explain_steps=explain_steps,
        )  # fmt: skip
        table.to_csv(out / "compact.csv")
        typer.echo(f"{len(prepared.data)} images, seed {seed}; {machine(prepared.subject.device)}")
        typer.echo(table.to_string(float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    app()
