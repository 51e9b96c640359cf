"""Fit on real handwritten digits, compare with other methods where the truth is known, draw the maps.

python examples/quickstart.py            a few minutes on two cores
python examples/quickstart.py --quick    the same in seconds, with figures that mean nothing
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from captum_attnkd.evaluation.datasets.digits import ScatteredDigits, scattered_digits, train_digit_net
from captum_attnkd.evaluation.explainers import Explainer, grad_cam
from captum_attnkd.evaluation.localisation import pointing_game
from captum_attnkd.evaluation.methods import METHODS, Method
from captum_attnkd.evaluation.metrics import OWN
from captum_attnkd.evaluation.sources import ImageSet
from captum_attnkd.evaluation.speed import speed
from captum_attnkd.evaluation.statistics import paired_interval
from captum_attnkd.evaluation.store import Store
from captum_attnkd.evaluation.study import Study
from captum_attnkd.evaluation.subject import Subject
from captum_attnkd.evaluation.summary import means
from torch.utils.data import DataLoader, TensorDataset

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.allocator import kept_buffers

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHARE = 0.99  # of a map's pixels that lie within its scale in the figure


def main() -> None:
    """Run it all and print where the figure is."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", "--small", dest="small", action="store_true", help="a few steps on a few images")
    arguments.add_argument("--out", type=Path, default=Path("out"), help="folder for the figure")
    options = arguments.parse_args()
    small = options.small
    sys.stdout.reconfigure(line_buffering=True)  # so that a log that is followed says where it is
    started = time.monotonic()

    print("1. Real handwritten digits (scikit-learn's) scattered among distractors; a CNN learns to read them.")
    train = scattered_digits(300 if small else 3000, seed=0)
    test = scattered_digits(16 if small else 80, seed=1, split="test")
    pairs = scattered_digits(16 if small else 100, seed=2, split="test", digits=2)
    with kept_buffers():
        model = train_digit_net(train, epochs=1 if small else 3)
        check = scattered_digits(50 if small else 500, seed=3, split="test")
        with torch.no_grad():
            right = (model(check.images).argmax(dim=1) == check.labels[:, 0]).float().mean().item()
    print(f"   the user's model: {right:.1%} right on held-out digits   [{time.monotonic() - started:.0f} s]\n")

    print("2. Fit once. Grafted on the model's own layers; and compact, from the model's outputs alone.")
    loader = DataLoader(TensorDataset(train.images), batch_size=64, shuffle=True)
    steps = {"distil_steps": 5, "explain_steps": 5} if small else {}
    ours = AttentiveKDAttribution(model).fit(loader, **steps)
    print(f"\n{ours.report_}\n")
    compact = AttentiveKDAttribution(lambda images: outputs_only(model, images)).fit(loader, **steps)
    print(f"{compact.report_}\n")

    print(
        f"3. {len(test)} held-out images. Insertion and deletion: means over five fills, two of which no fit has seen."
    )
    methods = [
        replace(METHODS["ours"], name="ours, grafted"),
        Method("ours, compact", "ours", lambda subject: lambda x, t: compact.saliency(x, target=t)),
        *(grad_cam_at(stage) for stage in ("stage1", "stage2", "stage3")),
        *(METHODS[name] for name in ("integrated-gradients", "occlusion", "saliency", "centre", "random")),
    ]
    subject = Subject(
        model, model.stage3, train.images.mean().reshape(1), train.images.std().reshape(1), ours, batch=len(test)
    )
    data = ImageSet(test.images, tuple(map(str, range(len(test)))), test.labels[:, 0], test.masks[:, 0])
    metrics = [metric for metric in OWN if metric.name in ("insertion-deletion", "pointing", "relevance-mass")]
    outcomes = Study(subject, data, methods, metrics, Store(None)).run()
    table = means(outcomes)
    taken = speed(subject, methods, test.images, test.labels[:, 0], batches=(4,), repeats=2)
    table["ms/image ↓"] = taken.set_index("method")["ms"]
    if small:
        print("   --quick: these figures mean nothing, they only show that everything runs.")
    print(table.to_string(float_format=lambda value: f"{value:.3f}"), "\n")
    gaps = {
        name: one.measured["insertion-deletion"].scores["insertion less deletion"] for name, one in outcomes.items()
    }
    for rival in ("Grad-CAM, stage2", "Grad-CAM, stage3", "integrated-gradients", "occlusion"):
        lead, low, high = paired_interval(gaps["ours, grafted"] - gaps[rival])
        print(f"   insertion less deletion, ours less {rival}: {lead:+.3f} [{low:+.3f}, {high:+.3f}]  n = {len(test)}")

    explainers = {method.name: method.on(subject) for method in methods}
    print(f"\n4. Two digits in one image, {len(pairs)} images: does the map follow the class asked about?")
    for name in ("ours, grafted", "ours, compact", "Grad-CAM, stage2", "Grad-CAM, stage3"):
        hits = [
            pointing_game(explainers[name](pairs.images, pairs.labels[:, place]), pairs.masks[:, place]).mean().item()
            for place in (0, 1)
        ]
        print(f"   {name:<18} points at the left digit {hits[0]:.1%}, at the right digit {hits[1]:.1%}")

    agreement = compact.agreement(test.images)
    print(f"\n5. May the compact student be trusted? On held-out images, {agreement}.")
    path = draw(test, pairs, explainers, ours, options.out)
    print(f"\nFigure: {path}\nAll in {time.monotonic() - started:.0f} seconds.")


