"""A task small enough for tests: one coloured square on grey noise, and its colour is the class."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution

SIDE, CLASSES = 24, 4
COLOURS = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])


def squares(objects: list[list[tuple[int, int, int]]], seed: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 24, 24) that hold the given (class, top, left) squares of 6x6, and where they are (B, K, 24, 24)."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(len(objects), 3, SIDE, SIDE, generator=generator)
    places = torch.zeros(len(objects), CLASSES, SIDE, SIDE)
    for index, here in enumerate(objects):
        for label, top, left in here:
            images[index, :, top : top + 6, left : left + 6] += COLOURS[label][:, None, None]
            places[index, label, top : top + 6, left : left + 6] = 1
    return images, places


def single_squares(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images with one square each, their classes (B,) and where the square is (B, 1, 24, 24)."""
    drawn = random.Random(seed)
    objects = [[(index % CLASSES, drawn.randrange(SIDE - 6), drawn.randrange(SIDE - 6))] for index in range(count)]
    images, places = squares(objects, seed)
    return images, torch.arange(count) % CLASSES, places.amax(dim=1, keepdim=True)


class TinyNet(nn.Module):
    """Three convolutions, the mean, a linear layer. `gain` multiplies the images; `fail_at` breaks one call."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(24, CLASSES)
        self.calls, self.fail_at, self.failure = 0, -1, ValueError("the model broke")

    def forward(self, images: Tensor, gain: Tensor | None = None) -> Tensor:
        if gain is not None:
            images = images * gain[:, None, None, None]
        features = self.features(images)
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.failure
        return self.head(self.dropout(self.pool(features).flatten(1)))


def random_net(seed: int) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyNet().eval()


def trained_net(seed: int = 0, steps: int = 120) -> TinyNet:
    net = random_net(seed).train()
    images, labels, _ = single_squares(512, seed + 100)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(len(images), (48,))
            loss = F.cross_entropy(net(images[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return net.eval()


def loader_of(count: int, seed: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    images, labels, _ = single_squares(count, seed)
    return list(zip(images.split(size), labels.split(size), strict=True))


def fit_quickly(
    attribution: AttentiveKDAttribution, loader: Any, steps: int = 3, **settings: Any
) -> AttentiveKDAttribution:
    """A fit of a few steps: enough wherever the quality of the maps does not matter."""
    settings = {"distil_steps": steps, "explain_steps": steps, "batch_size": 8, "progress": False} | settings
    return attribution.fit(loader, **settings)


def weights_of(attribution: AttentiveKDAttribution) -> dict[str, Tensor]:
    """The surrogate's weights, by way of what `save` would write."""
    assert attribution.surrogate is not None
    return {name: tensor.detach().clone() for name, tensor in attribution.surrogate.state_dict().items()}


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    unequal = [name for name in one if not torch.equal(one[name], other[name])]
    assert not unequal, f"{len(unequal)} of {len(one)} tensors differ, the first is {unequal[0]}"


_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("hooks"))


def state_of(model: nn.Module) -> dict[str, Any]:
    """All of a model, and of the process around it, that an explanation must not change."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"training flag of {name!r}"] = module.training
        for hooks in _HOOKS:
            state[f"{hooks} of {name!r}"] = list(getattr(module, hooks))
        state[f"children of {name!r}"] = [id(child) for child in module.children()]
    for name, parameter in model.named_parameters():
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"identity of {name}"] = id(parameter)
        state[f"device of {name}"] = parameter.device
        state[f"value of {name}"] = parameter.detach().clone()
        state[f"whose grad is {name}"] = id(parameter.grad)
        state[f"grad of {name}"] = None if parameter.grad is None else parameter.grad.clone()
    for name, buffer in model.named_buffers():
        state[f"identity of buffer {name}"] = id(buffer)
        state[f"value of buffer {name}"] = buffer.clone()
    state["torch RNG"] = torch.get_rng_state()
    state["numpy RNG"] = np.random.get_state()[1].copy()
    state["numpy RNG position"] = np.random.get_state()[2]
    state["python RNG"] = random.getstate()
    state["grad mode"] = torch.is_grad_enabled()
    state["Accelerate's state"] = bool(AcceleratorState._shared_state or PartialState._shared_state)
    state["autocast"] = torch.is_autocast_enabled("cpu")
    state["default dtype"] = torch.get_default_dtype()
    state["threads"] = torch.get_num_threads()
    return state


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not as it was."""

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return one.shape == other.shape and torch.equal(one, other)
        if isinstance(one, np.ndarray):
            return np.array_equal(one, other)
        return type(one) is type(other) and bool(one == other)

    return sorted(name for name in before.keys() | after.keys() if not same(before.get(name), after.get(name, ...)))


class OneConvolution(nn.Sequential):
    """One convolution, the mean, a linear layer, for grey images: nothing that would be slow."""

    def __init__(self, width: int, classes: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            super().__init__(
                nn.Conv2d(1, width, 3, stride=2),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(width, classes),
            )
        self.eval()


def from_the_call(patch: pytest.MonkeyPatch, moment: tuple[Any, str, int], begin: Callable[[], None]) -> list[int]:
    """Have `begin` called before the nth call of a function (owner, name, n); gives the count of its calls."""
    owner, name, number = moment
    original, calls = getattr(owner, name), [0]

    def counted(*args: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            begin()
        return original(*args, **given)

    patch.setattr(owner, name, counted)
    return calls


def raising(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    """A function that raises it, whatever it is called with."""

    def fail(*_: Any) -> Any:
        raise error

    return fail


@contextlib.contextmanager
def nothing_changes(model: nn.Module) -> Iterator[None]:
    """Fail if the model, or the process around it, is not as it was."""
    before = state_of(model)
    try:
        yield
    finally:
        assert changes(before, state_of(model)) == []


def ranks(maps: Tensor) -> Tensor:
    return maps.flatten(1).argsort(dim=1).argsort(dim=1).double()


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, the mean over a batch of maps."""
    pair = [r - r.mean(dim=1, keepdim=True) for r in (ranks(one), ranks(other))]
    top = (pair[0] * pair[1]).sum(dim=1)
    return float((top / (pair[0].norm(dim=1) * pair[1].norm(dim=1))).mean())
