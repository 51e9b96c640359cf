"""Threads: one attribution, and the model it is grafted on, used by many at once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from toy_task import TinyNet, fit_quickly, loader_of, nothing_changes, single_squares

from captum_attnkd import AttentiveKDAttribution

pytestmark = pytest.mark.timeout(3600)
Counted = Callable[[int, int], int]
THREADS = 8


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns every ten microseconds instead of every five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def questions(attribution: AttentiveKDAttribution) -> list[Callable[[], Any]]:
    images = single_squares(12, seed=5)[0]
    parts = [images[:1], images[1:3], images[3:7], images[7:12]]
    asks: list[Callable[[], Any]] = []
    for place, part in enumerate(parts):
        asks += [
            lambda part=part, place=place: attribution.attribute(part, target=place),
            lambda part=part: attribution.attribute(part),
            lambda part=part, place=place: attribution.saliency(part, target=place, versus=(place + 1) % 4),
            lambda part=part: attribution.saliency_all(part, [0, 3]),
            lambda part=part: attribution.agreement(part).divergence,
        ]
    return asks


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("which", ["fitted", "by_gradients", "compact"])
def test_eight_threads_are_answered_as_one_while_another_asks_the_model_itself(
    model: TinyNet, which: str, counted: Counted, request: pytest.FixtureRequest
) -> None:
    attribution: AttentiveKDAttribution = request.getfixturevalue(which)
    asks = questions(attribution)
    wanted = [ask() for ask in asks]
    shown = single_squares(5, seed=9)[0]
    with torch.no_grad():
        own = model(shown)
    rounds, over, wrong = counted(3, 60), threading.Event(), []

    def ask_all(thread: int) -> int:
        asked = 0
        for turn in range(rounds):
            for step in range(len(asks)):
                place = (step * 7 + thread * 3 + turn) % len(asks)
                if not torch.equal(asks[place](), wanted[place]):
                    wrong.append(f"question {place} in thread {thread}")
                asked += 1
        return asked

    def ask_the_model() -> int:
        asked = 0
        with torch.no_grad():
            while not over.is_set():
                if not torch.equal(model(shown), own):
                    wrong.append("the model itself")
                asked += 1
        return asked

    queries = attribution._target.queries
    with nothing_changes(model), ThreadPoolExecutor(THREADS + 1) as pool:
        beside = pool.submit(ask_the_model)
        try:
            asked = sum(pool.map(ask_all, range(THREADS)))
        finally:
            over.set()
        print(f"{asked} questions in {THREADS} threads, {beside.result()} passes of the model beside them")
        assert beside.result() > 0
    assert wrong == []
    assert asked == THREADS * rounds * len(asks)
    counted_one_by_one = attribution._target.queries - queries
    before = attribution._target.queries
    for ask in asks:
        ask()
    assert counted_one_by_one == THREADS * rounds * (attribution._target.queries - before)  # none is lost


@pytest.mark.usefixtures("eager_switching")
def test_two_attributions_on_one_model_keep_apart(model: TinyNet, fitted: AttentiveKDAttribution) -> None:
    other = fit_quickly(AttentiveKDAttribution(model, levels=["features.2", "features.8"]), loader_of(40, 1))
    asks = questions(fitted) + questions(other)
    wanted = [ask() for ask in asks]
    with nothing_changes(model), ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda ask: ask(), asks * 3))
    assert all(torch.equal(one, two) for one, two in zip(found, wanted * 3, strict=True))


def test_a_thread_whose_question_fails_holds_up_no_other(fitted: AttentiveKDAttribution) -> None:
    images = single_squares(2, seed=5)[0]
    wanted = fitted.attribute(images, target=1)

    def ask(turn: int) -> bool:
        if turn % 2:
            with pytest.raises(TypeError):  # the model takes one more argument, not two
                fitted.attribute(images, target=1, additional_forward_args=(None, None))
            return True
        return torch.equal(fitted.attribute(images, target=1), wanted)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(ask, range(40)))
