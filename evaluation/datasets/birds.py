"""Birds, drawn: 24 fine-grained classes that differ in one or two parts, with the parts' true masks.

Every class is the reference bird with at most one part changed. So two classes differ in exactly one part (two variants of
the same part, or a variant and the reference) or in two, and for any question "why a rather than b" it is known where the
answer can lie. Plumage, pose, size and background vary at random and tell nothing of the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor, nn

from ..training import train

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

PARTS = ("beak", "wing", "tail", "eye", "foot")
VARIANTS = {  # the first of each is the reference bird's
    "beak": ("cone", "long", "hooked", "curved", "flat", "red"),
    "wing": ("plain", "bars", "spots", "edge", "speculum", "barred"),
    "tail": ("square", "forked", "wedge", "long", "fan", "tipped"),
    "eye": ("dark", "ringed", "red", "yellow", "masked"),
    "foot": ("toes", "webbed", "yellow", "red", "feathered"),
}
_SUPERSAMPLED = 3  # drawn so many times larger, then averaged down: smooth edges

_HORN: Colour = (74, 70, 66)
_WHITE: Colour = (246, 244, 236)
_BLACK: Colour = (22, 20, 22)
_RED: Colour = (206, 46, 34)
_YELLOW: Colour = (240, 192, 32)
_BLUE: Colour = (38, 84, 208)
_PLUMAGES: tuple[Colour, ...] = (
    (150, 112, 76), (122, 126, 132), (168, 140, 96), (106, 122, 92), (140, 96, 88), (112, 108, 134), (176, 156, 128),
    (96, 112, 124),
)  # fmt: skip
_GROUNDS: tuple[tuple[Colour, Colour], ...] = (
    ((172, 206, 230), (222, 234, 238)), ((94, 132, 74), (154, 178, 104)), ((112, 152, 172), (166, 194, 200)),
    ((206, 188, 148), (182, 158, 116)), ((86, 104, 82), (128, 142, 110)), ((190, 184, 196), (150, 142, 152)),
)  # fmt: skip


@dataclass(frozen=True)
class Species:
    """A class: which variant of each part it has."""

    beak: str = "cone"
    wing: str = "plain"
    tail: str = "square"
    eye: str = "dark"
    foot: str = "toes"

    @property
    def name(self) -> str:
        """What sets it apart from the reference."""
        changed = [f"{getattr(self, part)} {part}" for part in PARTS if getattr(self, part) != VARIANTS[part][0]]
        return ", ".join(changed) or "reference"


SPECIES: tuple[Species, ...] = (
    Species(),
    *(Species(**{part: variant}) for part in PARTS for variant in VARIANTS[part][1:]),
)


@dataclass(frozen=True)
class Birds:
    """A set of drawings.

    Attributes:
        images: (N, 3, S, S), float32 in [0, 1].
        labels: index into `SPECIES` (N,), int64.
        parts: where each of `PARTS` is seen (N, 5, S, S), bool.
        masks: where the bird is seen (N, S, S), bool.
    """

    images: Tensor
    labels: Tensor
    parts: Tensor
    masks: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.images)

    def discriminative(self, rivals: Tensor) -> Tensor:
        """Where the parts are that tell each image's class from its rival (N,): (N, S, S), bool.

        Raises:
            ValueError: a rival is the class itself.
        """
        rows = []
        for index, (own, rival) in enumerate(zip(self.labels.tolist(), rivals.tolist(), strict=True)):
            places = [PARTS.index(part) for part in parts_between(own, rival)]
            if not places:
                raise ValueError(f"the rival of image {index} is its own class, {SPECIES[own].name!r}")
            rows.append(self.parts[index, places].any(dim=0))
        return torch.stack(rows)


def parts_between(one: int, other: int) -> tuple[str, ...]:
    """The parts in which two classes differ: none, one or two."""
    return tuple(part for part in PARTS if getattr(SPECIES[one], part) != getattr(SPECIES[other], part))


def birds(count: int, seed: int = 0, size: int = 128, labels: Sequence[int] | None = None) -> Birds:
    """Draw birds.

    Args:
        count: N.
        seed: the same seed gives the same drawings; another one gives none of them again.
        size: S, side of the images in pixels; the eye's ring is about two pixels wide at 128.
        labels: class of each; None takes the classes in turn.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32, an eye cannot be seen on {size} pixels")
    chosen = [index % len(SPECIES) for index in range(count)] if labels is None else [int(label) for label in labels]
    if len(chosen) != count or any(not 0 <= label < len(SPECIES) for label in chosen):
        raise ValueError(f"labels must be {count} class indices in 0..{len(SPECIES) - 1}")
    images = np.empty((count, size, size, 3), np.float32)
    places = np.empty((count, size, size), np.uint8)
    for index, label in enumerate(chosen):
        images[index], places[index] = _draw(SPECIES[label], np.random.default_rng([seed, index]), size)
    owner = torch.from_numpy(places)
    return Birds(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(chosen, dtype=torch.int64),
        torch.stack([owner == _OWNER[part] for part in PARTS], dim=1),
        owner > 0,
    )


