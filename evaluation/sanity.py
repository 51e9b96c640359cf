"""Does an explainer depend on what it claims to explain? Checks with computed verdicts; an explainer that only looks good fails.

After Adebayo et al. (2018), Sanity Checks for Saliency Maps; Kindermans et al. (2019), The (Un)reliability of Saliency Methods;
Jethani et al. (2021), Have We Learned to Explain?
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.allocator import kept_buffers

from .datasets.shortcut import Shortcuts, shortcuts, train_shortcut_net
from .explainers import Explainer
from .likeness import likeness
from .localisation import saliency_share
from .measuring import Case
from .methods import METHODS, Method
from .metrics import GAP, find_metric
from .probe import probe
from .sources import ImageSet
from .statistics import paired_interval
from .subject import Subject

SHIFT = 0.5  # of all pixels, in units of standardised images
PLANTED = "planted shortcut"
STAGES = {"top third": 1 / 3, "top two thirds": 2 / 3}  # and, after them, all


@dataclass(frozen=True)
class Figure:
    """A mean over images with its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> Figure:
        """Of one value an image (N,)."""
        return cls(*paired_interval(values))

    def __str__(self) -> str:
        """As it stands in tables."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        check: its name.
        passed: None where it only reports, or could not be made.
        rule: when it is passed.
        figures: what was measured.
        reason: why it could not be made; else empty.
    """

    check: str
    passed: bool | None
    rule: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    reason: str = ""


