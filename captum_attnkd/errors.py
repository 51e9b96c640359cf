"""Every error this package raises on purpose. Each also is the built-in error a Captum user would expect."""

from __future__ import annotations

import sys


class AttnKDError(Exception):
    """Base class: `except AttnKDError` catches whatever captum_attnkd raises on purpose."""


class NotFittedError(AttnKDError, RuntimeError):
    """A surrogate was asked for before `fit` or `load`."""


class InputError(AttnKDError, ValueError):
    """Images, class indices or settings that cannot be used as they are."""


class ClassCountError(InputError, AssertionError):
    """The number of classes asked about differs from the number of images (Captum's suites expect AssertionError)."""


class TargetError(AttnKDError, RuntimeError):
    """The model to be explained cannot be asked, or answers in a form that cannot be explained."""


class LoaderError(AttnKDError, ValueError):
    """The loader handed to `fit` yields nothing, or something that is not a batch of images."""


class CheckpointError(AttnKDError, ValueError):
    """A file is damaged, foreign, too new, or belongs to another model."""


class MissingExtraError(AttnKDError, ImportError):
    """Something is asked for that needs packages which are installed only on demand, or a newer torch."""


def callers_level() -> int:
    """The `stacklevel` by which a warning of the calling function names the line outside this package and Captum."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "captum_attnkd",
        "captum",
    ):
        level, frame = level + 1, frame.f_back
    return level
