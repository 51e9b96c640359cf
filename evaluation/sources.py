"""Where a study's images come from: folders, annotation files, torchvision's data sets, and sets drawn by ourselves.

A source is named on the command line as `kind:where`, for instance `folder:photos`, `voc:VOC2012`, `birds:200`.
"""

from __future__ import annotations

import json
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from captum_attnkd.images import content_hashes

from .methods import unknown

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class ImageSet:
    """A study's images, and what is known of them.

    Attributes:
        images: (N, C, H, W), float32, as the model takes them.
        names: of each, for tables and galleries.
        targets: the classes to ask about (N,), int64; None asks about the predicted ones.
        masks: where the object of that class is (N, H, W), bool; all False where it is not known. Or None.
        parts: where what tells the class from its rival is (N, H, W), bool; or None.
        rivals: the classes of `parts` (N,); then the methods are asked "why this and not that".
        skipped: what could not be read, and why.
    """

    images: Tensor
    names: tuple[str, ...]
    targets: Tensor | None = None
    masks: Tensor | None = None
    parts: Tensor | None = None
    rivals: Tensor | None = None
    skipped: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse sets whose parts do not belong together."""
        count, size = len(self.images), tuple(self.images.shape[-2:])
        if self.images.dim() != 4 or not count:
            raise ValueError(f"images must be (N, C, H, W) with N of at least one, got {tuple(self.images.shape)}")
        for name in ("masks", "parts"):
            masks = getattr(self, name)
            if masks is not None and (tuple(masks.shape) != (count, *size) or masks.dtype != torch.bool):
                raise ValueError(f"{name} must be bool {(count, *size)}, got {masks.dtype} {tuple(masks.shape)}")
        for name in ("targets", "rivals"):
            classes = getattr(self, name)
            if classes is not None and tuple(classes.shape) != (count,):
                raise ValueError(f"{name} must be ({count},), got {tuple(classes.shape)}")
        if len(self.names) != count:
            raise ValueError(f"{len(self.names)} names for {count} images")

    def __len__(self) -> int:
        """N."""
        return len(self.images)

    def taken(self, rows: Tensor) -> ImageSet:
        """Some of the images, by index or by a mask (N,)."""
        places = torch.arange(len(self))[rows].tolist()
        parts = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows]
            for name in ("targets", "masks", "parts", "rivals")
        }
        return ImageSet(self.images[rows], tuple(self.names[i] for i in places), **parts, skipped=self.skipped)


def square(size: int, mean: Sequence[float], deviation: Sequence[float]) -> Transform:
    """PIL image -> (C, size, size): resized without regard to its proportions, (x - mean) / deviation for x in [0, 1]."""
    grey = len(mean) == 1
    centre, spread = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, deviation))

    def transform(image: Image.Image) -> Tensor:
        resized = image.convert("L" if grey else "RGB").resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255).reshape(size, size, -1)
        return (pixels.permute(2, 0, 1) - centre) / spread

    return transform


# A file that was read, its mask as a PIL image of the same proportions ("L", nonzero = object) or None, and its class or None.
_Found = tuple[str, Image.Image, Image.Image | None, int | None]
_Unread = tuple[str, str]
_Reader = Callable[[], "_Found | _Unread"]
_Generator = Callable[[str, "int | None"], ImageSet]  # how many, at most how many


def load(
    source: str, transform: Transform, limit: int | None = None, download: bool = False, held_out: int | None = None
) -> ImageSet:
    """Images of a source `kind:where`.

    Args:
        source: for instance `folder:photos`; a path alone is a folder. Kinds: `KINDS` and `GENERATED`.
        transform: of each image; masks are brought to the size it gives.
        limit: images at most, spread evenly over the source, or the first of those held out.
        download: whether torchvision's data sets may be fetched.
        held_out: take only so many, chosen by a fixed shuffle; `Rest` has the others, to be learned from.

    Raises:
        ValueError: the kind is not known, or not one image could be read.
        FileNotFoundError: there is no such file or folder.
    """
    kind, where = kind_of(source)
    if kind in GENERATED:
        if held_out is not None:
            raise ValueError(f"{kind} are drawn as many as wanted; to learn from others, name {kind}-train")
        return GENERATED[kind](where, limit)
    entries = KINDS[kind](where, download)
    if held_out is not None:
        # Not spread: so the first 80 of 200 held out are apart from all of 120.
        entries = _shuffled(entries, source, held_out)[-held_out:][:limit]
    images, masks, targets, names, skipped = [], [], [], [], []
    for read in _spread(entries, limit):
        entry = read()
        if len(entry) == 2:
            skipped.append(f"{entry[0]}: {entry[1]}")
            continue
        name, image, mask, target = entry
        images.append(transform(image))
        size = (images[-1].shape[-1], images[-1].shape[-2])
        masks.append(
            None if mask is None else torch.from_numpy(np.asarray(mask.resize(size, Image.Resampling.NEAREST)) > 0)
        )
        targets.append(target)
        names.append(name)
    if not images:
        detail = f"; {len(skipped)} could not be read, the first: {skipped[0]}" if skipped else ""
        raise ValueError(f"{source} holds no images{detail}")
    empty = torch.zeros(images[0].shape[-2:], dtype=torch.bool)
    known = any(mask is not None for mask in masks)
    classes = None if any(target is None for target in targets) else torch.tensor(targets)
    return ImageSet(
        torch.stack(images),
        tuple(names),
        classes,
        torch.stack([empty if mask is None else mask for mask in masks]) if known else None,
        skipped=tuple(skipped),
    )


class Rest(Dataset):  # type: ignore[type-arg]
    """Images to learn from, read one at a time.

    A file that cannot be read, and an image that is also in the study, is left out with a warning.

    Args:
        source: as in `load`, like `transform` and `download`.
        held_out: likewise; those images are left out here; 0 takes all.
        studied: images of the study (N, C, H, W); the same content is not learned from, whatever the file's name.
    """

    def __init__(
        self,
        source: str,
        transform: Transform,
        download: bool = False,
        held_out: int = 0,
        studied: Tensor | None = None,
    ) -> None:
        kind, where = kind_of(source)
        self._made = GENERATED[kind](where, None).images if kind in GENERATED else None
        self._studied = frozenset() if studied is None else frozenset(content_hashes(studied))
        entries = [] if kind in GENERATED else KINDS[kind](where, download)
        self._entries = _shuffled(entries, source, held_out)[:-held_out] if held_out else entries
        self._transform = transform

    def __len__(self) -> int:
        """How many images, those that cannot be read among them."""
        return len(self._entries) if self._made is None else len(self._made)

    def __getitem__(self, index: int) -> Tensor | None:
        """(C, H, W); None where it is not to be learned from."""
        if self._made is not None:
            return self._kept(f"image {index}", self._made[index])
        entry = self._entries[index]()
        if len(entry) == 2:
            warnings.warn(f"not learned from {entry[0]}: {entry[1]}", stacklevel=2)
            return None
        return self._kept(entry[0], self._transform(entry[1]))

    def _kept(self, name: str, image: Tensor) -> Tensor | None:
        if self._studied and content_hashes(image[None])[0] in self._studied:
            warnings.warn(f"not learned from {name}: the study has the same image", stacklevel=3)
            return None
        return image

    def batches(self, size: int = 32, shift: float = 0.0) -> Batches:
        """Images (B, C, H, W), `shift` added to their pixels, anew in another order each time they are gone through."""
        return Batches(DataLoader(self, batch_size=size, shuffle=True, collate_fn=_stacked), shift)

    def split(self, size: int = 32, shift: float = 0.0) -> tuple[Batches, Batches]:
        """Batches to learn from, and every tenth image to be held out, by its place: a shift of all pixels changes neither."""
        places = range(len(self))
        parts = ([p for p in places if p % 10], [p for p in places if p % 10 == 0])
        learned, held_out = (
            DataLoader(Subset(self, part), batch_size=size, shuffle=shuffle, collate_fn=_stacked)
            for part, shuffle in zip(parts, (True, False), strict=True)
        )
        return Batches(learned, shift), Batches(held_out, shift)


class Batches:
    """A loader's batches but for those of which nothing could be read.

    Args:
        loader: of images (B, C, H, W), or None.
        shift: added to all pixels.
    """

    def __init__(self, loader: DataLoader[Tensor | None], shift: float = 0.0) -> None:
        self._loader, self._shift = loader, shift

    def __iter__(self) -> Iterator[Tensor]:
        """Images (B, C, H, W)."""
        return (batch + self._shift for batch in self._loader if batch is not None)


def _stacked(items: list[Tensor | None]) -> Tensor | None:
    read = [item for item in items if item is not None]
    return torch.stack(read) if read else None


def kind_of(source: str) -> tuple[str, str]:
    """A source's kind and where it is.

    Raises:
        ValueError: the kind is not known.
    """
    kind, _, where = source.partition(":")
    if not where and kind not in KINDS and kind not in GENERATED:
        return "folder", source
    if kind not in KINDS and kind not in GENERATED:
        raise ValueError(unknown("kind of images", kind, [*KINDS, *GENERATED]))
    return kind, where


def _shuffled(entries: Sequence[_Reader], source: str, held_out: int) -> list[_Reader]:
    if not 0 < held_out < len(entries):
        raise ValueError(f"{source} holds {len(entries)} images; {held_out} of them cannot be held out")
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(20)).tolist()
    return [entries[index] for index in order]


def _spread(entries: Sequence[Any], limit: int | None) -> Iterator[Any]:
    """At most `limit` of the entries, evenly over all."""
    if limit is None or limit >= len(entries):
        return iter(entries)
    return iter([entries[index * len(entries) // limit] for index in range(limit)])


def opened(path: Path) -> Image.Image | str:
    """An image, wholly read; or why it could not be."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _reader(
    path: Path, mask: Callable[[Image.Image], Image.Image | str | None], target: int | None, root: Path
) -> _Reader:
    name = path.relative_to(root).with_suffix("").as_posix()

    def read() -> _Found | _Unread:
        image = opened(path)
        if isinstance(image, str):
            return str(path), image
        found = mask(image)
        return (str(path), found) if isinstance(found, str) else (name, _eight_bits(image), found, target)

    return read


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel with eight: Pillow's own conversion makes all above 255 white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) / 257).clip(0, 255).round().astype(np.uint8))


