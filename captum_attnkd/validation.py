"""What a fit is judged by, on images it never learned from: the scores that stop it, and the figures it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .explanation import resized
from .images import mixed
from .objectives import Ask, Distillation, Pixels, divergence, kept_softly
from .perturbation import blended, random_fills, randomly_masked
from .student import Context
from .surrogate import Query, Surrogate

# Mirrored images are learned from only where the target names the same class as often as this: a mirrored digit is none.
MIRRORED_ALIKE = 0.8

# Kept shares at which maps are tried, an equal step apart on the logarithmic scale: objects are small and large.
AREAS = (0.03, 0.07, 0.16, 0.37, 0.85)


class Validation:
    """Held-out images, and what can be asked of a surrogate on them. The same draws at every asking.

    Args:
        surrogate: put into evaluation mode.
        target: log-probabilities of images.
        judge: of masked images; the target or the student.
        pixels: statistics for the fills.
        images: (N, C, H, W).
        place: puts images where the networks are.
        seed: of masks and fills.
        fast: context for passes in lower precision.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        target: Ask,
        judge: Ask,
        pixels: Pixels,
        images: Tensor,
        place: Callable[[Tensor], Tensor],
        seed: int,
        fast: Context,
    ) -> None:
        self._surrogate, self._target, self._judge, self._pixels = surrogate, target, judge, pixels
        self._images, self._place, self._seed, self._fast = images, place, seed, fast

    def batches(self, most: int, size: int = 32) -> Iterator[Tensor]:
        """The first `most` images, `size` at a time."""
        for images in torch.split(self._images[:most].float(), size):
            yield self._place(images)

    @torch.no_grad()
    def bears_mirroring(self, most: int = 64) -> bool:
        """Whether the target names the same class for images and their mirror images."""
        alike, count = 0, 0
        for images in self.batches(most):
            with self._fast():
                named, mirrored = (self._target(shown).argmax(dim=1) for shown in (images, images.flip(3)))
            alike += int((named == mirrored).sum())
            count += len(images)
        return alike >= MIRRORED_ALIKE * count

    @torch.no_grad()
    def distillation(self, objective: Distillation, most: int = 96) -> float:
        """Mean distillation loss on whole images, and on masked ones where it is of those too; the lower the better."""
        self._surrogate.eval()
        total, count, drawn = 0.0, 0, self._draw(77)
        for images in self.batches(most):
            for shown in (images, self._masked(images, drawn)) if objective.masked else (images,):
                total += float(objective.loss(shown)) * len(images)
                count += len(images)
        return total / count

    def explanation(self, most: int = 64) -> float:
        """How much more probable the predicted class is without the salient part than with it alone; the lower the better."""
        kept, hidden = self.kept_and_hidden(AREAS, most)
        return hidden - kept

    @torch.no_grad()
    def kept_and_hidden(
        self, areas: tuple[float, ...] = (0.5,), most: int = 96, prior: bool = False
    ) -> tuple[float, float]:
        """The judge's mean probability of the predicted class with the most salient pixels alone, and without them.

        Args:
            areas: shares of the pixels that count as most salient.
            most: images at most.
            prior: ask the map that the explanation network starts from.
        """
        self._surrogate.eval()
        sums, count, drawn = [0.0, 0.0], 0, self._draw(78)
        for images in self.batches(most):
            see = self._surrogate.student if prior else self._surrogate.see  # a prior needs no recorded pass
            seen, answer = see(images, fast=self._fast)
            query = Query((seen.logits if answer is None else answer).argmax(dim=1, keepdim=True))
            explain = (
                self._surrogate.prior(seen, query) if prior else self._surrogate.explain(images, seen, query).logits
            )
            del seen  # a recorded pass is large
            for area in areas:
                shares = torch.full((len(images),), area, device=images.device)
                keep = resized(kept_softly(explain.float(), shares, 0.02), (images.shape[2], images.shape[3]))
                fills = random_fills(images, self._pixels.mean, self._pixels.deviation, drawn)
                for place, mask in enumerate((keep, 1 - keep)):
                    with self._fast():
                        score = query.score(self._judge(blended(mask, images, fills)).float())
                    sums[place] += float(score.sum())
                count += len(images)
        return sums[0] / count, sums[1] / count

    @torch.no_grad()
    def figures(self, most: int = 256) -> dict[str, Any]:
        """What a report tells: agreement clean and masked, divergence, kept and hidden, before fitting and after."""
        self._surrogate.eval()
        agree, agree_masked, total, count, drawn = 0, 0, 0.0, 0, self._draw(79)
        for images in self.batches(most):
            logits, wanted = self._student_and_target(images)
            agree += int((logits.argmax(1) == wanted.argmax(1)).sum())
            total += float(divergence(wanted, logits)) * len(images)
            logits, wanted = self._student_and_target(self._masked(images, drawn))
            agree_masked += int((logits.argmax(1) == wanted.argmax(1)).sum())
            count += len(images)
        kept, hidden = self.kept_and_hidden()
        kept_before, hidden_before = self.kept_and_hidden(prior=True)
        return {
            "agreement": agree / count,
            "agreement_masked": agree_masked / count,
            "divergence": total / count,
            "kept": kept,
            "deleted": hidden,
            "kept_unfitted": kept_before,
            "deleted_unfitted": hidden_before,
        }

    def _student_and_target(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen, answer = self._surrogate.student(images, fast=self._fast)
        if answer is None:
            with self._fast():
                answer = self._target(images)
        return seen.logits.float(), answer

    def _masked(self, images: Tensor, drawn: torch.Generator) -> Tensor:
        return randomly_masked(images, self._pixels.mean, self._pixels.deviation, drawn)

    def _draw(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(mixed(self._seed, purpose))
