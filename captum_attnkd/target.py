"""The user's model: how it is asked, with or without gradients, and how it is left as it was found."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .errors import AttnKDError, InputError, TargetError, callers_level

OutputKind = Literal["auto", "logits", "probabilities"]
SLOWEST = 0.01  # images a second: who asks for fewer would find it hanging
_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")

# Modules of these families answer differently in training mode; others may carry the flag without harm.
_MODE_DEPENDENT = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RReLU)


class Target:
    """A classifier, asked for log-probabilities and otherwise left alone.

    Args:
        forward_func: any callable from images (B, C, H, W) to class scores (B, K): a module, a scripted module, a function.
        output: whether those scores are "logits" or "probabilities"; "auto" decides by the first answer.
        max_images_per_second: upper bound on the rate at which images are sent, for metered services, `SLOWEST` at least; None
            for none.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        output: OutputKind = "auto",
        max_images_per_second: float | None = None,
    ) -> None:
        if not callable(forward_func):
            raise InputError(
                f"forward_func must be callable (a model or a function), got {type(forward_func).__name__}"
            )
        if not isinstance(output, str) or output not in ("auto", "logits", "probabilities"):
            raise InputError(f"output must be 'auto', 'logits' or 'probabilities', got {output!r}")
        rate = max_images_per_second
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate >= SLOWEST):
            raise InputError(f"max_images_per_second must be at least {SLOWEST}, got {rate!r}")
        self.forward_func = forward_func
        self.output: OutputKind = output
        self._told: OutputKind = output
        self.queries = 0  # images answered so far
        self.classes: int | None = None  # K, once it is known
        self.dtype: torch.dtype | None = None  # what the model is fed; None: whatever the images come in
        self.contiguous_only = False
        self._rate = rate
        self._next_free = 0.0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but the lock."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy waits for its own turn."""
        vars(self).update(state, _lock=threading.Lock())

    @property
    def module(self) -> nn.Module | None:
        """The model as an `nn.Module`, out of `DataParallel` and `torch.compile`; None where it is only a function."""
        found: Any = self.forward_func
        while True:
            if isinstance(found, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
                found = found.module
            elif isinstance(found, nn.Module) and type(found).__name__ == "OptimizedModule":
                found = found._orig_mod  # compiled code does not run the hooks that features are read with
            else:
                break
        return found if isinstance(found, nn.Module) else None

    @property
    def tappable(self) -> bool:
        """Whether features can be read from inside the model with forward hooks."""
        return self.module is not None and not isinstance(self.module, torch.jit.ScriptModule)

    @property
    def name(self) -> str:
        """What to call the model in messages and metadata."""
        found = self.module if self.module is not None else self.forward_func
        return getattr(found, "__name__", None) or type(found).__name__

    @property
    def device(self) -> torch.device | None:
        """Where the model's first parameter or buffer lives; None where that cannot be known."""
        if self.module is None:
            return None
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            return tensor.device
        return None

    def check_mode(self) -> None:
        """Refuse a model in training mode, whose answers depend on the batch or on chance.

        Raises:
            TargetError: naming the first module that is in training mode.
        """
        module = self.module
        if module is None:
            return
        if getattr(module, "training", False):  # a frozen scripted module has lost the flag
            raise TargetError(
                f"the model ({self.name}) is in training mode; call model.eval() first "
                "(a module without that mode: wrap it in a function)"
            )
        for name, child in module.named_modules():
            if isinstance(child, _MODE_DEPENDENT) and child.training:
                raise TargetError(
                    f"module {name!r} ({type(child).__name__}) of the model is in training mode; call model.eval() first"
                )

    @property
    def on_cpu(self) -> bool:
        """Whether the model's parameters live on the CPU, as far as can be known."""
        return self.device is None or self.device.type == "cpu"

    def fresh(self) -> Target:
        """The same model with nothing learned of it yet."""
        return Target(self.forward_func, self._told, self._rate)

    def run(self, images: Tensor, *extra: Any) -> Any:
        """The model's own output for `images`, whatever it is, at the rate allowed and in the precision it takes."""
        count = images.shape[0]  # not `len`: a graph that is exported keeps it open
        self._wait_for_turn(count)
        if self.dtype is not None:
            images = images.to(self.dtype)
        if self.contiguous_only:
            images = images.contiguous()
        if self.tappable and self.module is not None:
            output = self.module(images, *extra)
        else:
            # What goes on inside a function is not ours to run in another precision.
            with torch.autocast(images.device.type, enabled=False):
                output = self.forward_func(images, *extra)
        if not torch.compiler.is_compiling():
            with self._lock:
                self.queries += count
        return output

    def raw(self, images: Tensor, *extra: Any) -> Tensor:
        """The model's own output for `images`, checked to be (B, K), K >= 2, and K the same as ever."""
        output = check_output(self.run(images, *extra), images.shape[0])
        if self.classes is not None and output.shape[1] != self.classes:
            raise TargetError(
                f"the model ({self.name}) answered with {self.classes} classes before, and now with {output.shape[1]}"
            )
        return output

    def log_probabilities(self, images: Tensor, *extra: Any) -> Tensor:
        """Log-probabilities (B, K), float32, of `images` (B, C, H, W); differentiable where the model is.

        Raises:
            TargetError: the output is not (B, K) with K >= 2, or holds NaN.
        """
        return self.to_log_probabilities(self.raw(images, *extra))

    def to_log_probabilities(self, scores: Tensor) -> Tensor:
        """Turn the model's own scores (B, K) into float32 log-probabilities, by the kind they are."""
        scores = scores.float()
        kind = detect_output_kind(scores.detach()) if self.output == "auto" else self.output
        if kind == "probabilities":
            # A probability of exactly 0 would give -inf and NaN gradients.
            scores = torch.log(scores.clamp_min(1e-12))
        answer = scores.log_softmax(dim=1)
        # Also where a score is infinite. A graph that is exported or compiled cannot branch on values.
        if not torch.compiler.is_compiling() and bool(torch.isnan(answer.detach()).any()):
            raise TargetError(f"the model ({self.name}) returned NaN or infinite scores")
        self.output = kind
        return answer

    def examine(self, images: Tensor) -> bool:
        """Ask about a few images twice: the answers must agree. Returns whether gradients reach the images.

        Raises:
            TargetError: the model behaves randomly, or its output is not (B, K).
        """
        self.check_mode()
        try:
            with torch.no_grad():
                scores = self.raw(images)
                first, again = self.to_log_probabilities(scores), self.log_probabilities(images)
        except AttnKDError:
            raise
        except RuntimeError as error:
            raise TargetError(
                f"the model ({self.name}) fails on images {tuple(images.shape)} of {images.dtype}; the loader must give what "
                f"the model takes: {error}"
            ) from error
        if not torch.allclose(first, again, atol=1e-3, rtol=1e-3):
            raise TargetError(
                f"the model ({self.name}) gave two different answers to the same images (largest difference "
                f"{(first - again).abs().max().item():.3g}); a random model cannot be explained: switch dropout and sampling off"
            )
        self._warn_of_odd_scores(images, scores.float())
        if self.tappable:  # layers behind a convolution that was fed channels last may fail: `view` does
            try:
                with torch.no_grad():
                    self.raw(images.contiguous(memory_format=torch.channels_last))
            except RuntimeError:
                self.contiguous_only = True
        try:
            with torch.enable_grad():
                leaf = images.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.log_probabilities(leaf)[:, 0].sum(), leaf, allow_unused=True)
        except (
            RuntimeError,
            NotImplementedError,
            TypeError,
        ):  # no graph, or an operation without a derivative
            return False
        return gradient is not None and bool(torch.isfinite(gradient).all()) and bool(gradient.abs().sum() > 0)

    def _warn_of_odd_scores(self, images: Tensor, scores: Tensor) -> None:
        """Say so where there is nothing to explain, or where scores may not be what they are taken for."""
        if not torch.equal(images[:1], images[-1:]) and float((scores - scores[:1]).abs().max()) < 1e-6:
            warnings.warn(
                f"the model ({self.name}) gives the same scores for different images: there is nothing to explain",
                stacklevel=callers_level(),
            )
            return
        low, high = float(scores.min()), float(scores.max())
        if self._told == "auto" and self.output == "logits" and 0 <= low < 0.2 and 0.8 < high <= 1:
            warnings.warn(
                f"all scores of the model ({self.name}) lie in [0, 1], but do not add up to one: they are taken for logits. If "
                "they are probabilities of single labels, wrap the model: torch.logit(model(images)); else tell output='logits'",
                stacklevel=callers_level(),
            )

    def _wait_for_turn(self, count: int) -> None:
        if self._rate is None or torch.compiler.is_compiling():
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_free)
            self._next_free = start + count / self._rate
        time.sleep(start - now)