def _existing(where: str) -> Path:
    path = Path(where)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    return path


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


# -- kinds -------------------------------------------------------------------------------------------------------------------


def _folder(where: str, download: bool) -> list[_Reader]:
    """All images below a folder, turned upright as their cameras noted."""

    def upright(read: _Reader) -> _Reader:
        def turned() -> _Found | _Unread:
            entry = read()
            return entry if len(entry) == 2 else (entry[0], ImageOps.exif_transpose(entry[1]), *entry[2:])

        return turned

    root = _existing(where)
    if not root.is_dir():
        raise ValueError(f"{root} is a file; name the folder that it is in")
    return [upright(_reader(path, lambda image: None, None, root)) for path in _files(root)]


def _masked_folder(where: str, download: bool) -> list[_Reader]:
    """`where/images` and `where/masks`, files of the same name but for the suffix; a mask is nonzero on the object."""
    root = _existing(where)
    for part in ("images", "masks"):
        if not (root / part).is_dir():
            raise FileNotFoundError(f"a folder with masks needs {root / part}")
    masks = {path.relative_to(root / "masks").with_suffix(""): path for path in _files(root / "masks")}

    def mask_of(name: Path) -> Callable[[Image.Image], Image.Image | str | None]:
        def mask(image: Image.Image) -> Image.Image | str | None:
            if name not in masks:
                return "it has no mask"
            found = opened(masks[name])
            if isinstance(found, str):
                return f"its mask: {found}"
            if found.size != image.size:
                return f"its mask is {found.size[0]}x{found.size[1]}, the image {image.size[0]}x{image.size[1]}"
            lossy = masks[name].suffix.lower() in (".jpg", ".jpeg")  # whose black is not quite black
            return found.convert("L").point(lambda value: 255 * (value > (127 if lossy else 0)))

        return mask

    images = root / "images"
    return [_reader(path, mask_of(path.relative_to(images).with_suffix("")), None, images) for path in _files(images)]


