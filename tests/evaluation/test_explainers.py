"""Explainers: known answers on linear models, by-hand class activation maps, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum_attnkd.evaluation import explainers, perturbing
from captum_attnkd.evaluation.methods import METHODS
from captum_attnkd.evaluation.subject import Subject
from skimage.measure import label as connected
from torch import Tensor, nn
from toy_task import TinyNet, nothing_changes, rank_correlation

from captum_attnkd.objectives import Pixels

SIDE, CLASSES = 8, 3


class Linear(nn.Module):
    """Logits are weighted sums of pixels: every attribution is known by hand."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.randn(CLASSES, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0))
        self.layer = nn.Linear(3 * SIDE * SIDE, CLASSES)
        self.layer.weight.data.copy_(drawn)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))

    def of(self, classes: Tensor) -> Tensor:
        return self.layer.weight.detach()[classes].reshape(-1, 3, SIDE, SIDE)


class Square(nn.Module):
    """Logit k is (k + 1) times half the sum of squares: its gradient is (k + 1) x."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).square().sum(dim=1, keepdim=True) / 2 * torch.arange(1, CLASSES + 1)


class Patch(nn.Module):
    """Sees one patch alone: class 0 where it is bright, class 1 where it is dark."""

    rows, columns = slice(4, 10), slice(18, 24)

    def forward(self, images: Tensor) -> Tensor:
        seen = images[:, :, self.rows, self.columns].mean(dim=(1, 2, 3))
        return torch.stack([6 * seen - 3, 3 - 6 * seen], dim=1)


def dark_at_zero(count: int = 4) -> Tensor:
    """Images whose least value is zero."""
    images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    images[:, 0, 0, 0] = 0
    return images


def summed(attributions: Tensor) -> Tensor:
    return attributions.abs().sum(dim=1, keepdim=True)


TARGETS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (explainers.saliency, lambda w, x: w),
        (explainers.guided_backprop, lambda w, x: w),
        (explainers.smooth_grad, lambda w, x: w),
        (explainers.input_x_gradient, lambda w, x: w * x),
        (explainers.integrated_gradients, lambda w, x: w * x),
        (explainers.deep_lift, lambda w, x: w * x),
        (explainers.gradient_shap, lambda w, x: w * x),
    ],
)
def test_gradients_of_a_linear_model_are_known(
    make: Callable[[nn.Module], explainers.Explainer], known: Callable[[Tensor, Tensor], Tensor]
) -> None:
    model, images = Linear().eval(), dark_at_zero()
    found = make(model)(images, TARGETS)
    torch.testing.assert_close(found, summed(known(model.of(TARGETS), images)), rtol=1e-4, atol=1e-4)


def test_gradients_of_squares_are_known() -> None:
    images = dark_at_zero() - 0.5
    times = (TARGETS + 1).reshape(-1, 1, 1, 1)
    for make, known in (
        (explainers.saliency, times * images),
        (explainers.input_x_gradient, times * images**2),
        (explainers.integrated_gradients, times * images**2 / 2),
    ):
        torch.testing.assert_close(make(Square())(images, TARGETS), summed(known), rtol=1e-4, atol=1e-5)


def test_smooth_grad_lets_noise_cancel_out_before_it_takes_absolute_values() -> None:
    images = torch.zeros(1, 3, SIDE, SIDE)
    images[:, :, 0], images[:, :, 1] = 1, -1
    found = explainers.smooth_grad(Square())(
        images, torch.tensor([0])
    )  # noise of deviation 0.3, a fifth of it in the mean
    torch.testing.assert_close(found[:, :, :2], torch.full((1, 1, 2, SIDE), 3.0), rtol=0, atol=0.5)
    assert float(found[:, :, 2:].mean()) / 3 < 0.08, "the mean of absolute gradients would be 0.24"


def test_gradient_shap_lies_between_zero_and_the_darkest_value() -> None:
    model, images = Linear().eval(), dark_at_zero(1) + 1
    found = explainers.gradient_shap(model)(images, TARGETS[:1])
    weights = model.of(TARGETS[:1])
    shares = torch.linspace(0, 1, 21)  # twenty draws of one or the other
    known = torch.cat([summed(weights * (images - share)) for share in shares])
    distances = (known - found).abs().amax(dim=(1, 2, 3))
    assert float(distances.min()) < 1e-3
    assert 0.1 < float(shares[distances.argmin()]) < 0.9, "both baselines are drawn"


def test_occlusion_of_a_linear_model_is_what_a_window_holds() -> None:
    model, images = Linear().eval(), dark_at_zero()
    held = F.avg_pool2d((model.of(TARGETS) * images).sum(dim=1, keepdim=True), 2) * 4
    known = F.interpolate(held.clamp_min(0), scale_factor=2, mode="nearest")
    found = explainers.occlusion(model, window=2, stride=2)(images, TARGETS)
    torch.testing.assert_close(found / found.max(), known / known.max(), rtol=1e-4, atol=1e-5)
    assert float((found == 0).float().mean()) > 0.2, "windows that speak against the class count as none"


@pytest.mark.parametrize(("make", "allowed"), [(explainers.kernel_shap, 0.02), (explainers.lime, 0.05)])
def test_superpixels_of_a_linear_model_get_what_they_hold(
    make: Callable[..., explainers.Explainer], allowed: float
) -> None:
    model = Linear().eval()
    model.layer.weight.data.mul_(30)  # Lime's penalty is then small beside it
    corners = torch.linspace(0, 1, 12).reshape(1, 3, 2, 2).flip(3) + 0.2
    images = F.interpolate(torch.cat([corners, corners.flip(1)]), size=(SIDE, SIDE), mode="nearest")
    targets = torch.tensor([1, 2])
    found = make(model, samples=200, count=4)(images, targets)
    parts = explainers.superpixels(images, 4)
    assert int(parts.max()) >= 3
    each = (model.of(targets) * images).sum(dim=1, keepdim=True)
    for index in range(2):
        for part in parts[index].unique():
            where = parts[index] == part
            values = found[index][where]
            assert float(values.std()) == pytest.approx(0, abs=1e-4), "a superpixel is one"
            assert float(values[0]) == pytest.approx(
                float(each[index][where].sum()), abs=allowed * float(found.abs().max())
            )


def test_superpixels_are_whole_keep_to_edges_and_count_from_zero() -> None:
    images = torch.zeros(2, 3, 40, 40)
    images[0, 0, :, 20:], images[0, 1, 20:] = 1, 1
    images[1] = torch.linspace(0, 1, 40)
    found = explainers.superpixels(images, 16)
    assert found.shape == (2, 1, 40, 40)
    assert found.dtype == torch.int64
    for index, parts in enumerate(found[:, 0].numpy()):
        names = np.unique(parts)
        assert names.tolist() == list(range(len(names))), index
        assert 8 <= len(names) <= 32, index
        assert all(connected(parts == name).max() == 1 for name in names), "each is one piece"
    halves = torch.arange(40) // 20
    quadrants = 2 * halves[:, None] + halves[None]
    quadrants[19:21], quadrants[:, 19:21] = -1, -1  # the blurred edge itself may fall to either side
    for name in found[0].unique():
        assert len(set(quadrants[found[0, 0] == name].tolist()) - {-1}) == 1, "no superpixel reaches over an edge"
    assert explainers.superpixels(images[:, :1], 16).unique().numel() >= 8, "images of one channel"


# -- class activation maps -----------------------------------------------------------------------------------------------


def activations_and_slopes(model: TinyNet, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    activations = model.features(images).detach().requires_grad_()
    logits = model.head(model.pool(activations).flatten(1))
    (slopes,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), activations)
    return activations.detach(), slopes


def to_one(maps: Tensor) -> Tensor:
    """Each map from 0 to 1."""
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low)


def test_grad_cam_by_hand(model: TinyNet, images: Tensor, labels: Tensor) -> None:
    activations, slopes = activations_and_slopes(model, images, labels)
    coarse = F.relu((slopes.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1, keepdim=True))
    enlarged = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(explainers.grad_cam(model, model.features)(images, labels), enlarged)
    guided = explainers.guided_backprop(model)(images, labels)
    torch.testing.assert_close(
        explainers.guided_grad_cam(model, model.features)(images, labels),
        guided * F.interpolate(coarse, size=images.shape[-2:], mode="nearest"),
    )


def test_the_package_and_captum_agree_on_grad_cam(model: TinyNet, images: Tensor, labels: Tensor) -> None:
    theirs = explainers.pytorch_grad_cam("GradCAM", model, model.features)(images, labels)
    ours = explainers.grad_cam(model, model.features)(images, labels)
    torch.testing.assert_close(to_one(theirs), to_one(ours), rtol=0, atol=1e-3)


def test_layer_cam_by_hand(model: TinyNet, images: Tensor, labels: Tensor) -> None:
    activations, slopes = activations_and_slopes(model, images, labels)
    coarse = (F.relu(slopes) * activations).sum(dim=1, keepdim=True)
    known = F.interpolate(to_one(coarse), size=images.shape[-2:], mode="bilinear", align_corners=False)
    found = explainers.pytorch_grad_cam("LayerCAM", model, model.features)(images, labels)
    torch.testing.assert_close(to_one(found), to_one(known), rtol=0, atol=1e-3)


@pytest.mark.parametrize("failure", [ValueError("the model broke"), IndexError("out of range")])
@pytest.mark.parametrize("name", ["LayerCAM", "GradCAMPlusPlus", "ScoreCAM"])
def test_a_model_that_breaks_is_left_as_it_was(
    untrained: TinyNet,
    images: Tensor,
    labels: Tensor,
    name: str,
    failure: Exception,
    capsys: pytest.CaptureFixture[str],
) -> None:
    untrained.failure = failure
    untrained.head.weight.requires_grad_(False)  # one that the user froze stays frozen
    explain = explainers.pytorch_grad_cam(name, untrained, untrained.features)
    before = untrained(images).detach()
    with nothing_changes(untrained):
        explain(images, labels)
        untrained.fail_at = untrained.calls + 1
        with pytest.raises(type(failure), match=str(failure)):
            explain(images, labels)
    assert torch.equal(untrained(images), before)
    assert capsys.readouterr() == ("", ""), "its bars of progress and notices stay quiet"


# -- all of them -----------------------------------------------------------------------------------------------------------


class Stand:
    """In place of a fitted surrogate: a map of the class's own colour."""

    surrogate = nn.Linear(1, 1)
    classes = 4

    def saliency(self, images: Tensor, target: Tensor) -> Tensor:
        return torch.stack([image[int(name) % 3] for image, name in zip(images, target, strict=True)])[:, None]

    def refine(self, images: Tensor, target: Tensor, *, steps: int) -> Tensor:
        return self.saliency(images, target)


