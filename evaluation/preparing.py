"""From names to what a study needs: the classifier, its images, and our surrogate, loaded or fitted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.allocator import kept_buffers

from .classifiers import Asked, Classifier, find_classifier
from .sources import ImageSet, Rest, kind_of, load, square
from .subject import Subject, last_spatial_layer

# Of the fits to models with random weights, of which there may be one a layer: there is little to be learned from them.
REFIT = {"distil_steps": 50, "explain_steps": 150}


@dataclass(frozen=True)
class Prepared:
    """What a study begins with.

    Attributes:
        subject: the model, with our surrogate if there is one.
        data: its images.
        classifier: the model as it was found.
    """

    subject: Subject
    data: ImageSet
    classifier: Classifier


def prepare(
    model: str,
    images: str,
    *,
    folder: Path,
    fit: str | None = None,
    surrogate: Path | None = None,
    student: str = "auto",
    weights: str | None = None,
    limit: int | None = None,
    held_out: int | None = None,
    layer: str | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    deviation: tuple[float, ...] | None = None,
    batch: int = 30,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "auto",
    download: bool = False,
    progress: bool | None = None,
) -> Prepared:
    """Find the model, read the images, load or fit the surrogate.

    Args:
        model: as in `find_classifier`.
        images: as in `sources.load`.
        folder: where a trained classifier and a fitted surrogate are kept; a fit that was stopped goes on from there.
        fit: images to fit our surrogate on, as in `sources.load`; "rest" for those that are not held out.
        surrogate: a surrogate that was fitted before.
        student: "auto", "grafted" or "compact".
        weights: as in `find_classifier`.
        limit: images at most.
        held_out: as in `sources.load`.
        layer: where CAM methods look; None takes the last layer with a spatial extent.
        size: side of the images in pixels; None as the classifier has it.
        mean: of pixels in [0, 1] per channel; None likewise.
        deviation: likewise.
        batch: images at a time.
        seed: of the fit, and of all that methods and metrics draw.
        device: for all of it.
        precision: as in `Subject`.
        download: whether torchvision's data sets may be fetched.
        progress: whether bars are shown; None shows them at a terminal.

    Raises:
        ValueError: a name is not known, or things do not fit together; the message says what to do.
        OSError: a file is missing.
    """
    if fit == "rest" and held_out is None:
        raise ValueError("--fit rest needs --held-out N: of the images, N are for the study and the rest for the fit")
    for source in (images, fit):
        if source is not None and source != "rest":
            kind_of(source)  # a misspelt name is told before a classifier is trained
    found = find_classifier(model, weights, folder)
    transform = square(size or found.size, mean or found.mean, deviation or found.deviation)
    data = load(images, transform, limit, download, held_out)
    given = found.model
    module = given.to(device).eval() if isinstance(given, nn.Module) else Asked(given).eval()
    found_layer = _layer(module, layer, data, device)
    attribution, refit = None, None
    if fit is not None:
        rest = Rest(images, transform, download, held_out or 0) if fit == "rest" else Rest(fit, transform, download)
        settings: dict[str, Any] = {"seed": seed, "precision": precision, "progress": progress}

        def refit(model: nn.Module) -> AttentiveKDAttribution:
            return AttentiveKDAttribution(model, student=student).fit(rest.batches(), **settings, **REFIT)

    if surrogate is not None:
        attribution = AttentiveKDAttribution.load(surrogate, given)
    elif fit is not None:
        folder.mkdir(parents=True, exist_ok=True)
        attribution = AttentiveKDAttribution(given, student=student).fit(
            rest.batches(), **settings, resume_from=folder / "fit.state"
        )
        attribution.save(folder / "surrogate.safetensors")
    subject = Subject(
        module, found_layer[1], data.images.mean(dim=(0, 2, 3)), data.images.std(dim=(0, 2, 3)), attribution, batch, seed,
        found_layer[0], precision, refit,
    )  # fmt: skip
    return Prepared(subject, data, found)


def _layer(model: nn.Module, name: str | None, data: ImageSet, device: str) -> tuple[str, nn.Module | None]:
    if name is not None:
        layers = dict(model.named_modules())
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}; it has, among others, {', '.join(list(layers)[-8:])}")
        return name, layers[name]
    with kept_buffers(device == "cpu"):
        found = last_spatial_layer(model, data.images[:1].to(torch.device(device)))
    return found if found is not None else ("", None)
