"""What a map costs beside the model's own forward pass: interleaved repeats, medians, ratios, memory; and when a fit pays."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_attnkd.allocator import kept_buffers

from .explainers import Explainer
from .memory import peak
from .methods import Method
from .subject import Subject

FORWARD = "forward pass"
SLOW = 20.0  # seconds a run, from which on it is timed once


def speed(
    subject: Subject,
    methods: Sequence[Method],
    images: Tensor,
    targets: Tensor,
    batches: Sequence[int] = (1, 32),
    repeats: int = 7,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Time and memory of methods beside the model's own forward pass.

    Args:
        subject: the model.
        methods: compared; one that fails has its reason in the column `failure`.
        images: (N, C, H, W), repeated as often as the largest batch asks.
        targets: classes (N,).
        batches: images at once.
        repeats: taken in turn over all methods, so that the machine's drift hits all alike; after one that warms up. Of a run
            that takes longer than `SLOW` there is one.
        progress: whether a bar is shown; None shows it at a terminal.

    Returns:
        One row a method and batch, the forward pass (without gradients) first. Columns: method; batch; ms, the median of
        milliseconds an image; ratio, the median over repeats of its time to that of the forward pass in the same repeat; peak_mib,
        memory beyond what was in use before (NaN where it cannot be told); failure.
    """
    largest = max(batches)
    again = -(-largest // len(images))
    images, targets = (t.repeat(again, *([1] * (t.dim() - 1)))[:largest].to(subject.device) for t in (images, targets))
    runs: dict[str, Explainer] = {FORWARD: lambda x, t: _forward(subject, x)}
    failures: dict[tuple[str, int], str] = {}
    for method in methods:
        try:
            runs[method.name] = method.on(subject)
        except Exception as error:  # a table must survive any method
            failures |= {(method.name, batch): _said(error) for batch in batches}
    disable = None if progress is None else not progress
    rows = []
    with tqdm(total=len(batches) * (repeats + 2), unit="round", disable=disable) as bar:
        for batch in batches:
            x, t = images[:batch], targets[:batch]
            peaks: dict[str, float] = {}
            for name, run in runs.items():  # once before the allocator is told to keep what is freed
                try:
                    _, peaks[name] = peak(partial(run, x, t), subject.device)
                except Exception as error:
                    failures[name, batch] = _said(error)
            bar.update()
            taken: dict[str, list[float]] = {name: [] for name in peaks}
            with kept_buffers():
                for repeat in range(repeats + 1):
                    for name in list(taken):
                        if repeat > 1 and taken[name][-1] * batch > SLOW:
                            taken[name].append(taken[name][-1])  # so slow that once is enough
                            continue
                        try:
                            taken[name].append(_seconds(subject, runs[name], x, t) / batch)
                        except Exception as error:
                            failures[name, batch] = _said(error)
                            del taken[name]
                    bar.update()
            for name, seconds in taken.items():  # but the first, which warms up
                forward = taken.get(FORWARD, [math.nan] * (repeats + 1))[1:]
                ratio = statistics.median(a / b for a, b in zip(seconds[1:], forward, strict=True))
                rows.append(
                    {"method": name, "batch": batch, "ms": 1e3 * statistics.median(seconds[1:]), "ratio": ratio}
                    | {"peak_mib": peaks[name], "failure": ""}
                )
    rows += [
        {"method": name, "batch": batch, "ms": math.nan, "ratio": math.nan, "peak_mib": math.nan, "failure": why}
        for (name, batch), why in failures.items()
    ]
    return pd.DataFrame(rows)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def break_even(seconds: Mapping[str, float], ours: str, fit_seconds: float) -> dict[str, float]:
    """From how many images on the fit has paid for itself, per method; infinite where a method is no slower.

    Args:
        seconds: an image, per method; NaN where it is not known.
        ours: the method that was fitted.
        fit_seconds: that it took.
    """
    mine = seconds[ours]
    return {
        name: math.ceil(fit_seconds / (theirs - mine)) if theirs > mine else math.inf
        for name, theirs in seconds.items()
        if name != ours and math.isfinite(theirs)
    }


def machine(device: torch.device | str = "cpu") -> str:
    """What this runs on, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = found[0] if found else name
    threads = torch.get_num_threads()
    text = f"{name}, {threads} {'thread' if threads == 1 else 'threads'}"
    return f"{text}, {torch.cuda.get_device_name(device)}" if str(device).startswith("cuda") else f"{text}, no GPU"


def _forward(subject: Subject, images: Tensor) -> Tensor:
    with torch.no_grad():
        return subject.model(images)


def _seconds(subject: Subject, run: Explainer, images: Tensor, targets: Tensor) -> float:
    _wait(subject.device)
    start = time.perf_counter()
    run(images, targets)
    _wait(subject.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
