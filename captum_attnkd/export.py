"""The fitted explainer as one ONNX graph: the model's answer and the saliency mask from one pass, for serving without Python."""

from __future__ import annotations

import importlib.util
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import replacing, writable
from .errors import InputError, MissingExtraError
from .fitted import Fitted
from .surrogate import Query
from .target import Target, left_as_found

OPSET = 18


class Explainer(nn.Module):
    """Images and classes in, scores and masks out: what is exported.

    Args:
        fitted: the surrogate and how it was built.
        target: the model; it is part of the graph of a grafted student, and not of a compact one's.
    """

    def __init__(self, fitted: Fitted, target: Target) -> None:
        super().__init__()
        self.surrogate = fitted.surrogate
        # Registered here alone, for the time of the export: its weights belong in the graph.
        self.model = target.module if fitted.surrogate.student.grafted else None

    def forward(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, K) and saliency (B, 1, H, W) of images (B, C, H, W); class -1 is the most probable one."""
        seen, answer = self.surrogate.student(images)
        scores = seen.logits.log_softmax(dim=1) if answer is None else answer
        wanted = torch.where(target >= 0, target, scores.argmax(dim=1))[:, None]
        mask = self.surrogate.explain(images, seen, Query(wanted))
        return scores, mask.saliency((images.shape[-2], images.shape[-1]))


def export(fitted: Fitted, target: Target, path: str | os.PathLike[str], dynamic_batch: bool = True) -> None:
    """Write the graph; see `AttentiveKDAttribution.export`."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"export needs {' and '.join(missing)}: pip install 'captum-attnkd[onnx]'")
    if fitted.plan.gradients:
        raise InputError(
            "a graph for ONNX has no backward pass, and this surrogate was made with gradients=True; fit one without to export it"
        )
    place = writable(path)
    device = fitted.surrogate.student.voices.device
    images = torch.zeros(2, *fitted.plan.image_shape, device=device)
    classes = torch.tensor([-1, 0], device=device)
    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    with left_as_found(target.forward_func), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*axis name")  # images and classes share the batch's
        program: Any = torch.onnx.export(
            Explainer(fitted, target).eval(), (images, classes), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["images", "target"], output_names=["scores", "saliency"], external_data=False,
            dynamic_shapes=(batch, batch) if dynamic_batch else None,
        )  # fmt: skip
    with replacing(place) as draft:
        program.save(str(draft))
