"""What a metric is, and what it is given and gives: the common ground of our own metrics and Quantus'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from .explainers import Explainer
from .subject import Subject

Family = Literal["faithfulness", "localisation", "complexity", "robustness", "randomisation"]


@dataclass(frozen=True)
class Case:
    """What a metric is given: one method's maps of all images of a study.

    Attributes:
        subject: the model that is explained.
        images: (N, C, H, W).
        targets: classes that were asked about (N,).
        maps: saliency (N, 1, H, W).
        explain: the method itself, for metrics that ask it again.
        masks: where each class's object is (N, H, W), bool; or None.
        parts: where what tells the class from its rival is (N, H, W), bool; or None.
        anew: the method for another model of the same build, such as one with random weights; ours is fitted anew.
    """

    subject: Subject
    images: Tensor
    targets: Tensor
    maps: Tensor
    explain: Explainer
    masks: Tensor | None = None
    parts: Tensor | None = None
    anew: Callable[[nn.Module], Explainer] | None = None


@dataclass(frozen=True)
class Measured:
    """What a metric found.

    Attributes:
        scores: by column (N,), float32; NaN for images of which nothing can be said, such as those without a mask.
        curves: by column (N, points), for figures.
        better: by column, "higher" or "lower"; only columns that are named stand in tables.
    """

    scores: dict[str, Tensor]
    better: dict[str, str]
    curves: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A metric of a study.

    Attributes:
        name: on the command line.
        family: faithfulness and localisation stand in tables of their own.
        measure: what it does.
        meaning: of it, in a line.
        settings: what its scores depend on beside maps, model and images; part of the cache's key.
        needs: "masks", "parts" or None: what the images must come with.
        asks_method: whether it asks the method for further maps, which costs as much as the method does.
        default: whether it is measured unless others are named.
        source: of a user's own: a digest of its code, so that scores of older code are not taken for its own.
    """

    name: str
    family: Family
    measure: Callable[..., Measured]
    meaning: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    needs: Literal["masks", "parts"] | None = None
    asks_method: bool = False
    default: bool = True
    source: str = ""

    def of(self, case: Case) -> Measured:
        """Measure, and refuse what is not one number an image.

        Raises:
            ValueError: the images lack what the metric needs, or it answered with other than N numbers.
        """
        if self.needs is not None and getattr(case, self.needs) is None:
            raise ValueError(f"needs {self.needs}, which these images do not come with")
        measured = self.measure(case, **self.settings)
        for name, values in measured.scores.items():
            if values.shape != (len(case.images),):
                raise ValueError(f"{name}: {tuple(values.shape)} numbers for {len(case.images)} images")
        return measured
