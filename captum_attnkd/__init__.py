"""Explain any image classifier in one forward pass: attentive knowledge distillation as a Captum attribution method.

attribution = AttentiveKDAttribution(model).fit(loader)      # once
maps = attribution.attribute(images, target=labels)          # like any Captum method, every time after
"""

from ._version import __version__
from .agreement import Agreement
from .attribution import AttentiveKDAttribution
from .errors import (
    AttnKDError,
    CheckpointError,
    ClassCountError,
    InputError,
    LoaderError,
    NotFittedError,
    TargetError,
)
from .report import FitReport
from .trust import Trust, TrustWarning

__all__ = [
    "Agreement",
    "AttentiveKDAttribution",
    "AttnKDError",
    "CheckpointError",
    "ClassCountError",
    "FitReport",
    "InputError",
    "LoaderError",
    "NotFittedError",
    "TargetError",
    "Trust",
    "TrustWarning",
    "__version__",
]
