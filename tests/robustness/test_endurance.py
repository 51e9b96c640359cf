"""Many calls: memory, tensors and hooks stay where they were; Ctrl-C at any moment leaves no hook and no change."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from toy_task import (
    OneConvolution,
    TinyNet,
    assert_same_weights,
    changes,
    fit_quickly,
    loader_of,
    random_net,
    state_of,
    weights_of,
)

from captum_attnkd import AttentiveKDAttribution, levels
from captum_attnkd.allocator import trim

pytestmark = pytest.mark.timeout(7200)
Counted = Callable[[int, int], int]
MIB = 2**20


def tensors_alive() -> int:
    gc.collect()
    return sum(isinstance(found, Tensor) for found in gc.get_objects())


def hooks_of(net: nn.Module) -> int:
    return sum(len(getattr(part, kind)) for part in net.modules() for kind in vars(part) if kind.endswith("hooks"))


def resident() -> int:
    gc.collect()
    trim()
    return int(psutil.Process(os.getpid()).memory_info().rss)


def test_memory_tensors_and_hooks_stay_flat_over_many_calls(counted: Counted) -> None:
    net, shown = OneConvolution(2, 2), torch.randn(1, 1, 8, 8)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    attribution = fit_quickly(AttentiveKDAttribution(net), [images], steps=1)
    calls = counted(600, 100_000)
    for _ in range(calls // 10):  # what is kept for good is made by the first calls
        attribution.attribute(shown, target=1)
    alive, hooks, memory, threads = tensors_alive(), hooks_of(net), resident(), threading.active_count()
    for number in range(calls):
        attribution.attribute(shown, target=number % 2)
    grown = (resident() - memory) / MIB
    print(f"{calls} calls: {grown:+.2f} MiB, {tensors_alive() - alive:+d} tensors, {hooks_of(net) - hooks:+d} hooks")
    assert tensors_alive() == alive
    assert hooks_of(net) == hooks == 0
    assert threading.active_count() == threads
    assert grown < 8  # one tensor a call kept, the smallest there is, would be 20 MiB in the long run


def test_refused_calls_keep_nothing(counted: Counted) -> None:
    net = OneConvolution(2, 2)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    attribution = fit_quickly(AttentiveKDAttribution(net), [images], steps=1)

    def refuse() -> None:
        for bad, target in ((images, 9), (images[:, :, 0], 0), (images * float("nan"), 0)):
            with pytest.raises(ValueError):  # noqa: PT011 - whichever
                attribution.attribute(bad, target=target)

    refuse()
    alive = tensors_alive()
    for _ in range(counted(30, 3000)):
        refuse()
    assert tensors_alive() == alive
    assert hooks_of(net) == 0


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[float], None]]:
    """Press Ctrl-C so many seconds from now; 0 keeps from it."""

    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, pressed)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def seconds_of(ask: Callable[[], Any]) -> float:
    """How long it takes when it is not interrupted, for moments to be drawn from."""
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


def interrupted(ask: Callable[[], Any], moment: float, ctrl_c: Callable[[float], None]) -> bool:
    try:
        try:
            ctrl_c(moment)
            ask()
        finally:
            ctrl_c(0)
    except KeyboardInterrupt:
        return True
    return False


def test_ctrl_c_at_any_moment_of_a_question_leaves_no_hook_and_no_lock(
    counted: Counted, ctrl_c: Callable[[float], None]
) -> None:
    net, drawn, shown = random_net(3), random.Random(0), loader_of(2, 3)[0][0]
    attribution = fit_quickly(AttentiveKDAttribution(net), loader_of(40, 1))
    wanted, before = attribution.attribute(shown, target=1), state_of(net)
    times, hits = counted(250, 10_000), 0

    def ask() -> Any:
        return attribution.attribute(shown, target=1)

    long = sorted(seconds_of(ask) for _ in range(9))[4]
    for _ in range(times):
        hits += interrupted(ask, drawn.uniform(1e-5, long), ctrl_c)
        gc.collect(0)
        assert hooks_of(net) == 0
        assert not levels._TAP_LOCK._is_owned()  # type: ignore[attr-defined]
    print(f"{hits} of {times} calls were interrupted")
    assert hits > times // 4
    assert changes(before, state_of(net)) == []
    assert torch.equal(attribution.attribute(shown, target=1), wanted)


class CtrlCWithin:
    """Press Ctrl-C before the nth line that runs in a file of Python code."""

    def __init__(self, file: str, number: int) -> None:
        self.file, self.number, self.lines = file, number, 0

    def __enter__(self) -> CtrlCWithin:
        self._before = sys.gettrace()
        sys.settrace(self._step)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _step(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != self.file:
            return None
        self.lines += event == "line"
        if event == "line" and self.lines == self.number:
            raise KeyboardInterrupt
        return self._step


@pytest.mark.parametrize("name", ["attribute", "agreement", "trust", "refine"])
def test_ctrl_c_inside_no_grad_leaves_autograd_on(name: str) -> None:
    """A signal can enter `torch.no_grad` itself, between its taking effect and its being sure to be undone."""
    net, shown = random_net(3), loader_of(2, 3)[0][0]
    ask = getattr(fit_quickly(AttentiveKDAttribution(net), loader_of(40, 1)), name)
    for number in itertools.count(1):
        ctrl_c = CtrlCWithin(torch.autograd.grad_mode.__file__, number)
        try:
            with ctrl_c:
                ask(shown)
        except KeyboardInterrupt:
            assert torch.is_grad_enabled(), number
        else:
            break
    assert number > 3


def test_ctrl_c_at_any_moment_of_a_fit_leaves_the_model_and_the_attribution_as_they_were(
    counted: Counted, ctrl_c: Callable[[float], None]
) -> None:
    net: TinyNet = random_net(3)
    attribution, drawn, hits = fit_quickly(AttentiveKDAttribution(net), loader_of(40, 1)), random.Random(0), 0
    weights, before, times = weights_of(attribution), state_of(net), counted(8, 200)

    def fit_again() -> Any:
        return fit_quickly(AttentiveKDAttribution(net), loader_of(40, 1), seed=1)

    long = seconds_of(fit_again)
    for _ in range(times):
        hits += interrupted(fit_again, drawn.uniform(1e-3, long), ctrl_c)
        assert changes(before, state_of(net)) == []
    print(f"{hits} of {times} fits were interrupted")
    assert hits > 0
    assert_same_weights(weights_of(attribution), weights)
    assert_same_weights(weights_of(fit_quickly(AttentiveKDAttribution(net), loader_of(40, 1))), weights)
