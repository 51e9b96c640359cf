"""The methods of a study, each a few declarative lines. One of yours: `module:object`, a `Method` or a function of a `Subject`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.objectives import Pixels

from . import explainers, perturbing
from .explainers import Explainer
from .subject import ContrastSurrogate, Subject

Kind = Literal["ours", "gradients", "class activation", "perturbation", "optimised", "control"]


@dataclass(frozen=True)
class Method:
    """A method of a study.

    Attributes:
        name: on the command line and in tables.
        kind: group in tables.
        build: from the subject, and the settings by keyword, to an explainer.
        settings: what its maps depend on beside model and image; part of the cache's key.
        learned: whether its maps also depend on our surrogate.
        at_once: whether it must see all images of a study together, so that their maps depend on all of them.
        of_data: whether its maps depend on the data's mean and deviation.
        default: whether it is compared unless others are named.
        source: of a user's own: a digest of its code, so that maps of older code are not taken for its own.
    """

    name: str
    kind: Kind
    build: Callable[..., Explainer]
    settings: dict[str, Any] = field(default_factory=dict)
    learned: bool = False
    at_once: bool = False
    of_data: bool = False
    default: bool = True
    source: str = ""

    def on(self, subject: Subject) -> Explainer:
        """The explainer of a subject's model."""
        return self.build(subject, **self.settings)


def for_classes(method: Method, count: int) -> Method:
    """The method asked for the maps of classes 0 to `count` - 1 of every image: in one pass if it can, else one after another."""

    def build(subject: Subject, **settings: Any) -> Explainer:
        surrogate = subject.surrogate
        if method.build is _ours and isinstance(surrogate, AttentiveKDAttribution):
            return lambda images, _: surrogate.saliency_all(images, targets=list(range(count)))
        explain = method.build(subject, **settings)
        return lambda images, classes: torch.cat(
            [explain(images, torch.full_like(classes, index)) for index in range(count)], dim=1
        )

    return replace(method, name=f"{method.name}, {count} classes", build=build)


def _of_model(make: Callable[..., Explainer]) -> Callable[..., Explainer]:
    return lambda subject, **settings: make(subject.model, **settings)


def _of_layer(make: Callable[..., Explainer]) -> Callable[..., Explainer]:
    def build(subject: Subject, **settings: Any) -> Explainer:
        return make(subject.model, _layer(subject), **settings)

    return build


def _of_package(name: str) -> Callable[..., Explainer]:
    def build(subject: Subject, **settings: Any) -> Explainer:
        return explainers.pytorch_grad_cam(name, subject.model, _layer(subject), **settings)

    return build


def _layer(subject: Subject) -> nn.Module:
    if subject.layer is None:
        raise ValueError("the model has no layer with a spatial extent; name one with --layer")
    return subject.layer


def _fitted(subject: Subject) -> AttentiveKDAttribution | ContrastSurrogate:
    if subject.surrogate is None:
        raise ValueError("our method needs a fitted surrogate: fit one, or name its file with --surrogate")
    return subject.surrogate


def _ours(subject: Subject) -> Explainer:
    surrogate = _fitted(subject)
    return lambda images, classes: surrogate.saliency(images, target=classes)


def _refined(subject: Subject, steps: int) -> Explainer:
    surrogate = _fitted(subject)
    return lambda images, classes: surrogate.refine(images, target=classes, steps=steps)


def _mean_of_ours(subject: Subject) -> Explainer:
    ours = _ours(subject)

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        parts = [ours(x, t) for x, t in zip(images.split(subject.batch), classes.split(subject.batch), strict=True)]
        return torch.cat(parts).mean(dim=0, keepdim=True).expand(len(images), -1, -1, -1).contiguous()

    return explain


def _occlusion(subject: Subject, window: float, stride: float) -> Explainer:
    def explain(images: Tensor, classes: Tensor) -> Tensor:
        side = min(images.shape[-2:])
        sizes = (max(round(window * side), 1), max(round(stride * side), 1))
        return explainers.occlusion(subject.model, *sizes)(images, classes)

    return explain