def check_output(output: Any, batch: int) -> Tensor:
    """Return `output` if it is a tensor of class scores (batch, K), K >= 2.

    Raises:
        TargetError: saying what came instead and how to wrap the model.
    """
    if not isinstance(output, Tensor):
        raise TargetError(
            f"the model returned {type(output).__name__}, not a tensor of class scores (B, K); wrap it, for example: "
            "lambda images: model(images).logits, or for a NumPy array torch.as_tensor(model(images))"
        )
    if output.ndim != 2 or output.shape[0] != batch or output.shape[1] < 2:
        raise TargetError(
            f"the model returned shape {tuple(output.shape)} for {batch} images; class scores (B, K) with K >= 2 are needed "
            "(a model with one output: wrap it to return both classes, torch.cat([-score, score], dim=1))"
        )
    return output


def detect_output_kind(scores: Tensor) -> Literal["logits", "probabilities"]:
    """Probabilities are non-negative and add up to one for every image; anything else is taken for logits."""
    tolerance = 2e-2 if scores.shape[1] > 100 else 5e-3  # half precision rounds every one of K terms
    sums_to_one = bool(((scores.sum(dim=1) - 1).abs() < tolerance).all())
    return "probabilities" if sums_to_one and bool((scores >= 0).all()) else "logits"