QUICK: dict[str, dict[str, Any]] = {
    "rise": {"masks": 30},
    "rise-4000": {"masks": 30},
    "optimised": {"steps": 3, "resolution": 8},
    "kernel-shap": {"samples": 40, "count": 9},
    "lime": {"samples": 40, "count": 9},
    "integrated-gradients": {"steps": 8},
}
BLIND = {"mean-map", "edges", "centre", "random", "eigen-cam"}  # to the class that is asked about


def subject_of(model: nn.Module, images: Tensor, layer: nn.Module | None) -> Subject:
    return Subject(model, layer, images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)), Stand(), precision="fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_gives_maps_that_follow_the_class_and_leaves_nothing_behind(
    model: TinyNet, images: Tensor, labels: Tensor, name: str
) -> None:
    method = replace(METHODS[name], settings=METHODS[name].settings | QUICK.get(name, {}))
    explain = method.on(subject_of(model, images, model.features))
    given = images.clone()
    with nothing_changes(model):  # weights, gradients, flags, hooks, and all global generators
        found = explain(given, labels)
        again = explain(given, labels)
        other = explain(given, (labels + 1) % 4)
    assert torch.equal(given, images)
    assert given.requires_grad is False
    assert found.shape == (len(images), 1, *images.shape[-2:])
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found, again)
    if name in BLIND:
        assert torch.equal(found, other) or name == "mean-map"
    else:
        changed = (found - other).flatten(1).abs().amax(dim=1) > 1e-4 * found.abs().max()
        assert int(changed.sum()) >= len(images) - 1
    if name not in ("centre", "mean-map"):
        assert float((found[0] - found[1]).abs().max()) > 0, "maps follow the image"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.at_once])
