"""The classifier of a study: one of torchvision's, one that a function of the user's makes, or one of ours."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_attnkd import checkpoint
from captum_attnkd.errors import CheckpointError

from .methods import imported, unknown


@dataclass(frozen=True)
class Classifier:
    """A classifier, and how images are brought to it.

    Attributes:
        model: images (B, C, S, S) -> logits or probabilities (B, K); a module in evaluation mode, or any function.
        size: S, in pixels.
        mean: of pixels in [0, 1] per channel: subtracted.
        deviation: likewise: divided by.
        classes: names, K of them; or None.
    """

    model: nn.Module | Callable[[Tensor], Tensor]
    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)
    classes: tuple[str, ...] | None = None


def find_classifier(
    name: str, weights: str | None = None, kept: Path | None = None, shuffled: bool = False
) -> Classifier:
    """A classifier by name.

    Args:
        name: `module:function`, called without arguments; one of torchvision's models; `digits` or `birds`, trained at
            the first use, in minutes.
        weights: for torchvision's models: a state dict in a .safetensors file, or the name of torchvision's weights, such
            as DEFAULT, which are fetched if they are not there yet. None leaves them random.
        kept: folder where `digits` and `birds` are kept once trained.
        shuffled: of `digits` and `birds`: train on shuffled labels, so that there is nothing to be learned.

    Raises:
        ValueError: there is no such model, or what was made is none; or another is to be trained on shuffled labels.
        OSError: the weights cannot be read.
    """
    if name in OURS:
        return _ours(name, kept, shuffled)
    if shuffled:
        raise ValueError(f"{name} is not ours to train; only {' and '.join(OURS)} are")
    if ":" in name:
        return _made(name)
    return _torchvision(name, weights)


def _made(name: str) -> Classifier:
    make = imported(name)
    if not callable(make):
        raise ValueError(f"{name} is a {type(make).__name__}; a function that returns the model was expected")
    made = make()
    found = made if isinstance(made, Classifier) else Classifier(made)
    if not callable(found.model):
        raise ValueError(f"{name} returned a {type(found.model).__name__}; a model or a Classifier was expected")
    return found


def _torchvision(name: str, weights: str | None) -> Classifier:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(unknown("model", name, [*OURS, *known]))
    if weights is None or weights.endswith(".safetensors"):
        model = models.get_model(name, weights=None)
        if weights is None:
            warnings.warn(f"{name} has random weights; give it some with --weights", stacklevel=2)
        else:
            try:
                model.load_state_dict(load_file(weights))
            except (RuntimeError, SafetensorError) as error:
                raise ValueError(f"{weights} does not fit {name}: {str(error).splitlines()[0]}") from error
        found = Classifier(model.eval())
        return replace(found, size=299) if name == "inception_v3" else found
    try:
        chosen = models.get_weight(f"{models.get_model_weights(name).__name__}.{weights}")
    except (AttributeError, KeyError, ValueError) as error:
        there = [one.name for one in models.get_model_weights(name)]
        raise ValueError(f"{name} has no weights {weights!r}; known: DEFAULT, {', '.join(there)}") from error
    brought: Any = chosen.transforms()
    return Classifier(
        models.get_model(name, weights=chosen).eval(), int(brought.crop_size[0]), tuple(brought.mean),
        tuple(brought.std), tuple(chosen.meta["categories"]),
    )  # fmt: skip


# Untrained; how it is trained, with labels shuffled or not; and how images are brought to it.
_Ours = tuple[nn.Module, Callable[[bool], nn.Module], Classifier]


def _digits() -> _Ours:
    from .datasets.digits import SIZE, DigitNet, scattered_digits, train_digit_net

    net = DigitNet().eval().to(memory_format=torch.channels_last)
    about = Classifier(net, SIZE, (0.0,), (1.0,), tuple(str(digit) for digit in range(10)))
    return net, lambda shuffled: train_digit_net(_labelled(scattered_digits(3000, seed=0), shuffled)), about


def _birds() -> _Ours:
    from .datasets.birds import SPECIES, BirdNet, birds, train_bird_net

    net = BirdNet().eval().to(memory_format=torch.channels_last)
    about = Classifier(net, 128, (0.0,) * 3, (1.0,) * 3, tuple(species.name for species in SPECIES))
    return net, lambda shuffled: train_bird_net(_labelled(birds(3600, seed=0), shuffled)), about


def _labelled(data: Any, shuffled: bool) -> Any:
    """The same images, with their own labels or with each other's."""
    if not shuffled:
        return data
    return replace(data, labels=data.labels[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))])


OURS = {"digits": _digits, "birds": _birds}


def _ours(name: str, kept: Path | None, shuffled: bool) -> Classifier:
    network, trained, about = OURS[name]()
    path = None if kept is None else kept / f"{name}{'-shuffled' if shuffled else ''}.safetensors"
    train_once(network, path, lambda: trained(shuffled))
    return about


def train_once(network: nn.Module, path: Path | None, trained: Callable[[], nn.Module]) -> None:
    """Give a network the weights in a file; where there is none, those of the trained one, and keep them there."""
    design = hashlib.sha256(repr(network).encode()).hexdigest()[:16]
    if path is not None and path.exists():
        try:
            tensors, meta = checkpoint.read(path, "classifier")
            if meta.get("network") != design:
                raise CheckpointError(f"{path} holds another network; remove it to train anew")
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit: {error}") from error
        return
    network.load_state_dict(trained().state_dict())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        checkpoint.write(path, "classifier", state, {"network": design})
