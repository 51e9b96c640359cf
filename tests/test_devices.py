"""Whether bf16 is used: where the hardware has it, and where a measurement on this machine says that it pays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from captum_attnkd import devices
from captum_attnkd.devices import fast_context, faster_in_bf16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def measured_anew() -> Iterator[None]:
    faster_in_bf16.cache_clear()
    yield
    faster_in_bf16.cache_clear()


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(devices, "_native_bf16", lambda: True)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("share", "pays"), [(0.5, True), (0.89, True), (0.91, False), (1.0, False), (3.0, False)])
def test_bf16_is_taken_where_it_was_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, share: float, pays: bool
) -> None:
    monkeypatch.setattr(devices, "_seconds", lambda images, _: share if images.dtype == torch.bfloat16 else 1.0)
    assert (fast_context(CPU, "auto") is not nullcontext) == pays
    with fast_context(CPU, "auto")():
        assert torch.is_autocast_enabled("cpu") == pays


@pytest.mark.usefixtures("native")
def test_one_slow_run_among_fast_ones_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[torch.dtype] = []

    def seconds(images: Tensor, _: Tensor) -> float:
        runs.append(images.dtype)
        return 9.0 if len(runs) in (1, 2, 5, 8) else 0.5 if images.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(devices, "_seconds", seconds)
    assert faster_in_bf16("cpu")
    assert runs[:4] == [torch.float32, torch.bfloat16] * 2, "by turns"
    count = len(runs)
    assert faster_in_bf16("cpu")
    assert len(runs) == count, "once a process"


def test_hardware_without_bf16_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_native_bf16", lambda: False)
    monkeypatch.setattr(devices, "_seconds", lambda *_: pytest.fail("measured"))
    assert fast_context(CPU, "auto") is nullcontext


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_who_names_a_precision_gets_it_unmeasured(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(devices, "_seconds", lambda *_: pytest.fail("measured"))
    assert (fast_context(CPU, precision) is nullcontext) == (precision == "fp32")


def test_what_is_measured_takes_time() -> None:
    assert 0 < devices._seconds(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3)) < 10
