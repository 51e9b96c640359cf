"""From a target to an unfitted surrogate: which student, which levels, which classifier. JSON-able, so a file can say it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .classifier import LocalClassifier, find_classifier
from .errors import InputError, TargetError
from .levels import Level, Tapped, find_levels
from .student import BackboneTrunk, ConvTrunk, GraftedTrunk, Student, Trunk
from .surrogate import Surrogate
from .target import Target

StudentKind = Literal["auto", "grafted", "compact"]

# Values an image may have, half a GiB of them: no file can ask for more, and what can be fitted can be loaded.
MOST_VALUES = 2**27


@dataclass(frozen=True)
class Plan:
    """All that is needed to build a surrogate's networks anew.

    Attributes:
        student: "grafted" or "compact".
        image_shape: (C, H, W) it is fitted on.
        classes: K.
        levels: tapped in the target (grafted) or in the backbone; empty for our own small network.
        classifier: names of the target's layers that turn its deepest features into class scores; may be empty.
        exact: whether they give the target's own output.
        rectify: whether the features pass a ReLU before them.
        backbone: a torchvision model's name, "custom" for a module the user passed, None for our own small network.
        gradients: whether maps are made of the levels' sensitivity to the class as well.
    """

    student: Literal["grafted", "compact"]
    image_shape: tuple[int, int, int]
    classes: int
    levels: tuple[Level, ...] = ()
    classifier: tuple[str, ...] = ()
    exact: bool = False
    rectify: bool = False
    backbone: str | None = None
    gradients: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """The inverse of `as_dict`; wrong fields or types raise TypeError, ValueError or KeyError."""
        levels = tuple(
            Level(
                str(level["module"]), int(level["call"]), level["layout"], int(level["channels"]),
                (int(level["size"][0]), int(level["size"][1])), int(level["prefix"]),
            )
            for level in data["levels"]
        )  # fmt: skip
        channels, height, width = (int(side) for side in data["image_shape"])
        if data["student"] not in ("grafted", "compact") or any(
            level.layout not in ("maps", "channels_last", "tokens") for level in levels
        ):
            raise ValueError("unknown kind of student or level")
        if len(levels) > 64 or min(channels, height, width) < 1 or not 2 <= int(data["classes"]) <= 10**7:
            raise ValueError("sizes out of range")
        if channels * height * width > MOST_VALUES or any(
            min(level.channels, *level.size) < 1 or max(level.size) > MOST_VALUES or level.call < 0 or level.prefix < 0
            for level in levels
        ):
            raise ValueError("sizes out of range")
        backbone = data["backbone"]
        if backbone is not None and not isinstance(backbone, str):
            raise TypeError("backbone must be a name")
        gradients = data.get("gradients", False)  # files of 0.1 do not know of it
        if type(gradients) is not bool:
            raise TypeError("gradients must be true or false")
        return cls(
            data["student"], (channels, height, width), int(data["classes"]), levels,
            tuple(str(name) for name in data["classifier"]), bool(data["exact"]), bool(data["rectify"]), backbone,
            gradients,
        )  # fmt: skip

    def build(self, target: Target, backbone: nn.Module | None = None) -> Surrogate:
        """Networks with fresh weights, on the CPU.

        Args:
            target: whose layers a grafted student shares.
            backbone: where the plan says "custom".

        Raises:
            TargetError: the target lacks the layers the plan names.
        """
        classifier = None
        sizes = [level.size for level in self.levels]
        channels = [level.channels for level in self.levels]
        trunk: Trunk
        if self.student == "grafted":
            if not target.tappable or target.module is None:
                raise TargetError(
                    f"a grafted student needs the layers of a torch module, but {target.name} has none that can be tapped"
                )
            trunk = GraftedTrunk(Tapped(target.module, self.levels), target.log_probabilities)
            classifier = self._classifier(target.module)
        elif self.backbone is not None:
            trunk = BackboneTrunk(backbone if backbone is not None else named_backbone(self.backbone), self.levels)
        else:
            own = ConvTrunk(self.image_shape[0], self.image_shape[1:])
            trunk, channels = own, own.widths[-4:]
            sizes = own.sizes(self.image_shape[1:])
        student = Student(trunk, channels, self.classes, classifier)
        return Surrogate(student, sizes, self.image_shape, gradients=self.gradients)

    def _classifier(self, module: nn.Module) -> LocalClassifier | None:
        if not self.classifier:
            return None
        known = dict(module.named_modules())
        missing = [name for name in self.classifier if name not in known]
        if missing:
            raise TargetError(f"the model has no module {missing[0]!r}; was the surrogate fitted to another model?")
        return LocalClassifier([known[name] for name in self.classifier], self.exact, self.rectify)


def make_plan(
    target: Target,
    images: Tensor,
    classes: int,
    student: StudentKind = "auto",
    levels: Sequence[str] | None = None,
    backbone: str | nn.Module | None = None,
    differentiable: bool = True,
    gradients: bool = False,
) -> Plan:
    """Decide how a target's surrogate is made.

    Args:
        target: the user's model.
        images: at least two examples (B, C, H, W), as the model takes them.
        classes: K.
        student: "auto" grafts where the target's layers can be tapped and gradients flow, else builds a compact student.
        levels: names of the target's modules to tap.
        backbone: network for a compact student.
        differentiable: whether gradients flow through the target.
        gradients: whether maps are made of the levels' sensitivity to the class as well; a compact student has its own.
    """
    shape = (images.shape[1], images.shape[2], images.shape[3])
    if math.prod(shape) > MOST_VALUES:
        raise InputError(f"images of {shape} are too large: an image may have {MOST_VALUES:,} values")
    if student == "auto":
        student = "grafted" if target.tappable and differentiable and backbone is None else "compact"
    if student == "compact":
        if levels is not None:
            raise InputError("levels=[...] names layers for a grafted student; a compact student has its own")
        if backbone is None:
            return Plan("compact", shape, classes, gradients=gradients)
        module = named_backbone(backbone) if isinstance(backbone, str) else backbone
        was_training = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            found = find_levels(module, images.float())
        finally:
            for part, training in was_training:
                part.training = training
        return Plan(
            "compact",
            shape,
            classes,
            tuple(found),
            backbone=backbone if isinstance(backbone, str) else "custom",
            gradients=gradients,
        )
    if backbone is not None:
        raise InputError("backbone=... is for a compact student; a grafted one uses the target's own layers")
    if target.module is None or not target.tappable:
        raise InputError(
            f"student='grafted' needs a torch module whose layers can be tapped, got {target.name}; use student='compact'"
        )
    if not differentiable:
        raise InputError(
            f"student='grafted' needs gradients through the model, and {target.name} gives none; use student='compact'"
        )
    found = find_levels(target.module, images, levels, ask=lambda: target.run(images))
    classifier = find_classifier(target.module, found[-1], images, ask=lambda: target.run(images))
    names = {id(module): name for name, module in target.module.named_modules()}
    return Plan(
        "grafted", shape, classes, tuple(found),
        tuple(names[id(layer)] for layer in classifier.layers) if classifier else (),
        classifier.exact if classifier else False, classifier.rectify if classifier else False, gradients=gradients,
    )  # fmt: skip


def named_backbone(name: str) -> nn.Module:
    """A torchvision classification network by name, untrained: nothing is downloaded."""
    import torchvision  # slow to import, needed only here

    try:
        module: nn.Module = torchvision.models.get_model(name, weights=None)
    except ValueError as error:
        raise InputError(f"torchvision has no model {name!r}; torchvision.models.list_models() lists them") from error
    return module.eval()


def example_batch(images: Tensor) -> Tensor:
    """Two examples, also where only one image is at hand."""
    return images[:2] if len(images) > 1 else torch.cat([images, images])
