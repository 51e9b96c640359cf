"""Pictures of what Captum's `visualize_image_attr` does not know: what a mask keeps, rivals, levels, trust, deletion.

from captum_attnkd import visualize
visualize.panel(attribution, images, names=names).savefig("panel.png")

matplotlib and Pillow are needed (`pip install 'captum-attnkd[visualize]'`), and imported when something is drawn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import drawing
from .attribution import AttentiveKDAttribution
from .checkpoint import replacing
from .classes import ClassesLike
from .drawing import CONTRAST, Channels, display, lay_map, say, show_image, show_map
from .errors import InputError
from .images import checked_images
from .look import Look
from .perturbation import blended
from .trust import Trust

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["deletion_gif", "levels", "panel"]

BORDER = 0.25  # of a saliency mask at the border of its extent: above it lies what the mask keeps
ENOUGH, PRESENT = (
    0.5,
    0.1,
)  # trust scores up to the first, or a class less probable than the second, are said to be doubtful
MOST_ROWS = 64  # images of one figure
MOST_STEPS = 200  # of one animation


def panel(
    attribution: AttentiveKDAttribution,
    images: Tensor,
    target: ClassesLike = None,
    versus: ClassesLike = None,
    names: Sequence[str] | None = None,
    *,
    mean: Channels = None,
    deviation: Channels = None,
    most: int = 5,
) -> Figure:
    """One row an image: all that helps to judge an explanation.

    From left to right: the image; the saliency mask over it; the part that the mask keeps, the rest in the mean colour of the
    training images, and the model's probability for that part alone; against a rival, which of the two classes each place
    favours; each level's attention, on one scale a row; the model's highest probabilities, and whether the map is to be trusted:
    what the model says of the most salient quarter alone, and without it (not the part that the mask keeps, and other fills).

    Args:
        attribution: fitted.
        images: (B, C, H, W), as the model takes them; at most 64.
        target: as in `attribute`; None explains the predicted class.
        versus: a rival class, given as `target` is.
        names: of the K classes.
        mean: of the channels, as subtracted when the images were normalised.
        deviation: likewise, as divided by. Without the two, images outside [0, 1] are stretched each by itself.
        most: how many of the highest probabilities are shown.

    Returns:
        A figure that belongs to no window: show it in a notebook, or call its `savefig`.

    Raises:
        InputError: images, classes or settings that cannot be used.
        MissingExtraError: matplotlib is not installed.
    """
    look, called = _looked(attribution, images, target, names)
    _check_count("most", most)
    masks = attribution.saliency(images, look.target)
    rival = None if versus is None else _rival(attribution, images, look.target, versus)
    keep = (masks >= BORDER).to(images.dtype)
    kept = blended(keep, images, _mean_colour(look, images))
    remains = attribution.look(kept, look.target).asked.tolist()
    trust = attribution.trust(images, look.target)
    shown = display(images, mean, deviation)
    pictures, kept_pictures = shown(images), shown(kept)
    columns = 4 + (rival is not None) + len(look.attention)
    figure, axes = drawing.grid(len(images), columns, side=1.5, wide=[columns - 1])
    for row, line in enumerate(axes):
        name, rest = called[int(look.target[row])], iter(line)
        axis = next(rest)
        show_image(axis, pictures[row])
        say(axis, f"{name}: {look.asked[row]:.2f}")
        axis = next(rest)
        lay_map(axis, pictures[row], masks[row, 0], 0, 1)
        say(axis, f"why {name}?")
        axis = next(rest)
        show_image(axis, kept_pictures[row])
        say(axis, f"kept {keep[row].mean():.0%}: {remains[row]:.2f}")
        if rival is not None:
            axis, (classes, contrast) = next(rest), rival
            lay_map(axis, pictures[row], contrast[row, 0], -1, 1, CONTRAST)
            say(axis, f"{name},\nnot {called[int(classes[row])]}?")
        _draw_attention([next(rest) for _ in look.attention], look, row)
        _draw_probabilities(next(rest), look, row, called, most)
        words, doubtful = _trusted(trust, row)
        say(line[-1], below=words, colour=drawing.DOUBT if doubtful else "black")
    return figure


def levels(
    attribution: AttentiveKDAttribution,
    images: Tensor,
    target: ClassesLike = None,
    names: Sequence[str] | None = None,
    *,
    mean: Channels = None,
    deviation: Channels = None,
) -> Figure:
    """Two rows an image: each level's attention, and what each place of it adds to, or takes from, the class's score.

    At the left are the image, and the mask that the explanation network makes of it all; then the levels, the finest first.
    Attention has one scale a row, from 0. Class evidence is divided by the level's positions, so that a map adds up to the
    level's score of the class, in logits; it has one scale a row, with zero in the middle.

    Args:
        attribution: fitted.
        images: (B, C, H, W), as the model takes them; at most 64.
        target: as in `attribute`; None explains the predicted class.
        names: of the K classes.
        mean: as in `panel`.
        deviation: as in `panel`.

    Returns:
        A figure that belongs to no window.

    Raises:
        InputError: images, classes or settings that cannot be used.
        MissingExtraError: matplotlib is not installed.
    """
    look, called = _looked(attribution, images, target, names)
    masks = attribution.saliency(images, look.target)
    pictures = display(images, mean, deviation)(images)
    figure, axes = drawing.grid(2 * len(images), 1 + len(look.attention), side=1.7)
    for row, (above, below) in enumerate(zip(axes[::2], axes[1::2], strict=True)):
        name = called[int(look.target[row])]
        show_image(above[0], pictures[row])
        say(above[0], f"{name}: {look.asked[row]:.2f}")
        _draw_attention(above[1:], look, row)
        lay_map(below[0], pictures[row], masks[row, 0], 0, 1)
        say(below[0], f"why {name}?")
        parts = [level[row, 0] / level[row, 0].numel() for level in look.evidence]
        reach = max(float(part.abs().max()) for part in parts)
        for axis, part in zip(below[1:], parts, strict=True):
            show_map(axis, part, -reach, reach, CONTRAST)
            say(axis, f"evidence: {part.sum():+.1f} in all")
    return figure


def deletion_gif(
    attribution: AttentiveKDAttribution,
    image: Tensor,
    path: str | os.PathLike[str],
    target: ClassesLike = None,
    *,
    steps: int = 20,
    names: Sequence[str] | None = None,
    mean: Channels = None,
    deviation: Channels = None,
    milliseconds: int = 200,
) -> None:
    """An animation: the most relevant pixels vanish first, and beside it the class's probability falls, or does not.

    Pixels are replaced by the mean colour of the training images. The first frame shows the image, the last nothing of it.

    Args:
        attribution: fitted.
        image: (C, H, W) or (1, C, H, W), as the model takes it.
        path: of the GIF. It is written whole or not at all.
        target: a class; None explains the predicted one.
        steps: the animation has steps + 1 frames, with shares 0, 1/steps, ..., 1 of the pixels gone.
        names: of the K classes.
        mean: as in `panel`.
        deviation: as in `panel`.
        milliseconds: a frame; the last stays six times as long.

    Raises:
        InputError: image, class or settings that cannot be used.
        MissingExtraError: matplotlib or Pillow is not installed.
        OSError: the file cannot be written; an older one of that name is left as it was.
    """
    single = image[None] if isinstance(image, Tensor) and image.ndim == 3 else image
    if len(checked_images(single)) != 1:
        raise InputError(f"one image is animated at a time, got {len(single)}")
    _check_count("steps", steps, MOST_STEPS)
    _check_count("milliseconds", milliseconds, 60_000)
    look, called = _looked(attribution, single, target, names)
    ranks = attribution.saliency(single, look.target).flatten().argsort(descending=True, stable=True).argsort()
    ranks = ranks.reshape(1, 1, *single.shape[-2:])
    gone = [ranks < round(step * ranks.numel() / steps) for step in range(steps + 1)]
    fill = _mean_colour(look, single)
    hidden = [torch.where(mask, fill, single) for mask in gone]
    # One by one, as every image is asked about: no more memory than an explanation takes.
    curve = [float(attribution.look(one, look.target).asked) for one in hidden]
    shown = display(single, mean, deviation)
    name = called[int(look.target)]
    frames = drawing.frames([shown(one)[0] for one in hidden], curve, f"{name}, most relevant pixels first")
    with replacing(Path(path)) as draft:
        drawing.write_gif(frames, draft, milliseconds)


def _looked(
    attribution: AttentiveKDAttribution, images: Tensor, target: ClassesLike, names: Sequence[str] | None
) -> tuple[Look, list[str]]:
    """What is seen in the images, and what the classes are called."""
    classes = attribution.classes
    if isinstance(names, str) or (names is not None and len(names) != classes):
        raise InputError(
            f"names must be {classes} strings, one a class, got {names if isinstance(names, str) else len(names)}"
        )
    if len(checked_images(images)) > MOST_ROWS:
        raise InputError(f"{len(images)} images are too many for a figure; {MOST_ROWS} at most")
    return attribution.look(images, target), [
        _short(str(name)) for name in (range(classes) if names is None else names)
    ]


def _short(name: str, most: int = 14) -> str:
    """As much of a class's name as stands above a small image."""
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"