@dataclass
class Sanity:
    """One explainer of one model, on some images.

    Attributes:
        subject: the model; with `refit` where the method is ours.
        method: the explainer.
        data: the images.
        targets: classes asked about (N,).
        shuffled: a model of the same build that was trained on shuffled labels; None where there is none.
        beside: what was measured of others on the same subject and images; hand it on to the next method, and it is not
            measured again.
        progress: whether a bar is shown; None shows it at a terminal.
    """

    subject: Subject
    method: Method
    data: ImageSet
    targets: Tensor
    shuffled: nn.Module | None = None
    beside: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    progress: bool | None = None

    def run(self, names: Sequence[str] | None = None) -> list[Verdict]:
        """Checks by name, else all, one after the other; one that cannot be made says why and stops nothing else."""
        verdicts = []
        disable = None if self.progress is None else not self.progress
        asked = CHECKS if names is None else names
        with kept_buffers(), tqdm(asked, desc=self.method.name, unit="check", disable=disable) as bar:
            for name in bar:
                bar.set_postfix_str(name)
                try:
                    verdicts.append(CHECKS[name](self))
                except Exception as error:
                    verdicts.append(Verdict(name, None, "", reason=f"{type(error).__name__}: {error}"))
        return verdicts

    # -- does it depend on the model? --------------------------------------------------------------------------------------

    def weights_at_random(self) -> Verdict:
        """Maps of the same method for models with ever more layers at random, against two fits to the model itself."""
        figures, likely = {}, {}
        stages = {name: self._randomised(share) for name, share in STAGES.items()} | {"all": self._random}
        for name, other in stages.items():
            for measure, values in likeness(self._own, other).items():
                likely[name, measure] = values
                figures[f"{name} at random, {measure}"] = Figure.of(values)
        return self._far_from_the_floor("weights put at random", figures, {m: likely["all", m] for m in self._floor})

    def shuffled_labels(self) -> Verdict:
        """Maps of the same method for a model that learned nothing but its images by heart."""
        if self.shuffled is None:
            raise ValueError("no model trained on shuffled labels was given")
        found = likeness(self._own, self._maps(self._made(self.shuffled)))
        figures = {f"shuffled labels, {measure}": Figure.of(values) for measure, values in found.items()}
        return self._far_from_the_floor("trained on shuffled labels", figures, found)

    def explainer_of_a_random_model(self) -> Verdict:
        """Maps made for a random model, judged on the model itself, must be worse than its own."""
        own, other = self._own_gap, self._gap(self._random)
        figures = {"own": Figure.of(own), "of a random model": Figure.of(other), "difference": Figure.of(own - other)}
        return Verdict(
            "explainer of a random model", figures["difference"].low > 0, f"difference of {GAP} above 0", figures
        )

    # -- does it depend on the question? -----------------------------------------------------------------------------------

    def depends_on_class(self) -> Verdict:
        """The map of a class must serve that class better than the map of the other of the two most probable ones does."""
        answers = self.subject.ask(self.data.images)
        rivals = answers.scatter(1, self.targets[:, None], -torch.inf).argmax(dim=1)
        first, second = self._own, self._maps(self._brief, rivals)
        own = self._own_gap + self._gap(second, rivals)
        crossed = self._gap(second) + self._gap(first, rivals)
        figures = {f"own less other's {GAP}": Figure.of((own - crossed) / 2)}
        figures |= {f"the two maps, {name}": Figure.of(values) for name, values in likeness(first, second).items()}
        return Verdict("class", next(iter(figures.values())).low > 0, "own less other's above 0", figures)

    # -- does it stay the same where nothing changes? ----------------------------------------------------------------------

    def constant_shift(self) -> Verdict:
        """All pixels are shifted, and the model takes the shift away again: it sees the same, so the map should be the same."""
        other = self._maps(self._made(Shifted(self.subject.model, SHIFT).eval(), SHIFT), shift=SHIFT)
        found, name = likeness(self._own, other), "rank correlation"
        figures = {f"shifted, {measure}": Figure.of(values) for measure, values in found.items()}
        figures |= {f"floor, {measure}": Figure.of(values) for measure, values in self._floor.items()}
        bar = 0.9 * figures[f"floor, {name}"].mean
        return Verdict(
            "constant shift",
            figures[f"shifted, {name}"].low >= bar,
            f"{name} at least nine tenths of the floor's",
            figures,
        )

    def slight_noise(self) -> Verdict:
        """How much maps change under slight noise on the image, beside Integrated Gradients' and Grad-CAM's."""
        figures, others = {}, ["integrated-gradients", *(["grad-cam"] if self.subject.layer is not None else [])]
        for name in (*others, self.method.name):
            if name not in self.beside:
                method = self.method if name == self.method.name else METHODS[name]
                self.beside[name] = self._sensitivity(method.on(self.subject))
        own = self.beside[self.method.name]
        for measure, values in own.items():
            figures[measure] = Figure.of(values)
            figures |= {
                f"{measure}, less that of {name}": Figure.of(values - self.beside[name][measure]) for name in others
            }
        worse = figures["AvgSensitivity, less that of integrated-gradients"].low > 0
        return Verdict("slight noise", not worse, "AvgSensitivity not above that of Integrated Gradients", figures)

    # -- does the shape of the map tell the class? -------------------------------------------------------------------------

    def class_from_the_map(self) -> Verdict:
        """How well a small network names the class from the map alone, beside Grad-CAM's maps and labels that were shuffled.

        A report without a verdict: a faithful map of a digit has the digit's shape.
        """
        kinds = {"own": self._own}
        if self.subject.layer is not None:
            kinds["grad-cam"] = self._maps(METHODS["grad-cam"].on(self.subject))
        figures = {}
        for side in (7, 14, 28):
            for name, maps in kinds.items():
                told, by_chance = probe(maps, self.targets, side, self.subject.seed)
                figures[f"{name} at {side}x{side}"] = Figure.of(told)
                figures[f"{name} at {side}x{side}, labels shuffled"] = Figure.of(by_chance)
        return Verdict("class from the map alone", None, "reported", figures)

    # -- parts -------------------------------------------------------------------------------------------------------------

    def _made(self, model: nn.Module | None = None, shift: float = 0.0, seed: int = 0) -> Explainer:
        """The method as it is made anew for a model; ours is fitted to it, as briefly as to any other in these checks."""
        model = self.subject.model if model is None else model
        return self.method.on(self.subject.of(model, self.method.learned, self.subject.seed + seed, shift))

    @cached_property
    def _brief(self) -> Explainer:
        return self._made()

    @cached_property
    def _own(self) -> Tensor:
        return self._maps(self._brief)

    @cached_property
    def _own_gap(self) -> Tensor:
        return self._gap(self._own)

    @cached_property
    def _random(self) -> Tensor:
        return self._randomised(1.0)

    def _randomised(self, share: float) -> Tensor:
        return self._maps(self._made(randomised(self.subject.model, share, self.subject.seed)))

    @cached_property
    def _floor(self) -> dict[str, Tensor]:
        """How alike two makings of the method for the same model are; but for what is drawn at random, all alike."""
        return likeness(self._own, self._maps(self._made(seed=1)))

    def _maps(self, explain: Explainer, targets: Tensor | None = None, shift: float = 0.0) -> Tensor:
        return self.subject.explained(explain, self.data.images + shift, self.targets if targets is None else targets)

    def _gap(self, maps: Tensor, targets: Tensor | None = None) -> Tensor:
        return self._measured("insertion-deletion", maps, targets)[GAP]

    def _sensitivity(self, explain: Explainer) -> dict[str, Tensor]:
        maps = self._maps(explain)
        found: dict[str, Tensor] = {}
        for name in ("AvgSensitivity", "MaxSensitivity"):
            found |= self._measured(name, maps, None, explain)
        return found

    def _measured(
        self, name: str, maps: Tensor, targets: Tensor | None = None, explain: Explainer | None = None
    ) -> dict[str, Tensor]:
        targets = self.targets if targets is None else targets
        return find_metric(name).of(Case(self.subject, self.data.images, targets, maps, explain or self._brief)).scores

    def _far_from_the_floor(self, check: str, figures: Mapping[str, Figure], found: Mapping[str, Tensor]) -> Verdict:
        """Passed if maps of the other model are less than half as like as two makings for the same model."""
        floors = {f"floor, {measure}": Figure.of(values) for measure, values in self._floor.items()}
        name = "rank correlation"
        far = Figure.of(self._floor[name] - 2 * found[name])
        return Verdict(check, far.low > 0, f"{name} below half of the floor's", {**figures, **floors})


