"""What the surrogate's levels see in single images: the material of figures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Look:
    """One entry an image; levels run from the finest to the deepest.

    Attributes:
        target: the class that was asked about (B,), int64.
        probabilities: the model's (B, K), float32.
        attention: per level (B, 1, h_l, w_l), in (0, 1); whatever the class.
        evidence: per level (B, 1, h_l, w_l): what each position says of the class, in logits.
        mean: colour of the training images (C,), as the model takes them: what hides a pixel.
    """

    target: Tensor
    probabilities: Tensor
    attention: tuple[Tensor, ...]
    evidence: tuple[Tensor, ...]
    mean: Tensor

    @property
    def asked(self) -> Tensor:
        """The model's probability of the class asked about (B,)."""
        return self.probabilities.gather(1, self.target[:, None])[:, 0]