def _rival(
    attribution: AttentiveKDAttribution, images: Tensor, wanted: Tensor, versus: ClassesLike
) -> tuple[Tensor, Tensor]:
    """The rival of each image (B,), and which of the two classes a place favours: (B, 1, H, W) in [-1, 1]."""
    rivals = attribution.look(images, versus).target
    favours = attribution.saliency(images, wanted, versus=rivals) - attribution.saliency(images, rivals, versus=wanted)
    return rivals, favours


def _mean_colour(look: Look, images: Tensor) -> Tensor:
    return look.mean[:, None, None].to(images)


def _draw_attention(axes: Sequence[Axes], look: Look, row: int) -> None:
    highest = max(float(level[row].max()) for level in look.attention)
    for axis, level in zip(axes, look.attention, strict=True):
        show_map(axis, level[row, 0], 0, highest)
        say(axis, f"attention {level.shape[-2]}x{level.shape[-1]}")


def _draw_probabilities(axis: Axes, look: Look, row: int, called: Sequence[str], most: int) -> None:
    """The model's highest probabilities as bars, the highest on top; that of the class asked about in colour."""
    values, classes = look.probabilities[row].topk(min(most, len(called)))
    drawing.bars(
        axis,
        [called[index] for index in classes.tolist()],
        values.tolist(),
        [drawing.ASKED if index == int(look.target[row]) else drawing.OTHERS for index in classes.tolist()],
    )


def _trusted(trust: Trust, row: int) -> tuple[str, bool]:
    """What is said of a map, and whether that is a warning."""
    if not trust.agrees[row]:
        return "distrust: surrogate disagrees", True
    quarter = f"top quarter alone {trust.kept[row]:.2f}, without it {trust.deleted[row]:.2f}"
    if trust.whole[row] < PRESENT:
        return f"the class is hardly seen: {trust.whole[row]:.2f}\n{quarter}", True
    score, doubtful = float(trust.score[row]), bool(trust.score[row] <= ENOUGH)
    return f"{'distrust' if doubtful else 'trust'} {score:.2f}\n{quarter}", doubtful


def _check_count(name: str, given: int, most: int = sys.maxsize) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {given!r}")
    if given > most:
        raise InputError(f"{name} must be at most {most}, got {given}")