def grad_cam_at(stage: str) -> Method:
    """Grad-CAM at a stage of the model."""
    return Method(
        f"Grad-CAM, {stage}",
        "class activation",
        lambda subject: grad_cam(subject.model, getattr(subject.model, stage)),
    )


@torch.no_grad()
def outputs_only(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The model behind a wall: probabilities come out, no gradient, no layer."""
    return model(images).softmax(dim=1)


def draw(
    test: ScatteredDigits,
    pairs: ScatteredDigits,
    explainers: Mapping[str, Explainer],
    ours: AttentiveKDAttribution,
    folder: Path,
) -> Path:
    """A picture: single digits explained by every method, then two digits and three questions."""
    shown = ["ours, grafted", "ours, compact", "Grad-CAM, stage3", "integrated-gradients", "occlusion", "saliency"]
    count = 5
    images, labels = test.images[:count], test.labels[:count, 0]
    columns = [("image", images)] + [(name, explainers[name](images, labels)) for name in shown]
    figure, axes = plt.subplots(count + 3, len(columns), figsize=(1.75 * len(columns), 1.8 * (count + 3)), dpi=90)
    for column, (name, maps) in enumerate(columns):
        axes[0, column].set_title(name.replace(", ", "\n"), fontsize=10)
        for row in range(count):
            panel(axes[row, column], images[row, 0], None if column == 0 else maps[row, 0])
    for row in range(count):
        axes[row, 0].set_ylabel(f"a {labels[row].item()}", fontsize=11)
    for row in range(3):
        left, right = pairs.labels[row].tolist()
        image = pairs.images[row : row + 1]
        cam = explainers["Grad-CAM, stage3"]
        panels = [
            ("", None),
            (f"ours: {left}?", ours.saliency(image, target=left)),
            (f"ours: {right}?", ours.saliency(image, target=right)),
            (f"ours: {left}, not {right}?", ours.saliency(image, target=left, versus=right)),
            (f"ours: {right}, not {left}?", ours.saliency(image, target=right, versus=left)),
            (f"Grad-CAM: {left}?", cam(image, torch.tensor([left]))),
            (f"Grad-CAM: {right}?", cam(image, torch.tensor([right]))),
        ]
        for column, (title, found) in enumerate(panels):
            axis = axes[count + row, column]
            panel(axis, image[0, 0], None if found is None else found[0, 0])
            axis.set_title(title, fontsize=9)
        axes[count + row, 0].set_ylabel(f"a {left} and a {right}", fontsize=11)
    caption = (
        f"Each map has its own scale: from 0 (negative values count as 0) to its {SHARE:.0%} quantile, pale to dark; "
        "the image is drawn paler below."
    )
    figure.supxlabel(caption, fontsize=9)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "quickstart.png"
    figure.savefig(path)
    return path


def panel(axis: plt.Axes, image: torch.Tensor, found: torch.Tensor | None) -> None:
    """An image, and over it, paler, a map: from nothing to its 99th percentile, as a single pixel would hide all others."""
    axis.imshow(image, cmap="gray_r", vmin=0, vmax=1.4 if found is None else 2.2)
    if found is not None:
        highest = found.quantile(SHARE).clamp_min(1e-12)
        scaled = (found.clamp_min(0) / highest).clamp_max(1)
        axis.imshow(scaled, cmap="viridis_r", alpha=0.9 * scaled.sqrt().numpy(), vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


if __name__ == "__main__":
    main()
