"""A study: methods on images, measured, cell by cell; stopped and gone on with at will."""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_attnkd.allocator import kept_buffers

from .explainers import Explainer
from .measuring import Case, Measured, Metric
from .methods import Method
from .sources import ImageSet
from .store import Store, key
from .subject import Contrast, ContrastSurrogate, Subject


@dataclass
class Outcome:
    """What a study found of one method.

    Attributes:
        maps: saliency (N, 1, H, W); None where the method failed.
        failure: why; empty where it did not.
        measured: per metric.
        failures: per metric that failed, why.
        seconds: an image, of what was worked out in this run; NaN where all came from the store.
    """

    maps: Tensor | None = None
    failure: str = ""
    measured: dict[str, Measured] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = float("nan")


@dataclass
class Study:
    """What is compared, and how.

    Attributes:
        subject: the model.
        data: images; with targets, or else the predicted classes are asked about.
        methods: compared.
        metrics: measured.
        store: of what was worked out before.
        progress: whether bars are shown; None shows them at a terminal.
    """

    subject: Subject
    data: ImageSet
    methods: Sequence[Method]
    metrics: Sequence[Metric]
    store: Store
    progress: bool | None = None
    targets: Tensor = field(init=False)
    right: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Ask the model once about all images.

        Raises:
            ValueError: a class does not exist in the model, or the model answers with NaN.
        """
        answers = self.subject.ask(self.data.images).cpu()
        self.predicted, self.probabilities = answers.argmax(dim=1), answers.exp()
        if self.data.targets is None:
            self.targets = self.predicted
        else:
            self.targets = self.data.targets
            for classes in (self.targets, self.data.rivals):
                if classes is not None and not 0 <= int(classes.min()) <= int(classes.max()) < answers.shape[1]:
                    raise ValueError(
                        f"the images are of classes {int(classes.min())} to {int(classes.max())}, "
                        f"the model answers with {answers.shape[1]}"
                    )
            self.right = float((self.predicted == self.targets).float().mean())

    def run(self) -> dict[str, Outcome]:
        """Work out what is missing, a method at a time; a failure stands in its cell and stops nothing else."""
        disable = None if self.progress is None else not self.progress
        with tqdm(total=len(self.methods) * (1 + len(self.metrics)), unit="cell", disable=disable) as bar:
            return {method.name: self.outcome(method, bar) for method in self.methods}

    def outcome(self, method: Method, bar: Any = None) -> Outcome:
        """All of one method, from the store where it is there and else into it; a failure is noted, not raised."""
        bar, outcome = tqdm(disable=True) if bar is None else bar, Outcome()
        bar.set_description(method.name)
        with kept_buffers():
            try:
                explain = method.on(self.questioned)
                outcome.maps, outcome.seconds = self._maps(method, explain)
            except Exception as error:  # a study must survive any method
                outcome.failure = f"{type(error).__name__}: {error}"
                bar.update(1 + len(self.metrics))
                return outcome
            bar.update()
            maps_key = key(outcome.maps)
            for metric in self.metrics:
                bar.set_description(f"{method.name}: {metric.name}")
                try:
                    outcome.measured[metric.name] = self._measured(metric, method, explain, outcome.maps, maps_key)
                except Exception as error:
                    outcome.failures[metric.name] = f"{type(error).__name__}: {error}"
                bar.update()
        return outcome

    # -- maps ----------------------------------------------------------------------------------------------------------

    @cached_property
    def questioned(self) -> Subject:
        """What the methods explain: the model; where images come with rivals, the model as `Contrast` asks it."""
        subject = self.subject
        if self.data.rivals is None:
            return subject
        surrogate = None if subject.surrogate is None else ContrastSurrogate(subject.surrogate)
        return replace(subject, model=Contrast(subject.model).eval(), surrogate=surrogate)

    @property
    def asked(self) -> Tensor:
        """What the methods are asked about (N,): classes, or pairs of them as `Contrast` numbers them."""
        rivals = self.data.rivals
        return self.targets if rivals is None else self.targets * self.probabilities.shape[1] + rivals

    @cached_property
    def _identity(self) -> list[str]:
        """Of the model, and of the packages it is asked through. What has no weights is told by what it says, image by image."""
        versions = [importlib.metadata.version(name) for name in ("torch", "captum", "grad-cam", "quantus")]
        return [self.subject.fingerprint, *versions]

    @cached_property
    def _set(self) -> str:
        """Of all images together with what is asked, said and known of them: digested once, not for every cell."""
        data = self.data
        return key(data.images, self.targets, self.predicted, data.masks, data.parts, data.rivals)

    def _map_key(self, method: Method, index: int) -> str:
        subject, data = self.subject, self.data
        alone = (data.images[index], self.asked[index], self.predicted[index])
        return key(
            "map", method.name, method.settings, method.source, self._identity, subject.layer_name, subject.seed,
            subject.surrogate_fingerprint if method.learned else "", *((self._set, index) if method.at_once else alone),
            data.rivals is not None, *((subject.mean, subject.deviation) if method.of_data else ()),
        )  # fmt: skip

    def _maps(self, method: Method, explain: Explainer) -> tuple[Tensor, float]:
        """Maps (N, 1, H, W) of all images, and seconds an image of those that were not in the store."""
        data, subject = self.data, self.subject
        keys = [self._map_key(method, index) for index in range(len(data))]
        maps = [self.store.map_of(name) for name in keys]
        missing = [index for index, found in enumerate(maps) if found is None]
        step = len(data) if method.at_once else subject.batch
        missing = list(range(len(data))) if missing and method.at_once else missing
        taken = []
        for start in range(0, len(missing), step):
            rows = missing[start : start + step]
            images, targets = data.images[rows].to(subject.device), self.asked[rows].to(subject.device)
            begun = time.perf_counter()
            found = explain(images, targets).detach().float().cpu()
            taken.append((time.perf_counter() - begun) / len(rows))
            if tuple(found.shape) != (len(rows), 1, *data.images.shape[-2:]):
                raise ValueError(f"maps of shape {tuple(found.shape)} for images {tuple(images.shape)}")
            if not bool(torch.isfinite(found).all()):
                raise ValueError(f"maps with NaN or infinite values for {data.names[rows[0]]} and others")
            for row, saliency in zip(rows, found, strict=True):
                maps[row] = saliency
                self.store.keep_map(keys[row], saliency)
        return torch.stack([found for found in maps if found is not None]), (
            statistics.median(taken) if taken else float("nan")
        )

    # -- scores --------------------------------------------------------------------------------------------------------

    def _measured(self, metric: Metric, method: Method, explain: Explainer, maps: Tensor, maps_key: str) -> Measured:
        data, subject = self.data, self.subject
        if metric.asks_method and data.rivals is not None:
            raise ValueError("asks the method again about single classes; these images come with rivals")
        name = key(
            "score", metric.name, metric.settings, metric.source, self._identity, subject.precision, subject.seed,
            subject.batch, subject.mean, subject.deviation,
            self._set, maps_key,
            [method.name, method.settings, method.source] if metric.asks_method else [],
        )  # fmt: skip
        known = self.store.measured(name)
        if known is not None:
            return known

        def anew(model: nn.Module) -> Explainer:
            return method.on(subject.of(model, method.learned))

        case = Case(subject, data.images, self.targets, maps, explain, data.masks, data.parts, anew)
        found = metric.of(case)
        self.store.keep_measured(name, found)
        return found
