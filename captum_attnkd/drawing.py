"""Axes, images and maps on a figure; matplotlib is imported where it is needed, and colours are safe for the colour-blind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

Picture: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # (H, W) grey or (H, W, 3), in [0, 1]
Channels: TypeAlias = float | Sequence[float] | Tensor | None

STRENGTH, CONTRAST = "cividis", "PuOr_r"  # from nothing to much; from one sign to the other
ASKED, OTHERS, DOUBT = "#0072b2", "#b0b0b0", "#d55e00"  # Okabe and Ito's blue and vermilion


def grid(rows: int, columns: int, side: float, wide: Sequence[int] = ()) -> tuple[Figure, list[list[Axes]]]:
    """A figure of its own, in no list of open windows, with rows x columns axes.

    Args:
        rows: of axes.
        columns: of axes.
        side: of an axis, in inches.
        wide: columns half as wide again, for what is no image.

    Raises:
        MissingExtraError: there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("matplotlib") from error
    widths = [1.5 if column in wide else 1.0 for column in range(columns)]
    figure = Figure(figsize=(side * sum(widths), 1.12 * side * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    return figure, [list(row) for row in axes]


def missing(package: str) -> MissingExtraError:
    """What to say where a package of the extra is not installed."""
    return MissingExtraError(f"pictures need {package}: pip install 'captum-attnkd[visualize]'")


def display(images: Tensor, mean: Channels, deviation: Channels) -> Callable[[Tensor], list[Picture]]:
    """How to show images (B, C, H, W), and what is made of the same images, as before they were normalised.

    Args:
        images: as the model takes them.
        mean: what was subtracted from each channel (values in [0, 1]), one number or (C,).
        deviation: by what it was divided. Without the two, images in [0, 1] are shown as they are, and others each from its
            own lowest to its own highest value.

    Raises:
        InputError: one of the two is missing, or they do not fit the channels.
    """
    if (mean is None) != (deviation is None):
        raise InputError("mean and deviation belong together: give both, or neither")
    if mean is not None and deviation is not None:
        low, scale = _per_channel(mean, images, "mean"), _per_channel(deviation, images, "deviation")
    else:
        found = images.detach().float().cpu()
        low, scale = torch.zeros(()), torch.ones(())
        if float(found.min()) < 0 or float(found.max()) > 1:
            least = found.amin(dim=(1, 2, 3), keepdim=True)
            span = (found.amax(dim=(1, 2, 3), keepdim=True) - least).clamp_min(1e-12)
            low, scale = -least / span, 1 / span

    def shown(others: Tensor) -> list[Picture]:
        values = (others.detach().float().cpu() * scale + low).clamp(0, 1)
        if values.shape[1] == 3:
            return list(values.permute(0, 2, 3, 1).numpy())
        return list(values.mean(dim=1).numpy())  # one channel, or no colours that a screen could show

    return shown


def _per_channel(given: float | Sequence[float] | Tensor, images: Tensor, name: str) -> Tensor:
    try:
        values = torch.as_tensor(given, dtype=torch.float32).flatten().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be numbers, one a channel: {error}") from error
    if len(values) not in (1, images.shape[1]):
        raise InputError(f"{name} has {len(values)} numbers for images of {images.shape[1]} channels")
    if not bool(torch.isfinite(values).all()) or (name == "deviation" and bool((values <= 0).any())):
        raise InputError(f"{name} must be finite, and a deviation positive, got {values.tolist()}")
    return values[:, None, None]


def show_image(axis: Axes, picture: Picture) -> None:
    """An image, without ticks or frame."""
    _bare(axis)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def show_map(axis: Axes, values: Tensor, low: float, high: float, colours: str = STRENGTH) -> None:
    """A map (h, w) in colours that run from `low` to `high`."""
    _bare(axis)
    axis.imshow(values.detach().float().cpu().numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def lay_map(axis: Axes, picture: Picture, values: Tensor, low: float, high: float, colours: str = STRENGTH) -> None:
    """A map (H, W) over the image in grey, whose own colours would be taken for the map's."""
    grey = picture if picture.ndim == 2 else picture @ np.array([0.299, 0.587, 0.114], dtype=picture.dtype)
    show_image(axis, grey)
    axis.imshow(values.detach().float().cpu().numpy(), cmap=colours, vmin=low, vmax=high, alpha=0.7)


def say(axis: Axes, above: str = "", below: str = "", colour: str = "black") -> None:
    """A line above an axis, and one below it."""
    if above:
        axis.set_title(above, fontsize=8)
    if below:
        axis.set_xlabel(below, fontsize=7, color=colour)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def bars(axis: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str]) -> None:
    """Probabilities as horizontal bars from 0 to 1, the first on top."""
    places = range(len(values))
    axis.barh(places, values, color=colours, height=0.7)
    axis.set_yticks(places, list(names), fontsize=7)
    axis.set_xticks([0, 1])
    axis.set_ylim(max(len(values), 3) - 0.5, -0.5)
    axis.set_xlim(0, 1.3)
    axis.tick_params(length=0, labelsize=7)
    for place, value in zip(places, values, strict=True):
        axis.text(value + 0.03, place, f"{value:.2f}", va="center", fontsize=6)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def frames(pictures: Sequence[Picture], curve: Sequence[float], title: str) -> list[Image]:
    """One picture after another, and beside each the curve so far over equal shares from 0 to 1.

    Raises:
        MissingExtraError: there is no matplotlib, or no Pillow.
    """
    try:
        from PIL.Image import fromarray
    except ImportError as error:
        raise missing("Pillow") from error
    figure, [[left, right]] = grid(1, 2, side=3.2)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods are untyped
    show_image(left, pictures[0])
    shares = [step / (len(curve) - 1) for step in range(len(curve))]
    (line,) = right.plot([], [], color=ASKED, linewidth=2)
    (head,) = right.plot([], [], "o", color=DOUBT)
    right.set_xlim(-0.02, 1.02)
    right.set_ylim(-0.02, 1.02)
    right.set_xlabel("share of the pixels gone", fontsize=8)
    right.set_ylabel("probability", fontsize=8)
    right.tick_params(labelsize=7)
    say(left, title)
    taken = []
    for step, picture in enumerate(pictures):
        left.images[0].set_data(picture)
        line.set_data(shares[: step + 1], curve[: step + 1])
        head.set_data([shares[step]], [curve[step]])
        say(right, f"{shares[step]:.0%} gone: {curve[step]:.2f}")
        canvas.draw()
        taken.append(fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return taken


def write_gif(pictures: Sequence[Image], path: Path, milliseconds: int) -> None:
    """Write an animation that repeats; its last frame stays six times as long."""
    stay = [milliseconds] * (len(pictures) - 1) + [6 * milliseconds]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=stay, loop=0)
