"""Whatever is called, and wherever it fails: the model and the process around it are left as they were, byte by byte."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_task import (
    SIDE,
    TinyNet,
    changes,
    fit_quickly,
    from_the_call,
    loader_of,
    raising,
    random_net,
    single_squares,
    state_of,
)

import captum_attnkd.attribution as door
from captum_attnkd import AttentiveKDAttribution
from captum_attnkd import checkpoint as files
from captum_attnkd.fitting import Fit
from captum_attnkd.objectives import Distillation, Explanation
from captum_attnkd.surrogate import Surrogate
from captum_attnkd.target import Target
from captum_attnkd.validation import Validation

STUDENTS = ("grafted", "compact")


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def all_of(net: nn.Module) -> dict[str, Any]:
    """More than `state_of`: values as bytes (a NaN equals itself, -0 is not 0), places, and what stands on the modules."""
    found = state_of(net)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        found[f"bytes of {name}"] = raw(tensor)
        found[f"place of {name}"] = (str(tensor.device), tensor.dtype, tensor.data_ptr(), tensor.stride())
    for name, parameter in net.named_parameters():
        found[f"bytes of the gradient of {name}"] = None if parameter.grad is None else raw(parameter.grad)
    for name, module in net.named_modules():
        found[f"attributes of {name!r}"] = sorted(vars(module))
        found[f"how {name!r} was set"] = {
            key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str, tuple))
        } | {"calls": None}
    found["python's next number"] = random.getstate()
    found["numpy's next numbers"] = str(np.random.get_state())
    found["deterministic"] = torch.are_deterministic_algorithms_enabled()
    found["autocast dtype"] = torch.get_autocast_dtype("cpu")
    found["default device"] = str(torch.get_default_device())
    # A NaN is not equal to itself; its bytes are compared above.
    return {name: value for name, value in found.items() if not name.startswith(("value of", "grad of"))}


def awkward() -> TinyNet:
    """A model in states that no careless code would put back by chance."""
    net = random_net(21)
    net.features[0].training = True  # changes nothing, yet must survive
    net.features[0].weight.requires_grad_(False)
    net.head.bias.grad = torch.full((4,), float("nan"))
    net.head.weight.grad = torch.zeros(4, 24)
    with torch.no_grad():
        net.features[3].bias[0] = -0.0
    net.features[4].running_mean.fill_(0.25)
    net.register_buffer("unused", torch.tensor([float("nan"), -0.0, float("inf")]))
    net.head.register_forward_hook(lambda module, given, output: None)
    net.features[2].register_forward_pre_hook(lambda module, given: None)
    return net


@pytest.fixture(scope="module", params=[*STUDENTS, "gradients"])
def made(request: pytest.FixtureRequest) -> tuple[TinyNet, AttentiveKDAttribution]:
    net = awkward()
    by_gradients = request.param == "gradients"
    student = "grafted" if by_gradients else request.param
    return net, fit_quickly(AttentiveKDAttribution(net, student=student, gradients=by_gradients), loader_of(40, 1))


@contextlib.contextmanager
def left_alone(net: nn.Module) -> Iterator[None]:
    random.seed(3)
    np.random.seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        before = all_of(net)
        try:
            yield
        finally:
            assert changes(before, all_of(net)) == []


IMAGES = single_squares(4, seed=3)[0]
CALLS: dict[str, Callable[[AttentiveKDAttribution, Path], Any]] = {
    "attribute": lambda made, path: made.attribute(IMAGES),
    "attribute, a class": lambda made, path: made.attribute(IMAGES, target=1),
    "saliency": lambda made, path: made.saliency(IMAGES, target=1, versus=0),
    "saliency_all": lambda made, path: made.saliency_all(IMAGES),
    "agreement": lambda made, path: made.agreement(IMAGES),
    "to": lambda made, path: made.to("cpu"),
    "save": lambda made, path: made.save(path),
    "load": lambda made, path: AttentiveKDAttribution.load(path.with_name("saved"), made.forward_func),
    "fit": lambda made, path: fit_quickly(AttentiveKDAttribution(made.forward_func), loader_of(40, 1)),
    "fit, compact": lambda made, path: fit_quickly(
        AttentiveKDAttribution(made.forward_func, student="compact"), loader_of(40, 1)
    ),
    "fit, by gradients": lambda made, path: fit_quickly(
        AttentiveKDAttribution(made.forward_func, gradients=True), loader_of(40, 1)
    ),
    "fit, a state": lambda made, path: fit_quickly(
        AttentiveKDAttribution(made.forward_func), loader_of(40, 1), resume_from=path
    ),
    "constructor": lambda made, path: AttentiveKDAttribution(made.forward_func),
    "repr": lambda made, path: f"{made} {made.report_} {made.plan} {made.classes} {made.device}",
}  # fmt: skip
# Offered by later versions, or by this one.
CALLS |= {
    name: call
    for name, call in {
        "trust": lambda made, path: made.trust(IMAGES, 1),
        "refine": lambda made, path: made.refine(IMAGES, 1, steps=2),
    }.items()
    if hasattr(AttentiveKDAttribution, name)
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_that_succeeds(
    made: tuple[TinyNet, AttentiveKDAttribution], tmp_path: Path, call: Callable[[AttentiveKDAttribution, Path], Any]
) -> None:
    net, attribution = made
    attribution.save(tmp_path / "saved")
    with left_alone(net):
        call(attribution, tmp_path / "new")


class InjectedError(Exception):
    """Raised in a stage of ours."""


ERRORS: dict[str, type[BaseException]] = {"error": InjectedError, "Ctrl-C": KeyboardInterrupt}
# Where it fails: owner, name, and at which call; before that, the stage has gone on for a while.
STAGES: dict[str, tuple[Any, str, int]] = {
    "survey": (door, "survey", 1),
    "examine": (Target, "examine", 1),
    "the first answer": (Target, "raw", 1),
    "plan": (door, "make_plan", 1),
    "build": (door.Plan, "build", 1),
    "the probe": (files, "probe_images", 1),
    "mirroring": (Validation, "bears_mirroring", 1),
    "distil": (Distillation, "forward", 2),
    "the backward pass": (torch.Tensor, "backward", 2),
    "a step of the optimiser": (torch.optim.AdamW, "step", 2),
    "explain": (Explanation, "forward", 2),
    "validate": (Validation, "explanation", 1),
    "a state": (Fit, "_save", 2),
    "figures": (Validation, "figures", 1),
    "report": (Fit, "_report", 1),
    "doubt": (door, "_warn_of_doubt", 1),
}


@contextlib.contextmanager
def failing_at(stage: tuple[Any, str, int], error: type[BaseException]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        calls = from_the_call(patch, stage, raising(error))
        yield
    assert calls[0] >= stage[2], "the stage was never reached"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every failure in every stage in the full counts; else every stage once, with failures and students by turns."""
    if "failing" not in metafunc.fixturenames:
        return
    cases = [(stage, student, error) for stage in STAGES for student in STUDENTS for error in ERRORS]
    if metafunc.config.getoption("--counts") != "full":
        cases = cases[::5] + cases[2::12]
    metafunc.parametrize("failing", cases, ids=["-".join(case) for case in cases])


