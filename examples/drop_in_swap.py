"""A Captum script for Integrated Gradients, and one for Grad-CAM; and what changes in them to use our method: three lines.

`integrated_gradients`, `grad_cam` and `ours` below are three such scripts. The differences printed are taken from their
source as it runs here.

python examples/drop_in_swap.py            minutes on two cores
python examples/drop_in_swap.py --quick    seconds, with maps that mean nothing
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import partial

from captum_attnkd.evaluation.datasets.digits import scattered_digits, train_digit_net
from captum_attnkd.evaluation.localisation import pointing_game, saliency_share
from pictures import draw, options_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


# fmt: off
def integrated_gradients(model: nn.Module, loader: Iterable, images: Tensor, labels: Tensor) -> Tensor:
    """As it was."""
    from captum.attr import IntegratedGradients
    method = IntegratedGradients(model)
    maps = method.attribute(images, target=labels, n_steps=50)
    return maps


def grad_cam(model: nn.Module, loader: Iterable, images: Tensor, labels: Tensor) -> Tensor:
    """As it was, too."""
    from captum.attr import LayerAttribution, LayerGradCam
    method = LayerGradCam(model, model.stage3)
    maps = method.attribute(images, target=labels, relu_attributions=True)
    maps = LayerAttribution.interpolate(maps, images.shape[-2:], "bilinear")
    return maps


def ours(model: nn.Module, loader: Iterable, images: Tensor, labels: Tensor, **steps: int) -> Tensor:
    """As it is."""
    from captum_attnkd import AttentiveKDAttribution
    method = AttentiveKDAttribution(model).fit(loader, **steps)
    maps = method.attribute(images, target=labels)
    return maps
# fmt: on


def main() -> None:
    """Print the differences; explain digits by all three, point and draw."""
    options = options_of(__doc__).parse_args()
    quick = options.quick
    for script in (integrated_gradients, grad_cam):
        print(f"From {script.__name__} to ours:\n\n{difference(script, ours)}\n")

    data = scattered_digits(300 if quick else 3000)
    model = train_digit_net(data, epochs=1 if quick else 3)
    loader = DataLoader(TensorDataset(data.images, data.labels[:, 0]), batch_size=64, shuffle=True)
    test = scattered_digits(12 if quick else 100, seed=1, split="test")
    images, labels, where = test.images, test.labels[:, 0], test.masks[:, 0]

    scripts = {
        "ours": partial(ours, **({"distil_steps": 3, "explain_steps": 3} if quick else {})),
        "Integrated\nGradients": integrated_gradients,
        "Grad-CAM": grad_cam,
    }
    maps = {name: one_channel(script(model, loader, images, labels)) for name, script in scripts.items()}
    print(f"{len(images)} held-out canvases, positive attributions:")
    for name, found in maps.items():
        points, mass = pointing_game(found, where).mean(), saliency_share(found, where).mean()
        print(f"   {' '.join(name.split()):<22} maximum on the digit {points:.1%}, mass on its ink {mass:.1%}")
    captions = [f"a {label}" for label in labels[:8]]
    path = draw(
        options.out / "drop_in_swap.png", images[:8], {name: found[:8] for name, found in maps.items()}, captions
    )
    print(f"\nPicture: {path}")


def difference(before: Callable, after: Callable) -> str:
    """What changes between the bodies of two functions, as `diff` says it, without the lines they share."""
    bodies = [inspect.getsource(script).splitlines()[2:] for script in (before, after)]
    lines = difflib.unified_diff(*bodies, lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def one_channel(maps: Tensor) -> Tensor:
    """Attributions (B, C, H, W) as one positive value a pixel (B, 1, H, W)."""
    return maps.detach().float().sum(dim=1, keepdim=True).clamp_min(0)


if __name__ == "__main__":
    main()
