"""The surrogate: student and explanation network, from images to saliency in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .explanation import ExplanationNetwork, FusedLevel, Mask, standardise
from .sensitivity import sensitivity
from .student import Context, Student, StudentOutput

SENSITIVE = 3  # deepest levels whose sensitivity to a class is told, if any is


class Query(NamedTuple):
    """What is asked of B images: Q classes each, and against which rivals.

    Attributes:
        positive: class indices (B, Q), int64.
        negative: rivals (B, Q), int64; -1 for none. None where no class has a rival.
    """

    positive: Tensor
    negative: Tensor | None = None

    def score(self, log_probabilities: Tensor) -> Tensor:
        """Probability (B, Q) of the classes; against rivals, of the class when only the two are possible."""
        wanted = log_probabilities.gather(1, self.positive)
        if self.negative is None:
            return wanted.exp()
        against = torch.sigmoid(wanted - log_probabilities.gather(1, self.negative.clamp_min(0)))
        return torch.where(self.negative >= 0, against, wanted.exp())

    def directions(self, log_probabilities: Tensor) -> Iterator[Tensor]:
        """For each class asked about, the slope of its log-odds with regard to log-probabilities (B, K): (B, K).

        Of log p alone the slope vanishes where the model is sure; that of log p - log(1 - p) does not. Against a rival it is that
        of the difference of the two.
        """
        for place in range(self.positive.shape[1]):
            asked = slice(place, place + 1)
            others = log_probabilities.scatter(1, self.positive[:, asked], -torch.inf).softmax(dim=1)
            if self.negative is not None:
                rivals = self.negative[:, asked]
                rival = torch.zeros_like(others).scatter_(1, rivals.clamp_min(0), 1.0)
                others = torch.where(rivals >= 0, rival, others)
            yield (-others).scatter(1, self.positive[:, asked], 1.0)


class Surrogate(nn.Module):
    """Student and explanation network.

    Args:
        student: gives features, attention, class evidence and logits.
        sizes: (h, w) of the student's levels, finest first.
        image_shape: (C, H, W); images of at most `longest_side` pixels a side are a level themselves.
        longest_side: levels with a longer side are left out of the maps' fusion; they cost more than they tell. The
            finest level kept is the maps' resolution.
        gradients: whether the explanation network sees the sensitivity to the class of the three deepest levels as well, at the
            price of a backward pass to them a class.
    """

    def __init__(
        self,
        student: Student,
        sizes: Sequence[tuple[int, int]],
        image_shape: tuple[int, int, int],
        longest_side: int = 80,
        gradients: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        coarse = [level for level, size in enumerate(sizes) if max(size) <= longest_side]
        self.first = coarse[0] if coarse else len(sizes) - 1
        self.with_pixels = max(image_shape[1:]) <= longest_side
        channels, kept = list(student.channels[self.first :]), list(sizes[self.first :])
        if self.with_pixels:
            channels, kept = [image_shape[0], *channels], [(image_shape[1], image_shape[2]), *kept]
        # Finer ones cost the most to go back to, and tell little more.
        self.sensitive = min(SENSITIVE, len(sizes) - self.first) if gradients else 0
        self.explanation = ExplanationNetwork(channels, kept, sensitive=self.sensitive)

    def see(self, images: Tensor, *extra: Any, fast: Context = nullcontext) -> tuple[StudentOutput, Tensor | None]:
        """The student's pass, fit to be explained: recorded where that takes gradients, and then in full precision."""
        if self.sensitive:
            return self.student.recorded(len(self.student.channels) - self.sensitive, images, *extra)
        return self.student(images, *extra, fast=fast)  # type: ignore[no-any-return]

    def explain(self, images: Tensor, seen: StudentOutput, query: Query) -> Mask:
        """The mask for the classes asked about, at the maps' resolution, of images that `see` saw."""
        evidence, posterior = self.student.testimony(seen, query.positive, query.negative, self.first)
        probability = query.score(seen.logits.log_softmax(dim=1))
        levels = [FusedLevel(*pair) for pair in zip(seen.scaled, seen.attention, strict=True)][self.first :]
        if self.with_pixels:
            # Pixels are a level like the others, but say nothing of a class and attract no attention.
            pixels = standardise(images.float())
            levels.insert(0, FusedLevel(pixels, torch.full_like(pixels[:, :1], 0.5)))
            evidence.insert(0, pixels.new_zeros(images.shape[0], query.positive.shape[1], *images.shape[-2:]))
        slopes: list[Tensor] = []
        if self.sensitive:
            assert seen.recorded is not None, "images are to be seen by Surrogate.see"
            slopes = sensitivity(seen.recorded, query.directions)
        mask: Mask = self.explanation(levels, evidence, posterior, probability, slopes)
        return mask

    def prior(self, seen: StudentOutput, query: Query) -> Tensor:
        """The class activation map that the explanation network starts from: standardised (B, Q, h, w), deepest level."""
        deepest = len(seen.attended) - 1
        _, posterior = self.student.testimony(seen, query.positive, query.negative, deepest)
        return standardise(posterior)
