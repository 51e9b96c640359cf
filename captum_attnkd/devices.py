"""Where and how fast a fit runs: the accelerator, lower precision where it pays, and the layout of images in memory."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .target import Target


def device_of(given: Any) -> torch.device:
    """The device meant.

    Raises:
        InputError: it is none, or not one that can be used here.
    """
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except Exception as error:  # what torch says of a missing driver or extension varies
        raise InputError(f"device {given!r} cannot be used here: {error}") from error
    return device


@contextlib.contextmanager
def accelerated(target: Target, images: torch.device, precision: str, given: Any = None) -> Iterator[Any]:
    """An Accelerate accelerator on the target's device, in the precision asked for; afterwards none of ours is left.

    Accelerate keeps one state a process: left behind, it would bind later fits, and the user's own accelerator, to this
    device and precision.

    A function, of which no device is known, is taken to work where the loader has the images.

    Raises:
        InputError: an accelerator made elsewhere in this process sits on another device.
    """
    from accelerate import Accelerator  # slow to import, needed only to fit
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if given is not None and not isinstance(given, Accelerator):
        raise InputError(f"accelerator must be an accelerate.Accelerator, got {type(given).__name__}")
    device = target.device or images
    # Else the user's, which is joined.
    own = given is None and not (AcceleratorState._shared_state or PartialState._shared_state)
    accumulation = None if own else (dict(GradientState().plugin_kwargs), GradientState().sync_gradients)
    # Accelerate takes the current GPU, the model's or not.
    current = torch.cuda.device(device) if own and device.type == "cuda" else nullcontext()
    try:
        with current:
            if given is not None:
                made = given
            elif own:
                mixed = _bf16(device, precision, True)
                made = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if mixed else "no")
            else:
                made = Accelerator()
            if given is None and target.device is not None and made.device.type != device.type:
                raise InputError(
                    f"the model is on {device}, but this process's Accelerator is on {made.device}; "
                    "move the model, or pass accelerator=..."
                )
            yield made
    finally:
        if accumulation is None:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        else:  # to join is to overwrite it; and a fit that fails may stand between two batches of one step
            GradientState().plugin_kwargs, GradientState().sync_gradients = accumulation


def fast_context(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """Context for passes in lower precision: bf16 where the hardware multiplies it natively, and is found to be faster for it."""
    if not _bf16(device, precision, False):
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def borne(
    fast: Callable[[], AbstractContextManager[Any]], target: Target, images: Tensor
) -> Callable[[], AbstractContextManager[Any]]:
    """`fast` where the target runs in it on some images (B, C, H, W); quantised layers, for one, take float32 alone."""
    if fast is nullcontext or not target.tappable:  # functions run in their own precision anyway
        return fast
    try:
        with torch.no_grad(), fast():
            target.run(images)
    except RuntimeError:
        return nullcontext
    return fast


def fast_both_ways(
    fast: Callable[[], AbstractContextManager[Any]], network: nn.Module
) -> Callable[[], AbstractContextManager[Any]]:
    """Context for passes with a gradient through a network: `fast` where that pays.

    On CPUs bf16 slows the way back through depthwise convolutions more than it hastens the way forth.
    """
    if any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in network.modules()):
        return nullcontext
    return fast


def _bf16(device: torch.device, precision: str, gradients: bool) -> bool:
    """Whether bf16 is wanted and pays; on CPUs not for all that has a gradient, see `fast_both_ways`."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False)) and faster_in_bf16("cuda")
    native = device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _native_bf16()
    return native and not gradients and faster_in_bf16("cpu")


@functools.cache
def faster_in_bf16(kind: str) -> bool:
    """Whether a convolution of a usual size takes a tenth less time in bf16 than in float32 here; measured once a process.

    It is a fixed one, and not a pass of the model: close calls would differ from fit to fit, and with them the weights.

    Args:
        kind: of device, "cpu" or "cuda".
    """
    images, weights = torch.ones(8, 64, 56, 56, device=kind), torch.ones(64, 64, 3, 3, device=kind)
    least = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(6):  # by turns; the least of each is what the hardware can do, whatever else it does meanwhile
        for dtype, before in least.items():
            least[dtype] = min(before, _seconds(images.to(dtype), weights.to(dtype)))
    return least[torch.bfloat16] < 0.9 * least[torch.float32]


def _seconds(images: Tensor, weights: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.no_grad():
        torch.nn.functional.conv2d(images, weights, padding=1)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _native_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself; elsewhere it is emulated, and slow."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known()) if known is not None else False


def channels_last_pays(target: Target) -> bool:
    """Whether images are best handed over with channels last in memory: faster for convolutions, where the model bears it."""
    module = target.module if target.tappable and not target.contiguous_only else None
    return module is not None and any(isinstance(part, nn.Conv2d) for part in module.modules())
