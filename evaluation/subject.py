"""What a study explains: a classifier, how it is asked, and what the methods need to know of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.devices import fast_context


@dataclass(frozen=True)
class Subject:
    """A classifier and its surroundings.

    Attributes:
        model: in evaluation mode; images (B, C, H, W) -> logits (B, K).
        layer: where CAM methods look: the last layer with a spatial extent; None where there is none.
        mean: of the data per channel (C,), for fills and baselines.
        deviation: likewise.
        surrogate: ours, fitted to `model`; None where it is not compared.
        batch: images at a time.
        seed: of all that methods and metrics draw.
        layer_name: of `layer`.
        precision: in which metrics ask the model: "fp32", "bf16", or "auto": bf16 where the device does so natively. The
            methods always run in the model's own.
        refit: fits our surrogate to another model, for metrics that put the weights at random; None where it cannot be.
    """

    model: nn.Module
    layer: nn.Module | None
    mean: Tensor
    deviation: Tensor
    surrogate: AttentiveKDAttribution | ContrastSurrogate | None = None
    batch: int = 30
    seed: int = 0
    layer_name: str = field(default="", compare=False)
    precision: str = "auto"
    refit: Callable[[nn.Module], AttentiveKDAttribution] | None = field(default=None, compare=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's weights and kind, and of the data's statistics: maps and scores are kept under it."""
        return fingerprint(self.model, self.mean, self.deviation)

    @cached_property
    def surrogate_fingerprint(self) -> str:
        """Of our surrogate's weights: another fit gives other maps."""
        return "" if self.surrogate is None else fingerprint(self.surrogate.surrogate)

    def of(self, model: nn.Module, learned: bool) -> Subject:
        """The same with another model of the same build.

        Args:
            model: in evaluation mode.
            learned: whether our surrogate is needed, and so to be fitted anew.

        Raises:
            ValueError: it is needed, and cannot be fitted.
        """
        if learned and self.refit is None:
            raise ValueError("needs our surrogate fitted to each randomised model: name images with --fit")
        layer = dict(model.named_modules())[self.layer_name] if self.layer is not None else None
        return replace(self, model=model, layer=layer, surrogate=self.refit(model) if learned and self.refit else None)

    def ask(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, K), float32, where the images are, `batch` images at a time; no gradient.

        Raises:
            ValueError: the model answers with NaN, or with infinite logits.
        """
        with torch.no_grad(), fast_context(self.device, self.precision)():
            parts = [self.model(part.to(self.device)).float() for part in images.split(self.batch)]
        scores = torch.cat(parts).log_softmax(dim=1)
        if bool(torch.isnan(scores).any()):
            bad = int(torch.isnan(scores).any(dim=1).sum())
            raise ValueError(f"the model returned NaN or infinite logits for {bad} images")
        return scores.to(images.device)


class Contrast(nn.Module):
    """A classifier as all methods can be asked "why a rather than b": output a * K + b is logit a less logit b.

    Args:
        model: with K classes; its layers stay reachable by hooks.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Differences (B, K * K)."""
        logits = self.model(images)
        return (logits[:, :, None] - logits[:, None, :]).flatten(1)


class ContrastSurrogate:
    """A surrogate that is asked as `Contrast` is: a * K + b stands for "why a rather than b"."""

    def __init__(self, surrogate: AttentiveKDAttribution) -> None:
        self._inner = surrogate
        self.surrogate = surrogate.surrogate

    def saliency(self, images: Tensor, target: Tensor) -> Tensor:
        """Masks (B, 1, H, W)."""
        classes = self._inner.classes
        return self._inner.saliency(images, target=target // classes, versus=target % classes)


def last_spatial_layer(model: nn.Module, example: Tensor) -> tuple[str, nn.Module] | None:
    """The last layer whose output has a spatial extent (B, C, h, w), h and w above one; None where there is none.

    Args:
        model: in evaluation mode.
        example: images (1, C, H, W).
    """
    found: list[tuple[str, nn.Module]] = []
    handles = []
    for name, module in model.named_modules():

        def seen(module: nn.Module, inputs: object, output: object, name: str = name) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[-2:]) > 1:
                found.append((name, module))

        handles.append(module.register_forward_hook(seen))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] if found else None


def fingerprint(model: nn.Module, *tensors: Tensor) -> str:
    """Of a module's parts, weights and buffers, and of further tensors."""
    parts = [f"{name}={type(part).__qualname__}({part.extra_repr()})" for name, part in model.named_modules()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for name, tensor in [*model.state_dict().items(), *((str(i), t) for i, t in enumerate(tensors))]:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]
