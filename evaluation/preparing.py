"""From names to what a study needs: the classifier, its images, and our surrogate, loaded or fitted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.allocator import kept_buffers
from captum_attnkd.target import detect_output_kind

from .classifiers import Classifier, find_classifier
from .sources import GENERATED, ImageSet, Rest, kind_of, load, mosaics_of, square
from .store import key
from .subject import AsLogits, Subject, last_spatial_layer

# Of the fits to models with random weights, of which there may be one a layer: there is little to be learned from them.
REFIT = {"distil_steps": 50, "explain_steps": 150}
SURROGATE = "surrogate.safetensors"  # in the folder of a study
# The probability from which on an image may be part of a mosaic: a map cannot find what the model does not see.
SURE = 0.5


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
    gradients: bool = False,
    weights: str | None = None,
    limit: int | None = None,
    held_out: int | None = None,
    mosaics: int | None = None,
    layer: str | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    deviation: tuple[float, ...] | None = None,
    batch: int = 30,
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    download: bool = False,
    progress: bool | None = None,
    fitted: bool = True,
    told: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Find the model, read the images, load or fit the surrogate.

    Most arguments are the options of the command line by the same names, and explained there (`options`).

    Args:
        model: as in `find_classifier`, like `weights`.
        images: as in `sources.load`, like `fit`, `limit` and `held_out`.
        folder: where a trained classifier and a fitted surrogate are kept; a fit that was stopped goes on from there.
        mosaics: put the images together, four classes in one, so many times, and study those.
        size: side of the images in pixels; like `mean` and `deviation` None has them as the classifier does.
        batch: images at a time.
        seed: of the fit, and of all that methods and metrics draw.
        fitted: whether a surrogate is wanted; without one `fit` serves fits to come.
        told: is handed a line before a fit, and its report after it.

    Raises:
        ValueError: a name is not known, or things do not fit together; the message says what to do.
        OSError: a file is missing.
    """
    if fit == "rest" and held_out is None:
        raise ValueError("--fit rest needs --held-out N: of the images, N are for the study and the rest for the fit")
    if surrogate is not None and (student != "auto" or gradients):
        given = "--gradients" if student == "auto" else "--student"
        raise ValueError(f"--surrogate {surrogate} is as it was fitted; leave {given} out")
    for source in (images, fit):
        if source is not None and source != "rest":
            kind_of(source)  # a misspelt name is told before a classifier is trained
    if fit is not None and fit != "rest" and kind_of(fit)[0] in GENERATED and not kind_of(fit)[0].endswith("-train"):
        raise ValueError(
            f"--fit {fit} would learn from the images that the study is of; name one of the kinds ...-train"
        )
    found = find_classifier(model, weights, folder)
    if device is not None and isinstance(found.model, nn.Module):
        found.model.to(_device(device))  # before the surrogate, which is loaded to where the model is
    attribution = None if surrogate is None else AttentiveKDAttribution.load(surrogate, found.model)
    found = replace(
        found,
        size=size or (found.size if attribution is None else max(attribution.plan.image_shape[1:])),
        mean=_per_channel(mean, found.mean),
        deviation=_per_channel(deviation, found.deviation),
    )
    transform = square(found.size, found.mean, found.deviation)
    data = load(images, transform, limit, download, held_out)
    given = found.model
    if isinstance(given, nn.Module):
        given = given.eval()
    module = _asked(given, data, precision)
    chosen = _layer(module, layer, data)
    studied = data.images
    if mosaics is not None:
        data = put_together(module, data, mosaics, batch, seed)
    how: dict[str, Any] = {"student": student, "gradients": gradients}
    if attribution is not None:
        _warn_of_other_pixels(attribution, studied)
        how = {"student": attribution.plan.student, "gradients": attribution.plan.gradients}
    refit = None
    if fit is not None:
        source, left = (images, held_out or 0) if fit == "rest" else (fit, 0)
        rest = Rest(source, transform, download, left, studied)

        def refit(model: nn.Module, seed: int, shift: float = 0.0, **steps: int) -> AttentiveKDAttribution:
            # The same images are held out of each: fits that are compared differ in the model and the seed alone.
            learned, kept = rest.split(shift=shift)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is nothing to be learned from a random model is the point
                made = AttentiveKDAttribution(model, **how)
                return made.fit(learned, val_loader=kept, seed=seed, progress=progress, **(REFIT | steps))

    if fit is not None and attribution is None and fitted:
        folder.mkdir(parents=True, exist_ok=True)
        told(
            f"fitting ours, minutes: {len(rest)} images brought to {found.size}x{found.size}, "
            f"pixels in [0, 1] less {_numbers(found.mean)} and over {_numbers(found.deviation)} (--size, --mean, --deviation)"
        )
        # A state for each fit: another one in the same folder does not meet it.
        of = key(
            model, weights, images, fit, held_out, student, gradients, seed, found.size, found.mean, found.deviation
        )
        attribution = AttentiveKDAttribution(given, **how).fit(
            rest.batches(), seed=seed, progress=progress, resume_from=folder / f"fit-{of[:8]}.state"
        )
        attribution.save(folder / SURROGATE)
        told(f"{attribution.report_}\nSurrogate: {folder / SURROGATE}\n")
    statistics = data.images.mean(dim=(0, 2, 3)), data.images.std(dim=(0, 2, 3))
    return Prepared(Subject(module, chosen, *statistics, attribution, batch, seed, precision, refit), data, found)


