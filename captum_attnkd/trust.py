"""Whether a single map can be trusted: does the surrogate speak for the model, and does the map keep what the model needs?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .agreement import Agreement
from .explanation import Mask, resized
from .objectives import Ask, Pixels, kept_softly
from .perturbation import blended, blurred
from .surrogate import Query

SHARE = 0.25  # of the pixels that are kept, or else deleted
BLUR = 0.07  # deviation of the blur that takes their place, as a share of the shorter side
SHARP = 0.02  # width of the border between kept and deleted, in deviations of the mask logits


class TrustWarning(UserWarning):
    """Maps of some images were asked for that should not be trusted."""


@dataclass(frozen=True)
class Trust:
    """One entry an image.

    The score is agreement times faithfulness. Agreement is 0 where student and model name different classes, and else
    exp(-KL(model || student)). Faithfulness is (1 + (kept - deleted) / max(whole, kept, deleted)) / 2: 1 where the most
    salient quarter alone is all that the model needs and nothing is left without it, 1/2 where that quarter counts no more
    than the rest, 0 where it counts for nothing.

    Attributes:
        score: (B,), float32, in [0, 1].
        agrees: whether student and model name the same class (B,), bool.
        divergence: KL(model || student) in nats (B,), float32.
        whole: the model's probability of the class explained, on the whole image (B,), float32; against a rival, of the class
            when only the two are possible.
        kept: the same with the most salient quarter of the pixels alone, the rest blurred (B,), float32.
        deleted: the same with that quarter in the mean colour of the training images (B,), float32.
    """

    score: Tensor
    agrees: Tensor
    divergence: Tensor
    whole: Tensor
    kept: Tensor
    deleted: Tensor

    def __str__(self) -> str:
        """One line for a batch."""
        least = float(self.score.min())
        return (
            f"trust {float(self.score.mean()):.2f} (least {least:.2f}); {int(self.agrees.sum())} of {len(self.agrees)} images "
            f"agree; p(class) {float(self.whole.mean()):.2f} whole, {float(self.kept.mean()):.2f} kept, "
            f"{float(self.deleted.mean()):.2f} deleted"
        )


def trust_in(
    mask: Mask, images: Tensor, query: Query, target: Ask, pixels: Pixels, whole: Tensor, agreement: Agreement
) -> Trust:
    """Measure trust in the masks of images; asks the model about two images for each.

    Args:
        mask: for one class an image.
        images: (B, C, H, W).
        query: which class.
        target: the model's log-probabilities; no gradient is asked of it.
        pixels: statistics for the fill.
        whole: the model's log-probabilities for the images themselves (B, K).
        agreement: of student and model on them.
    """
    shares = images.new_full((len(images),), SHARE, dtype=torch.float32)
    keep = resized(kept_softly(mask.logits.float(), shares, SHARP), (images.shape[-2], images.shape[-1])).to(
        images.dtype
    )
    # A blur hides texture and leaves large shapes, a colour hides both: so neither part is hidden too easily.
    blur, colour = blurred(images, BLUR * min(images.shape[-2:])), pixels.mean[:, None, None].to(images)
    kept = query.score(target(blended(keep, images, blur)))[:, 0]
    deleted = query.score(target(blended(1 - keep, images, colour)))[:, 0]
    before = query.score(whole)[:, 0]
    most = torch.stack([before, kept, deleted]).amax(dim=0).clamp_min(1e-6)
    faithful = 0.5 * (1 + (kept - deleted) / most)
    agreed = agreement.agrees.to(faithful) * torch.exp(-agreement.divergence.to(faithful))
    return Trust(agreed * faithful, agreement.agrees, agreement.divergence, before, kept, deleted)
