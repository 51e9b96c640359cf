"""What a fit tells of itself: figures on held-out images, costs, and where it stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class FitReport:
    """Figures of one fit. All shares and probabilities are in [0, 1], on held-out images, the judge's word where it is asked.

    Attributes:
        student: "grafted" or "compact".
        judge: "target" where gradients flow through the model, else "student".
        output: what the target's scores are, "logits" or "probabilities"; detected unless told.
        mirrored: whether mirrored images were learned from, as the target names the same class for them.
        images: learned from.
        held_out: images never learned from.
        agreement: share of held-out images where student and target name the same class.
        agreement_masked: the same on randomly masked images.
        divergence: mean KL(target || student) on clean images, in nats.
        kept: mean probability of the predicted class when the most salient half of the pixels is kept.
        deleted: the same when that half is hidden.
        kept_unfitted: as `kept`, for the class activation map the fit began with.
        deleted_unfitted: as `deleted`, likewise.
        distil_steps: of the first stage, the early stop counted in.
        explain_steps: of the second stage.
        seconds: of the whole fit, the look through the loader and time before an interruption counted in.
        target_queries: images sent to the target.
        parameters: trained ones.
    """

    student: str
    judge: str
    output: str
    mirrored: bool
    images: int
    held_out: int
    agreement: float
    agreement_masked: float
    divergence: float
    kept: float
    deleted: float
    kept_unfitted: float
    deleted_unfitted: float
    distil_steps: int
    explain_steps: int
    seconds: float
    target_queries: int
    parameters: int

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FitReport:
        """The inverse of `as_dict`; wrong fields or types raise TypeError or ValueError."""
        report = cls(**data)
        kinds: dict[str, Any] = {"str": str, "bool": bool, "int": int, "float": (int, float)}
        wrong = [one.name for one in fields(cls) if not isinstance(data[one.name], kinds[str(one.type)])]
        if wrong:
            raise ValueError(f"{wrong[0]} of the report is {data[wrong[0]]!r}")
        return report

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table for people."""
        rows = [
            ("student, judge", f"{self.student}, {self.judge}"),
            ("the target's scores", self.output),
            ("images learned from / held out", f"{self.images} / {self.held_out}"),
            ("mirrored images learned from", "yes" if self.mirrored else "no"),
            ("agreement with the target, clean", f"{self.agreement:.1%}"),
            ("agreement with the target, masked", f"{self.agreement_masked:.1%}"),
            ("KL(target || student), nats", f"{self.divergence:.4f}"),
            ("p(class), salient half kept", f"{self.kept:.3f}   (before fitting {self.kept_unfitted:.3f})"),
            (
                "p(class), salient half hidden",
                f"{self.deleted:.3f}   (before fitting {self.deleted_unfitted:.3f})",
            ),
            ("steps, distil + explain", f"{self.distil_steps} + {self.explain_steps}"),
            ("seconds", f"{self.seconds:.1f}"),
            ("images sent to the target", f"{self.target_queries:,}"),
            ("trained parameters", f"{self.parameters:,}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
