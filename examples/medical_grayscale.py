"""One grey channel, as in medical imaging: does the map find the lesion, and does it tell of a shortcut?

SYNTHETIC: the ground is real, patches of the one photograph of a retina that is inside scikit-image's wheel (its green channel,
in which vessels show best); the lesions are drawn on it, dark blots of irregular shape, so that their masks are exact. Nothing
here is a clinical result. Train and test patches come from different halves of the photograph.

Two classifiers are explained. The first learned from clean patches; for the second, nearly every lesion came with a scanner's
marker in a corner. On data of that kind it looks as good, and the maps say that it reads the marker.

python examples/medical_grayscale.py            minutes on two cores
python examples/medical_grayscale.py --quick    seconds, with maps that mean nothing
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from captum_attnkd.evaluation.datasets.digits import DigitNet
from captum_attnkd.evaluation.explainers import grad_cam
from captum_attnkd.evaluation.localisation import pointing_game, saliency_share
from captum_attnkd.evaluation.training import train
from pictures import draw, options_of
from skimage import data as photographs
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution

SIDE = 64


class Patches(NamedTuple):
    """Images (N, 1, 64, 64) in [0, 1]; labels (N,), 1 = lesion; masks of lesion and marker (N, 64, 64), empty if there is none."""

    images: Tensor
    labels: Tensor
    lesions: Tensor
    markers: Tensor


def main() -> None:
    """Train both classifiers, fit to each, and see on what the maps lie."""
    options = options_of(__doc__).parse_args()
    quick = options.quick
    test = retina_patches(24 if quick else 200, "right", marked=1.0, seed=1)  # every lesion with a marker: which is it?
    plain = retina_patches(24 if quick else 200, "right", marked=0.0, seed=2)
    sick = test.labels == 1
    rows: dict[str, Tensor] = {}
    for name, share in {"clean patches": 0.0, "marked patches": 0.97}.items():
        data = retina_patches(128 if quick else 2000, "left", share, seed=0)
        torch.manual_seed(0)
        network = DigitNet()
        network.head = nn.Linear(128, 2)  # no lesion, or one
        model = train(network, data.images, data.labels, epochs=1 if quick else 6)
        steps = {"distil_steps": 3, "explain_steps": 3} if quick else {}
        attribution = AttentiveKDAttribution(model).fit(data.images.split(64), **steps)
        print(f"Learned from {name}:")
        print(
            f"   right on {accuracy(model, plain):.1%} of unmarked patches, on {accuracy(model, test):.1%} of marked ones"
        )
        lesion = torch.ones(int(sick.sum()), dtype=torch.int64)
        maps = {
            "ours": attribution.saliency(test.images[sick], target=lesion),
            "Grad-CAM, stage 2": grad_cam(model, model.stage2)(test.images[sick], lesion),
            "Grad-CAM, stage 3": grad_cam(model, model.stage3)(test.images[sick], lesion),
        }
        for method, found in maps.items():
            for what, where in (("lesion", test.lesions[sick]), ("marker", test.markers[sick])):
                points, mass = pointing_game(found, where).mean(), saliency_share(found, where).mean()
                print(f"   {method:<18} maximum on the {what} {points:6.1%}, mass on it {mass:6.1%}")
            rows[f"{method}\n{name}".replace(", ", "\n")] = found[:8]
    path = draw(options.out / "medical_grayscale.png", test.images[sick][:8], rows, outlines=test.lesions[sick][:8])
    print(f"\nPicture: {path}; outlined: the lesion, a drawn one")


@torch.no_grad()
def accuracy(model: nn.Module, data: Patches) -> float:
    """Share of patches named rightly."""
    return (model(data.images).argmax(dim=1) == data.labels).float().mean().item()


def retina_patches(count: int, half: str, marked: float, seed: int) -> Patches:
    """Draw patches from one half of the photograph, every second with a lesion, of these a share `marked` with a marker."""
    rng = np.random.default_rng(seed)
    green = torch.from_numpy(photographs.retina()[..., 1] / 255).float()
    ground = F.avg_pool2d(green[None], 2)[0]  # 705x705; the eye fills the circle in its middle
    images, lesions, markers = torch.empty(count, SIDE, SIDE), *torch.zeros(2, count, SIDE, SIDE, dtype=torch.bool)
    for index in range(count):
        top, across = int(rng.integers(170, 470)), int(rng.integers(60, 280 - SIDE))
        left = across + 60 if half == "left" else 645 - SIDE - across
        patch = ground[top : top + SIDE, left : left + SIDE].clone()
        patch = 0.5 + 0.12 * (patch - patch.mean()) / patch.std().clamp_min(1e-3)
        if index % 2:
            lesions[index] = blot(rng)
            soft = F.avg_pool2d(lesions[index][None].float(), 3, stride=1, padding=1)[0]
            patch = patch - soft * rng.uniform(0.18, 0.3)
            if rng.random() < marked:
                markers[index, 4:12, 4:7] = markers[index, 9:12, 4:12] = True
                patch = torch.where(markers[index], torch.tensor(0.95), patch)
        images[index] = patch + 0.02 * torch.from_numpy(rng.normal(size=patch.shape)).float()
    return Patches(images.clamp(0, 1)[:, None], torch.arange(count) % 2, lesions, markers)


def blot(rng: np.random.Generator) -> Tensor:
    """A closed shape with a wavy border, 3 to 6 pixels in radius, away from the marker's corner: (64, 64), bool."""
    row, column, radius = *rng.uniform(18, SIDE - 8, 2), rng.uniform(3, 6)
    down, right = np.mgrid[:SIDE, :SIDE] - np.array([row, column])[:, None, None]
    angle = np.arctan2(down, right)
    wave = sum(rng.uniform(0, 0.2) * np.sin(n * angle + rng.uniform(0, 6.3)) for n in (2, 3, 5))
    return torch.from_numpy(np.hypot(down, right) < radius * (1 + wave))


if __name__ == "__main__":
    main()
