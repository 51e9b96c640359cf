"""Quantus' metrics, called one by one on maps that are already there, with its pitfalls fenced off.

Quantus is asked for NumPy on the CPU, with the whole set at once, in evaluation mode. What it returns is checked to be one
number an image; images without a mask are taken out first, since it counts them as hits. Its own ROAD, IROF and
SmoothMPRT are not offered: they are wrong for RGB images or for explainers that are functions. Its SensitivityN gives a number
a step and not an image, of the first batch alone: what Ancona et al. (2018) define is had from its FaithfulnessCorrelation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from captum_attnkd.devices import fast_context

from .explainers import Explainer
from .faithfulness import ranks_of
from .measuring import Case, Measured, Metric
from .subject import Subject, fingerprint

_Make = Callable[[int, int, int], dict[str, Any]]  # a metric's settings for images of (C, H, W)
_Of = Callable[[Tensor], Tensor]  # what is handed to it of maps (N, 1, H, W)


def _as_it_is(maps: Tensor) -> Tensor:
    return maps


def _answers(name: str, make: _Make, case: Case, keep: Tensor | None = None, maps: Tensor | None = None) -> Any:
    """What Quantus' metric `name` says of the images `keep` (N,), bool; without `maps` it asks the method itself."""
    import quantus

    chosen = torch.ones(len(case.images), dtype=torch.bool) if keep is None else keep
    subject = case.subject
    state = np.random.get_state()
    devices = [subject.device] if subject.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(subject.seed)
        torch.manual_seed(subject.seed)
        try:
            metric = getattr(quantus, name)(
                disable_warnings=True, display_progressbar=False, return_aggregate=False, **make(*case.images.shape[1:])
            )
            return metric(
                model=subject.model if maps is None else _Fast(subject),
                x_batch=_array(case.images[chosen]),
                y_batch=_array(case.targets[chosen]),
                a_batch=None if maps is None else _array(maps[chosen]),
                s_batch=None if case.masks is None else _array(case.masks[chosen][:, None].float()),
                channel_first=True,
                softmax=True,
                device=str(subject.device),
                batch_size=subject.batch,
                explain_func=_asked_again(name, case, subject),
            )
        finally:
            np.random.set_state(state)


