"""The fit: distil, then explain; held-out checks, early stopping, and states from which a killed fit goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import checkpoint
from .devices import accelerated, borne, channels_last_pays, fast_context
from .errors import CheckpointError, InputError, TargetError
from .images import Stream, Survey, mixed
from .objectives import Ask, Distillation, Explanation, Pixels
from .plan import Plan
from .report import FitReport
from .surrogate import Surrogate
from .target import Target
from .validation import Validation


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast a surrogate is taught. The defaults are meant for every target and data set.

    Attributes:
        distil_steps: of stage 1 at most; None takes 100 for a grafted student, which is right from the start, and 500 for a
            compact one, which begins with nothing.
        explain_steps: of stage 2 at most.
        batch_size: images a step and process; three times as many while a compact student is distilled.
        learning_rate: highest; warmed up, then lowered along a cosine.
        patience: held-out checks without a better score before a stage stops.
        check_every: steps between held-out checks.
        seed: of all that is drawn.
        precision: "auto", "fp32" or "bf16"; "auto" takes bf16 where the hardware has it and it is faster.
    """

    distil_steps: int | None = None
    explain_steps: int = 500
    batch_size: int = 16
    learning_rate: float = 2e-3
    patience: int = 6
    check_every: int = 50
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("distil_steps", "explain_steps", "batch_size", "patience", "check_every"):
            value = getattr(self, name)
            if name == "distil_steps" and value is None:
                continue
            least = 0 if name.endswith("steps") else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
                raise InputError(f"{name} must be a whole number from {least} to {2**31 - 1}, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number of 64 bits, got {self.seed!r}")
        if not (isinstance(self.learning_rate, (int, float)) and 0 < self.learning_rate < 1):
            raise InputError(f"learning_rate must lie between 0 and 1, got {self.learning_rate!r}")
        if not isinstance(self.precision, str) or self.precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"precision must be 'auto', 'fp32' or 'bf16', got {self.precision!r}")

    def stage(self, stage: int, plan: Plan) -> tuple[int, int]:
        """Steps at most, and images a step, of stage 0 or 1 for the student that was planned."""
        if stage == 1:
            return self.explain_steps, self.batch_size
        grafted = plan.student == "grafted"
        steps = self.distil_steps if self.distil_steps is not None else 100 if grafted else 500
        # A network that learns from nothing is better off with fewer and steadier steps: its batch statistics are measured.
        return steps, self.batch_size if grafted else 3 * self.batch_size


@dataclass
class _Progress:
    """Where a fit is: all of its state beside weights and optimiser."""

    stage: int = 0
    step: int = 0
    passes: int = 0
    batches: int = 0
    best: float = math.inf
    waited: int = 0
    seconds: float = 0.0
    queries: int = 0
    steps_done: tuple[int, int] = (0, 0)
    finished: bool = False
    mirror: bool | None = None  # whether images are mirrored in fitting; not yet known

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> _Progress:
        """What a state file tells; wrong fields, types or numbers raise TypeError, ValueError, KeyError or OverflowError."""
        at = cls(**data)
        at.best = math.inf if at.best is None else float(at.best)
        first, second = at.steps_done
        at.steps_done = (first, second)
        counts = (at.stage, at.step, at.passes, at.batches, at.waited, at.queries, *at.steps_done)
        if any(type(count) is not int or not 0 <= count < 2**63 for count in counts) or at.stage > 2:
            raise ValueError(f"counts out of range: {counts}")
        if math.isnan(at.best) or not 0 <= float(at.seconds) < math.inf:
            raise ValueError(f"score {at.best} or seconds {at.seconds} out of range")
        if type(at.finished) is not bool or at.mirror not in (None, False, True) or at.finished != (at.stage == 2):
            raise ValueError("whether it is finished cannot be")
        return at


