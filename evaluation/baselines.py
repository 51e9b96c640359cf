"""What our maps are compared with: Captum's methods, and controls that any method must beat."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

Explainer = Callable[[Tensor, Tensor], Tensor]  # images (B, C, H, W), classes (B,) -> saliency (B, 1, H, W)


def grad_cam(model: nn.Module, layer: nn.Module) -> Explainer:
    """Grad-CAM (Selvaraju et al., 2017) at a layer, rectified, enlarged bilinearly."""
    method = LayerGradCam(model, layer)

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        coarse = method.attribute(images, classes, relu_attributions=True).detach()
        return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)

    return explain


def integrated_gradients(model: nn.Module, steps: int = 50, batch: int = 200) -> Explainer:
    """Integrated gradients (Sundararajan et al., 2017) from a zero baseline, absolute values summed over channels."""
    method = IntegratedGradients(model)

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        found = method.attribute(images, target=classes, n_steps=steps, internal_batch_size=max(batch, len(images)))
        return found.detach().abs().sum(dim=1, keepdim=True).to(images.dtype)

    return explain


def saliency(model: nn.Module) -> Explainer:
    """Absolute input gradients (Simonyan et al., 2014), summed over channels."""
    method = Saliency(model)
    return lambda images, classes: method.attribute(images, target=classes).detach().sum(dim=1, keepdim=True)


def occlusion(model: nn.Module, window: int, stride: int) -> Explainer:
    """Occlusion (Zeiler & Fergus, 2014) with a square zero window, in pixels; negative values dropped."""
    method = Occlusion(model)

    def explain(images: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad():
            found = method.attribute(
                images, (images.shape[1], window, window), strides=(images.shape[1], stride, stride), target=classes
            )
        return found.sum(dim=1, keepdim=True).clamp_min(0)

    return explain


def centre_prior(images: Tensor, classes: Tensor) -> Tensor:
    """The same hill in the middle of every image: what a photographer's habit alone gives."""
    rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[-2:])
    hill = torch.exp(-2 * (rows[:, None] ** 2 + columns[None] ** 2))
    return hill.expand(len(images), 1, *hill.shape).contiguous()


def random_map(images: Tensor, classes: Tensor) -> Tensor:
    """Noise, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(len(images), 1, *images.shape[-2:], generator=generator).to(images)
