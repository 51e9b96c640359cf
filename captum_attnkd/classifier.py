"""The target's own last layers, applied at every position of its deepest features: class evidence without learning."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .levels import Level, Tapped, watched

_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Tanh, nn.Sigmoid,
)  # fmt: skip
_IGNORED = (
    nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip


class LocalClassifier:
    """The layers between a network's pooling and its output, as a function of one position's features.

    Class activation mapping (Zhou et al., 2016) is the case of a single linear layer; a normalisation or a hidden layer
    in between is applied at each position likewise. Not a module: the layers stay the target's own, shared and frozen.

    Attributes:
        layers: the target's modules, in order.
        exact: whether classifier(mean of the prepared features) is the target's own output.
        rectify: whether the features pass a ReLU first (networks that rectify outside any module).
    """

    def __init__(self, layers: Sequence[nn.Module], exact: bool, rectify: bool = False) -> None:
        self.layers, self.exact, self.rectify = tuple(layers), exact, rectify

    def prepared(self, features: Tensor) -> Tensor:
        """Features as the network pools them: a ReLU comes before the mean, not after it."""
        return features.relu() if self.rectify else features

    def __call__(self, features: Tensor) -> Tensor:
        """Class scores (..., K) of prepared features (..., C), float32."""
        for layer in self.layers:
            features = _apply(layer, features)
        return features


def find_classifier(
    network: nn.Module, deepest: Level, images: Tensor, ask: Callable[[], Any] | None = None
) -> LocalClassifier | None:
    """Look for the layers that turn the deepest features into class scores, and check them by number.

    Args:
        network: the target's module, in evaluation mode.
        deepest: its last level.
        images: a few examples (B, C, H, W).
        ask: how the network is run, when not simply `network(images)`.

    Returns:
        An exact classifier where the target pools by the mean; one that is only a good beginning where the widths fit
        (a vision transformer's head on its patch tokens); None where neither holds.
    """
    with torch.no_grad():
        layers, features, output = _layers_after(network, deepest, images, ask)
        if not layers or not isinstance(output, Tensor):
            return None
        for start in range(len(layers)):  # a layer may belong to the trunk still: try without it
            for rectify in (False, True):
                found = LocalClassifier(layers[start:], exact=True, rectify=rectify)
                with contextlib.suppress(RuntimeError):  # widths that do not fit
                    if _same_answer(found(found.prepared(features).mean(dim=(2, 3))), output.float()):
                        return found
        last = layers[-1]
        if (
            isinstance(last, nn.Linear)
            and last.in_features == deepest.channels
            and last.out_features == output.shape[1]
        ):
            return LocalClassifier([last], exact=False)
    return None


def _layers_after(
    network: nn.Module, deepest: Level, images: Tensor, ask: Callable[[], Any] | None
) -> tuple[list[nn.Module], Tensor, Any]:
    """The usable leaf modules that run after the deepest level, its features, and the output."""
    modules = dict(network.named_modules())
    anchor = modules[deepest.module]
    seen: list[nn.Module] = []
    calls = 0

    def look(module: nn.Module, _: Any) -> None:
        nonlocal calls
        if module is anchor:
            if calls == deepest.call:
                seen.clear()
            calls += 1
        elif not any(True for _ in module.children()) and not isinstance(module, _IGNORED):
            seen.append(module)

    with watched(network.modules(), look):
        (features,), output = Tapped(network, [deepest])(images, ask)
    usable = (nn.Linear, nn.LayerNorm, nn.BatchNorm1d, nn.Conv2d, *_POINTWISE)
    return (seen if all(isinstance(layer, usable) for layer in seen) else seen[-1:]), features, output


def _apply(layer: nn.Module, features: Tensor) -> Tensor:
    """One layer on features (..., C), in float32 whatever the target's precision."""
    if isinstance(layer, nn.Linear):
        return F.linear(features, layer.weight.detach().float(), _fixed(layer.bias))
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        return F.linear(features, layer.weight.detach().flatten(1).float(), _fixed(layer.bias))
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(features, layer.normalized_shape, _fixed(layer.weight), _fixed(layer.bias), layer.eps)
    if isinstance(layer, nn.BatchNorm1d) and layer.running_mean is not None and layer.running_var is not None:
        scaled: Tensor = (features - layer.running_mean.float()) * torch.rsqrt(layer.running_var.float() + layer.eps)
        weight, bias = _fixed(layer.weight), _fixed(layer.bias)
        return scaled if weight is None or bias is None else scaled * weight + bias
    if isinstance(layer, nn.ReLU):
        return features.relu()
    if isinstance(layer, _POINTWISE):
        return layer(features.clone()) if getattr(layer, "inplace", False) else layer(features)  # type: ignore[no-any-return]
    raise RuntimeError(f"{type(layer).__name__} cannot be applied position by position")


def _fixed(tensor: Tensor | None) -> Tensor | None:
    """A parameter, or None, in float32 and out of reach of gradients: those would be added to the user's own."""
    return None if tensor is None else tensor.detach().float()


def _same_answer(scores: Tensor, output: Tensor) -> bool:
    """Whether `scores` are the output itself, or the logits behind probabilities or log-probabilities."""
    if scores.shape != output.shape:
        return False
    # Measured by how far the output's own values lie apart: small or nearly equal scores would else pass for any others.
    tolerance = 1e-2 * float(output.max() - output.min())
    return any(
        bool((form - output).abs().max() < tolerance) for form in (scores, scores.softmax(1), scores.log_softmax(1))
    )
