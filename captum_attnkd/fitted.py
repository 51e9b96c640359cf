"""A fitted surrogate as one thing: what a fit leaves, what a file holds, and how the one becomes the other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint
from .devices import device_of
from .errors import AttnKDError, CheckpointError, TargetError
from .images import FLOATING, Survey
from .objectives import Pixels
from .plan import Plan
from .report import FitReport
from .surrogate import Query, Surrogate
from .target import OutputKind, Target, lent, own_randomness


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves, or a file brings: all of it, or nothing.

    Attributes:
        surrogate: in evaluation mode, its parameters frozen.
        plan: how it was built.
        statistics: of the training images: "mean" and "deviation" per channel, and "dtype".
        probe: the model's answer to two fixed images, log-probabilities (2, K).
        report: of the fit; None where a file has none.
    """

    surrogate: Surrogate
    plan: Plan
    statistics: dict[str, Any]
    probe: Tensor
    report: FitReport | None

    @property
    def pixels(self) -> Pixels:
        """Mean and deviation per channel, where the surrogate is."""
        device = self.surrogate.student.voices.device
        return Pixels(*(torch.tensor(self.statistics[key], device=device) for key in ("mean", "deviation")))

    def save(self, path: str | os.PathLike[str], target: Target) -> None:
        """Write it to a safetensors file; of the target only what tells whether another is the same.

        Raises:
            OSError: the file cannot be written; an older file of that name is left as it was.
        """
        tensors = {f"surrogate.{name}": tensor for name, tensor in self.surrogate.state_dict().items()}
        tensors["probe"] = self.probe
        about = {
            "plan": self.plan.as_dict(),
            "architecture": checkpoint.architecture(target) if self.plan.student == "grafted" else [],
            "target": target.name,
            "output": target.output,
            "data": self.statistics,
            "report": None if self.report is None else self.report.as_dict(),
            "torch": torch.__version__,
        }
        checkpoint.write(path, "surrogate", tensors, about)


@dataclass(frozen=True)
class SavedFit:
    """A file's content, read and checked as far as that goes without the model it belongs to."""

    where: str
    weights: dict[str, Tensor]
    probe: Tensor
    plan: Plan
    output: OutputKind
    statistics: dict[str, Any]
    dtype: torch.dtype
    report: FitReport | None
    architecture: Any
    target: str

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SavedFit:
        """What `Fitted.save` wrote.

        Raises:
            CheckpointError: the file is damaged, foreign or too new.
        """
        tensors, about = checkpoint.read(path, "surrogate")
        where = str(path)
        try:
            plan, output, data = Plan.from_dict(about["plan"]), about["output"], about["data"]
            statistics: dict[str, Any] = {key: [float(value) for value in data[key]] for key in ("mean", "deviation")}
            pixels = [torch.tensor(values) for values in statistics.values()]
            if any(len(one) != plan.image_shape[0] or not bool(torch.isfinite(one).all()) for one in pixels):
                raise ValueError("statistics do not fit the images")
            statistics["dtype"] = data["dtype"]
            dtype = {str(kind).removeprefix("torch."): kind for kind in FLOATING}[data["dtype"]]
            report = None if about["report"] is None else FitReport.from_dict(about["report"])
            probe = tensors.pop("probe")
            if output not in ("logits", "probabilities"):
                raise ValueError("unknown kind of output")
            expected = about["architecture"]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
            raise CheckpointError(
                f"{where}: its metadata is not complete or not sound: {type(error).__name__}: {error}"
            ) from error
        weights = {name.removeprefix("surrogate."): tensor for name, tensor in tensors.items()}
        return cls(where, weights, probe, plan, output, statistics, dtype, report, expected, str(about.get("target")))

    def put_on(
        self, target: Target, backbone: nn.Module | None, device: str | torch.device | None, check_target: bool
    ) -> Fitted:
        """The surrogate on its model.

        Args:
            target: the model; nothing of it is changed.
            backbone: where the plan says "custom".
            device: where to put the surrogate; None puts it where the model is.
            check_target: whether to ask the model about two fixed images and refuse it if it answers otherwise than it did.

        Raises:
            CheckpointError: the file belongs to another model.
            InputError: there is no such device here.
        """
        plan, where = self.plan, self.where
        if check_target and plan.student == "grafted" and checkpoint.architecture(target) != self.architecture:
            raise CheckpointError(
                f"{where} was fitted to a {self.target} of another architecture than this {target.name}; "
                "load it on its own model (check_target=False to insist)"
            )
        place = device_of(device) if device is not None else (target.device or torch.device("cpu"))
        checkpoint.check_fit(plan, target, backbone, self.weights, where)
        try:
            with own_randomness(0):
                surrogate = plan.build(target, backbone)
        except (TargetError, RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise CheckpointError(f"{where} does not fit this {target.name}: {error}") from error
        mean, deviation = (torch.tensor(self.statistics[key]) for key in ("mean", "deviation"))
        try:
            answer = probe_answer(target, plan, mean, deviation, target.device or place)
        except AttnKDError:
            raise
        except RuntimeError as error:
            raise CheckpointError(
                f"{where} is for images {plan.image_shape}, on which this {target.name} fails: {error}"
            ) from error
        if answer.shape[1] != plan.classes:  # not even to insist on
            raise CheckpointError(
                f"{where} is for {plan.classes} classes, this {target.name} answers with {answer.shape[1]}"
            )
        if check_target:
            checkpoint.check_answer(answer, self.probe, where, target.name)
        target.classes = plan.classes
        with lent(backbone):
            surrogate = surrogate.to(place).eval().requires_grad_(False)
            if place == (target.device or place) and place.type != "meta":
                self._try(surrogate, checkpoint.probe_images(plan.image_shape, mean, deviation).to(place), target)
            checkpoint.load_weights(surrogate, self.weights, where)  # at last: those of a backbone are overwritten
        return Fitted(surrogate, plan, self.statistics, self.probe, self.report)

    def _try(self, surrogate: Surrogate, images: Tensor, target: Target) -> None:
        """One pass, so that what the file tells of levels and layers is found to fit now, and not when maps are asked for."""
        try:
            with torch.no_grad():
                seen, _ = surrogate.see(images)
                surrogate.explain(images, seen, Query(torch.zeros(2, 1, dtype=torch.int64, device=images.device)))
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise CheckpointError(f"{self.where} does not fit this {target.name}: {error}") from error


def statistics_of(found: Survey) -> dict[str, Any]:
    """What a file keeps of the training images."""
    return {
        "mean": found.mean.tolist(),
        "deviation": found.deviation.tolist(),
        "dtype": str(found.dtype).removeprefix("torch."),
    }


def probe_answer(target: Target, plan: Plan, mean: Tensor, deviation: Tensor, device: torch.device) -> Tensor:
    """The model's log-probabilities (2, K) for two fixed images: by them a file knows its model again."""
    with torch.no_grad():
        images = checkpoint.probe_images(plan.image_shape, mean, deviation)
        return target.log_probabilities(images.to(device)).cpu()