class _Fast(nn.Module):
    """The model in the precision in which metrics ask it; metrics that put weights at random are given the model itself."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model = subject.model
        self._fast = fast_context(subject.device, subject.precision)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad(), self._fast():
            scores: Tensor = self.model(images)
        return scores.float()


def _asked_again(name: str, case: Case, subject: Subject) -> Callable[..., Any]:
    """The method as Quantus asks it. Where it hands over another model, with random weights, the method is made anew for that."""
    # Where weights are put at random, ours is fitted anew, briefly; so it is for the model as it is, lest the fits differ.
    again = name in ("MPRT", "EfficientMPRT")
    known: dict[str, Explainer] = {} if again else {subject.fingerprint: case.explain}

    def explain(model: Any, inputs: Any, targets: Any, **_: Any) -> Any:
        state = fingerprint(model)
        if state not in known:
            if case.anew is None:
                raise ValueError("the method cannot be made anew for a model with random weights")
            known[state] = case.anew(model)
        images = torch.as_tensor(np.asarray(inputs), dtype=torch.float32)
        classes = torch.as_tensor(np.asarray(targets)).reshape(-1).long()
        return subject.explained(known[state], images, classes).numpy()

    return explain


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def _plain(
    name: str, better: str, make: _Make, of: _Of = _as_it_is, masks: bool = False, again: bool = False
) -> Callable[[Case], Measured]:
    """A metric that answers with one number an image, on what `of` makes of the maps."""

    def measure(case: Case) -> Measured:
        keep = torch.ones(len(case.images), dtype=torch.bool)
        if masks:
            keep = cast(Tensor, case.masks).flatten(1).any(dim=1).cpu()
        found = torch.full((len(case.images),), torch.nan)
        if bool(keep.any()):
            answers = np.asarray(_answers(name, make, case, keep, None if again else of(case.maps)), dtype=np.float32)
            if answers.size != int(keep.sum()):
                raise ValueError(f"Quantus answered with {answers.shape} numbers for {int(keep.sum())} images")
            found[keep] = torch.from_numpy(answers).reshape(-1)
        return Measured({name: found}, {name: better})

    return measure


def _curve(name: str, better: str, make: _Make, of: _Of = _as_it_is) -> Callable[[Case], Measured]:
    """A metric that answers with a curve an image: its area is ours to take (NumPy 2 has no `trapz`)."""

    def measure(case: Case) -> Measured:
        answers = _answers(name, make, case, None, of(case.maps))
        curves = torch.as_tensor(np.asarray(answers, dtype=np.float32)).reshape(len(case.images), -1)
        area = (curves[:, 1:] + curves[:, :-1]).mean(dim=1) / 2 if curves.shape[1] > 1 else curves[:, 0]
        return Measured({name: area}, {name: better}, {name: curves})

    return measure


def _order(maps: Tensor) -> Tensor:
    """Maps of the same order without ties: Quantus counts a tie for the maximum as a hit, and sorts ties at will."""
    return -ranks_of(maps).float()


def _positive(maps: Tensor) -> Tensor:
    """Maps without negative values, with which a share of the mass may exceed one."""
    return maps.clamp_min(0)


def _nothing(channels: int, height: int, width: int) -> dict[str, Any]:
    return {}


def _step(height: int, width: int, steps: int) -> int:
    """Pixels a step: Quantus takes only what divides the image, so at most `steps` of them a channel."""
    pixels = height * width
    return next(size for size in range(-(-pixels // steps), pixels + 1) if pixels % size == 0)


def _flipping(channels: int, height: int, width: int) -> dict[str, Any]:
    return {"features_in_step": _step(height, width, -(-16 // channels)), "perturb_baseline": "mean"}


def _regions(channels: int, height: int, width: int) -> dict[str, Any]:
    return {"patch_size": max(min(height, width) // 8, 1), "regions_evaluation": 12, "perturb_baseline": "mean"}


def _correlation(channels: int, height: int, width: int) -> dict[str, Any]:
    return {"nr_runs": 20, "subset_size": max(height * width // 16, 1), "perturb_baseline": "mean"}


def _sensitivity_n(case: Case) -> Measured:
    """Sensitivity-n (Ancona et al., 2018): correlations over random subsets of n pixels, mean over three n."""
    found = []
    for share in (64, 8, 2):

        def make(channels: int, height: int, width: int, share: int = share) -> dict[str, Any]:
            return {"nr_runs": 8, "subset_size": max(height * width // share, 1), "perturb_baseline": "mean"}

        found.append(_plain("FaithfulnessCorrelation", "higher", make)(case).scores["FaithfulnessCorrelation"])
    return Measured({"SensitivityN": torch.stack(found).mean(dim=0)}, {"SensitivityN": "higher"})


def _infidelity(channels: int, height: int, width: int) -> dict[str, Any]:
    return {
        "perturb_patch_sizes": [max(min(height, width) // 4, 1)],
        "n_perturb_samples": 1,
        "perturb_baseline": "mean",
    }


def _few(channels: int, height: int, width: int) -> dict[str, Any]:
    return {"nr_samples": 5, "lower_bound": 0.1}


def _logits(case: Case) -> Measured:
    classes = int(case.subject.ask(case.images[:1]).shape[1])
    made = {"num_classes": classes, "seed": case.subject.seed}
    return _plain("RandomLogit", "lower", lambda c, h, w: made, again=True)(case)


def _mprt(case: Case) -> Measured:
    made = {"return_average_correlation": True, "seed": case.subject.seed}
    return _plain("MPRT", "lower", lambda c, h, w: made, again=True)(case)


def _mprt_at_once(case: Case) -> Measured:
    return _plain("EfficientMPRT", "higher", lambda c, h, w: {"seed": case.subject.seed}, again=True)(case)


# The same numbers as ours, and as each other's: in the tables of a study only if they are named.
_TWINS = ("PointingGame", "RelevanceMassAccuracy", "RelevanceRankAccuracy", "AttributionLocalisation")

QUANTUS: tuple[Metric, ...] = (
    # The probability that is left, and what of it is lost (which Quantus' own mark calls the lower the better).
    Metric(
        "PixelFlipping", "faithfulness", _curve("PixelFlipping", "lower", _flipping, _order),
        "Pixels are set to the mean, the most relevant first; area under the probability.",
    ),
    Metric(
        "RegionPerturbation", "faithfulness", _curve("RegionPerturbation", "higher", _regions),
        "Patches are set to the mean, the most relevant first; area under its curve.",
    ),
    Metric(
        "FaithfulnessCorrelation", "faithfulness", _plain("FaithfulnessCorrelation", "higher", _correlation),
        "Correlation of a random subset's relevance with what hiding it costs.",
    ),
    Metric(
        "SensitivityN", "faithfulness", _sensitivity_n,
        "Ancona et al. (2018), by Quantus' FaithfulnessCorrelation: the same, mean over three sizes of the subset.",
    ),
    Metric(
        "Infidelity", "faithfulness", _plain("Infidelity", "lower", _infidelity),
        "Squared error of relevance as a forecast of the output's change.",
    ),
    *(
        Metric(name, "robustness", _plain(name, "lower", _few, again=True), meaning, asks_method=True, default=False)
        for name, meaning in (
            ("MaxSensitivity", "The most a map changes under slight noise on the image."),
            ("AvgSensitivity", "How much it changes on average."),
        )
    ),
    *(
        Metric(
            name, "localisation", _plain(name, "higher", make, of, masks=True), meaning, needs="masks",
            default=name not in _TWINS,
        )
        for name, make, of, meaning in (
            ("PointingGame", _nothing, _order, "Whether the maximum lies on the object."),
            ("RelevanceMassAccuracy", _nothing, _positive, "Share of the positive mass on the object."),
            ("RelevanceRankAccuracy", _nothing, _order, "Share of the object among the highest pixels."),
            (
                "TopKIntersection", lambda c, h, w: {"k": max(h * w // 50, 1)}, _order,
                "Share of the highest 2 % of pixels that lie on the object.",
            ),
            ("AttributionLocalisation", _nothing, _positive, "Share of the positive mass on the object."),
            # Which knows ties.
            ("AUC", _nothing, _as_it_is, "How well the map tells object from surroundings, as the area under the ROC curve."),
        )
    ),
    Metric(
        "Sparseness", "complexity", _plain("Sparseness", "higher", _nothing),
        "Gini index; one where all relevance is in one pixel. A map may be sparse and wrong.",
    ),
    Metric(
        "Complexity", "complexity", _plain("Complexity", "lower", _nothing),
        "Entropy of the relevance. A map may be simple and wrong.",
    ),
    Metric(
        "RandomLogit", "randomisation", _logits,
        "Likeness of the maps of two classes; a map that does not depend on the class scores one.", asks_method=True, default=False,
    ),
    # Layer by layer from the top, and all layers at once: ours is fitted anew to each randomised model.
    Metric(
        "MPRT", "randomisation", _mprt,
        "Likeness of the maps to those of the model with ever more layers put at random, mean over layers.",
        asks_method=True, default=False,
    ),
    Metric(
        "EfficientMPRT", "randomisation", _mprt_at_once,
        "By which share the maps' entropy rises when the model is put at random.", asks_method=True, default=False,
    ),
)  # fmt: skip
