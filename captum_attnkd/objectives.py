"""The two objectives: distil the target into the student; then teach the explanation network under a frozen judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attended_area
from .devices import fast_both_ways
from .explanation import SOFTNESS, Mask, resized
from .perturbation import blended, flipped, random_fills, randomly_masked
from .student import Context, Student
from .surrogate import Query, Surrogate

Ask = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> log-probabilities (B, K), float32


@dataclass(frozen=True)
class Pixels:
    """Mean and deviation per channel over the training images, each (C,): what fills are made of."""

    mean: Tensor
    deviation: Tensor


class Distillation(nn.Module):
    """Stage 1. `T² KL(target(x) || student(x))` at every level, and a charge for attention.

    Args:
        student: to be taught.
        target: log-probabilities of images; no gradient is asked of it. A grafted student has them from its own pass.
        pixels: statistics for the fills.
        temperature: T of Hinton et al. (2015).
        supervision: weight of each level's own logits.
        attention_charge: weight of the attended area: without it a student grafted on the target is right from the
            start, and its attention learns nothing.
        masked: whether two images of three have parts replaced: they tell more of the target, and a judge must be right about them.
        mirror: whether images are mirrored at random.
        fast: context for passes in lower precision: those without a gradient, and the trunk's own where it is taught and that pays.
    """

    def __init__(
        self,
        student: Student,
        target: Ask,
        pixels: Pixels,
        temperature: float = 2.0,
        supervision: float = 0.3,
        attention_charge: float = 0.1,
        masked: bool = False,
        mirror: bool = False,
        fast: Context = nullcontext,
    ) -> None:
        super().__init__()
        self.masked, self._mirror, self._fast = masked, mirror, fast
        self._fast_trunk = fast if student.grafted else fast_both_ways(fast, student)
        self.student = student
        self._target, self._pixels = target, pixels
        self._temperature, self._supervision, self._charge = temperature, supervision, attention_charge

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Loss, a scalar, for clean images (B, C, H, W)."""
        images = flipped(images, generator) if self._mirror else images
        if not self.masked:
            return self.loss(images)
        masked = randomly_masked(images, self._pixels.mean, self._pixels.deviation, generator)
        clean = torch.arange(len(images), device=images.device) % 3 == 0
        return self.loss(torch.where(clean[:, None, None, None], images, masked))

    def loss(self, shown: Tensor) -> Tensor:
        """How far the student is from the target on the images (B, C, H, W) shown to both: a scalar."""
        seen, wanted = self.student(shown, fast=self._fast_trunk)
        if wanted is None:
            with torch.no_grad(), self._fast():
                wanted = self._target(shown)
        loss = divergence(wanted, seen.logits, self._temperature)
        for logits in seen.level_logits:
            loss = loss + self._supervision * divergence(wanted, logits, self._temperature) / len(seen.level_logits)
        return loss + self._charge * torch.stack([attended_area(level) for level in seen.attention]).mean()


def divergence(wanted: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`T² KL(wanted || softmax(logits))` at temperature T, mean over the batch.

    Args:
        wanted: log-probabilities (B, K).
        logits: class scores (B, K).
    """
    softened = (wanted / temperature).log_softmax(dim=1)
    answer = (logits.float() / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(answer, softened, reduction="batchmean", log_target=True)


class Explanation(nn.Module):
    """Stage 2. Keep the top share of pixels and the judge should still see the class; hide it and it should not.

    The positions are ranked by the mask logits, an area share is drawn per sample, and the top share is kept softly, so
    that the whole insertion and deletion curves are optimised and no area weight is needed. The judge is frozen and sees
    only masked images; its gradient with regard to those images is carried over by hand, so that nothing of the judge is touched.

    Args:
        surrogate: whose explanation network is taught.
        judge: differentiable log-probabilities of images.
        pixels: statistics for the fills.
        contrastive: share of questions that ask against a rival.
        mirror: whether images are mirrored at random.
        fast: context for passes without a gradient.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        judge: Ask,
        pixels: Pixels,
        contrastive: float = 0.25,
        mirror: bool = False,
        fast: Context = nullcontext,
    ) -> None:
        super().__init__()
        self._mirror, self._fast = mirror, fast
        self.explanation = surrogate.explanation
        self._surrogate = [surrogate]  # in a list: only the explanation network is this module's to train
        self._judge, self._pixels = judge, pixels
        self._contrastive = contrastive

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Loss, a scalar, for clean images (B, C, H, W)."""
        (surrogate,) = self._surrogate
        images = flipped(images, generator) if self._mirror else images
        with torch.no_grad():
            seen, answer = surrogate.see(images, fast=self._fast)
        query = draw_query(seen.logits.log_softmax(1) if answer is None else answer, self._contrastive, generator)
        mask = surrogate.explain(images, seen, query)
        del seen  # and with it the recorded pass, before the judge needs as much memory again
        areas = draw_areas(mask.extent[:, 0], generator)
        keep = resized(kept_softly(mask.logits, areas), (images.shape[2], images.shape[3]))
        fills = random_fills(images, self._pixels.mean, self._pixels.deviation, generator)
        shown = torch.cat([blended(keep, images, fills), blended(1 - keep, images, fills)])
        shown = shown + 0.05 * self._pixels.deviation[:, None, None].to(shown) * torch.randn(
            shown.shape, generator=generator
        ).to(shown)
        # One side after the other: of all the memory of a fit, most is the judge's for the way back.
        (kept_alone, kept_score), (hidden_alone, hidden_score) = (
            through(side, lambda leaf: query.score(self._judge(leaf))[:, 0]) for side in shown.chunk(2)
        )
        foretold = foretelling(mask, areas, kept_alone, hidden_alone, query)
        return (conviction(hidden_score) - conviction(kept_score)).mean() + foretold


def conviction(score: Tensor) -> Tensor:
    """A probability and a little of its log-odds: where a judge is sure, a probability alone has no slope to learn from.

    With four times as much of them maps are more faithful still, but those of two classes less apart: what only speaks against the
    others comes first.
    """
    return score + torch.logit(score, 1e-4) / 24


def through(shown: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Scores (B,) of images: plain, and once more with a gradient that reaches `shown` and nothing else.

    Autograd would also write into the `.grad` of the judge's parameters, which are the user's.
    """
    with torch.enable_grad():
        leaf = shown.detach().requires_grad_()
        values = score(leaf)
        (slopes,) = torch.autograd.grad(values.sum(), leaf)  # a sample's score depends on that sample alone
    carried = (shown * slopes.detach()).flatten(1).sum(dim=1)
    return values.detach(), carried + (values.detach() - carried.detach())