@contextlib.contextmanager
def left_as_found(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Whatever happens inside, put back the model's training flags, gradient flags, gradients and buffers.

    Inside, its parameters are frozen and have no gradients: a backward pass would add to the user's own in place.
    """
    if not isinstance(forward_func, nn.Module) or isinstance(forward_func, torch.jit.ScriptModule):
        yield
        return
    modes = [(module, module.training) for module in forward_func.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in forward_func.parameters()]
    buffers = [(b, b.detach().clone()) for b in forward_func.buffers()]
    try:
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, before in buffers:
                if not buffer.is_meta and not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextlib.contextmanager
def lent(module: nn.Module | None) -> Iterator[None]:
    """A network of the user's, to be trained inside; then its gradient flags, after an error all of it, are as before."""
    if module is None:
        yield
        return
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in module.parameters()]
    modes = [(part, part.training) for part in module.modules()]
    before = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    try:
        yield
    except BaseException:
        module.load_state_dict(before)
        for part, training in modes:
            part.training = training
        raise
    finally:
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def grad_mode_kept(call: Callable[_Given, _Answer]) -> Callable[_Given, _Answer]:
    """Whether autograd records is as before the call, also after a Ctrl-C inside `torch.no_grad`.

    That context is Python code, which a signal can enter between its taking effect and its being sure to be undone. In the
    `finally` below no Python code runs before the C function has done its work.
    """

    @functools.wraps(call)
    def kept(*args: _Given.args, **given: _Given.kwargs) -> _Answer:
        before = torch.is_grad_enabled()
        try:
            return call(*args, **given)
        finally:
            torch._C._set_grad_enabled(before)

    return kept


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch for the time inside; afterwards their states are as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))  # none on a machine without CUDA
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
