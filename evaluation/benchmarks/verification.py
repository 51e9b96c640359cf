"""Our metrics beside independent implementations of the same: how far apart, and which is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from ..explainers import random_map
from ..faithfulness import perturbation_curve, probability, ranks_of
from ..localisation import pointing_game, relevance_rank, saliency_share
from ..options import Batch, Deviation, Images, Limit, Mean, Model, Out, Size, Weights, aside, for_prepare, told
from ..preparing import prepare
from ..road import SHARES, imputed
from ..sources import ImageSet
from ..speed import machine
from ..subject import Subject

app = typer.Typer(
    add_completion=False, rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]}
)
STEPS = 16


def verify(subject: Subject, data: ImageSet, targets: Tensor, repeats: int = 3) -> pd.DataFrame:
    """Compute the same numbers with our code and with Quantus' or pytorch-grad-cam's, in turn.

    The maps are noise: no order is more telling for a comparison of two programs.

    Args:
        subject: the model; asked in fp32, whatever its precision.
        data: images; with masks, localisation is compared too.
        targets: classes (N,).
        repeats: taken in turn; the times are medians.

    Returns:
        One row a comparison. Columns: what; with; numbers compared; largest difference; ours_s and theirs_s, seconds; ratio
        of theirs to ours.
    """
    subject = replace(subject, precision="fp32")
    images, maps = data.images, random_map(data.images, targets)
    pairs: list[tuple[str, str, Callable[[], Tensor], Callable[[], Tensor]]] = [
        (
            f"deletion to a constant, {STEPS} steps", "Quantus PixelFlipping",
            lambda: _deletion(subject, images, maps, targets), lambda: _flipping(subject, images, maps, targets),
        ),
        (
            "probability under ROAD's imputation", "pytorch-grad-cam",
            lambda: _road(subject, images, maps, targets, _ours), lambda: _road(subject, images, maps, targets, _theirs),
        ),
    ]  # fmt: skip
    if data.masks is not None:
        seen = data.masks.flatten(1).any(dim=1)
        inside, over = data.masks[seen], maps[seen]
        for name, ours in (
            ("PointingGame", pointing_game),
            ("RelevanceMassAccuracy", saliency_share),
            ("RelevanceRankAccuracy", relevance_rank),
        ):
            pairs.append(
                (
                    ours.__name__.replace("_", " "), f"Quantus {name}", lambda ours=ours: ours(over, inside),
                    lambda name=name: _quantus(subject, name, images[seen], over, targets[seen], inside),
                )
            )  # fmt: skip
    rows = []
    for what, whose, ours, theirs in pairs:
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            found = []
            for run, seconds in zip((ours, theirs), taken, strict=True):
                start = time.perf_counter()
                found.append(run())
                seconds.append(time.perf_counter() - start)
        mine, other = (float(np.median(seconds)) for seconds in taken)
        rows.append(
            {"what": what, "with": whose, "numbers compared": found[0].numel()}
            | {"largest difference": float((found[0] - found[1]).abs().max())}
            | {"ours_s": mine, "theirs_s": other, "ratio": other / mine}
        )
    return pd.DataFrame(rows)


def _deletion(subject: Subject, images: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
    parts = zip(images.split(subject.batch), maps.split(subject.batch), targets.split(subject.batch), strict=True)
    curves = [
        perturbation_curve(subject.ask, x, m, t, torch.zeros_like(x), insert=False, steps=STEPS) for x, m, t in parts
    ]
    return torch.cat(curves)[:, 1:]


def _flipping(subject: Subject, images: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
    import quantus

    pixels = images[0, 0].numel()
    if pixels % STEPS:
        raise ValueError(f"Quantus wants the number of pixels, {pixels}, to be a multiple of the {STEPS} steps")
    # It goes through the channels one after another; only every C-th point has pixels replaced as a whole.
    metric = quantus.PixelFlipping(
        features_in_step=pixels // STEPS, perturb_baseline=0.0, disable_warnings=True, return_aggregate=False
    )
    curves = metric(
        model=subject.model, x_batch=images.numpy(), y_batch=targets.numpy(), a_batch=maps.numpy(), channel_first=True,
        softmax=True, device=str(subject.device), batch_size=subject.batch,
    )  # fmt: skip
    channels = images.shape[1]
    return torch.as_tensor(np.asarray(curves), dtype=torch.float32)[:, channels - 1 :: channels]


def _road(
    subject: Subject, images: Tensor, maps: Tensor, targets: Tensor, impute: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Probability of the class with the most relevant share removed, without noise, of the first images."""
    some = slice(0, 4)
    ranks, points = ranks_of(maps[some]), []
    for share in SHARES:
        shown = impute(images[some], ranks < round(share * ranks[0].numel()))
        points.append(probability(subject.ask, shown, targets[some]))
    return torch.stack(points, dim=1)


def _ours(images: Tensor, removed: Tensor) -> Tensor:
    return imputed(images, removed, torch.Generator(), noise=0.0)


def _theirs(images: Tensor, removed: Tensor) -> Tensor:
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    impute = NoisyLinearImputer(noise=0.0)
    return torch.stack([impute(x, (~gone[0]).float()).float() for x, gone in zip(images, removed, strict=True)])


def _quantus(subject: Subject, name: str, images: Tensor, maps: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
    import quantus

    found = getattr(quantus, name)(disable_warnings=True, return_aggregate=False)(
        model=subject.model, x_batch=images.numpy(), y_batch=targets.numpy(), a_batch=maps.numpy(),
        s_batch=masks[:, None].float().numpy(), channel_first=True, device=str(subject.device), batch_size=len(images),
    )  # fmt: skip
    return torch.as_tensor(np.asarray(found, dtype=np.float32)).reshape(-1)


@app.command()
def main(
    model: Model,
    images: Images,
    limit: Limit = 30,
    weights: Weights = None,
    size: Size = None,
    mean: Mean = None,
    deviation: Deviation = None,
    batch: Batch = 30,
    out: Out = Path("out/study"),
) -> None:
    """Compute our metrics on your model and images with independent implementations too: differences and times.

    python -m captum_attnkd.evaluation.benchmarks.verification -m digits -i digits:30 -o out/digits
    """
    with told():
        prepared = prepare(**for_prepare(locals()), told=aside)
        targets = prepared.subject.ask(prepared.data.images).argmax(dim=1)
        table = verify(prepared.subject, prepared.data, targets)
        typer.echo(f"{len(prepared.data)} images; {machine(prepared.subject.device)}\n\n{table.to_string(index=False)}")


if __name__ == "__main__":
    app()