# -- drawing -----------------------------------------------------------------------------------------------------------

_OWNER = {"body": 1, **{part: place + 2 for place, part in enumerate(PARTS)}}  # 0 is the background


class BirdNet(nn.Sequential):
    """The "user's model" for birds: a small convolutional network on images (B, 3, S, S) in [0, 1], logits (B, 24)."""

    def __init__(self) -> None:
        widths = (24, 32, 48, 64, 96, 128, 160, 192)
        stages: list[nn.Module] = [nn.BatchNorm2d(3)]  # brings pixels to one scale
        for index, (before, width) in enumerate(zip((3, *widths), widths, strict=False)):
            kernel, stride = 5 if index == 0 else 3, 2 if index % 2 == 0 else 1
            convolution = nn.Conv2d(before, width, kernel, stride, padding=kernel // 2, bias=False)
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
        super().__init__(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(SPECIES)))


def train_bird_net(data: Birds, epochs: int = 20, seed: int = 0) -> BirdNet:
    """Train a classifier of birds; returns it in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return train(BirdNet(), data.images, data.labels, epochs, seed, mirror=True)


class _Canvas:
    """Colours, and which part each pixel belongs to, drawn side by side in the bird's own coordinates.

    The bird looks to the right; its body is about one unit long with its middle at (0, 0); y points down.
    """

    def __init__(self, background: Image.Image, pose: np.ndarray, size: int) -> None:
        self._pose, self._scale = pose, _SUPERSAMPLED
        self.colours = background.resize((size * self._scale,) * 2, Image.Resampling.BICUBIC)
        self.owners = Image.new("L", self.colours.size, 0)
        self._pens = ImageDraw.Draw(self.colours), ImageDraw.Draw(self.owners)

    def polygon(self, points: Points, colour: Colour, part: str) -> None:
        """A filled outline."""
        placed = self._placed(points)
        self._pens[0].polygon(placed, fill=colour)
        self._pens[1].polygon(placed, fill=_OWNER[part])

    def line(self, points: Points, width: float, colour: Colour, part: str) -> None:
        """A stroke, `width` in the bird's units."""
        placed, broad = self._placed(points), max(round(width * self._length()), 1)
        self._pens[0].line(placed, fill=colour, width=broad, joint="curve")
        self._pens[1].line(placed, fill=_OWNER[part], width=broad, joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: Colour, part: str) -> None:
        """A filled circle."""
        self.polygon(_arc(x, y, radius, radius, 0, 360), colour, part)

    def _placed(self, points: Points) -> list[tuple[float, float]]:
        placed = (np.column_stack([np.asarray(points, float), np.ones(len(points))]) @ self._pose.T) * self._scale
        return [(float(x), float(y)) for x, y in placed]

    def _length(self) -> float:
        return float(np.sqrt(abs(np.linalg.det(self._pose[:, :2])))) * self._scale


