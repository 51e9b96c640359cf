"""From the user's loader to batches of images: checked, split by content, and drawn in an order that can be repeated."""

from __future__ import annotations

import hashlib
import heapq
import os
import random
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import AttnKDError, InputError, LoaderError, callers_level

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 256


@dataclass(frozen=True)
class Survey:
    """What one look through the loader tells.

    Attributes:
        count: images for fitting; those held out not counted.
        shape: (C, H, W) of every image.
        dtype: of the images.
        device: where the loader has them.
        mean: per channel (C,), float32.
        deviation: likewise.
        held_out: images (N, C, H, W) that the fit never learns from; on the CPU.
        threshold: images whose content hash is at most this are held out of the loader; -1 where a `val_loader` gave them.
        fingerprint: of all images, whatever their order.
    """

    count: int
    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    mean: Tensor
    deviation: Tensor
    held_out: Tensor
    threshold: int
    fingerprint: str


def survey(loader: Iterable[Any], image_key: Any = None, val_loader: Iterable[Any] | None = None) -> Survey:
    """Look through the loader once: check every image, take statistics, and decide which are held out.

    Images are held out by a hash of their content, so the split is the same in every pass and every order, also where the
    loader shuffles. Random augmentation inside the loader changes contents and so blurs the split: then pass `val_loader`.

    Raises:
        LoaderError: nothing comes, only one image comes, or something that is not a batch of images.
    """
    with _Seeded(loader, 0):  # the loader's own generators are put back: looking leaves no trace
        return _survey(loader, image_key, val_loader)


def _survey(loader: Iterable[Any], image_key: Any, val_loader: Iterable[Any] | None) -> Survey:
    if isinstance(loader, Iterator):
        raise LoaderError(
            "the loader can be looked through only once (an iterator or generator); pass a DataLoader or a list of batches"
        )
    count, together = 0, 0
    total = squares = torch.zeros(())
    shape: tuple[int, ...] | None = None
    dtype, device = torch.float32, torch.device("cpu")
    seen: set[int] = set()  # only where others are held out: eight bytes an image are no matter beside an image
    lowest: list[tuple[int, int, Tensor]] = []  # a heap of (-hash, order, image): the images with the smallest hashes
    for images in checked_batches(loader, image_key):
        shape, dtype, device = tuple(images.shape[1:]), images.dtype, images.device
        pixels = images.double()
        total = total + pixels.mean(dim=(2, 3)).sum(0)
        squares = squares + pixels.square().mean(dim=(2, 3)).sum(0)
        for image, code in zip(images, content_hashes(images), strict=True):
            together = (together + code) % 2**64
            count += 1
            item = (-code, count, image)
            if val_loader is not None:
                seen.add(code)
                continue
            if len(lowest) < MOST_HELD_OUT:
                heapq.heappush(lowest, (item[0], item[1], image.detach().cpu().clone()))
            elif item[0] > lowest[0][0]:
                heapq.heapreplace(lowest, (item[0], item[1], image.detach().cpu().clone()))
    if shape is None:
        raise LoaderError("the loader is empty: it gave no images")
    if count < 2:
        raise LoaderError(
            "the loader gave a single image; a surrogate needs many, at the least two, and hundreds to be of use"
        )
    if val_loader is None:
        wanted = min(max(round(HELD_OUT_SHARE * count), 1), MOST_HELD_OUT)
        ranked = sorted(lowest, key=lambda item: -item[0])
        threshold = -ranked[wanted - 1][0]
        held = [image for negative, _, image in ranked if -negative <= threshold]
        if len(held) == count:
            raise LoaderError(f"all {count} images of the loader are the same; a surrogate needs many different ones")
        held_out, left = torch.stack(held), count - len(held)
    else:
        batches = [batch.detach().cpu() for batch in checked_batches(val_loader, image_key, "val_loader")]
        if not batches:
            raise LoaderError("val_loader is empty: it gave no images")
        if tuple(batches[0].shape[1:]) != shape:
            raise LoaderError(
                f"val_loader must give images of the loader's shape {shape}, got {tuple(batches[0].shape[1:])}"
            )
        held_out, threshold, left = torch.cat(batches)[:MOST_HELD_OUT], -1, count
        common = len(seen.intersection(content_hashes(held_out)))
        if common:
            warnings.warn(
                f"{common} of the {len(held_out)} images of val_loader are in the loader too: the report is not of held-out images",
                stacklevel=callers_level(),
            )
        together = (together + 3 * sum(content_hashes(held_out))) % 2**64
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
    channels, height, width = shape
    return Survey(
        left,
        (channels, height, width),
        dtype,
        device,
        mean.float().cpu(),
        deviation.float().cpu(),
        held_out,
        threshold,
        f"{together:016x}-{count}",
    )