def test_a_map_depends_on_its_image_alone(model: TinyNet, images: Tensor, labels: Tensor, name: str) -> None:
    method = replace(METHODS[name], settings=METHODS[name].settings | QUICK.get(name, {}))
    explain = method.on(subject_of(model, images, model.features))
    among, alone = explain(images[:3], labels[:3])[1:2], explain(images[1:2], labels[1:2])
    allowed = 1e-3 * float(among.abs().max())
    torch.testing.assert_close(alone, among, rtol=0, atol=allowed)


@pytest.mark.parametrize("name", ["smooth-grad", "grad-cam", "guided-backprop", "rise", "layer-cam"])
def test_maps_of_a_trained_model_lie_on_the_square(
    model: TinyNet, held_out: tuple[Tensor, Tensor, Tensor], name: str
) -> None:
    images, labels, places = (part[:12] for part in held_out)
    method = replace(METHODS[name], settings=METHODS[name].settings | {"rise": {"masks": 300}}.get(name, {}))
    found = method.on(subject_of(model, images, model.features))(images, labels)
    inside = (found * places).sum(dim=(1, 2, 3)) / places.sum(dim=(1, 2, 3))
    outside = (found * (1 - places)).sum(dim=(1, 2, 3)) / (1 - places).sum(dim=(1, 2, 3))
    assert int((inside > outside).sum()) >= 10


