"""What the commands have in common: options, what is meant by names, and errors in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from captum_attnkd.errors import AttnKDError

from .measuring import Metric
from .methods import METHODS, Method, find_method
from .metrics import all_metrics, find_metric
from .sources import ImageSet

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="`module:function` that returns the model (or a `Classifier`, which also says how images are brought to it), "
        "a torchvision name such as `resnet50`, or `digits` or `birds`: small networks of our own on images with exact truth, "
        "trained at the first use.",
    ),
]
Images = Annotated[
    str,
    typer.Option(
        "--images",
        "-i",
        help="`folder:DIR` (or just DIR), `masked:DIR` with `images/` and `masks/`, `voc:DIR`, `coco:FILE.json@DIR`, `pets:DIR`, "
        "`voc-segmentation:DIR`, `imagenette:DIR`; or drawn by us: `digits:N`, `two-digits:N`, `digit-mosaics:N`, `birds:N`, "
        "`bird-pairs:N`.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the report, the cache and the surrogate.")]
Methods = Annotated[
    str,
    typer.Option(help="Names by comma, `default`, or `all`; one of yours is `module:object`. See `attnkd names`."),
]
Metrics = Annotated[
    str,
    typer.Option(
        help="Names by comma, `default` (what the images allow, but for twins and for those that ask the method anew), or `all`."
    ),
]
FitOn = Annotated[
    str | None,
    typer.Option(
        "--fit",
        help="Images to fit our surrogate on, named as in --images; labels are not used. `rest`: those that --held-out leaves.",
    ),
]
Surrogate = Annotated[
    Path | None,
    typer.Option(help="A surrogate that was fitted before, instead of a fit; --fit then serves MPRT alone."),
]
Student = Annotated[str, typer.Option(help="`auto`, `grafted` or `compact`.")]
Gradients = Annotated[
    bool, typer.Option("--gradients", help="Fit ours with gradients=True: more faithful, a backward pass a map.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="For torchvision models: a .safetensors file, or `DEFAULT` (fetched from the network). Else random."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images of the study at most, spread evenly over the source (or the first held out); a fit takes all of its own.",
    ),
]
HeldOut = Annotated[
    int | None, typer.Option(min=1, help="Study so many images, by a fixed shuffle; keep the rest for --fit rest.")
]
Mosaics = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The grid pointing game: put images that the model is sure of together, four classes in one, so many times, and ask "
        "about one cell after the other.",
    ),
]
Layer = Annotated[
    str | None, typer.Option(help="Where CAM methods look; default: the last layer with a spatial extent.")
]
Size = Annotated[
    int | None, typer.Option(min=8, help="Side of the images, in pixels; default: as the model has it, else 224.")
]
Mean = Annotated[str | None, typer.Option(help="Per channel, by comma, of pixels in [0, 1]; default: ImageNet's.")]
Deviation = Annotated[str | None, typer.Option(help="Likewise.")]
Batch = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Seed = Annotated[int, typer.Option(help="Of the fit, and of all that methods and metrics draw.")]
Device = Annotated[str | None, typer.Option(help="`cpu`, `cuda`, `cuda:1`, ...; default: where the model is.")]
Precision = Annotated[str, typer.Option(help="In which metrics ask the model: `fp32`, `bf16`, or `auto`.")]
Workers = Annotated[
    int,
    typer.Option(
        min=1,
        help="Processes that share methods and cores among them: faster than one on a CPU, at the price of its memory each.",
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision's data sets be fetched.")]


@contextmanager
def told() -> Iterator[None]:
    """What the user can mend is said in a line; everything else is a fault of ours, and keeps its traceback."""
    try:
        yield
    except (ValueError, OSError, AttnKDError, ImportError) as error:
        typer.echo(f"attnkd: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("attnkd: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


_PREPARING = (
    "model", "images", "fit", "surrogate", "student", "gradients", "weights", "limit", "held_out", "mosaics", "layer", "size",
    "mean", "deviation", "batch", "seed", "device", "precision", "download", "out",
)  # fmt: skip


def for_prepare(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `prepare` is to be given, of all options of a command."""
    chosen = {name: value for name, value in options.items() if name in _PREPARING}
    for name in ("mean", "deviation"):
        chosen[name] = _numbers(chosen.get(name), name)
    return {"folder": chosen.pop("out"), **chosen}


def aside(line: str) -> None:
    """Say a line where it is in nobody's way who reads the figures."""
    typer.echo(line, err=True)


def shape_of(data: ImageSet) -> str:
    """Of an image, in words."""
    return "x".join(map(str, data.images.shape[1:]))


def single_classes(data: ImageSet) -> None:
    """Refuse images that come with rivals."""
    if data.rivals is not None:
        raise ValueError("this asks about single classes; these images come with rivals")


def _numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, 3):
        raise ValueError(f"--{name} is one or three numbers by comma, got {text!r}")
    return found


def whole(text: str, name: str) -> int:
    """A whole number from 1 on."""
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"--{name} is whole numbers from 1 on by comma, got {text!r}")
    return int(text)


def methods_named(names: str, fitted: bool) -> list[Method]:
    """Methods by names, `default` or `all`; those that learn only where something is fitted."""
    if names in ("default", "all"):
        chosen = [method for method in METHODS.values() if method.default or names == "all"]
        return chosen if fitted else [method for method in chosen if not method.learned]
    found = [find_method(name) for name in split(names)]
    twice = sorted(name for name, count in Counter(method.name for method in found).items() if count > 1)
    if twice:
        raise ValueError(f"there are two methods named {', '.join(twice)}; their results would not be told apart")
    learned = [method.name for method in found if method.learned]
    if learned and not fitted:
        raise ValueError(f"{', '.join(learned)} needs a surrogate: --fit on images, or --surrogate FILE")
    return found


def split(names: str) -> list[str]:
    """Names by comma."""
    return [name.strip() for name in names.split(",")]


def names_of(asked: str, found: Sequence[Method] | Sequence[Metric]) -> list[str]:
    """Names by which what was asked for is found again."""
    return [one.name for one in found] if asked in ("default", "all") else split(asked)


def metrics_named(names: str, data: ImageSet) -> list[Metric]:
    """Metrics by names, `all`, or `default`: those that are and that the images allow."""
    if names == "all":
        return list(all_metrics().values())
    if names != "default":
        return [find_metric(name) for name in split(names)]
    return [
        metric
        for metric in all_metrics().values()
        if metric.default and (metric.needs is None or getattr(data, metric.needs) is not None)
    ]
