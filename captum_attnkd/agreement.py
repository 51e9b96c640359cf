"""How far surrogate and model differ on single images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """One entry an image; the worse the agreement, the less a map should be trusted.

    Attributes:
        agrees: whether student and model name the same class (B,), bool.
        target_class: what the model names (B,), int64.
        student_class: what the student names (B,), int64.
        divergence: KL(model || student) in nats (B,), float32.
        target_probability: the model's probability of the class it names (B,), float32.
        student_probability: the student's probability of that same class (B,), float32.
    """

    agrees: Tensor
    target_class: Tensor
    student_class: Tensor
    divergence: Tensor
    target_probability: Tensor
    student_probability: Tensor

    @classmethod
    def between(cls, target: Tensor, student: Tensor) -> Agreement:
        """Compare log-probabilities (B, K) of the model and of the student."""
        named = target.argmax(dim=1)
        own = student.argmax(dim=1)
        divergence = (target.exp() * (target - student)).sum(dim=1).clamp_min(0)
        rows = named[:, None]
        return cls(
            named == own, named, own, divergence,
            target.gather(1, rows)[:, 0].exp(), student.gather(1, rows)[:, 0].exp(),
        )  # fmt: skip

    def __str__(self) -> str:
        """One line for a batch."""
        agreed = int(self.agrees.sum())
        return f"{agreed} of {len(self.agrees)} images agree; mean KL {float(self.divergence.mean()):.4f} nats"