# -- perturbation -----------------------------------------------------------------------------------------------------------


def test_rise_masks_have_their_shape_range_and_mean() -> None:
    masks = perturbing.rise_masks(400, (30, 44), cells=7, share=0.3, generator=torch.Generator().manual_seed(0))
    assert masks.shape == (400, 1, 30, 44)
    assert float(masks.min()) == 0
    assert float(masks.max()) == 1
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.01)
    assert float((masks.mean(dim=0) - 0.3).abs().max()) < 0.13, "no place is favoured"
    assert not torch.equal(masks[0], masks[1])
    steps = (masks[..., 1:] - masks[..., :-1]).abs().amax()
    assert float(steps) < 0.3, "soft borders: cells are seven pixels wide"


def test_rise_agrees_with_a_loop_over_masks_and_images() -> None:
    model, images = Linear().eval(), dark_at_zero(3)
    model.layer.weight.data.mul_(0.1)
    targets = torch.tensor([2, 0, 1])
    found = perturbing.rise(model, masks=25, cells=4, share=0.4, batch=10)(images, targets)
    drawn = torch.Generator().manual_seed(0)
    masks = torch.cat([perturbing.rise_masks(count, (SIDE, SIDE), 4, 0.4, drawn) for count in (10, 10, 5)])
    known = torch.zeros(3, 1, SIDE, SIDE)
    for index in range(3):
        for mask in masks:
            odds = model(images[index : index + 1] * mask).detach().exp()[0]
            known[index] += odds[targets[index]] / odds.sum() * mask
    torch.testing.assert_close(found, known / (25 * 0.4))


@pytest.mark.parametrize("name", ["rise", "optimised"])
def test_the_patch_a_model_looks_at_is_found(name: str) -> None:
    images = 0.5 + 0.1 * torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    images[0, :, Patch.rows, Patch.columns] += 1
    images[1, :, Patch.rows, Patch.columns] -= 1
    targets = torch.tensor([0, 1])
    images = images - 0.5  # what RISE hides is then the background
    model = Shifted()
    if name == "rise":
        found = perturbing.rise(model, masks=400)(images, targets)
    else:
        pixels = Pixels(torch.zeros(1), torch.full((1,), 0.3))
        found = perturbing.optimised_masks(model, pixels, steps=40, resolution=16)(images, targets)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[Patch.rows, Patch.columns] = True
    for saliency in found[:, 0]:
        assert bool(inside.flatten()[saliency.argmax()])
        if name == "optimised":  # RISE's cells are as large as the patch
            top = saliency.flatten().topk(int(inside.sum())).indices
            assert float(inside.flatten()[top].float().mean()) > 0.6


class Shifted(Patch):
    """The patch's model, for images around zero."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.5)


# -- controls ----------------------------------------------------------------------------------------------------------------


def test_controls_say_what_they_should() -> None:
    images = torch.zeros(2, 3, 20, 20)
    images[0, :, :, 10:] = 1
    images[1, :, 5:] = 1
    nobody = torch.zeros(2, dtype=torch.int64)
    strength = explainers.edges(images, nobody)
    assert set(strength[0, 0].argmax(dim=1).tolist()) <= {9, 10}
    assert set(strength[1, 0].argmax(dim=0).tolist()) <= {4, 5}
    flat = strength[0, 0, :, [0, 1, 2, 17, 18, 19]]
    assert float(flat.max()) < 1e-3 * float(strength.max()), "borders of the image are no edges"
    hill = explainers.centre_prior(torch.zeros(1, 1, 9, 15), nobody[:1])
    assert divmod(int(hill.argmax()), 15) == (4, 7)
    torch.testing.assert_close(hill, hill.flip(2).flip(3))
    noise = explainers.random_map(images, nobody)
    assert 0.4 < float(noise.mean()) < 0.6
    assert abs(rank_correlation(noise[:1], noise[1:])) < 0.2


def test_blurred_grad_cam_is_grad_cam_smoothed(model: TinyNet, images: Tensor, labels: Tensor) -> None:
    plain = explainers.grad_cam(model, model.features)(images, labels)
    smooth = explainers.blurred_grad_cam(model, model.features, resolution=12)(images, labels)  # four pixels

    def roughness(maps: Tensor) -> float:
        return float((maps[..., 1:] - maps[..., :-1]).abs().sum())

    assert roughness(smooth) < 0.8 * roughness(plain)
    assert rank_correlation(plain, smooth) > 0.6
