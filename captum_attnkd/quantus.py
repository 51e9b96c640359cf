"""For Quantus: an `explain_func`. Quantus itself is not imported; it is an optional companion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .attribution import AttentiveKDAttribution

Array = npt.NDArray[Any]


def explain_func(attribution: AttentiveKDAttribution, batch_size: int = 32) -> Callable[..., Array]:
    """Wrap a fitted attribution for Quantus' metrics.

    Args:
        attribution: fitted to the model under test. Metrics that hand over other models (MPRT) need a refit for each.
        batch_size: Quantus hands over whole sets; they are explained in parts of this size.

    Returns:
        A function (model, inputs, targets, **ignored) -> saliency (N, 1, H, W), a float32 array.

    Examples:
        >>> metric(model=model, x_batch=x, y_batch=y, explain_func=explain_func(attribution), channel_first=True)
    """

    def explain(model: Any, inputs: Any, targets: Any, **_: Any) -> Array:
        if model is not None and _bare(model) is not _bare(attribution.forward_func):
            raise ValueError(
                "this explain_func was fitted to another model than the one Quantus handed over; fit an attribution to each "
                "model that a metric randomises or replaces"
            )
        images = torch.as_tensor(np.asarray(inputs))
        classes = torch.as_tensor(np.asarray(targets)).reshape(-1).long()
        device = attribution.device
        parts = [
            attribution.saliency(part.to(device), target=wanted).cpu()
            for part, wanted in zip(torch.split(images, batch_size), torch.split(classes, batch_size), strict=True)
        ]
        return torch.cat(parts).numpy()

    return explain


def _bare(model: Any) -> Any:
    """A model out of the wrapping that Quantus puts round it."""
    return model.get_model() if hasattr(model, "get_model") and not isinstance(model, torch.nn.Module) else model
