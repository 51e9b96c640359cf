"""Speed: one row a method and batch beside the forward pass, failures listed, and the break-even by hand."""

from __future__ import annotations

import math
import time

import pytest
import torch
from captum_attnkd.evaluation.explainers import Explainer
from captum_attnkd.evaluation.methods import Method
from captum_attnkd.evaluation.speed import FORWARD, break_even, machine, speed
from captum_attnkd.evaluation.subject import Subject
from torch import Tensor, nn

IMAGES = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 4, 4).contiguous()
TARGETS = torch.tensor([0, 1, 2])


class Slow(nn.Module):
    """Takes ten milliseconds an image; refuses more than `most` at once."""

    most = 1000

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise MemoryError("too many")
        time.sleep(0.01 * len(images))
        return images.flatten(1)[:, :3]


def subject_of(model: nn.Module) -> Subject:
    return Subject(model, None, torch.zeros(1), torch.ones(1), precision="fp32")


def method_of(name: str, explain: Explainer) -> Method:
    return Method(name, "gradients", lambda subject: explain)


def waiting(milliseconds: float) -> Explainer:
    def explain(images: Tensor, classes: Tensor) -> Tensor:
        time.sleep(1e-3 * milliseconds * len(images))
        return images

    return explain


def test_a_row_a_method_and_batch_with_its_time_beside_the_forward_pass() -> None:
    methods = [method_of("thrice", waiting(30)), method_of("as slow", waiting(10))]
    table = speed(subject_of(Slow()), methods, IMAGES, TARGETS, batches=(1, 3), repeats=3, progress=False)
    assert table["method"].tolist() == [FORWARD, "thrice", "as slow"] * 2
    assert table["batch"].tolist() == [1] * 3 + [3] * 3
    assert set(table["failure"]) == {""}
    rows = table.set_index(["method", "batch"])
    for batch in (1, 3):
        assert rows.loc[(FORWARD, batch), "ratio"] == 1
        assert 10 <= rows.loc[(FORWARD, batch), "ms"] < 20, "an image, not a batch"
        assert 30 <= rows.loc[("thrice", batch), "ms"] < 60
        assert 2 < rows.loc[("thrice", batch), "ratio"] < 4
        assert 0.6 < rows.loc[("as slow", batch), "ratio"] < 1.6


def test_every_method_runs_once_to_warm_up_and_then_in_turn() -> None:
    calls: list[str] = []

    def noted(name: str) -> Method:
        def explain(images: Tensor, classes: Tensor) -> Tensor:
            calls.append(name)
            return images

        return method_of(name, explain)

    speed(subject_of(Slow()), [noted("a"), noted("b")], IMAGES, TARGETS, batches=(1,), repeats=3, progress=False)
    assert calls == ["a", "b"] * 5, "once for memory, once to warm up"


def test_images_are_repeated_to_the_largest_batch_and_keep_their_classes() -> None:
    seen: dict[int, Tensor] = {}

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        assert torch.equal(images[:, 0, 0, 0].long(), classes)
        seen[len(images)] = classes
        return images

    speed(subject_of(Slow()), [method_of("a", explain)], IMAGES, TARGETS, batches=(2, 7), repeats=1, progress=False)
    assert {size: classes.tolist() for size, classes in seen.items()} == {2: [0, 1], 7: [0, 1, 2, 0, 1, 2, 0]}


def test_failures_are_listed_and_stop_nothing_else() -> None:
    calls = 0

    def third(images: Tensor, classes: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("at the third call")
        return images

    def no_layer(subject: Subject) -> Explainer:
        raise ValueError("no layer")

    def never(images: Tensor, classes: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    methods = [
        Method("unbuilt", "gradients", no_layer), method_of("never", never), method_of("third", third),
        method_of("fine", waiting(0)),
    ]  # fmt: skip
    table = speed(subject_of(Slow()), methods, IMAGES, TARGETS, batches=(1,), repeats=4, progress=False)
    assert table["method"].tolist()[:2] == [FORWARD, "fine"]
    failed = table[table["failure"] != ""].set_index("method")["failure"].to_dict()
    assert failed == {
        "unbuilt": "ValueError: no layer", "never": "RuntimeError: out of memory",
        "third": "RuntimeError: at the third call",
    }  # fmt: skip
    assert table[table["failure"] != ""]["ms"].isna().all()


def test_a_batch_that_the_model_cannot_take_leaves_the_others() -> None:
    model = Slow()
    model.most = 4
    table = speed(subject_of(model), [method_of("a", waiting(1))], IMAGES, TARGETS, (2, 6), repeats=2, progress=False)
    assert table[(table["method"] == "a") & (table["batch"] == 2)]["ratio"].notna().all()
    assert table[(table["method"] == "a") & (table["batch"] == 6)]["ratio"].isna().all()
    assert table[table["method"] == FORWARD]["failure"].tolist() == ["", "MemoryError: too many"]


def test_memory_is_what_was_used_beyond_before() -> None:
    def large(images: Tensor, classes: Tensor) -> Tensor:
        return torch.ones(60, 2**18).sum() * images  # 60 MiB

    methods = [method_of("large", large), method_of("small", waiting(0))]
    table = speed(subject_of(Slow()), methods, IMAGES, TARGETS, (1,), repeats=1, progress=False).set_index("method")
    if math.isnan(table.loc["large", "peak_mib"]):
        pytest.skip("this system does not tell the peak of its memory")
    assert 50 < table.loc["large", "peak_mib"] < 90
    assert table.loc["small", "peak_mib"] < 20


def test_break_even_by_hand() -> None:
    seconds = {"ours": 0.01, "slow": 0.51, "slower": 1.01, "fast": 0.005, "same": 0.01}
    assert break_even(seconds, "ours", 100) == {"slow": 200, "slower": 100, "fast": math.inf, "same": math.inf}
    assert break_even({"ours": 0.01, "failed": math.nan}, "ours", 100) == {}
    assert break_even({"ours": 0.0, "other": 0.3}, "ours", 1.0) == {"other": 4}, "a part of an image is a whole one"


@pytest.mark.parametrize(("threads", "named"), [(1, ", 1 thread,"), (4, ", 4 threads,")])
def test_the_machine_is_named(monkeypatch: pytest.MonkeyPatch, threads: int, named: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert named in machine()
    assert len(machine().partition(",")[0]) > 2