def checked_batches(loader: Iterable[Any], image_key: Any = None, name: str = "loader") -> Iterator[Tensor]:
    """The images (B, C, H, W) of every batch, each checked.

    Raises:
        LoaderError: with the batch's number; also where the loader itself fails, which is then the cause.
    """
    shape: tuple[int, ...] | None = None
    if isinstance(loader, (str, bytes, os.PathLike)):
        raise LoaderError(f"{name} must be a DataLoader or another iterable of batches, got {loader!r}")
    try:
        batches = iter(loader)
    except AttnKDError:
        raise
    except Exception as error:
        raise LoaderError(
            f"{name} must be a DataLoader or another iterable of batches, got {type(loader).__name__}: {error}"
        ) from error
    number = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except AttnKDError:
            raise
        except Exception as error:
            raise LoaderError(f"{name} failed at batch {number}: {type(error).__name__}: {error}") from error
        try:
            images = images_of(batch, image_key, f"{name}, batch {number}")
        except AttnKDError:
            raise
        except Exception as error:  # a mapping of the user's own making, say, or a key that cannot be one
            raise LoaderError(
                f"{name}, batch {number}: images cannot be taken out: {type(error).__name__}: {error}"
            ) from error
        if shape is not None and tuple(images.shape[1:]) != shape:
            raise LoaderError(
                f"{name}, batch {number}: images of shape {tuple(images.shape[1:])} after {shape}; all must have one shape"
            )
        shape = tuple(images.shape[1:])
        number += 1
        yield images


def images_of(batch: Any, image_key: Any, where: str) -> Tensor:
    """Find the images in what a loader yields: a tensor, a tuple or list that begins with one, or a mapping."""
    if isinstance(batch, Mapping):
        if image_key is None:
            raise LoaderError(
                f"{where} is a mapping with the keys {list(batch)}; say which holds the images: image_key=..."
            )
        if image_key not in batch:
            raise LoaderError(f"{where} has no key {image_key!r}; its keys are {list(batch)}")
        batch = batch[image_key]
    elif isinstance(batch, (tuple, list)):
        place = 0 if image_key is None else image_key
        if not isinstance(place, int) or not -len(batch) <= place < len(batch):
            raise LoaderError(f"{where} has {len(batch)} parts; image_key={place!r} is not one of them")
        batch = batch[place]
    if isinstance(batch, Tensor) and batch.ndim == 3:
        raise LoaderError(
            f"{where}: a single image {tuple(batch.shape)} instead of a batch (B, C, H, W); wrap the data set: "
            "DataLoader(dataset, batch_size=32)"
        )
    if isinstance(batch, Tensor) and batch.ndim == 1 and image_key is None:
        raise LoaderError(
            f"{where}: {tuple(batch.shape)} is no batch of images (B, C, H, W); where they stand elsewhere, say so: image_key=1"
        )
    try:
        return checked_images(batch)
    except InputError as error:
        raise LoaderError(f"{where}: {error}") from error


