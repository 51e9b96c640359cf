"""What a study explains: a classifier, how it is asked, and what the methods need to know of it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import captum_attnkd
from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.devices import fast_context
from captum_attnkd.target import check_output


class Refit(Protocol):
    """Fits our surrogate to a model, with a seed, to images whose pixels are shifted, briefly or in as many steps as named."""

    def __call__(self, model: nn.Module, seed: int, shift: float = 0.0, **steps: int) -> AttentiveKDAttribution:
        """The fitted surrogate."""


@dataclass(frozen=True)
class Subject:
    """A classifier and its surroundings.

    Attributes:
        model: in evaluation mode; images (B, C, H, W) -> logits (B, K); what answers with probabilities is wrapped in
            `AsLogits`.
        layer: where CAM methods look: one of the model's modules; None where there is none.
        mean: of the data per channel (C,), for fills and baselines.
        deviation: likewise.
        surrogate: ours, fitted to `model`; None where it is not compared.
        batch: images at a time.
        seed: of all that methods and metrics draw.
        precision: in which metrics ask the model: "fp32", "bf16", or "auto": bf16 where the device does so natively. The
            methods always run in the model's own.
        refit: fits our surrogate to another model, briefly; None where it cannot be.
    """

    model: nn.Module
    layer: nn.Module | None
    mean: Tensor
    deviation: Tensor
    surrogate: AttentiveKDAttribution | ContrastSurrogate | None = None
    batch: int = 30
    seed: int = 0
    precision: str = "auto"
    refit: Refit | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse a precision that there is not."""
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16', got {self.precision!r}")

    @cached_property
    def layer_name(self) -> str:
        """Of `layer` in the model; empty where there is none."""
        return next((name for name, module in self.model.named_modules() if module is self.layer), "")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's weights and code: maps and scores are kept under it."""
        return fingerprint(self.model)

    @cached_property
    def surrogate_fingerprint(self) -> str:
        """Of our surrogate's weights and of the package's code: another fit, or another way to explain, gives other maps."""
        if self.surrogate is None:
            return ""
        digest = hashlib.sha256(fingerprint(self.surrogate.surrogate).encode())
        for path in sorted(Path(captum_attnkd.__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def of(self, model: nn.Module, learned: bool, seed: int | None = None, shift: float = 0.0) -> Subject:
        """The same with another model of the same build.

        Args:
            model: in evaluation mode.
            learned: whether our surrogate is needed, and so to be fitted anew.
            seed: of that fit; None takes the subject's.
            shift: added to all pixels the model is given from now on.

        Raises:
            ValueError: it is needed, and cannot be fitted.
        """
        if learned and self.refit is None:
            raise ValueError("needs our surrogate fitted to each randomised model: name images with --fit")
        layer = self.layer
        if layer is not None and not any(part is layer for part in model.modules()):
            layer = dict(model.named_modules())[self.layer_name]
        seed = self.seed if seed is None else seed
        surrogate = self.refit(model, seed, shift) if learned and self.refit else None
        return replace(self, model=model, layer=layer, surrogate=surrogate, seed=seed, mean=self.mean + shift)

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

    def explained(self, explain: Callable[[Tensor, Tensor], Tensor], images: Tensor, classes: Tensor) -> Tensor:
        """An explainer's maps (N, 1, H, W) of images (N, C, H, W) and classes (N,), `batch` at a time; on the CPU, float32."""
        parts = zip(images.split(self.batch), classes.split(self.batch), strict=True)
        return torch.cat([explain(x.to(self.device), t.to(self.device)).detach().float().cpu() for x, t in parts])


class AsLogits(nn.Module):
    """A model as a study asks it: float32 in, log-probabilities or logits in float32 out.

    Args:
        model: images -> scores (B, K); a module or a function.
        probabilities: whether its scores are probabilities; their logarithm comes out, which is as good as logits.
        dtype: of the images that the model takes.
        exact: whether it is asked in its own precision wherever it is asked, as functions always are.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        probabilities: bool,
        dtype: torch.dtype = torch.float32,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.probabilities, self.dtype = probabilities, dtype
        self.exact = exact or not isinstance(model, nn.Module)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, K), float32."""
        with torch.autocast(images.device.type, enabled=False) if self.exact else nullcontext():
            scores = check_output(self.model(images.to(self.dtype)), len(images)).float().to(images.device)
        return scores.clamp_min(1e-12).log() if self.probabilities else scores

    def extra_repr(self) -> str:
        """What it does to the scores."""
        return f"probabilities={self.probabilities}, dtype={self.dtype}"


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

    def refine(self, images: Tensor, target: Tensor, *, steps: int) -> Tensor:
        """Likewise, refined on these very images."""
        classes = self._inner.classes
        return self._inner.refine(images, target=target // classes, versus=target % classes, steps=steps)


def last_spatial_layer(model: nn.Module, example: Tensor) -> tuple[str, nn.Module] | None:
    """The last layer whose output has a spatial extent (B, C, h, w), h and w above one.

    None where there is none, where hooks are not to be had, or where it comes in the first quarter of the model: a
    transformer's patches are no feature map of its classes.

    Args:
        model: in evaluation mode.
        example: images (1, C, H, W).
    """
    found: list[tuple[int, str, nn.Module]] = []
    handles: list[Any] = []
    passed = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue

        def seen(module: nn.Module, inputs: object, output: object, name: str = name) -> None:
            nonlocal passed
            passed += 1
            if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[-2:]) > 1:
                found.append((passed, name, module))

        handles.append(module.register_forward_hook(seen))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found[-1][1:] if found and found[-1][0] > passed / 4 else None


def fingerprint(model: nn.Module, *tensors: Tensor) -> str:
    """Of a module's parts and their code, weights and buffers, and of further tensors."""
    parts = [f"{name}={type(part).__qualname__}({part.extra_repr()})" for name, part in model.named_modules()]
    parts += sorted({_code(type(part)) for part in model.modules()})
    digest = hashlib.sha256("\n".join(parts).encode())
    for name, tensor in [*model.state_dict().items(), *((str(i), t) for i, t in enumerate(tensors))]:
        if not isinstance(tensor, Tensor) or tensor.is_quantized:  # as quantised modules keep them
            digest.update(f"{name}{tensor!r}".encode())
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def _code(kind: type) -> str:
    """The source of a module's class; nothing of what comes with torch, whose version is told elsewhere."""
    if kind.__module__.startswith(("torch.", "torchvision.")):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