CHECKS: dict[str, Callable[[Sanity], Verdict]] = {
    "weights put at random": Sanity.weights_at_random,
    "trained on shuffled labels": Sanity.shuffled_labels,
    "explainer of a random model": Sanity.explainer_of_a_random_model,
    "class": Sanity.depends_on_class,
    "constant shift": Sanity.constant_shift,
    "slight noise": Sanity.slight_noise,
    "class from the map alone": Sanity.class_from_the_map,
}


class Shifted(nn.Module):
    """A model that takes a constant away from all pixels before it looks at them."""

    def __init__(self, model: nn.Module, shift: float) -> None:
        super().__init__()
        self.model, self.shift = model, shift

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, K) of images (B, C, H, W) that were shifted."""
        scores: Tensor = self.model(images - self.shift)
        return scores

    def extra_repr(self) -> str:
        """How much it takes away."""
        return f"shift={self.shift}"


def randomised(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """A copy whose last layers' weights are at random: the entries of every tensor are shuffled.

    So the weights keep their sizes, and the network its scale, while all that was learned is gone; of weights drawn anew, deep
    networks answer the same to everything.

    Args:
        model: left as it is.
        share: of the layers with weights, from the output on; 1 takes all.
        seed: of the shuffle.

    Raises:
        ValueError: there are no weights.
    """
    layers = [
        name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    if not layers:
        raise ValueError("the model is a function, or has no weights that could be put at random")
    chosen = layers[len(layers) - max(round(share * len(layers)), 1) :]
    made, drawn = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    parts = dict(made.named_modules())
    with torch.no_grad():
        for name in chosen:
            for tensor in parts[name].parameters(recurse=False):
                order = torch.randperm(tensor.numel(), generator=drawn).to(tensor.device)
                tensor.copy_(tensor.flatten()[order].reshape(tensor.shape))
    return made.eval()


def planted(methods: Sequence[Method], seed: int = 0, count: int = 60) -> dict[str, Verdict]:
    """What `found_shortcut` says of methods, for a network of our own that takes a shortcut, trained here; in a minute or two.

    Args:
        methods: the explainers; our surrogate is fitted to that network.
        seed: of training and fit.
        count: images.
    """
    learned, judged = shortcuts(3000, seed), shortcuts(count, seed + 1, "test")
    model = train_shortcut_net(learned, seed=seed)
    statistics = learned.images.mean(dim=(0, 2, 3)), learned.images.std(dim=(0, 2, 3))
    surrogate = None
    if any(method.learned for method in methods):
        surrogate = AttentiveKDAttribution(model).fit(learned.images.split(64), seed=seed)
    subject = Subject(model, model.stage3, *statistics, surrogate, seed=seed)
    return {method.name: found_shortcut(method, subject, judged) for method in methods}


def found_shortcut(method: Method, subject: Subject, data: Shortcuts) -> Verdict:
    """A model that takes a planted shortcut: its maps must lie on the patch, and leave the corner when the patch is gone.

    Args:
        method: the explainer.
        subject: the model that takes the shortcut.
        data: images with and without the patch.
    """
    corner = data.patch.expand(len(data), -1, -1)
    explain = method.on(subject)
    shares = {}
    for name, images in (("with the patch", data.images), ("without it", data.plain)):
        asked = subject.ask(images).argmax(dim=1)
        shares[name] = saliency_share(subject.explained(explain, images, asked), corner)
    even = float(data.patch.float().mean())
    figures = {f"mass in the corner, {name}": Figure.of(values) for name, values in shares.items()}
    with_it, without = figures.values()
    passed = with_it.low > 5 * even and with_it.low > 2 * without.high
    rule = (
        f"mass in the corner above {5 * even:.2f}, five times its part of the image, and twice that without the patch"
    )
    return Verdict(PLANTED, passed, rule, figures)