def _draw(species: Species, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (S, S, 3) in [0, 1] and owners (S, S)."""
    canvas = _Canvas(_background(rng, size), _pose(rng, size), size)
    plumage = _varied(_PLUMAGES[int(rng.integers(len(_PLUMAGES)))], rng, 14)
    back, belly = _shaded(plumage, 0.78), _shaded(plumage, 1.28)
    _tail(canvas, species.tail, _shaded(plumage, 0.66))
    _feet(canvas, species.foot)
    canvas.polygon(_body(), plumage, "body")
    canvas.polygon(_belly(), belly, "body")
    _beak(canvas, species.beak)
    canvas.disc(0.39, -0.30, 0.185, back, "body")
    _wing(canvas, species.wing, _shaded(plumage, 0.84))
    _eye(canvas, species.eye)
    colours = canvas.colours.resize((size, size), Image.Resampling.BOX)
    pixels = np.asarray(colours, np.float32) / 255
    light = 1 + 0.12 * rng.uniform(-1, 1) * np.linspace(-1, 1, size)[:, None] + 0.1 * rng.uniform(-1, 1)
    grain = rng.normal(0, 0.018, (size, size, 3))
    return np.clip(pixels * light[..., None] + grain, 0, 1).astype(np.float32), _most_present(np.asarray(canvas.owners))


def _most_present(owners: np.ndarray) -> np.ndarray:
    """The owner of each pixel from those of the finer points it is made of: a third of them make a pixel the bird's."""
    side = len(owners) // _SUPERSAMPLED
    points = owners.reshape(side, _SUPERSAMPLED, side, _SUPERSAMPLED)
    votes = np.stack([(points == owner).sum(axis=(1, 3)) for owner in range(len(PARTS) + 2)])
    parts = votes[1:].argmax(axis=0) + 1
    return np.where(3 * votes[1:].sum(axis=0) >= _SUPERSAMPLED**2, parts, 0).astype(np.uint8)


def _pose(rng: np.random.Generator, size: int) -> np.ndarray:
    """From the bird's coordinates to pixels: (2, 3)."""
    scale = size * rng.uniform(0.36, 0.45)
    angle = math.radians(rng.uniform(-22, 22))
    mirrored = -1.0 if rng.random() < 0.5 else 1.0
    turned = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = turned @ np.diag([mirrored, 1.0])
    # The middle of the whole bird, beak and tail counted in, stays near the middle of the image.
    middle = turned @ np.array([-0.08, 0.07])
    place = size / 2 + size * rng.uniform([-0.03, -0.16], [0.03, 0.16]) - middle
    return np.column_stack([turned, place])


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """A gradient, leaves or stones, a branch or blades of grass; more or less out of focus."""
    top, bottom = (np.array(_varied(colour, rng, 18), float) for colour in _GROUNDS[int(rng.integers(len(_GROUNDS)))])
    rows = np.linspace(0, 1, size)[:, None, None]
    pixels = np.broadcast_to((1 - rows) * top + rows * bottom, (size, size, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(8, 30))):
        x, y = rng.uniform(0, size, 2)
        wide, high = size * rng.uniform(0.02, 0.14, 2)
        mixed = top + (bottom - top) * rng.random() + rng.normal(0, 24) + rng.normal(0, 9, 3)
        pen.ellipse((x - wide, y - high, x + wide, y + high), fill=_rounded(mixed))
    for _ in range(int(rng.integers(0, 7))):
        x, width = rng.uniform(0, size), max(int(size * rng.uniform(0.008, 0.03)), 1)
        bend = rng.uniform(-0.3, 0.3) * size
        colour = _rounded(0.6 * bottom + rng.normal(0, 16, 3))
        pen.line(
            [(x, size), (x + bend / 3, size * 0.6), (x + bend, size * rng.uniform(0, 0.5))], fill=colour, width=width
        )
    return image.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.004, 0.022)))


def _tail(canvas: _Canvas, kind: str, colour: Colour) -> None:
    outlines: dict[str, Points] = {
        "square": [(-0.36, -0.10), (-0.86, -0.09), (-0.88, 0.09), (-0.36, 0.12)],
        "forked": [(-0.36, -0.10), (-0.96, -0.17), (-0.70, 0.01), (-0.96, 0.18), (-0.36, 0.12)],
        "wedge": [(-0.36, -0.10), (-0.66, -0.13), (-0.98, 0.01), (-0.66, 0.14), (-0.36, 0.12)],
        "long": [(-0.36, -0.08), (-1.08, -0.03), (-1.10, 0.04), (-0.36, 0.09)],
        "fan": [(-0.36, -0.06), (-0.74, -0.30), *_arc(-0.62, 0.0, 0.30, 0.32, 250, 110), (-0.74, 0.31), (-0.36, 0.10)],
    }
    canvas.polygon(outlines.get(kind, outlines["square"]), colour, "tail")
    if kind == "tipped":
        canvas.polygon([(-0.74, -0.093), (-0.86, -0.09), (-0.88, 0.09), (-0.74, 0.097)], _WHITE, "tail")


def _feet(canvas: _Canvas, kind: str) -> None:
    colour = {"yellow": _YELLOW, "red": _RED}.get(kind, _HORN)
    for x in (-0.06, 0.12):
        width = 0.085 if kind == "feathered" else 0.032
        canvas.line([(x, 0.22), (x + 0.01, 0.50)], width, _WHITE if kind == "feathered" else colour, "foot")
        if kind == "webbed":
            canvas.polygon([(x - 0.02, 0.48), (x + 0.15, 0.55), (x + 0.02, 0.57), (x - 0.11, 0.55)], colour, "foot")
        for reach in (-0.09, 0.03, 0.13):
            canvas.line([(x + 0.01, 0.49), (x + reach, 0.55)], 0.026, colour, "foot")