def put_together(model: nn.Module, data: ImageSet, count: int, batch: int, seed: int = 0) -> ImageSet:
    """Mosaics of those images that the model names right and is sure of, each asked about one of its cells in turn.

    Cells have the images' own size where the model takes a mosaic of twice that size; else they are shrunk.

    Args:
        model: as a study asks it.
        data: images; where they come without classes, what the model says is taken for right.
        count: of the mosaics.
        batch: images at a time.
        seed: of what is put with what.

    Raises:
        ValueError: images come with rivals, or the model is sure of fewer than four classes.
    """
    if data.rivals is not None:
        raise ValueError("--mosaics asks about single classes; these images come with rivals")
    asked = Subject(model, None, torch.zeros(1), torch.ones(1), batch=batch, precision="fp32")
    answers = asked.ask(data.images)
    try:
        asked.ask(data.images[:1].repeat(1, 1, 2, 2))
        shrunk = False
    except (RuntimeError, AssertionError, ValueError):  # a network for one size
        shrunk = True
    sure, named = answers.max(dim=1)
    right = (sure.exp() >= SURE) & (named == (named if data.targets is None else data.targets))
    try:
        made = mosaics_of(data.images[right], named[right], count, seed, "mosaic ", shrunk)
    except ValueError as error:
        raise ValueError(
            f"{error}; those are the ones that the model names right with a probability of at least {SURE}"
        ) from error
    return replace(made, skipped=data.skipped)


def _warn_of_other_pixels(attribution: AttentiveKDAttribution, images: Tensor) -> None:
    """Say so where images are not like those of the fit: as a rule they are normalised otherwise."""
    pixels, mean, deviation = attribution.pixels, images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    apart = float(((mean - pixels.mean.cpu()).abs() / pixels.deviation.cpu()).max())
    ratio = deviation / pixels.deviation.cpu()
    if apart > 1 or float(ratio.max()) > 2 or float(ratio.min()) < 0.5:
        warnings.warn(
            f"the images' pixels have a mean of {_numbers(mean)} and a deviation of {_numbers(deviation)}, those that the "
            f"surrogate was fitted on {_numbers(pixels.mean)} and {_numbers(pixels.deviation)}: are they normalised alike "
            "(--mean, --deviation)?",
            stacklevel=3,
        )


def _numbers(values: Iterable[Any]) -> str:
    return ", ".join(f"{float(value):.3g}" for value in values)


def _per_channel(wanted: tuple[float, ...] | None, own: tuple[float, ...]) -> tuple[float, ...]:
    if wanted is None:
        return own
    if len(wanted) not in (1, len(own)):
        raise ValueError(f"the model takes {len(own)} channels; --mean and --deviation are one number or {len(own)}")
    return wanted * len(own) if len(wanted) == 1 else wanted


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # where a fit goes
    return device


def _asked(model: nn.Module | Callable[[Tensor], Tensor], data: ImageSet, precision: str) -> nn.Module:
    """The model as a study asks it: wrapped where it is a function, answers with probabilities, or takes other than float32.

    Raises:
        ValueError: it cannot take the images, or knows fewer classes than they are of.
    """
    dtype = (
        next((p.dtype for p in model.parameters()), torch.float32) if isinstance(model, nn.Module) else torch.float32
    )
    trial = Subject(AsLogits(model, False, dtype), None, torch.zeros(1), torch.ones(1), precision="fp32")
    try:
        with torch.no_grad():
            scores = trial.model(data.images[:4].to(trial.device))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shape = tuple(data.images.shape[1:])
        raise ValueError(f"the model cannot take images of shape {shape}: {str(error).splitlines()[0]}") from error
    for classes in (data.targets, data.rivals):
        if classes is not None and int(classes.max()) >= scores.shape[1]:
            raise ValueError(
                f"the images are of classes up to {int(classes.max())}, the model answers with {scores.shape[1]}"
            )
    probabilities = detect_output_kind(scores) == "probabilities"
    plain = isinstance(model, nn.Module) and not probabilities and dtype == torch.float32
    asked = model if plain else AsLogits(model, probabilities, dtype).eval()
    try:
        Subject(asked, None, torch.zeros(1), torch.ones(1), precision=precision).ask(data.images[:2])
    except (RuntimeError, TypeError):  # quantised and compiled models bear no other precision than their own
        return AsLogits(model, probabilities, dtype, exact=True).eval()
    return asked


def _layer(model: nn.Module, name: str | None, data: ImageSet) -> nn.Module | None:
    inner = model.model if isinstance(model, AsLogits) else model
    if name is not None:
        layers = dict(inner.named_modules()) if isinstance(inner, nn.Module) else {}
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}; it has, among others, {', '.join(list(layers)[-8:])}")
        return layers[name]
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    with kept_buffers(device.type == "cpu"):
        found = last_spatial_layer(model, data.images[:1].to(device))
    return None if found is None else found[1]
