"""What the examples share: how they draw images and maps, and how they read their options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class _Parser(argparse.ArgumentParser):
    def parse_args(self, *given: Any) -> Any:
        """As ever; the small setting is told, so that nobody takes its figures for ours."""
        options = super().parse_args(*given)
        if options.quick:
            print("--quick: a few steps on a few images. The figures and maps of this run mean nothing.\n")
        return options


def options_of(about: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every example: where the picture goes, and the small setting."""
    parser = _Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few images; the maps mean nothing")
    return parser


def draw(
    path: Path,
    images: Tensor,
    maps: Mapping[str, Tensor],
    captions: Sequence[str] = (),
    outlines: Tensor | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """A column an image, a row a method, every map in one scale from nothing to its own maximum.

    Args:
        path: of the picture; its folder is made.
        images: (N, C, H, W) in [0, 1], grey or RGB.
        maps: by method, each (N, 1, H, W).
        captions: N lines above the images.
        outlines: what is to be found (N, H, W), bool; drawn as a line.
        notes: by method, N words above its maps; empty ones are left out.
    """
    count = len(images)
    figure, axes = plt.subplots(1 + len(maps), count, figsize=(1.9 * count, 2.05 * (1 + len(maps))), squeeze=False)
    for row, (name, found) in enumerate([("image", None), *maps.items()]):
        for column in range(count):
            axis = axes[row, column]
            _panel(axis, images[column], None if found is None else found[column, 0].detach().float())
            if outlines is not None and outlines[column].any():
                axis.contour(outlines[column].numpy(), levels=[0.5], colors="deepskyblue", linewidths=0.8)
            words = captions if found is None else (notes or {}).get(name, ())
            axis.set_title(words[column] if words else "", fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _panel(axis: plt.Axes, image: Tensor, found: Tensor | None) -> None:
    pixels = image.detach().float().clamp(0, 1).numpy()
    if len(pixels) == 1:
        axis.imshow(pixels[0], cmap="gray", vmin=0, vmax=1)
    else:
        axis.imshow(pixels.transpose(1, 2, 0))
    if found is not None:
        scaled = found.clamp_min(0) / torch.quantile(found.flatten(), 0.999).clamp_min(1e-12)
        scaled = scaled.clamp_max(1).numpy()
        axis.imshow(scaled, cmap="magma", alpha=0.35 + 0.5 * scaled, vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