def _optimised(subject: Subject, **settings: Any) -> Explainer:
    pixels = Pixels(subject.mean.to(subject.device), subject.deviation.to(subject.device))
    return perturbing.optimised_masks(subject.model, pixels, **settings)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("ours", "ours", _ours, learned=True),
        *(
            Method(f"refined-{steps}", "ours", _refined, {"steps": steps}, default=False, learned=True)
            for steps in (5, 10, 20, 40)
        ),
        Method("saliency", "gradients", _of_model(explainers.saliency)),
        Method("input-x-gradient", "gradients", _of_model(explainers.input_x_gradient)),
        Method("integrated-gradients", "gradients", _of_model(explainers.integrated_gradients), {"steps": 50}),
        Method("smooth-grad", "gradients", _of_model(explainers.smooth_grad), {"samples": 25, "noise": 0.15}),
        Method("gradient-shap", "gradients", _of_model(explainers.gradient_shap), {"samples": 20}),
        Method("deep-lift", "gradients", _of_model(explainers.deep_lift), default=False),
        Method("guided-backprop", "gradients", _of_model(explainers.guided_backprop)),
        Method("guided-grad-cam", "gradients", _of_layer(explainers.guided_grad_cam)),
        Method("grad-cam", "class activation", _of_layer(explainers.grad_cam)),
        Method("grad-cam++", "class activation", _of_package("GradCAMPlusPlus")),
        Method("layer-cam", "class activation", _of_package("LayerCAM")),
        Method("eigen-cam", "class activation", _of_package("EigenCAM")),
        Method("score-cam", "class activation", _of_package("ScoreCAM"), {"batch_size": 50}, default=False),
        Method("occlusion", "perturbation", _occlusion, {"window": 1 / 8, "stride": 1 / 16}),
        Method(
            "kernel-shap",
            "perturbation",
            _of_model(explainers.kernel_shap),
            {"samples": 300, "count": 50},
            default=False,
        ),
        Method("lime", "perturbation", _of_model(explainers.lime), {"samples": 300, "count": 50}, default=False),
        Method("rise", "perturbation", _of_model(perturbing.rise), {"masks": 1000}, default=False),
        Method("rise-4000", "perturbation", _of_model(perturbing.rise), {"masks": 4000}, default=False),
        Method("optimised", "optimised", _optimised, {"steps": 60, "resolution": 28}, default=False, of_data=True),
        Method("blurred-grad-cam", "control", _of_layer(explainers.blurred_grad_cam)),
        Method("mean-map", "control", _mean_of_ours, learned=True, at_once=True),
        Method("edges", "control", lambda subject: explainers.edges),
        Method("centre", "control", lambda subject: explainers.centre_prior),
        Method("random", "control", lambda subject: explainers.random_map),
    )
}


def find_method(name: str) -> Method:
    """A method by its name, or one of the user's as `module:object`.

    Raises:
        ValueError: there is none of that name; the nearest names are told.
    """
    found, source = named("method", name, METHODS)
    if isinstance(found, Method):
        return replace(found, source=source) if source else found
    if callable(found):
        return Method(name, "perturbation", found, source=source)
    raise ValueError(f"{name} is a {type(found).__name__}; a Method, or a function of a Subject, was expected")


def named(what: str, name: str, known: Mapping[str, Any]) -> tuple[Any, str]:
    """What is known by that name, or what `module:object` names; and in the latter case a digest of its code, else "".

    Raises:
        ValueError: there is none; the nearest names are told.
    """
    if name in known:
        return known[name], ""
    if ":" in name:
        return imported(name), code_of(name)
    raise ValueError(unknown(what, name, list(known)))


def imported(name: str) -> Any:
    """What `module:object` names.

    Raises:
        ValueError: there is no such module or object.
    """
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error


def code_of(name: str) -> str:
    """A digest of the file of the module in `module:object`; empty where there is none."""
    file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


def unknown(what: str, name: str, known: list[str]) -> str:
    """What to say of a name that is not known."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    some = f"{', '.join(known[:30])}{' and others' if len(known) > 30 else ''}"
    return f"there is no {what} {name!r}{meant or '.'} Known: {some}"
