"""The memory that a call takes at its peak."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from captum_attnkd.allocator import trim

Result = TypeVar("Result")


def peak(run: Callable[[], Result], device: torch.device | str = "cpu") -> tuple[Result, float]:
    """What a call returns, and the memory it takes beyond what was in use before, in MiB.

    The latter is NaN where it cannot be told: on a CPU, anywhere but under Linux.

    Args:
        run: called once.
        device: whose memory is meant.
    """
    cuda = torch.device(device).type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        before = _fresh_peak()
    result = run()
    after = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else _resident("VmHWM")
    return result, max(after - before, 0.0)


def _fresh_peak() -> float:
    """Have Linux begin the process's peak anew; what is in use now, in MiB."""
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return _resident("VmRSS")


def _resident(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(name)), math.nan)