def checked_images(images: Any, channels: int | None = None) -> Tensor:
    """Return `images` if they are a batch that can be explained: (B, C, H, W), floating point, finite.

    Raises:
        InputError: what is wrong, with which value.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor (B, C, H, W), got {type(images).__name__}")
    if not has_values(images):
        raise InputError("images must be a plain tensor: not sparse, nested or on the meta device")
    if images.ndim != 4 or 0 in images.shape:
        alone = "; of a single image: image[None]" if images.ndim == 3 else ""
        raise InputError(
            f"images must have the shape (B, C, H, W), none of them zero, got {tuple(images.shape)}{alone}"
        )
    if images.dtype not in FLOATING:
        bytes_ = (
            ": images.float() / 255, then as your model's transforms normalise them"
            if images.dtype == torch.uint8
            else ""
        )
        raise InputError(f"images must be floating point, as the model takes them, got {images.dtype}{bytes_}")
    if channels is not None and images.shape[1] != channels:
        raise InputError(f"the surrogate was fitted on images of {channels} channels, got {images.shape[1]}")
    if not bool(torch.isfinite(images.float()).all()):
        raise InputError("images hold NaN or infinite values" + " (as float32)" * (images.dtype == torch.float64))
    return images


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor's entries can be read as those of an array: not sparse, nested or without memory."""
    return not (tensor.is_nested or tensor.is_meta) and tensor.layout == torch.strided


def content_hashes(images: Tensor) -> list[int]:
    """A 62-bit hash of each image's content."""
    raw = images.detach().cpu().contiguous().view(torch.uint8).numpy()
    return [int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little") >> 2 for image in raw]


class Stream:
    """Endless batches of one size for fitting, pass after pass through the loader, held-out images left out.

    The place in the stream is two numbers; given the same seed, a new stream set to them goes on with the same images.

    Args:
        loader: as given to `survey`, which told `found`.
        size: images a batch (of this process).
        seed: of this stage; a shuffling loader then repeats its order.
        rank: of this process.
        world: number of processes; each takes its share of the images.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        found: Survey,
        size: int,
        seed: int,
        image_key: Any = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._loader, self._found, self._image_key = loader, found, image_key
        self._size, self._seed = min(size, max(found.count // world, 1)), seed
        self._rank, self._world = rank, world
        self.passes, self.batches = 0, 0

    def endless(self) -> Generator[Tensor, None, None]:
        """Batches (size, C, H, W), float32, pass after pass; close it when done."""
        skip = self.batches
        while True:
            with self._repeatable_order():
                for number, batch in enumerate(self._one_pass()):
                    if number >= skip:
                        # Counted before it is handed out: a state saved while it is in use goes on with the next.
                        self.batches = number + 1
                        yield batch
            self.passes, self.batches, skip = self.passes + 1, 0, 0

    def _one_pass(self) -> Iterator[Tensor]:
        waiting: list[Tensor] = []
        ready, seen, given = 0, 0, 0
        # As many for every process, whatever is left over: else one would begin the next pass while others end this one.
        most = self._found.count // self._world // self._size
        for images in checked_batches(self._loader, self._image_key):
            if self._found.threshold >= 0:
                fresh = [code > self._found.threshold for code in content_hashes(images)]
                images = images[torch.tensor(fresh, device=images.device)]
            mine = (torch.arange(len(images)) + seen) % self._world == self._rank
            seen += len(images)
            if self._world > 1:
                images = images[mine.to(images.device)]
            if len(images):
                waiting.append(images.float())
                ready += len(images)
            while ready >= self._size:
                joined = torch.cat(waiting)
                yield joined[: self._size]
                given += 1
                if given == most:  # a last, smaller batch is left out: the next pass brings its images in another place
                    return
                rest = joined[self._size :]
                waiting, ready = ([rest] if len(rest) else []), len(rest)
        if not given:
            raise LoaderError(
                f"the loader gave {seen} images in this pass, fewer than in the first ({self._found.count})"
            )

    def _repeatable_order(self) -> _Seeded:
        return _Seeded(self._loader, mixed(self._seed, self.passes))


class _Seeded:
    """Seed what loaders draw their order from; put their own generators back afterwards."""

    def __init__(self, loader: Any, seed: int) -> None:
        sampler = getattr(loader, "sampler", None)
        found = (getattr(loader, "generator", None), getattr(sampler, "generator", None))
        self._generators = [g for g in dict.fromkeys(found) if isinstance(g, torch.Generator)]
        self._seed = seed

    def __enter__(self) -> None:
        self._states = [g.get_state() for g in self._generators]
        for generator in self._generators:
            generator.manual_seed(self._seed)
        random.seed(self._seed)
        np.random.seed(self._seed % 2**32)
        torch.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)


def mixed(*parts: int) -> int:
    """One seed out of several numbers, far from those of neighbouring numbers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
