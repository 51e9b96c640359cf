"""The attention-based student: mimics the target, with attention and class evidence at every level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attended, LevelAttention
from .classifier import LocalClassifier
from .levels import Level, Tapped
from .sensitivity import Recorded

Context = Callable[[], AbstractContextManager[Any]]


class StudentOutput(NamedTuple):
    """What one pass of the student gives; levels run from the finest to the deepest.

    Attributes:
        scaled: features per level (B, C_l, h_l, w_l), zero mean and unit deviation per channel over the training images.
        attended: the same levels under attention, as the heads see them.
        attention: attention maps per level (B, 1, h_l, w_l) in (0, 1).
        level_logits: each level's own class scores (B, K).
        logits: the student's class scores (B, K).
        recorded: the pass itself, where it was asked to be recorded, for the levels' sensitivity to classes.
    """

    scaled: tuple[Tensor, ...]
    attended: tuple[Attended, ...]
    attention: tuple[Tensor, ...]
    level_logits: tuple[Tensor, ...]
    logits: Tensor
    recorded: Recorded | None = None


class Trunk(Protocol):
    """Where a student's features come from. `trained` tells whether distillation changes it."""

    trained: bool

    def __call__(self, images: Tensor, *extra: Any) -> tuple[list[Tensor], Tensor | None]:
        """Features per level, finest first, and the target's log-probabilities (B, K) where it was run (else None)."""

    def outputs(self, recorded_from: int, images: Tensor, *extra: Any) -> tuple[list[Tensor], Tensor | None]:
        """The same with features in the network's own layout, recorded by autograd from a level on."""

    def fold(self, outputs: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """From such outputs to features (B, C_l, h_l, w_l)."""


class GraftedTrunk:
    """The target's own layers, frozen and shared, never copied, and never registered in the student.

    Args:
        tapped: the target's module.
        answer: log-probabilities (B, K) of images, by running it: in its precision, at its rate, and counted.
    """

    trained = False

    def __init__(self, tapped: Tapped, answer: Callable[..., Tensor]) -> None:
        self.tapped, self._answer = tapped, answer

    def __call__(self, images: Tensor, *extra: Any) -> tuple[list[Tensor], Tensor | None]:
        """Run the target once; its features carry no gradient."""
        with torch.no_grad():
            return self.tapped(images, lambda: self._answer(images, *extra))

    def outputs(self, recorded_from: int, images: Tensor, *extra: Any) -> tuple[list[Tensor], Tensor | None]:
        """Run the target once, and record it from a level on."""
        return self.tapped.outputs(images, lambda: self._answer(images, *extra), recorded_from)

    def fold(self, outputs: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """To maps."""
        return self.tapped.fold(outputs, image_size)


class ConvTrunk(nn.Module):
    """A small convolutional network of our own: each stage halves the resolution, the last is about 7x7.

    Args:
        in_channels: of the images.
        image_size: (H, W) of the images; decides the number of stages.
        width: channels of the first stage; doubled a stage, up to eight times.
    """

    trained = True

    def __init__(self, in_channels: int, image_size: tuple[int, int], width: int = 32) -> None:
        super().__init__()
        stages = 1
        while min(image_size) / 2 ** (stages + 1) >= 5 and stages < 5:
            stages += 1
        width = width if stages < 5 else width // 2
        widths = [width * min(2**stage, 8) for stage in range(stages)]
        self.widths = widths
        inputs = [in_channels, *widths[:-1]]
        self.stages = nn.ModuleList(_Stage(a, b) for a, b in zip(inputs, widths, strict=True))

    def sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(h, w) of each level, finest first, for images of `image_size`."""
        height, width = image_size
        found = []
        for _ in self.stages:
            height, width = (height + 1) // 2, (width + 1) // 2
            found.append((height, width))
        return found[-4:]

    def forward(self, images: Tensor, *extra: Any) -> tuple[list[Tensor], None]:
        """Features after each of the last four stages, finest first, each (B, C_l, h_l, w_l)."""
        return self._levels(images, None), None

    def outputs(self, recorded_from: int, images: Tensor, *extra: Any) -> tuple[list[Tensor], None]:
        """The same, recorded: they are maps already."""
        return self._levels(images, recorded_from), None

    def _levels(self, features: Tensor, cut: int | None) -> list[Tensor]:
        levels: list[Tensor] = []
        finest = max(len(self.stages) - 4, 0)
        for place, stage in enumerate(self.stages):
            features = stage(features)
            if cut is not None and place == finest + cut:
                features = features.detach().requires_grad_()
            levels.append(features.float())
        return levels[-4:]

    def fold(self, outputs: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """As they are."""
        return list(outputs)


class _Stage(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        features = self.down(features)
        return F.relu(features + self.block(features))


class BackboneTrunk(nn.Module):
    """A network that the user chose for the student, tapped like a target and trained by distillation.

    Args:
        backbone: any module on images; its own output is not used.
        levels: where to tap it.
    """

    trained = True

    def __init__(self, backbone: nn.Module, levels: Sequence[Level]) -> None:
        super().__init__()
        self.backbone = backbone
        self._tapped = Tapped(backbone, levels)

    def forward(self, images: Tensor, *extra: Any) -> tuple[list[Tensor], None]:
        """The backbone's features, finest first."""
        features, _ = self._tapped(images)
        return features, None

    def outputs(self, recorded_from: int, images: Tensor, *extra: Any) -> tuple[list[Tensor], None]:
        """The same in the backbone's layout, recorded from a level on."""
        return self._tapped.outputs(images, None, recorded_from)[0], None

    def fold(self, outputs: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """To maps."""
        return self._tapped.fold(outputs, image_size)


class LevelHead(nn.Module):
    """Attention and class evidence at one level.

    Args:
        channels: C of the level.
        classes: K.
        classifier: the target's own classifier for this level; where it is exact it stays, else it is the beginning.
    """

    def __init__(self, channels: int, classes: int, classifier: LocalClassifier | None = None) -> None:
        super().__init__()
        self.attention = LevelAttention(channels)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.mean: Tensor
        self.deviation: Tensor
        self._exact = classifier if classifier is not None and classifier.exact else None
        self._raw = classifier is not None  # the target's classifier wants the target's features, not scaled ones
        if self._exact is None:
            self.evidence = nn.Linear(channels, classes)
            if classifier is not None:
                (layer,) = classifier.layers
                assert isinstance(layer, nn.Linear)
                with torch.no_grad():
                    self.evidence.weight.copy_(layer.weight)
                    if layer.bias is not None:
                        self.evidence.bias.copy_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Attended, Tensor, Tensor]:
        """Scaled features, attended features, attention map and this level's logits (B, K)."""
        scaled = self.scale(features)
        if self._exact is not None:
            features = self._exact.prepared(features)
        attended, attention = self.attention(features if self._raw else scaled, scaled)
        return scaled, attended, attention, self.classify(attended.pooled())

    def scale(self, features: Tensor) -> Tensor:
        """Bring features to zero mean and unit deviation per channel."""
        return F.batch_norm(features, self.mean, self.deviation.square(), eps=0.0)  # the quickest way on a CPU

    def classify(self, features: Tensor) -> Tensor:
        """Class scores (..., K) of features (..., C)."""
        return self.evidence(features) if self._exact is None else self._exact(features)

    def evidence_of(self, attended: Attended, positive: Tensor, negative: Tensor | None) -> Tensor:
        """Class evidence maps (B, Q, h, w) for the classes asked about, less those of the rivals, from their rows alone.

        Args:
            attended: features of B images under attention.
            positive: class indices (B, Q).
            negative: rivals (B, Q), -1 for none; or None.
        """
        rows, bias = self.evidence.weight[positive], self.evidence.bias[positive]
        if negative is not None:
            against = (negative >= 0).to(rows.dtype)
            rows = rows - self.evidence.weight[negative.clamp_min(0)] * against[:, :, None]
            bias = bias - self.evidence.bias[negative.clamp_min(0)] * against
        return attended.along(rows) + bias[:, :, None, None]

    def all_evidence(self, attended: Attended) -> Tensor:
        """Class evidence maps (B, K, h, w) of all classes."""
        positions = (
            attended.maps().permute(0, 2, 3, 1).contiguous()
        )  # else one matrix product becomes one for each row of positions
        return self.classify(positions).permute(0, 3, 1, 2)


class Student(nn.Module):
    """Features from a trunk; attention, class evidence and logits at every level.

    Args:
        trunk: where features come from.
        channels: C of each level, finest first.
        classes: K.
        classifier: the target's own classifier for the deepest level, if it could be found.
    """

    def __init__(
        self, trunk: Trunk, channels: Sequence[int], classes: int, classifier: LocalClassifier | None = None
    ) -> None:
        super().__init__()
        self.classes, self.channels = classes, tuple(channels)
        # A module is registered, hence trained and saved; the target behind a grafted trunk is not.
        self.trunk = trunk
        last = len(channels) - 1
        self.heads = nn.ModuleList(
            LevelHead(width, classes, classifier if level == last else None) for level, width in enumerate(channels)
        )
        self.grafted = not trunk.trained
        # How much each level says: at first the deepest alone, which for an exact classifier is the target itself.
        self.voices = nn.Parameter(torch.tensor([0.0] * last + [1.0]))

    def forward(self, images: Tensor, *extra: Any, fast: Context = nullcontext) -> tuple[StudentOutput, Tensor | None]:
        """One pass.

        Args:
            images: (B, C, H, W).
            extra: handed to the target after the images, where the trunk is grafted on it.
            fast: context for the trunk alone (lower precision); the heads are small and stay in float32.

        Returns:
            The student's output, and the target's log-probabilities (B, K) where the trunk is grafted (else None).
        """
        with fast():
            features, answer = self.trunk(images, *extra)
        return self.read(features), answer

    def recorded(self, first: int, images: Tensor, *extra: Any) -> tuple[StudentOutput, Tensor | None]:
        """One pass that autograd records, whatever the caller has switched off; what it returns carries no gradient itself.

        Args:
            first: the finest level to record.
            images: (B, C, H, W).
            extra: as in `forward`.
        """
        size = (images.shape[-2], images.shape[-1])
        with torch.inference_mode(False), torch.enable_grad():
            # A copy: what was made in inference mode cannot be worked on in place here.
            outputs, answer = self.trunk.outputs(first, images.detach().clone(), *extra)
            features = self.trunk.fold(outputs, size)
            # What a grafted student sees is the target's own pass; a compact one is itself what is gone back through.
            seen = self.read([level.detach() for level in features] if self.grafted else features)
            ended = seen.logits.log_softmax(dim=1) if answer is None else answer
        scaled, attention, level_logits = (
            tuple(level.detach() for level in levels) for levels in (seen.scaled, seen.attention, seen.level_logits)
        )
        attended = tuple(Attended(*(factor.detach() for factor in level)) for level in seen.attended)
        outputs[:first] = [output.detach() for output in outputs[:first]]
        recorded = Recorded(tuple(outputs), first, lambda found: self.trunk.fold(found, size), ended)
        freed = StudentOutput(scaled, attended, attention, level_logits, seen.logits.detach(), recorded)
        return freed, None if answer is None else answer.detach()

    def _heads(self) -> list[LevelHead]:
        return cast("list[LevelHead]", list(self.heads))

    def read(self, features: Sequence[Tensor]) -> StudentOutput:
        """From the levels' features to the student's output."""
        scaled, attended, attention, logits = zip(
            *(head(level) for head, level in zip(self._heads(), features, strict=True)), strict=True
        )
        combined = torch.einsum("l,lbk->bk", self.voices, torch.stack(logits))
        return StudentOutput(scaled, attended, attention, logits, combined)

    @torch.no_grad()
    def calibrate(self, features: Sequence[Tensor]) -> None:
        """Set each level's channel means and deviations from the features of some training images."""
        for head, level in zip(self._heads(), features, strict=True):
            head.mean.copy_(level.mean(dim=(0, 2, 3)))
            # A channel silent in these images must not be blown up when it speaks in others.
            spread = level.std(dim=(0, 2, 3))
            head.deviation.copy_(spread.clamp_min(0.1 * float(spread.mean()) + 1e-6))

    def testimony(
        self, seen: StudentOutput, positive: Tensor, negative: Tensor | None, first: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        """What the levels say of classes (B, Q), less what they say of their rivals (-1 for none; or None).

        Args:
            seen: of B images.
            positive: the classes.
            negative: the rivals.
            first: the finest level that is asked.

        Returns:
            Class evidence per level from `first` on, finest first, each (B, Q, h_l, w_l); and the local log-posterior at the
            deepest level (B, Q, h, w): how far each position alone speaks for the class. Against a rival that is the
            difference of the two log-posteriors, where the other classes cancel.
        """
        finer, last = self._heads()[first:-1], self._heads()[-1]
        # All classes are needed for the posterior, and cost the most of a pass: once.
        everything = last.all_evidence(seen.attended[-1])
        levels = zip(finer, seen.attended[first:-1], strict=True)
        evidence = [head.evidence_of(level, positive, negative) for head, level in levels]
        evidence.append(pick(everything, positive, negative))
        return evidence, pick(everything.log_softmax(dim=1), positive, negative)


def pick(maps: Tensor, positive: Tensor, negative: Tensor | None) -> Tensor:
    """Of maps (B, K, h, w), those of the classes (B, Q), less those of their rivals (-1 for none)."""
    rows = torch.arange(maps.shape[0], device=maps.device)[:, None]
    found = maps[rows, positive]
    if negative is None:
        return found
    against = (negative >= 0).to(maps.dtype)[:, :, None, None]
    return found - maps[rows, negative.clamp_min(0)] * against
