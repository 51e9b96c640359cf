"""What a study has already worked out, kept on disk by content: change anything that matters, and the key is another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_attnkd import checkpoint
from captum_attnkd.errors import CheckpointError

from .measuring import Measured

# Raised when a method or metric of ours changes its answers, so that old ones are not taken for new ones.
VERSION = 4


def key(*parts: Any) -> str:
    """A name for what is worked out from these parts: strings, numbers, JSON-able settings and tensors.

    Raises:
        TypeError: a part is none of these.
    """
    digest = hashlib.sha256(f"{VERSION}".encode())
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


class Store:
    """A folder of maps and scores.

    A file that is damaged counts as missing. Files are written whole or not at all, so that studies may share a folder.

    Args:
        folder: made if missing; None keeps nothing.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        for part in ("map", "scores") if folder is not None else ():
            (folder / part).mkdir(parents=True, exist_ok=True)

    def map_of(self, name: str) -> Tensor | None:
        """A saliency map (1, H, W), if it is there."""
        found = self._read("map", name)
        return None if found is None else found[0].get("map")

    def keep_map(self, name: str, saliency: Tensor) -> None:
        """Keep a saliency map (1, H, W)."""
        self._write("map", name, {"map": saliency.clone()}, {})

    def measured(self, name: str) -> Measured | None:
        """What a metric found, if it is there."""
        found = self._read("scores", name)
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
        self._write("scores", name, tensors, about)

    def _read(self, kind: str, name: str) -> tuple[Mapping[str, Tensor], Mapping[str, Any]] | None:
        path = None if self._folder is None else self._folder / kind / f"{name}.safetensors"
        if path is None or not path.exists():
            return None
        try:
            return checkpoint.read(path, kind)
        except CheckpointError:
            return None

    def _write(self, kind: str, name: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        if self._folder is not None:
            checkpoint.write(self._folder / kind / f"{name}.safetensors", kind, tensors, about)