class Fit:
    """One fit of one surrogate.

    Args:
        surrogate: fresh.
        target: the user's model.
        plan: the surrogate's.
        found: what a survey of the loader told.
        loader: as surveyed.
        differentiable: whether gradients flow through the target; then it is the judge.
        settings: how long and how fast.
        probe: the target's answer to two fixed images, log-probabilities (2, K); a state file is gone on with only if it was of
            the same target, whatever the threads it ran on.
        accelerator: of Accelerate; None makes one on the target's device.
        state: file from which an interrupted fit goes on, and to which it is saved at every held-out check.
        started: when the time that is reported begins, by `time.monotonic`; None for now.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        target: Target,
        plan: Plan,
        found: Survey,
        loader: Iterable[Any],
        differentiable: bool,
        settings: FitSettings,
        *,
        probe: Tensor,
        image_key: Any = None,
        accelerator: Any = None,
        state: str | Path | None = None,
        progress: bool | None = None,
        started: float | None = None,
    ) -> None:
        self.surrogate, self.target, self.plan = surrogate, target, plan
        self.found, self.loader = found, loader
        self.differentiable, self.settings, self.image_key = differentiable, settings, image_key
        self.state, self.progress_bar = (None if state is None else Path(state)), progress
        self._given = accelerator
        self._probe = probe
        self.at = _Progress()
        self._optimiser_state: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] = {}
        self._started = time.monotonic() if started is None else started
        self._channels_last = channels_last_pays(target)

    def run(self) -> FitReport:
        """Teach the surrogate in place, and report.

        Raises:
            CheckpointError: the state file belongs to another fit.
        """
        with accelerated(self.target, self.found.device, self.settings.precision, self._given) as self.accelerator:
            return self._run()

    def _run(self) -> FitReport:
        settings, self.device = self.settings, self.accelerator.device
        surrogate = self.surrogate.to(self.device)
        self.fast = fast_context(self.device, settings.precision)
        if settings.precision == "auto":
            self.fast = borne(self.fast, self.target, self.found.held_out[:2].to(self.device))
        ask, judge = self.target.log_probabilities, self._judge()
        self._resume()
        pixels = Pixels(self.found.mean.to(self.device), self.found.deviation.to(self.device))
        validation = Validation(
            surrogate, ask, judge, pixels, self.found.held_out, self._placed, settings.seed, self.fast
        )
        if self.at.stage == 0 and self.at.step == 0 and surrogate.student.grafted:
            self._calibrate(next(validation.batches(32)))
        if self.at.mirror is None:
            self.at.mirror = validation.bears_mirroring()
        if self.at.stage == 0:
            # A compact student learns from them what else the model says; a grafted one knows that from the model's own layers.
            masked = not (self.differentiable and surrogate.student.grafted)
            distillation = Distillation(
                surrogate.student, ask, pixels, masked=masked, mirror=self.at.mirror, fast=self.fast
            )
            self._stage(distillation, surrogate.student, lambda: validation.distillation(distillation), "distil")
        surrogate.student.eval()
        if self.at.stage == 1:
            explanation = Explanation(surrogate, judge, pixels, mirror=self.at.mirror, fast=self.fast)
            self._stage(explanation, surrogate.explanation, validation.explanation, "explain")
        surrogate.eval()
        if not self.at.finished:
            self.at.finished = True
            self._save()
        return self._report(validation)

    # -- one stage ---------------------------------------------------------------------------------------------------

    def _stage(self, objective: nn.Module, taught: nn.Module, score: Callable[[], float], name: str) -> None:
        accelerator, settings, at = self.accelerator, self.settings, self.at
        steps, batch_size = settings.stage(at.stage, self.plan)
        parameters = [p for p in taught.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-4)
        self._restore(optimiser)
        if steps and at.step == 0 and not self._best:
            self._consider(self._agreed(score, taught), taught)
        prepared, prepared_optimiser = accelerator.prepare(objective, optimiser)
        stream = Stream(
            self.loader, self.found, batch_size, mixed(settings.seed, at.stage), self.image_key,
            accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        stream.passes, stream.batches = at.passes, at.batches
        images = stream.endless()
        bar = tqdm(
            total=steps, initial=at.step, desc=name, unit="step", leave=False,
            disable=(None if self.progress_bar is None else not self.progress_bar) if accelerator.is_main_process else True,
        )  # fmt: skip
        with bar:
            while at.step < steps and at.waited < settings.patience:
                taught.train()
                rate = learning_rate(at.step, steps, settings.learning_rate)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                prepared_optimiser.zero_grad()
                for part, together in enumerate(self._parts(prepared)):
                    with together:
                        loss = prepared(self._placed(next(images)), self._drawn(part))
                        if not bool(torch.isfinite(loss.detach())):
                            raise TargetError(
                                f"the {name} loss became {loss.item()} at step {at.step}; does the model return finite scores?"
                            )
                        accelerator.backward(loss)
                prepared_optimiser.step()
                at.step += 1
                at.passes, at.batches = stream.passes, stream.batches
                bar.update()
                if at.step % settings.check_every == 0 or at.step == steps:
                    at.waited = 0 if self._consider(self._agreed(score, taught), taught) else at.waited + 1
                    bar.set_postfix(held_out=f"{at.best:.4f}")
                    self._save(optimiser)
        images.close()
        if self._best:
            taught.load_state_dict({k: v.to(self.device) for k, v in self._best.items()})
        at.steps_done = (at.step, 0) if at.stage == 0 else (at.steps_done[0], at.step)
        at.stage, at.step, at.passes, at.batches, at.best, at.waited = at.stage + 1, 0, 0, 0, math.inf, 0
        self._best, self._optimiser_state = {}, {}
        taught.eval()
        accelerator.free_memory()

    def _parts(self, prepared: nn.Module) -> Iterator[AbstractContextManager[Any]]:
        """A context for each batch whose gradients make one step; processes exchange gradients at the last alone."""
        accelerator = self.accelerator
        parts = accelerator.gradient_accumulation_steps
        for part in range(parts):
            accelerator.sync_gradients = part == parts - 1
            yield nullcontext() if accelerator.sync_gradients else accelerator.no_sync(prepared)

    def _drawn(self, part: int) -> torch.Generator:
        """What a batch's masks and fills are drawn from: another for each process, step and part of a step."""
        index = part * self.accelerator.num_processes + self.accelerator.process_index
        return torch.Generator().manual_seed(mixed(self.settings.seed, self.at.stage, self.at.step, index))

    def _agreed(self, score: Callable[[], float], taught: nn.Module) -> float:
        """The held-out score on which all processes decide alike: the main one's, with its batch statistics."""
        if self.accelerator.num_processes == 1:
            return score()
        from accelerate.utils import broadcast

        with torch.no_grad():
            for buffer in taught.buffers():
                buffer.copy_(broadcast(buffer.clone()))
        return float(broadcast(torch.tensor(score(), dtype=torch.float64, device=self.device)))

    def _consider(self, score: float, taught: nn.Module) -> bool:
        """Keep the weights if they are the best so far on the held-out images."""
        if not score < self.at.best:
            return False
        self.at.best = score
        self._best = {name: tensor.detach().cpu().clone() for name, tensor in taught.state_dict().items()}
        return True

    # -- asking ------------------------------------------------------------------------------------------------------

    def _judge(self) -> Ask:
        if self.differentiable:
            return self.target.log_probabilities
        student = self.surrogate.student
        return lambda images: student(images)[0].logits.log_softmax(dim=1)

    def _placed(self, images: Tensor) -> Tensor:
        images = images.to(self.device)
        return images.contiguous(memory_format=torch.channels_last) if self._channels_last else images

    @torch.no_grad()
    def _calibrate(self, images: Tensor) -> None:
        with self.fast():
            features, _ = self.surrogate.student.trunk(images)
        self.surrogate.student.calibrate(features)

    def _report(self, validation: Validation) -> FitReport:
        return FitReport(
            student=self.plan.student,
            judge="target" if self.differentiable else "student",
            output=self.target.output,
            mirrored=bool(self.at.mirror),
            images=self.found.count,
            held_out=len(self.found.held_out),
            **validation.figures(),
            distil_steps=self.at.steps_done[0],
            explain_steps=self.at.steps_done[1],
            seconds=self.at.seconds + time.monotonic() - self._started,
            target_queries=self.at.queries + self.target.queries,
            parameters=sum(p.numel() for p in self.surrogate.parameters()),
        )

    # -- states ------------------------------------------------------------------------------------------------------

    def _fingerprint(self) -> str:
        """What must be the same for a state to be gone on with."""
        found, processes = self.found, self.accelerator.num_processes
        parts = self.accelerator.gradient_accumulation_steps
        return repr((self.settings, self.plan, found.fingerprint, found.count, processes, parts))

    def _save(self, optimiser: torch.optim.Optimizer | None = None) -> None:
        if self.state is None or not self.accelerator.is_main_process:
            return
        tensors = {f"surrogate.{name}": tensor for name, tensor in self.surrogate.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()} | {"probe": self._probe}
        if optimiser is not None:
            for index, values in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        at = dict(vars(self.at))
        at["seconds"] += time.monotonic() - self._started
        at["queries"] += self.target.queries
        at["best"] = None if math.isinf(self.at.best) else self.at.best
        checkpoint.write(self.state, "fit", tensors, {"at": at, "fit": self._fingerprint()})

    def _resume(self) -> None:
        if self.state is None:
            return
        if self.accelerator.is_main_process:
            checkpoint.clear_drafts(self.state)
        if not self.state.exists():
            return
        tensors, about = checkpoint.read(self.state, "fit")
        answered = tensors.pop("probe", torch.empty(0))
        if about.get("fit") != self._fingerprint() or not checkpoint.same_answer(self._probe, answered):
            raise CheckpointError(
                f"{self.state} is the state of another fit (other settings, images or model); "
                "delete it to begin anew, or name another file"
            )
        try:
            at = _Progress.from_dict(about["at"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{self.state}: its progress cannot be read: {error}") from error
        where, taught = str(self.state), self._taught(at.stage)
        groups: dict[str, dict[str, Tensor]] = {"surrogate": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = tensor
        if taught is not None and at.step > self.settings.stage(at.stage, self.plan)[0]:
            raise CheckpointError(f"{where}: its progress cannot be read: step {at.step} is past the last")
        if groups["best"] and taught is not None:
            checkpoint.check_weights(taught, groups["best"], where)
        if groups["optimiser"] and (taught is None or not _fits(groups["optimiser"], taught)):
            raise CheckpointError(f"{where}: the optimiser's state does not fit the networks")
        checkpoint.load_weights(self.surrogate, groups["surrogate"], where)
        self.at, self._best, self._optimiser_state = at, groups["best"], groups["optimiser"]

    def _taught(self, stage: int) -> nn.Module | None:
        """What a stage teaches; None after the last."""
        return (self.surrogate.student, self.surrogate.explanation, None)[stage]

    def _restore(self, optimiser: torch.optim.Optimizer) -> None:
        if not self._optimiser_state:
            return
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._optimiser_state.items():
            index, _, key = name.partition(".")
            values.setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict({"state": values, "param_groups": optimiser.state_dict()["param_groups"]})
        self._optimiser_state = {}


def _fits(state: dict[str, Tensor], taught: nn.Module) -> bool:
    """Whether tensors named index.key are Adam's, finite, and of the shapes of a module's parameters."""
    parameters = [p for p in taught.parameters() if p.requires_grad]
    wanted = {f"{index}.{key}": p.shape for index, p in enumerate(parameters) for key in ("exp_avg", "exp_avg_sq")}
    wanted |= {f"{index}.step": torch.Size() for index in range(len(parameters))}
    return all(
        wanted.get(name) == one.shape and bool(torch.isfinite(one).all()) for name, one in state.items()
    ) and all(f"{name.partition('.')[0]}.{key}" in state for name in state for key in ("exp_avg", "exp_avg_sq", "step"))


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Linear warm-up over a twentieth of the steps (50 at most), then half a cosine down to zero."""
    warm = max(min(steps // 20, 50), 1)
    return highest * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
