"""What our maps are compared with: others' methods behind one call, and controls that any method must beat.

An explainer is a function (images (B, C, H, W), classes (B,)) -> saliency (B, 1, H, W), float32, the higher the more relevant.
"""

from __future__ import annotations

import contextlib
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import (
    DeepLift,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    LayerGradCam,
    Lime,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn

from captum_attnkd.perturbation import blurred

Explainer = Callable[[Tensor, Tensor], Tensor]

AT_ONCE = 64  # images that a gradient is asked of together, so that 24 GiB are enough for a model of 224x224


def _magnitude(attributions: Tensor) -> Tensor:
    """One value a pixel: absolute values summed over channels."""
    return attributions.detach().float().abs().sum(dim=1, keepdim=True)


def _fresh(images: Tensor) -> Tensor:
    # Captum warns of, and marks, images that carry no gradient.
    return images.detach().clone().requires_grad_()


# -- gradients -----------------------------------------------------------------------------------------------------------


def saliency(model: nn.Module) -> Explainer:
    """Absolute input gradients (Simonyan et al., 2014), summed over channels."""
    method = Saliency(model)
    return lambda images, classes: _magnitude(method.attribute(_fresh(images), target=classes))


def input_x_gradient(model: nn.Module) -> Explainer:
    """Input times gradient (Shrikumar et al., 2016), absolute values summed over channels."""
    method = InputXGradient(model)
    return lambda images, classes: _magnitude(method.attribute(_fresh(images), target=classes))


def integrated_gradients(model: nn.Module, steps: int = 50) -> Explainer:
    """Integrated gradients (Sundararajan et al., 2017) from a zero baseline, absolute values summed over channels."""
    method = IntegratedGradients(model)
    return lambda images, classes: _magnitude(
        method.attribute(images, target=classes, n_steps=steps, internal_batch_size=max(AT_ONCE, len(images)))
    )


def smooth_grad(model: nn.Module, samples: int = 25, noise: float = 0.15) -> Explainer:
    """SmoothGrad (Smilkov et al., 2017): mean gradients under noise of a share `noise` of the image's range."""
    method = NoiseTunnel(Saliency(model))

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        spread = float(noise * (images.max() - images.min()))
        found = method.attribute(
            _fresh(images), nt_samples=samples, nt_samples_batch_size=max(AT_ONCE // len(images), 1), stdevs=spread,
            nt_type="smoothgrad", target=classes, abs=False,
        )  # fmt: skip
        return _magnitude(found)

    return _seeded(explain)


def gradient_shap(model: nn.Module, samples: int = 20) -> Explainer:
    """GradientShap (Lundberg & Lee, 2017) against the image's darkest value and zero, absolute values summed over channels."""
    method = GradientShap(model)

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        baselines = torch.cat([torch.zeros_like(images), torch.full_like(images, float(images.min()))])
        some = max(AT_ONCE // samples, 1)
        parts = [
            method.attribute(_fresh(x), baselines, n_samples=samples, target=t)
            for x, t in zip(images.split(some), classes.split(some), strict=True)
        ]
        return _magnitude(torch.cat(parts))

    return _seeded(explain)


def deep_lift(model: nn.Module) -> Explainer:
    """DeepLift (Shrikumar et al., 2017) from a zero baseline, absolute values summed over channels."""
    method = DeepLift(model)
    return _quiet(lambda images, classes: _magnitude(method.attribute(_fresh(images), target=classes)))


def guided_backprop(model: nn.Module) -> Explainer:
    """Guided backpropagation (Springenberg et al., 2015), absolute values summed over channels."""
    method = GuidedBackprop(model)
    return _quiet(lambda images, classes: _magnitude(method.attribute(_fresh(images), target=classes)))


# -- class activation maps -----------------------------------------------------------------------------------------------


def grad_cam(model: nn.Module, layer: nn.Module) -> Explainer:
    """Grad-CAM (Selvaraju et al., 2017) at a layer, rectified, enlarged bilinearly."""
    method = LayerGradCam(model, layer)

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        coarse = method.attribute(images, classes, relu_attributions=True).detach().float()
        return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)

    return explain


def guided_grad_cam(model: nn.Module, layer: nn.Module) -> Explainer:
    """Guided Grad-CAM (Selvaraju et al., 2017): Grad-CAM times guided backpropagation."""
    method = GuidedGradCam(model, layer)
    return _quiet(lambda images, classes: _magnitude(method.attribute(_fresh(images), target=classes)))


def pytorch_grad_cam(name: str, model: nn.Module, layer: nn.Module, **settings: Any) -> Explainer:
    """A class activation map of the package `grad-cam` by its class's name.

    Args:
        name: for instance "LayerCAM".
        model: as everywhere.
        layer: where the map is taken.
        settings: attributes to set on the method, for instance its batch size.
    """
    import pytorch_grad_cam as package
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        # One at a time: some of its methods make as many copies of a batch as a layer has channels.
        found = [explained(x, t) for x, t in zip(images.split(1), classes.split(1), strict=True)]
        return torch.cat(found)

    def explained(images: Tensor, classes: Tensor) -> Tensor:
        # It calls `backward`, which would write into the gradients of the user's parameters.
        # Its bars of progress would run through ours.
        quiet = contextlib.redirect_stderr(io.StringIO())
        with _frozen(model), quiet, torch.enable_grad(), contextlib.ExitStack() as stack:
            method = getattr(package, name)(model, [layer])
            stack.callback(method.activations_and_grads.release)  # its own way out swallows every IndexError
            for key, value in settings.items():
                setattr(method, key, value)
            found = method(
                input_tensor=_fresh(images), targets=[ClassifierOutputTarget(int(wanted)) for wanted in classes]
            )
        return torch.as_tensor(np.asarray(found), dtype=torch.float32)[:, None].to(images.device)

    return explain


# -- perturbation ----------------------------------------------------------------------------------------------------------


def occlusion(model: nn.Module, window: int, stride: int) -> Explainer:
    """Occlusion (Zeiler & Fergus, 2014) with a square zero window, in pixels; negative values dropped."""
    method = Occlusion(model)

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad():
            found = method.attribute(
                images, (images.shape[1], window, window), strides=(images.shape[1], stride, stride), target=classes
            )
        return found.float().sum(dim=1, keepdim=True).clamp_min(0)

    return explain


def superpixels(images: Tensor, count: int) -> Tensor:
    """About `count` superpixels an image by SLIC: indices (B, 1, H, W), int64, from 0."""
    from skimage.segmentation import slic

    found = []
    for image in images:
        low, high = image.amin(), image.amax()
        pixels = ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).cpu().numpy()
        # A little blur: grain would tear superpixels to pieces, which are then merged into one.
        parts = slic(pixels, n_segments=count, compactness=10, sigma=1, start_label=0, channel_axis=2)
        found.append(torch.from_numpy(parts))
    return torch.stack(found)[:, None].to(images.device)


def on_superpixels(method: KernelShap | Lime, samples: int, count: int, batch: int = 50) -> Explainer:
    """KernelShap (Lundberg & Lee, 2017) or Lime (Ribeiro et al., 2016) on superpixels; signed."""

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        parts = superpixels(images, count).expand_as(images)
        found = method.attribute(
            images, target=classes, feature_mask=parts, n_samples=samples, perturbations_per_eval=batch
        )
        return found.detach().float().mean(dim=1, keepdim=True)

    return _seeded(explain)


def kernel_shap(model: nn.Module, samples: int = 300, count: int = 50) -> Explainer:
    """KernelShap on about `count` superpixels."""
    return on_superpixels(KernelShap(model), samples, count)


def lime(model: nn.Module, samples: int = 300, count: int = 50) -> Explainer:
    """Lime on about `count` superpixels."""
    return on_superpixels(Lime(model), samples, count)


# -- controls --------------------------------------------------------------------------------------------------------------


def blurred_grad_cam(model: nn.Module, layer: nn.Module, resolution: int = 56) -> Explainer:
    """Grad-CAM enlarged smoothly: what a finer grid alone gives, without finer knowledge."""
    inner = grad_cam(model, layer)

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        return blurred(inner(images, classes), max(images.shape[-2:]) / resolution * 2)

    return explain


def edges(images: Tensor, classes: Tensor) -> Tensor:
    """Strength of edges (Sobel), softened: what the image alone tells, whatever the model."""
    grey = images.float().mean(dim=1, keepdim=True)
    slope = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across, down = (F.conv2d(padded, kernel[None, None]) for kernel in (slope, slope.T))
    return blurred((across**2 + down**2).sqrt(), 1.5)


def centre_prior(images: Tensor, classes: Tensor) -> Tensor:
    """The same hill in the middle of every image: what a photographer's habit alone gives."""
    rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[-2:])
    hill = torch.exp(-2 * (rows[:, None] ** 2 + columns[None] ** 2))
    return hill.expand(len(images), 1, *hill.shape).contiguous()


def random_map(images: Tensor, classes: Tensor) -> Tensor:
    """Noise that an image's own values seed: the same at every call, whatever images it is among."""
    seeds = [zlib.crc32(image.detach().cpu().float().contiguous().numpy()) for image in images]
    drawn = [torch.rand(1, *images.shape[-2:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(images)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Parameters that take no gradient, until they are as they were."""
    taught = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in taught:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in taught:
            parameter.requires_grad_(True)


def _quiet(explain: Explainer) -> Explainer:
    """Without Captum's word, at every call, that it has set hooks and will remove them."""

    def explained(images: Tensor, classes: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting (forward|backward)")
            return explain(images, classes)

    return explained


def _seeded(explain: Explainer, seed: int = 0) -> Explainer:
    """An image at a time with the same draws, so that its map depends on it alone; the global generators stay as they were."""

    def explained(images: Tensor, classes: Tensor) -> Tensor:
        found = []
        state = np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
                for image, wanted in zip(images.split(1), classes.split(1), strict=True):
                    torch.manual_seed(seed)
                    np.random.seed(seed)
                    found.append(explain(image, wanted))
        finally:
            np.random.set_state(state)
        return torch.cat(found)

    return explained