def _voc(where: str, download: bool) -> list[_Reader]:
    """`where/Annotations/*.xml` and `where/JPEGImages`: all boxes of an image together are its object."""
    root = _existing(where)
    files = sorted((root / "Annotations").glob("*.xml"))
    if not files:
        raise FileNotFoundError(f"there are no annotations {root / 'Annotations'}/*.xml")

    def reader(file: Path) -> _Reader:
        def read() -> _Found | _Unread:
            try:
                tree = ElementTree.parse(file).getroot()
                name = Path(tree.findtext("filename") or f"{file.stem}.jpg").name
                boxes = [
                    [float(box.findtext(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
                    for box in tree.iter("bndbox")
                ]
            except (ElementTree.ParseError, ValueError) as error:
                return str(file), f"{type(error).__name__}: {error}"

            def mask(image: Image.Image) -> Image.Image | str | None:
                drawn = Image.new("L", image.size)
                for left, top, right, bottom in boxes:
                    if not (0 <= left <= right <= image.size[0] + 1 and 0 <= top <= bottom <= image.size[1] + 1):
                        return f"its box {left, top, right, bottom} is outside the image of {image.size}"
                    ImageDraw.Draw(drawn).rectangle((left - 1, top - 1, right - 1, bottom - 1), fill=255)  # from 1
                return drawn

            return _reader(root / "JPEGImages" / name, mask, None, root / "JPEGImages")()

        return read

    return [reader(file) for file in files]


def _coco(where: str, download: bool) -> list[_Reader]:
    """`annotations.json@folder`: polygons of COCO's instances; all of an image together are its object."""
    file, at, folder = where.partition("@")
    if not at:
        raise ValueError(f"COCO images are named coco:annotations.json@folder, got coco:{where}")
    root = _existing(folder)
    try:
        about = json.loads(_existing(file).read_text())
        polygons: dict[int, list[list[float]]] = {}
        for one in about["annotations"]:
            if isinstance(one["segmentation"], list):  # crowds are run lengths: not one object
                polygons.setdefault(int(one["image_id"]), []).extend(one["segmentation"])
        images = [(int(one["id"]), _inside(root, str(one["file_name"]))) for one in about["images"]]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a COCO file of instances: {type(error).__name__}: {error}") from error

    def mask_of(number: int) -> Callable[[Image.Image], Image.Image | str | None]:
        def mask(image: Image.Image) -> Image.Image | str | None:
            drawn = Image.new("L", image.size)
            for polygon in polygons.get(number, []):
                if len(polygon) >= 6:
                    ImageDraw.Draw(drawn).polygon(list(zip(polygon[::2], polygon[1::2], strict=False)), fill=255)
            return drawn

        return mask

    return [_reader(path, mask_of(number), None, root) for number, path in images]


def _inside(root: Path, name: str) -> Path:
    """A file below the folder, with its sub-folders where it is there, else by its last name alone."""
    path = root / name
    below = path.resolve().is_relative_to(root.resolve())
    return path if below and path.exists() else root / Path(name).name


def _torchvision(name: str) -> Callable[[str, bool], list[_Reader]]:
    """A data set of torchvision by its own class, below the folder `where`."""

    def entries(where: str, download: bool) -> list[_Reader]:
        from torchvision import datasets

        settings: dict[str, Any] = {
            "OxfordIIITPet": {"split": "test", "target_types": "segmentation"},
            "VOCSegmentation": {"image_set": "val"},
            "Imagenette": {"split": "val"},
        }[name]
        try:
            data = getattr(datasets, name)(where, download=download, **settings)
        except RuntimeError as error:
            raise FileNotFoundError(f"{name} is not below {where}; add --download to fetch it ({error})") from error

        def reader(index: int) -> _Reader:
            def read() -> _Found | _Unread:
                try:
                    image, truth = data[index]
                except (OSError, SyntaxError, ValueError) as error:
                    return f"{name} {index}", f"{type(error).__name__}: {error}"
                if not isinstance(truth, Image.Image):
                    return f"{index}", image, None, None
                marks = np.asarray(truth)
                # Pets: 1 = animal, 2 = background, 3 = its border. VOC: 0 = background, 255 = border.
                inside = marks == 1 if name == "OxfordIIITPet" else (marks > 0) & (marks < 255)
                return f"{index}", image, Image.fromarray((inside * 255).astype(np.uint8)), None

            return read

        return [reader(index) for index in range(len(data))]

    return entries


KINDS: dict[str, Callable[[str, bool], Sequence[_Reader]]] = {
    "folder": _folder,
    "masked": _masked_folder,
    "voc": _voc,
    "coco": _coco,
    "pets": _torchvision("OxfordIIITPet"),
    "voc-segmentation": _torchvision("VOCSegmentation"),
    "imagenette": _torchvision("Imagenette"),
}


# -- drawn by ourselves --------------------------------------------------------------------------------------------------------


def _count(where: str, limit: int | None, default: int = 100) -> int:
    if where and not where.isdigit():
        raise ValueError(f"how many images is a whole number, got {where!r}")
    count = int(where) if where else default
    return min(count, limit) if limit else count


def _digits(seed: int, split: Literal["train", "test"], default: int) -> _Generator:
    def made(where: str, limit: int | None) -> ImageSet:
        from .datasets.digits import scattered_digits

        data = scattered_digits(_count(where, limit, default), seed, split)
        return ImageSet(data.images, _numbered(data), data.labels[:, 0], data.masks[:, 0])

    return made


def _two_digits(where: str, limit: int | None) -> ImageSet:
    """Every canvas twice: once asked about its left digit, once about its right one."""
    from .datasets.digits import scattered_digits

    data = scattered_digits(-(-_count(where, limit) // 2), seed=2, split="test", digits=2)
    names = [f"{name}, {side}" for name in _numbered(data) for side in ("left", "right")]
    images = data.images.repeat_interleave(2, dim=0)
    both = ImageSet(images, tuple(names), data.labels.flatten(), data.masks.flatten(0, 1))
    return both.taken(torch.arange(_count(where, limit)))


def _digit_mosaics(where: str, limit: int | None) -> ImageSet:
    from .datasets.digits import scattered_digits

    data = scattered_digits(400, seed=4, split="test")
    return mosaics_of(data.images, data.labels[:, 0], _count(where, limit), seed=0)


def mosaics_of(images: Tensor, labels: Tensor, count: int, seed: int, name: str = "", shrunk: bool = False) -> ImageSet:
    """2x2 mosaics, each asked about one of its cells in turn; arguments as in `mosaics`, `name` goes before their numbers."""
    from .datasets.mosaics import mosaics

    made = mosaics(images, labels, count, seed, shrunk=shrunk)
    cells = torch.arange(count) % len(made.masks)
    names = tuple(f"{name}{number}" for number in _numbered(made))
    return ImageSet(made.images, names, made.labels[torch.arange(count), cells], made.masks[cells])


def _birds(seed: int, default: int) -> _Generator:
    def made(where: str, limit: int | None) -> ImageSet:
        from .datasets.birds import birds

        data = birds(_count(where, limit, default), seed)
        return ImageSet(data.images, _numbered(data), data.labels, data.masks)

    return made


def _bird_pairs(where: str, limit: int | None) -> ImageSet:
    """Birds, asked why this class and not another that differs in a single part."""
    from .datasets.birds import SPECIES, birds, parts_between

    data = birds(_count(where, limit), seed=1)
    rng = np.random.default_rng(0)
    near = [
        [other for other in range(len(SPECIES)) if len(parts_between(own, other)) == 1] for own in range(len(SPECIES))
    ]
    rivals = torch.tensor([int(rng.choice(near[label])) for label in data.labels.tolist()])
    return ImageSet(data.images, _numbered(data), data.labels, data.masks, data.discriminative(rivals), rivals)


def _numbered(data: Any) -> tuple[str, ...]:
    return tuple(str(index) for index in range(len(data)))


GENERATED: dict[str, _Generator] = {
    "digits": _digits(1, "test", 100),
    "digits-train": _digits(0, "train", 3000),
    "two-digits": _two_digits,
    "digit-mosaics": _digit_mosaics,
    "birds": _birds(1, 100),
    "birds-train": _birds(0, 3600),
    "bird-pairs": _bird_pairs,
}
