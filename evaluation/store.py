"""What a study has already worked out, kept on disk by content: change anything that matters, and the key is another."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_attnkd import checkpoint
from captum_attnkd.errors import CheckpointError

from .metrics import Measured

# Raised when a method or metric of ours changes its answers, so that old ones are not taken for new ones.
VERSION = 1


def key(*parts: Any) -> str:
    """A name for what is worked out from these parts: strings, numbers, JSON-able settings and tensors."""
    digest = hashlib.sha256(f"{VERSION}".encode())
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


class Store:
    """A folder of maps and scores.

    A file that is damaged counts as missing. Files are written whole or not at all, so that studies may share a folder.

    Args:
        folder: made if missing.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._maps, self._scores = folder / "maps", folder / "scores"
        for part in (self._maps, self._scores):
            part.mkdir(parents=True, exist_ok=True)

    def map_of(self, name: str) -> Tensor | None:
        """A saliency map (1, H, W), if it is there."""
        found = _read(self._maps / f"{name}.safetensors", "map")
        return None if found is None else found[0].get("map")

    def keep_map(self, name: str, saliency: Tensor) -> None:
        """Keep a saliency map (1, H, W)."""
        checkpoint.write(self._maps / f"{name}.safetensors", "map", {"map": saliency.clone()}, {})

    def measured(self, name: str) -> Measured | None:
        """What a metric found, if it is there."""
        found = _read(self._scores / f"{name}.safetensors", "scores")
        if found is None:
            return None
        tensors, about = found
        groups: dict[str, dict[str, Tensor]] = {"score": {}, "curve": {}}
        for label, tensor in tensors.items():
            group, _, rest = label.partition(".")
            groups[group][rest] = tensor
        order: list[str] = about["order"]
        return Measured({name: groups["score"][name] for name in order}, about["better"], groups["curve"])

    def keep_measured(self, name: str, measured: Measured) -> None:
        """Keep what a metric found."""
        tensors = {f"score.{label}": values.float().cpu() for label, values in measured.scores.items()}
        tensors |= {f"curve.{label}": values.float().cpu() for label, values in measured.curves.items()}
        about = {"better": measured.better, "order": list(measured.scores)}
        checkpoint.write(self._scores / f"{name}.safetensors", "scores", tensors, about)


def _read(path: Path, kind: str) -> tuple[Mapping[str, Tensor], Mapping[str, Any]] | None:
    if not path.exists():
        return None
    try:
        return checkpoint.read(path, kind)
    except CheckpointError:
        return None


def finite(values: Tensor) -> list[float | None]:
    """Numbers as JSON knows them: NaN becomes None."""
    return [None if math.isnan(value) else round(value, 6) for value in values.tolist()]