def foretelling(mask: Mask, areas: Tensor, kept: Tensor, hidden: Tensor, query: Query) -> Tensor:
    """How well a mask's extent foretells which side of it the class is on: a cross-entropy, scalar.

    The kept side's part in the class's probability, kept / (kept + hidden), is taken for a chance; its logistic curve over
    the logarithm of the area is what `extent` and `spread` describe.

    Args:
        mask: for one class an image.
        areas: shares that were kept, or hidden (B,).
        kept: the judge's scores with only that share (B,).
        hidden: with all but that share (B,).
        query: which asked; against a rival, one half is chance.
    """
    chance = torch.zeros_like(kept) if query.negative is None else 0.5 * (query.negative[:, 0] >= 0)
    above, below = (kept - chance).clamp_min(0) + 1e-3, (hidden - chance).clamp_min(0) + 1e-3
    foretold = (areas.log() - mask.extent[:, 0]) / mask.spread
    return F.binary_cross_entropy_with_logits(foretold, above / (above + below))


def kept_softly(logits: Tensor, areas: Tensor, softness: float = SOFTNESS) -> Tensor:
    """Soft masks (B, 1, h, w) that keep the top share of positions.

    Args:
        logits: standardised mask logits (B, 1, h, w).
        areas: share to keep (B,), in (0, 1).
        softness: width of the threshold, in deviations of the map.
    """
    flat = logits.detach().flatten(1)
    ranks = ((1 - areas) * (flat.shape[1] - 1)).round().long()
    thresholds = flat.sort(dim=1).values.gather(1, ranks[:, None])
    return torch.sigmoid((logits - thresholds[:, :, None, None]) / softness)


def draw_areas(extent: Tensor, generator: torch.Generator) -> Tensor:
    """Area shares (B,), in [0.01, 0.95], drawn in one of three ways by turns.

    Uniform, for large objects; log-uniform, for small ones; and around the share at which kept and hidden part are
    expected to balance, where the judge's answer depends most on which positions come first.

    Args:
        extent: logarithm of that share (B,).
        generator: on the CPU.
    """
    batch = len(extent)
    wide = 0.05 + 0.9 * torch.rand(batch, generator=generator)
    small = torch.exp(math.log(0.01) + math.log(95) * torch.rand(batch, generator=generator))
    near = torch.exp(extent.detach().float().cpu() + 0.7 * torch.randn(batch, generator=generator)).clamp(0.01, 0.95)
    turn = torch.arange(batch) % 3
    return torch.where(turn == 0, wide, torch.where(turn == 1, small, near)).to(extent.device)


def draw_query(log_probabilities: Tensor, contrastive: float, generator: torch.Generator) -> Query:
    """One question an image: the predicted class or, one time in three, another of the top five; some against a rival.

    Args:
        log_probabilities: of the target on the clean images (B, K).
        contrastive: share of questions "why a rather than b", a and b among the top classes.
    """
    batch, classes = log_probabilities.shape
    top = log_probabilities.topk(min(5, classes), dim=1).indices
    first = torch.rand(batch, generator=generator) >= 1 / 3
    other = torch.randint(1, top.shape[1], (batch,), generator=generator)
    place = torch.where(first, torch.zeros_like(other), other)
    rival_place = torch.where(first, other, torch.zeros_like(other))
    rivals = torch.rand(batch, generator=generator) < contrastive
    positive = top.gather(1, place[:, None].to(top.device))
    negative = top.gather(1, rival_place[:, None].to(top.device))
    return Query(positive, torch.where(rivals[:, None].to(top.device), negative, torch.full_like(negative, -1)))
