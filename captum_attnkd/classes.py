"""Which class of each image is asked about: Captum's forms of `target`, brought to one tensor."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .errors import ClassCountError, InputError
from .images import has_values

ClassesLike: TypeAlias = "int | tuple[int] | list[int] | list[tuple[int]] | np.ndarray[Any, Any] | Tensor | None"

_WHOLE = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def class_of_each(given: ClassesLike, count: int, classes: int, name: str = "target") -> Tensor | None:
    """One class index for each image (B,), int64; None for None.

    Args:
        given: an int, a 0-d or 1-element tensor or a tuple of one int, for all images; a tensor or array (B,), a list of
            ints or a list of 1-tuples, for each.
        count: B.
        classes: K.
        name: of the argument, for messages.

    Raises:
        InputError: not one of these forms, or an index outside 0..K-1.
        ClassCountError: not as many as images (also an AssertionError, which Captum's suites expect).
    """
    if given is None:
        return None
    if isinstance(given, np.ndarray):
        try:
            given = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name} must hold class indices, got an array of {given.dtype}") from error
    if isinstance(given, Tensor):
        if not has_values(given):
            raise InputError(f"{name} must be a plain tensor: not sparse, nested or on the meta device")
        if given.dtype not in _WHOLE:
            raise InputError(f"{name} must hold class indices, got a tensor of {given.dtype}")
        if given.numel() != 1 and given.ndim != 1:
            raise InputError(f"{name} must be a tensor of shape (B,), got {tuple(given.shape)}")
        listed = given.reshape(-1).tolist()
        return _spread(listed, count, classes, name, for_all=given.numel() == 1)
    if isinstance(given, list):
        return _spread([_index(entry, name) for entry in given], count, classes, name, for_all=False)
    return _spread([_index(given, name)], count, classes, name, for_all=True)


def classes_of_each(given: Sequence[int] | Tensor | None, count: int, classes: int) -> Tensor:
    """Several class indices for each image (B, Q), int64; None gives all K.

    Raises:
        InputError: not (Q,) or (B, Q) whole numbers in 0..K-1.
    """
    if given is None:
        return torch.arange(classes).expand(count, -1)
    try:
        wanted = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError) as error:
        raise InputError(f"targets must be class indices (Q,) or (B, Q): {error}") from error
    if not has_values(wanted):
        raise InputError("targets must be a plain tensor: not sparse, nested or on the meta device")
    if wanted.dtype not in _WHOLE or wanted.ndim not in (1, 2) or wanted.numel() == 0:
        raise InputError(
            f"targets must be class indices (Q,) or (B, Q), got {wanted.dtype} of shape {tuple(wanted.shape)}"
        )
    if wanted.ndim == 2 and len(wanted) != count:
        raise ClassCountError(f"targets has {len(wanted)} rows for {count} images")
    if isinstance(given, Tensor) and wanted.ndim == 1 and len(wanted) == count > 1:
        raise InputError(
            f"targets is a tensor of {count} classes for {count} images: one class each, or all of them for every image? For the "
            "first pass targets[:, None], for the second a list, targets.tolist()"
        )
    _check_range(wanted.flatten().tolist(), classes, "targets")
    return wanted.long().expand(count, -1) if wanted.ndim == 1 else wanted.long()


def _index(entry: Any, name: str) -> int:
    if isinstance(entry, tuple):
        if len(entry) != 1:
            raise InputError(f"{name}: the model has one axis of classes, so a tuple must hold one index, got {entry}")
        entry = entry[0]
    try:
        if isinstance(entry, bool) or (isinstance(entry, Tensor) and entry.dtype not in _WHOLE):
            raise TypeError("not a whole number")
        return operator.index(entry)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be class indices, got {entry!r}") from error


def _spread(listed: list[int], count: int, classes: int, name: str, for_all: bool) -> Tensor:
    if not for_all and len(listed) != count:
        raise ClassCountError(f"{name} names {len(listed)} classes for {count} images")
    _check_range(listed, classes, name)
    return torch.tensor(listed * count if for_all else listed, dtype=torch.int64)


def _check_range(listed: list[int], classes: int, name: str) -> None:
    wrong = [index for index in listed if not 0 <= index < classes]
    if wrong:
        raise InputError(f"{name}: the model has classes 0 to {classes - 1}, got {wrong[0]}")
