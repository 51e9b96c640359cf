"""AttentiveKDAttribution: the door. Fit once, then explain in one forward pass, wherever a Captum method stood."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from captum._utils.common import ExpansionTypes, _expand_additional_forward_args
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor, nn

from .agreement import Agreement
from .allocator import kept_buffers
from .checkpoint import place_of
from .classes import ClassesLike, class_of_each, classes_of_each
from .devices import device_of
from .errors import InputError, NotFittedError, TargetError, callers_level
from .explanation import Mask
from .export import export
from .fitted import Fitted, SavedFit, probe_answer, statistics_of
from .fitting import Fit, FitSettings
from .images import checked_images, survey
from .look import Look
from .objectives import Ask, Pixels
from .plan import Plan, StudentKind, example_batch, make_plan
from .refinement import refined
from .report import FitReport
from .student import StudentOutput
from .surrogate import Query, Surrogate
from .target import OutputKind, Target, grad_mode_kept, left_as_found, lent, own_randomness
from .trust import Trust, TrustWarning, trust_in

FAR = 6.0  # deviations, a mean over pixels; of a white sheet among photographs it is two or three

Self = TypeVar("Self", bound="AttentiveKDAttribution")


class _Asked(NamedTuple):
    images: Tensor
    extra: tuple[Any, ...]
    seen: StudentOutput
    answer: Tensor | None
    query: Query
    mask: Mask


class AttentiveKDAttribution(Attribution):  # type: ignore[misc]  # captum is untyped
    """Attentive knowledge distillation (after Lee & Kim, Sensors 2021, 21(4):1280) as a Captum attribution method.

    The model is distilled once into a surrogate: an attention-based student, and an explanation network that fuses the
    attention and class evidence of all its levels. From then on every explanation is one forward pass.

    Args:
        forward_func: the classifier, any callable from images (B, C, H, W) to class scores (B, K): a module in evaluation
            mode, a scripted or quantised module, or a function. It is left exactly as it was found.
        student: "auto" grafts the student on the model's own layers where they can be tapped and gradients flow, and else
            builds a compact student from outputs alone; "grafted" and "compact" insist.
        levels: names of the model's modules to tap (`model.named_modules()`), for a grafted student; None finds them.
        backbone: network of a compact student: a torchvision model's name (untrained), or a module of yours, which is
            then trained in place; None uses a small network of our own.
        gradients: whether maps are made of the class's gradient at the three deepest levels as well: more faithful, at the price of
            a backward pass through that part of the model for each class asked about. Such a surrogate cannot be exported.
        output: whether the model returns "logits" or "probabilities"; "auto" decides by its answers.
        max_images_per_second: bound on how fast images are sent to the model, for metered services.
        warn_below: a trust score in (0, 1]: `attribute` and `saliency` then measure their maps' trust, at the price of two more
            images to the model for each, and warn of images that fall below it (TrustWarning). None asks nothing.

    Examples:
        >>> attribution = AttentiveKDAttribution(model).fit(loader)  # loader yields images, or (images, anything)
        >>> maps = attribution.attribute(images, target=labels)  # as any Captum method
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        student: StudentKind = "auto",
        levels: Sequence[str] | None = None,
        backbone: str | nn.Module | None = None,
        gradients: bool = False,
        output: OutputKind = "auto",
        max_images_per_second: float | None = None,
        warn_below: float | None = None,
    ) -> None:
        super().__init__(forward_func)
        if not isinstance(student, str) or student not in ("auto", "grafted", "compact"):
            raise InputError(f"student must be 'auto', 'grafted' or 'compact', got {student!r}")
        self.warn_below = warn_below
        if levels is not None and not (
            isinstance(levels, (list, tuple)) and levels and all(isinstance(name, str) for name in levels)
        ):
            raise InputError(f"levels must be a list of module names, got {levels!r}")
        if backbone is not None and not isinstance(backbone, (str, nn.Module)):
            raise InputError(f"backbone must be a torchvision model's name or a module, got {type(backbone).__name__}")
        if not isinstance(gradients, bool):
            raise InputError(f"gradients must be True or False, got {gradients!r}")
        self._target = Target(forward_func, output, max_images_per_second)
        self._gradients = gradients
        self._student_kind, self._level_names, self._backbone = student, levels, backbone
        self._fitted: Fitted | None = None

    # -- fitting -----------------------------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        """Whether there is a surrogate to ask."""
        return self._fitted is not None

    def __repr__(self) -> str:
        """The model, and what was fitted to it."""
        what = "not fitted" if self._fitted is None else f"{self.plan.student} student, {self.plan.classes} classes"
        return f"{type(self).__name__}({self._target.name}, {what})"

    @property
    def warn_below(self) -> float | None:
        """The trust score below which maps come with a warning; None for none."""
        return self._warn_below

    @warn_below.setter
    def warn_below(self, least: float | None) -> None:
        if least is not None and not (isinstance(least, (int, float)) and 0 < least <= 1):
            raise InputError(f"warn_below must be a trust score, above 0 and at most 1, got {least!r}")
        self._warn_below = least

    @property
    def pixels(self) -> Pixels:
        """Mean and deviation per channel of the images it was fitted on, as the model takes them, each (C,)."""
        return self._ensured().pixels

    @property
    def report_(self) -> FitReport | None:
        """What the fit told of itself; None before a fit."""
        return None if self._fitted is None else self._fitted.report

    @property
    def surrogate(self) -> Surrogate:
        """The fitted networks, to be looked at."""
        return self._ensured().surrogate

    @property
    def plan(self) -> Plan:
        """Which student was built, and which of the model's modules it taps."""
        return self._ensured().plan

    @grad_mode_kept
    def fit(
        self: Self,
        loader: Iterable[Any],
        *,
        val_loader: Iterable[Any] | None = None,
        image_key: Any = None,
        distil_steps: int | None = FitSettings.distil_steps,
        explain_steps: int = FitSettings.explain_steps,
        batch_size: int = FitSettings.batch_size,
        learning_rate: float = FitSettings.learning_rate,
        patience: int = FitSettings.patience,
        seed: int = FitSettings.seed,
        precision: str = FitSettings.precision,
        resume_from: str | os.PathLike[str] | None = None,
        accelerator: Any = None,
        progress: bool | None = None,
    ) -> Self:
        """Distil the model into a surrogate. Labels are not needed.

        Args:
            loader: a DataLoader, or any iterable that can be gone through repeatedly, of images (B, C, H, W) as the model
                takes them, of tuples or lists that begin with the images, or of mappings (then `image_key`).
            val_loader: images for the report and for early stopping; None holds out a tenth of the loader's images (256
                at most), chosen by their content. Give one where the loader augments at random.
            image_key: where a batch holds the images: a key of a mapping, or a place in a tuple.
            distil_steps: of stage 1 (the student learns the model's outputs) at most; None takes 100 for a grafted student and
                500 for a compact one.
            explain_steps: of stage 2 (the explanation network learns under a frozen judge) at most.
            batch_size: images a step, whatever the loader's batches are; three times as many while a compact student is distilled.
            learning_rate: the highest.
            patience: checks on held-out images without a better score before a stage stops.
            seed: the same seed, images and hardware give the same weights.
            precision: "auto", "fp32" or "bf16".
            resume_from: a file to which the state is saved as the fit goes on. Where it exists already, the fit goes on
                from it, to the weights it would have had without the interruption.
            accelerator: an `accelerate.Accelerator` of yours, for several GPUs or machines; its `gradient_accumulation_steps`
                is how many batches make one step.
            progress: whether to show progress bars; None shows them on a terminal.

        Returns:
            self, with `report_` set. Where an error is raised, self is as it was before.

        Raises:
            LoaderError: the loader gives nothing, or something that is not a batch of images.
            TargetError: the model is in training mode, behaves randomly, or its output is not (B, K).
            CheckpointError: `resume_from` is damaged or belongs to another fit.
        """
        settings = FitSettings(
            distil_steps, explain_steps, batch_size, learning_rate, patience, seed=seed, precision=precision
        )
        target, own = self._target.fresh(), self._backbone if isinstance(self._backbone, nn.Module) else None
        state = None if resume_from is None else place_of(resume_from)
        started = time.monotonic()
        with (
            left_as_found(self.forward_func),
            lent(own),
            own_randomness(seed),
            kept_buffers(target.on_cpu),
        ):
            target.check_mode()
            found = survey(loader, image_key, val_loader)
            device = target.device or found.device
            examples = example_batch(found.held_out.to(device, found.dtype))
            target.dtype = found.dtype
            differentiable = target.examine(examples)
            target.classes = classes = target.raw(examples).shape[1]
            plan = make_plan(
                target, examples, classes, self._student_kind, self._level_names, self._backbone, differentiable,
                self._gradients,
            )  # fmt: skip
            surrogate = plan.build(target, own)
            probe = probe_answer(target, plan, found.mean, found.deviation, device)
            fit = Fit(
                surrogate, target, plan, found, loader, differentiable, settings,
                probe=probe, image_key=image_key, accelerator=accelerator, progress=progress,
                state=state, started=started,
            )  # fmt: skip
            report = fit.run()
            surrogate.eval().requires_grad_(False)
        _warn_of_doubt(report)
        self._target = target
        self._fitted = Fitted(surrogate, plan, statistics_of(found), probe, report)
        return self

    # -- explaining --------------------------------------------------------------------------------------------------

    @log_usage()  # type: ignore[untyped-decorator]  # captum is untyped; NoiseTunnel needs the __wrapped__ it leaves
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: ClassesLike = None,
        additional_forward_args: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Saliency of every pixel for a class, in one forward pass.

        Args:
            inputs: images (B, C, H, W) as the model takes them, or a 1-tuple of them. Sizes other than the fitted one work
                where the networks allow.
            target: the class to explain: an int, a 0-d or 1-element tensor or a tuple of one int for all images; a tensor,
                array, list of ints or list of tuples for each. None explains the class the model predicts (a compact student
                then asks the model).
            additional_forward_args: handed to the model after the images.

        Returns:
            Attributions of exactly the inputs' shape and dtype, in [0, 1], the same in every channel, contiguous; a 1-tuple
            for a 1-tuple.

        Raises:
            NotFittedError: neither `fit` nor `load` was called.
            InputError: images or classes cannot be used. A `target` of the wrong length also is an AssertionError.
        """
        images, was_tuple = _unpacked(inputs)
        mask = self.saliency(images, target, additional_forward_args=additional_forward_args)
        attributions = mask.to(images.dtype).repeat(1, images.shape[1], 1, 1)
        return (attributions,) if was_tuple else attributions

    def attribute_future(self, *args: Any, **kwargs: Any) -> None:
        """Not offered, as by Captum's own methods."""
        raise NotImplementedError("attribute_future is not implemented for AttentiveKDAttribution; use attribute")

    @grad_mode_kept
    def saliency(
        self,
        inputs: Tensor,
        target: ClassesLike = None,
        versus: ClassesLike = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """The saliency mask (B, 1, H, W), float32, in [0, 1].

        Args:
            inputs: images (B, C, H, W).
            target: as in `attribute`.
            versus: a rival class, given as `target` is: the mask then tells why `target` rather than `versus`.
            additional_forward_args: handed to the model after the images.
        """
        with torch.no_grad():
            asked = self._asked(inputs, target, versus, additional_forward_args)
            if self.warn_below is not None:
                _warn_of_distrust(self._trust(asked), self.warn_below)
            return _shown(asked.mask, asked.images)

    @grad_mode_kept
    def saliency_all(
        self,
        inputs: Tensor,
        targets: Sequence[int] | Tensor | None = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Masks for many classes from one pass: (B, Q, H, W), float32, in [0, 1].

        Args:
            inputs: images (B, C, H, W).
            targets: class indices for all images (Q,), or for each (B, Q); None for all K classes.
            additional_forward_args: handed to the model after the images.
        """
        surrogate, images = self._ready(inputs)
        wanted = classes_of_each(targets, len(images), self.classes).to(images.device)
        with torch.no_grad():
            seen, _ = self._see(surrogate, surrogate.see, images, _extra(additional_forward_args))
            return _shown(_sound(surrogate.explain(images, seen, Query(wanted)), images), images)

    @grad_mode_kept
    def agreement(self, inputs: Tensor, additional_forward_args: Any = None) -> Agreement:
        """How far surrogate and model differ on each image: where they do, distrust the map. Asks the model once."""
        surrogate, images = self._ready(inputs)
        extra = _extra(additional_forward_args)
        with torch.no_grad():
            seen, answer = self._see(surrogate, surrogate.student, images, extra)
            return _compared(self._answer(answer, images, extra), seen)

    @grad_mode_kept
    def trust(
        self,
        inputs: Tensor,
        target: ClassesLike = None,
        versus: ClassesLike = None,
        additional_forward_args: Any = None,
    ) -> Trust:
        """How far the map of each image can be trusted; asks the model about each image and two masked versions of it.

        Args:
            inputs: images (B, C, H, W).
            target: as in `attribute`.
            versus: as in `saliency`.
            additional_forward_args: handed to the model after the images.
        """
        with torch.no_grad():
            return self._trust(self._asked(inputs, target, versus, additional_forward_args))

    @grad_mode_kept
    def refine(
        self,
        inputs: Tensor,
        target: ClassesLike = None,
        versus: ClassesLike = None,
        additional_forward_args: Any = None,
        *,
        steps: int = 20,
    ) -> Tensor:
        """The saliency mask (B, 1, H, W) after some steps of optimisation on these very images: slower, for images that need it.

        A step asks the model (where gradients flow through it, else the student) for the gradient of two masked versions of each
        image. Gradients are taken with regard to images alone; the surrogate stays as it is.

        Args:
            inputs: images (B, C, H, W).
            target: as in `attribute`.
            versus: as in `saliency`.
            additional_forward_args: handed to the model after the images.
            steps: how many; 0 gives the map of `saliency`.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise InputError(f"steps must be a whole number, at least 0, got {steps!r}")
        fitted = self._ensured()
        with left_as_found(self.forward_func):
            with torch.no_grad():
                asked = self._asked(inputs, target, versus, additional_forward_args)
            mask = refined(
                asked.mask, asked.images, asked.query, self._judge(asked.extra, times=2), fitted.pixels, steps
            )
        return _shown(_sound(mask, asked.images), asked.images)

    @grad_mode_kept
    def look(self, inputs: Tensor, target: ClassesLike = None, additional_forward_args: Any = None) -> Look:
        """What the levels attend to and say of a class, and the model's probabilities: what figures are drawn from.

        Args:
            inputs: images (B, C, H, W).
            target: as in `attribute`.
            additional_forward_args: handed to the model after the images.
        """
        surrogate, images = self._ready(inputs)
        extra = _extra(additional_forward_args)
        wanted = class_of_each(target, len(images), self.classes)
        with torch.no_grad():
            seen, answer = self._see(surrogate, surrogate.student, images, extra)
            probabilities = self._answer(answer, images, extra).float().exp()
            wanted = (probabilities.argmax(dim=1) if wanted is None else wanted).to(images.device)
            evidence, _ = surrogate.student.testimony(seen, wanted[:, None], None)
        return Look(wanted, probabilities, seen.attention, tuple(evidence), self._ensured().pixels.mean)

    @property
    def classes(self) -> int:
        """K, the number of classes the model answers with."""
        return self.plan.classes

    @property
    def device(self) -> torch.device:
        """Where the surrogate is; images must be there too."""
        return self.surrogate.student.voices.device

    @property
    def multiplies_by_inputs(self) -> bool:
        """False: maps are saliency, not contributions."""
        return False

    def has_convergence_delta(self) -> bool:
        """False: the maps do not add up to the model's output, so there is no delta."""
        return False

    @classmethod
    def get_name(cls) -> str:
        """The method's name, for figures and tables."""
        return "Attentive Knowledge Distillation"

    # -- moving and keeping ------------------------------------------------------------------------------------------

    def to(self: Self, device: str | torch.device) -> Self:
        """Move the surrogate. The model is yours: move it yourself.

        Raises:
            InputError: there is no such device here.
        """
        self.surrogate.to(device_of(device))
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the surrogate to a safetensors file; the model itself is not in it.

        Raises:
            NotFittedError: there is nothing to save.
            OSError: the file cannot be written; an older file of that name is left as it was.
        """
        self._ensured().save(path, self._target)

    @grad_mode_kept
    def export(self, path: str | os.PathLike[str], dynamic_batch: bool = True) -> None:
        """Write model and surrogate as one ONNX graph: an answer and its map from one pass, without Python.

        Its inputs are `images` (B, C, H, W), float32, of the size it was fitted on, and `target` (B,), int64, where -1 stands
        for the most probable class. Its outputs are `scores`, log-probabilities (B, K), and `saliency` (B, 1, H, W). Of a compact
        student they are the student's scores: the model is not in that graph.

        Args:
            path: of the file.
            dynamic_batch: whether B is open; else it is two.

        Raises:
            NotFittedError: there is nothing to export.
            MissingExtraError: `onnx` and `onnxscript` (the extra "onnx") are missing.
            OSError: the file cannot be written; an older file of that name is left as it was.
        """
        export(self._ensured(), self._target, path, dynamic_batch)

    @classmethod
    @grad_mode_kept
    def load(
        cls: type[Self],
        path: str | os.PathLike[str],
        forward_func: Callable[..., Any],
        *,
        device: str | torch.device | None = None,
        backbone: nn.Module | None = None,
        max_images_per_second: float | None = None,
        warn_below: float | None = None,
        check_target: bool = True,
    ) -> Self:
        """Read a surrogate and put it on its model.

        Args:
            path: what `save` wrote.
            forward_func: the model it was fitted to.
            device: where to put the surrogate; None puts it where the model is.
            backbone: the network of a compact student that was built on a module of yours; its weights are overwritten.
            max_images_per_second: as in the constructor.
            warn_below: as in the constructor.
            check_target: ask the model about two fixed images, and refuse it if it answers otherwise than the model that
                the surrogate was fitted to. A surrogate on another model explains the wrong thing.

        Raises:
            CheckpointError: the file is damaged, foreign, too new, or belongs to another model.
        """
        saved = SavedFit.read(path)
        plan = saved.plan
        if backbone is not None and not isinstance(backbone, nn.Module):
            raise InputError(f"backbone must be the module that was fitted with, got {type(backbone).__name__}")
        if plan.backbone == "custom" and backbone is None:
            raise InputError(
                f"{saved.where} was fitted with a backbone of yours; pass the same network: load(..., backbone=...)"
            )
        loaded = cls(forward_func, student=plan.student, backbone=backbone or plan.backbone,
                     gradients=plan.gradients, output=saved.output,
                     max_images_per_second=max_images_per_second, warn_below=warn_below)  # fmt: skip
        loaded._target.dtype = saved.dtype
        loaded._target.check_mode()
        loaded._fitted = saved.put_on(loaded._target, backbone, device, check_target)
        return loaded

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _ensured(self) -> Fitted:
        if self._fitted is None:
            raise NotFittedError(
                "this AttentiveKDAttribution has no surrogate yet: "
                "call fit(loader) first, or AttentiveKDAttribution.load(path, model)"
            )
        return self._fitted

    def _ready(self, inputs: Tensor) -> tuple[Surrogate, Tensor]:
        """The surrogate, and the images checked against it."""
        fitted = self._ensured()
        images = checked_images(inputs, fitted.plan.image_shape[0])
        if images.device != self.device:
            raise InputError(
                f"images are on {images.device}, the surrogate is on {self.device}; move one of them (attribution.to(...))"
            )
        self._target.check_mode()
        pixels = fitted.pixels
        away = (images[..., ::4, ::4].float() - pixels.mean[:, None, None]) / pixels.deviation[:, None, None]
        far = float(away.abs().mean())
        if far > FAR:
            warnings.warn(
                f"the images' pixels lie {far:.0f} deviations from the mean of those that the surrogate was fitted on; are they "
                "normalised as those were?",
                stacklevel=callers_level(),
            )
        return fitted.surrogate, images

    def _see(
        self, surrogate: Surrogate, see: Callable[..., Any], images: Tensor, extra: tuple[Any, ...]
    ) -> tuple[StudentOutput, Tensor | None]:
        """What the student sees in images, by its plain pass or by that which maps are made of."""
        try:
            seen, answer = see(images, *extra) if surrogate.student.grafted else see(images.float())
        except RuntimeError as error:
            fitted = self.plan.image_shape
            if tuple(images.shape[1:]) == fitted or isinstance(error, (TargetError, NotFittedError)):
                raise
            raise InputError(
                f"images of {tuple(images.shape[1:])} do not pass through the networks, which were fitted on {fitted}: {error}"
            ) from error
        _refuse_overflow(images, seen.logits)
        return seen, answer

    def _asked(self, inputs: Tensor, target: ClassesLike, versus: ClassesLike, additional_forward_args: Any) -> _Asked:
        """What is asked about images, what was seen in them, and the mask that answers."""
        surrogate, images = self._ready(inputs)
        count, extra = len(images), _extra(additional_forward_args)
        wanted = class_of_each(target, count, self.classes, "target")
        rivals = class_of_each(versus, count, self.classes, "versus")
        seen, answer = self._see(surrogate, surrogate.see, images, extra)
        if wanted is None:
            answer = self._answer(answer, images, extra)
            wanted = answer.argmax(dim=1)
        if rivals is not None and bool((same := rivals.to(wanted.device) == wanted).any()):
            found = int(wanted[same][0])
            raise InputError(f"versus names the class that is explained, {found}; a rival must be another class")
        rivals = None if rivals is None else rivals.to(images.device)[:, None]
        query = Query(wanted.to(images.device)[:, None], rivals)
        mask = _sound(surrogate.explain(images, seen, query), images)
        return _Asked(images, extra, seen._replace(recorded=None), answer, query, mask)  # what was recorded is large

    def _trust(self, asked: _Asked) -> Trust:
        whole = self._answer(asked.answer, asked.images, asked.extra)
        agreement = _compared(whole, asked.seen)
        return trust_in(
            asked.mask, asked.images, asked.query,
            lambda shown: self._target.log_probabilities(shown, *asked.extra),
            self._ensured().pixels, whole, agreement,
        )  # fmt: skip

    def _judge(self, extra: tuple[Any, ...], times: int) -> Ask:
        """Who is asked for gradients, about so many versions of each image: the model, where they flow through it."""
        fitted = self._ensured()
        student = fitted.surrogate.student
        if student.grafted or (fitted.report is not None and fitted.report.judge == "target"):
            repeated = _expand_additional_forward_args(extra, times, ExpansionTypes.repeat_interleave)
            return lambda images: self._target.log_probabilities(images, *repeated)
        return lambda images: student(images)[0].logits.log_softmax(dim=1)

    def _answer(self, known: Tensor | None, images: Tensor, extra: tuple[Any, ...]) -> Tensor:
        """The model's log-probabilities (B, K): at hand from a grafted pass, else asked for."""
        return self._target.log_probabilities(images, *extra) if known is None else known


def _compared(answer: Tensor, seen: StudentOutput) -> Agreement:
    """The model's log-probabilities (B, K) beside the student's."""
    return Agreement.between(answer, seen.logits.float().log_softmax(dim=1))


def _refuse_overflow(images: Tensor, *answers: Tensor) -> None:
    """Of images that no model takes, networks make NaN."""
    if not all(bool(torch.isfinite(answer).all()) for answer in answers):
        raise InputError(
            f"the networks overflow on images with values up to {float(images.abs().max()):.3g}; "
            "give them as the model takes them"
        )


def _sound(mask: Mask, images: Tensor) -> Mask:
    """The mask, if it holds numbers."""
    _refuse_overflow(images, mask.logits, mask.extent)
    return mask


def _shown(mask: Mask, images: Tensor) -> Tensor:
    """Saliency masks (B, Q, H, W) at the images' size."""
    return mask.saliency((images.shape[-2], images.shape[-1]))


def _unpacked(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, bool]:
    if not isinstance(inputs, tuple):
        return inputs, False
    if len(inputs) != 1:
        raise InputError(f"one tensor of images is explained at a time, got a tuple of {len(inputs)}")
    return inputs[0], True


def _extra(additional_forward_args: Any) -> tuple[Any, ...]:
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def _warn_of_distrust(trust: Trust, least: float) -> None:
    doubtful = (trust.score < least).nonzero()[:, 0].tolist()
    if doubtful:
        some = ", ".join(f"{index} ({float(trust.score[index]):.2f})" for index in doubtful[:8])
        more = f" and {len(doubtful) - 8} more" if len(doubtful) > 8 else ""
        warnings.warn(
            f"maps of {len(doubtful)} of {len(trust.score)} images have a trust score below {least:g}: image {some}{more}",
            TrustWarning,
            stacklevel=callers_level(),
        )


def _warn_of_doubt(report: FitReport) -> None:
    """Say so where a fit is too small or too poor for its maps to be used."""
    if report.images < 50:
        warnings.warn(
            f"fitted on {report.images} images only; maps need hundreds to be of use", stacklevel=callers_level()
        )
    if report.agreement < 0.8:
        warnings.warn(
            f"the student names the model's class on only {report.agreement:.0%} of the held-out images: its maps explain another "
            "prediction; fit on more images, or longer (distil_steps=)",
            stacklevel=callers_level(),
        )