def _beak(canvas: _Canvas, kind: str) -> None:
    outlines: dict[str, Points] = {
        "cone": [(0.53, -0.37), (0.73, -0.28), (0.53, -0.21)],
        "long": [(0.53, -0.34), (0.98, -0.26), (0.53, -0.23)],
        "hooked": [(0.53, -0.38), (0.68, -0.36), (0.76, -0.27), (0.73, -0.16), (0.68, -0.24), (0.53, -0.20)],
        "curved": [
            (0.53, -0.36),
            (0.74, -0.33),
            (0.88, -0.20),
            (0.90, -0.09),
            (0.80, -0.21),
            (0.68, -0.25),
            (0.53, -0.23),
        ],
        "flat": [(0.53, -0.34), (0.70, -0.31), (0.86, -0.33), (0.90, -0.27), (0.84, -0.22), (0.53, -0.20)],
    }
    canvas.polygon(outlines.get(kind, outlines["cone"]), _RED if kind == "red" else _HORN, "beak")


def _wing(canvas: _Canvas, kind: str, colour: Colour) -> None:
    canvas.polygon(_wing_outline(), colour, "wing")
    dark = _shaded(colour, 0.62)
    if kind == "bars":
        for x in (0.02, -0.14):
            canvas.line([(x + 0.04, -0.13), (x - 0.06, 0.11)], 0.048, _WHITE, "wing")
    elif kind == "spots":
        for x, y in ((0.10, -0.04), (-0.02, -0.09), (-0.04, 0.05), (-0.17, -0.05), (-0.19, 0.07), (-0.31, 0.03)):
            canvas.disc(x, y, 0.032, _WHITE, "wing")
    elif kind == "edge":
        canvas.line([(0.12, 0.09), (-0.06, 0.145), (-0.26, 0.125), (-0.46, 0.085)], 0.05, _WHITE, "wing")
    elif kind == "speculum":
        canvas.polygon([(-0.02, 0.02), (-0.24, 0.00), (-0.28, 0.09), (-0.04, 0.12)], _BLUE, "wing")
    elif kind == "barred":
        for x in (0.12, 0.03, -0.06, -0.15, -0.24, -0.33):
            canvas.line([(x + 0.02, -0.085), (x - 0.02, 0.09)], 0.026, dark, "wing")
    canvas.line([(0.17, -0.09), (-0.1, -0.145), (-0.47, 0.06)], 0.012, dark, "wing")


def _eye(canvas: _Canvas, kind: str) -> None:
    x, y = 0.42, -0.335
    if kind == "masked":
        canvas.polygon([(0.56, -0.36), (0.56, -0.30), (0.36, -0.275), (0.24, -0.31), (0.36, -0.385)], _BLACK, "eye")
    canvas.disc(x, y, 0.062, {"ringed": _WHITE, "red": _RED, "yellow": _YELLOW}.get(kind, _BLACK), "eye")
    canvas.disc(x, y, 0.030 if kind in ("red", "yellow") else 0.036, _BLACK, "eye")
    canvas.disc(x + 0.012, y - 0.012, 0.010, _WHITE, "eye")


@cache
def _body() -> Points:
    above = [(-0.48, 0.00), (-0.20, -0.20), (0.12, -0.26), (0.34, -0.42), (0.54, -0.30)]
    return _smoothed([*above, (0.46, -0.04), (0.30, 0.22), (-0.02, 0.30), (-0.32, 0.16)])


@cache
def _belly() -> Points:
    return _smoothed([(-0.28, 0.12), (0.04, 0.08), (0.34, -0.10), (0.44, -0.04), (0.28, 0.19), (0.00, 0.27)])


@cache
def _wing_outline() -> Points:
    return _smoothed([(0.24, -0.06), (0.05, -0.17), (-0.22, -0.14), (-0.56, 0.09), (-0.20, 0.15), (0.12, 0.11)])


def _smoothed(points: Points, rounds: int = 3) -> Points:
    """A closed outline with its corners cut (Chaikin, 1974)."""
    outline = np.asarray(points, float)
    for _ in range(rounds):
        following = np.roll(outline, -1, axis=0)
        outline = np.stack([0.75 * outline + 0.25 * following, 0.25 * outline + 0.75 * following], axis=1).reshape(
            -1, 2
        )
    return [(float(x), float(y)) for x, y in outline]


def _arc(x: float, y: float, wide: float, high: float, start: float, end: float, points: int = 28) -> Points:
    """An arc of an ellipse, in degrees."""
    angles = np.radians(np.linspace(start, end, points))
    return [(x + wide * math.cos(angle), y + high * math.sin(angle)) for angle in angles]


def _varied(colour: Colour, rng: np.random.Generator, by: float) -> Colour:
    return _rounded(np.asarray(colour, float) + rng.normal(0, by, 3))


def _shaded(colour: Colour, factor: float) -> Colour:
    return _rounded(factor * np.asarray(colour, float))


def _rounded(values: np.ndarray) -> Colour:
    red, green, blue = (int(value) for value in np.clip(np.round(values), 0, 255))
    return red, green, blue
