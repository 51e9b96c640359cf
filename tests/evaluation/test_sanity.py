"""Sanity checks: explainers that are broken on purpose fail them, ours passes; likeness, probe and shortcut by cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum_attnkd.evaluation.datasets.shortcut import patched, shortcuts
from captum_attnkd.evaluation.explainers import Explainer
from captum_attnkd.evaluation.likeness import likeness
from captum_attnkd.evaluation.methods import METHODS, Method
from captum_attnkd.evaluation.probe import probe
from captum_attnkd.evaluation.sanity import Sanity, Verdict, found_shortcut, randomised
from captum_attnkd.evaluation.sources import ImageSet
from captum_attnkd.evaluation.subject import AsLogits, Subject
from torch import Tensor, nn
from toy_task import CLASSES, TinyNet, loader_of, single_squares, squares

from captum_attnkd import AttentiveKDAttribution


def two_squares(count: int = 24) -> tuple[Tensor, Tensor]:
    """Images with squares of two classes, and the first of them; asked about both, a map must tell one from the other."""
    objects = [[(i % CLASSES, 2, 2 + i % 5), ((i + 1) % CLASSES, 15, 14 - i % 5)] for i in range(count)]
    images, _ = squares(objects, seed=5)
    return images, torch.arange(count) % CLASSES


def sanity(model: nn.Module, method: Method, **more: Any) -> Sanity:
    images, _ = two_squares()
    subject = Subject(
        model,
        more.pop("layer", None),
        torch.zeros(3),
        torch.ones(3),
        batch=12,
        precision="fp32",
        refit=more.pop("refit", None),
    )
    with torch.no_grad():
        targets = model(images).argmax(dim=1)
    data = ImageSet(images, tuple(map(str, range(len(images)))))
    return Sanity(subject, method, data, targets, **more)


def constant(subject: Subject) -> Explainer:
    return lambda images, classes: torch.ones_like(images[:, :1])


def activity(subject: Subject) -> Explainer:
    """Depends on model and image, and not at all on the class."""

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad():
            found = subject.model.features(images).square().sum(dim=1, keepdim=True)
        return F.interpolate(found, images.shape[-2:], mode="bilinear")

    return explain


def brightness(subject: Subject) -> Explainer:
    return lambda images, classes: images.abs().sum(dim=1, keepdim=True)


def verdicts(made: Sanity) -> dict[str, Verdict]:
    return {verdict.check: verdict for verdict in made.run()}


@pytest.mark.parametrize(
    "method", [Method("constant", "control", constant), METHODS["centre"], METHODS["edges"], METHODS["random"]]
)
def test_what_does_not_look_at_the_model_fails(model: TinyNet, method: Method) -> None:
    found = verdicts(sanity(model, method))
    for check in ("weights put at random", "explainer of a random model", "class"):
        assert found[check].passed is False, (check, found[check])
        assert not found[check].reason


def test_what_is_blind_to_the_class_fails_there(model: TinyNet) -> None:
    found = verdicts(sanity(model, Method("activity", "control", activity)))
    assert found["class"].passed is False
    assert found["class"].figures["the two maps, rank correlation"].mean == pytest.approx(1)


def test_a_constant_shift_is_told_from_what_the_model_sees(model: TinyNet) -> None:
    assert sanity(model, Method("brightness", "control", brightness)).constant_shift().passed is False
    assert sanity(model, METHODS["grad-cam"], layer=model.features).constant_shift().passed is True


def test_ours_passes_and_leaves_the_model_as_it_was(model: TinyNet) -> None:
    loader = [images for images, _ in loader_of(160, seed=3)]

    def refit(model: nn.Module, seed: int, shift: float = 0.0) -> AttentiveKDAttribution:
        shifted = [images + shift for images in loader]
        return AttentiveKDAttribution(model).fit(shifted, distil_steps=20, explain_steps=120, seed=seed, progress=False)

    made = sanity(model, METHODS["ours"], refit=refit, layer=model.features)
    asked = (made.weights_at_random, made.explainer_of_a_random_model, made.depends_on_class, made.constant_shift)
    found = {verdict.check: verdict for verdict in (check() for check in asked)}
    for check, verdict in found.items():
        assert verdict.passed, (check, verdict)


def test_what_cannot_be_checked_says_why(model: TinyNet) -> None:
    asked = AsLogits(lambda images: model(images).detach(), False).eval()
    found = verdicts(sanity(asked, METHODS["edges"]))
    for check in ("weights put at random", "explainer of a random model"):
        assert found[check].passed is None
        assert "is a function" in found[check].reason
    assert "no model trained on shuffled labels" in found["trained on shuffled labels"].reason
    learned = verdicts(sanity(model, METHODS["ours"]))
    assert "--fit" in learned["weights put at random"].reason


def test_weights_are_put_at_random_from_the_output_on_in_a_copy(model: TinyNet) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head, all_ = randomised(model, 0.1), randomised(model, 1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(head.features[0].weight, model.features[0].weight)
    assert not torch.equal(head.head.weight, model.head.weight)
    for name, tensor in all_.named_parameters():
        own = dict(model.named_parameters())[name]
        assert torch.equal(tensor.flatten().sort().values, own.flatten().sort().values), "shuffled, not drawn"
    images, labels, _ = single_squares(80, seed=9)
    with torch.no_grad():
        assert (all_(images).argmax(dim=1) == labels).float().mean() < 0.6
    again = randomised(model, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(all_.parameters(), again.parameters(), strict=True))


def test_likeness_is_of_the_order_alone() -> None:
    drawn = torch.Generator().manual_seed(0)
    maps, others = (torch.rand(3, 1, 12, 9, generator=drawn) for _ in range(2))
    for values in likeness(maps, maps.exp() * 3).values():
        torch.testing.assert_close(values, torch.ones(3))
    torch.testing.assert_close(likeness(maps, -maps)["rank correlation"], -torch.ones(3))
    assert all(bool((values.abs() < 0.35).all()) for values in likeness(maps, others).values())
    flat = torch.zeros(3, 1, 12, 9)
    assert likeness(flat, flat + 1)["rank correlation"].tolist() == [1, 1, 1]
    assert likeness(flat, maps)["rank correlation"].tolist() == [0, 0, 0]


def test_a_probe_tells_maps_whose_shape_is_the_class_and_no_others() -> None:
    drawn = torch.Generator().manual_seed(1)
    targets = torch.arange(90) % 3
    noise = torch.rand(90, 1, 24, 24, generator=drawn)
    told = noise.clone()
    for index, name in enumerate(targets.tolist()):
        told[index, :, 8 * name : 8 * name + 8] += 1
    right, by_chance = probe(told, targets, 8)
    assert right.mean() > 0.9
    assert by_chance.mean() < 0.6
    assert probe(noise, targets, 8)[0].mean() < 0.6
    with pytest.raises(ValueError, match="two classes with at least 10 images"):
        probe(noise[:12], torch.arange(12), 8)


def test_patches_tell_the_class_and_lie_where_it_is_said() -> None:
    data = shortcuts(12, seed=3, split="test")
    changed = (data.images != data.plain).any(dim=1)
    assert bool((changed.sum(dim=(1, 2)) > 0).all())
    assert not bool((changed & ~data.patch).any())
    colours = data.images[:, :, data.patch].mean(dim=2)
    for one, label in zip(colours, data.labels, strict=True):
        torch.testing.assert_close(patched(data.plain[:1], label[None])[0][:, data.patch].mean(dim=1), one)
    assert len({tuple(colour.tolist()) for colour in colours}) == len(set(data.labels.tolist()))


class PatchReader(nn.Module):
    """A model that does nothing but name the patch's colour."""

    def __init__(self) -> None:
        super().__init__()
        blank = torch.zeros(10, 3, 64, 64)
        self.register_buffer("shown", patched(blank, torch.arange(10)).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        where = self.shown.sum(dim=0) > 0
        return -torch.cdist(images.flatten(1) * where, self.shown)


def test_a_shortcut_is_found_by_those_who_look_where_the_model_does() -> None:
    data = shortcuts(20, seed=1, split="test")
    subject = Subject(PatchReader().eval(), None, torch.zeros(3), torch.ones(3), precision="fp32")

    def sees(subject: Subject) -> Explainer:
        return lambda images, classes: (images - images.mean(dim=1, keepdim=True)).abs().sum(dim=1, keepdim=True)

    assert found_shortcut(Method("sees", "control", sees), subject, data).passed
    for blind in (METHODS["centre"], METHODS["random"], Method("constant", "control", constant)):
        assert found_shortcut(blind, subject, data).passed is False
    always = data.patch[None, None].float()
    stuck = Method("stuck", "control", lambda subject: lambda images, classes: always.expand(len(images), -1, -1, -1))
    assert found_shortcut(stuck, subject, data).passed is False, "the corner is named though the patch is gone"