def test_a_fit_that_fails_in_a_stage(tmp_path: Path, failing: tuple[str, Any, str]) -> None:
    stage, student, error = STAGES[failing[0]], failing[1], ERRORS[failing[2]]
    net = awkward()
    attribution = AttentiveKDAttribution(net, student=student)
    with failing_at(stage, error), left_alone(net), pytest.raises(error):
        fit_quickly(attribution, loader_of(40, 1), resume_from=tmp_path / "state")
    assert not attribution.is_fitted
    assert [path.name for path in tmp_path.iterdir()] in ([], ["state"])


@pytest.mark.parametrize("stage", ["student", "explain"])
@pytest.mark.parametrize("call", ["attribute, a class", "saliency", "saliency_all", "agreement"])
def test_a_question_that_fails_in_the_networks(
    made: tuple[TinyNet, AttentiveKDAttribution], tmp_path: Path, stage: str, call: str
) -> None:
    net, attribution = made
    if (call, stage) == ("agreement", "explain"):
        stage = "student"  # nothing is explained
    owner: Any = Surrogate if stage == "explain" else type(attribution.surrogate.student)
    broken = (owner, "explain" if stage == "explain" else "read", 1)
    with failing_at(broken, InjectedError), left_alone(net), pytest.raises(InjectedError):
        CALLS[call](attribution, tmp_path / "new")
    assert attribution.attribute(IMAGES).shape == (4, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    "stage", [(files, "read", 1), (door.Plan, "build", 2), (files, "check_weights", 1), (files, "load_weights", 1)],
    ids=["read", "build", "check", "weights"],
)  # fmt: skip
def test_a_load_that_fails(made: tuple[TinyNet, AttentiveKDAttribution], tmp_path: Path, stage: Any) -> None:
    net, attribution = made
    attribution.save(tmp_path / "saved")
    with failing_at(stage, InjectedError), left_alone(net), pytest.raises(InjectedError):
        AttentiveKDAttribution.load(tmp_path / "saved", net)


def test_a_difference_would_be_seen() -> None:
    harms: list[Callable[[TinyNet], Any]] = [
        lambda net: net.features[0].train(False),
        lambda net: net.features[1].train(),
        lambda net: net.head.weight.requires_grad_(False),
        lambda net: setattr(net.head.bias, "grad", None),
        lambda net: net.head.weight.grad.add_(1),
        lambda net: net.features[4].running_mean.add_(1e-7),
        lambda net: net.features[3].bias.detach().abs_(),  # -0 becomes 0
        lambda net: net.features[0].register_forward_hook(lambda *_: None),
        lambda net: net.register_buffer("more", torch.zeros(1)),
        lambda net: setattr(net.dropout, "p", 0.3),
        lambda net: random.random(),
        lambda net: np.random.rand(),
        lambda net: torch.rand(1),
    ]
    for harm in harms:
        net = awkward()
        with pytest.raises(AssertionError), left_alone(net):
            harm(net)
