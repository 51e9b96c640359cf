"""ResNet-50 with its ImageNet weights, on a folder of photographs that lie as ImageNet's do: one folder a class.

DATA holds `train/` and `val/`, each with folders of images (n01440764/*.JPEG ...); or the class folders themselves, of which
a part is then held out. Labels are not needed: the class explained is the one that the model names.

python examples/imagenet_resnet50.py --data DATA                 the weights must be in torch.hub's cache
python examples/imagenet_resnet50.py --data DATA --download      fetches the weights (100 MB), and Imagenette, ten classes of
                                                                 ImageNet (350 MB), if DATA is not there
python examples/imagenet_resnet50.py --data DATA --random-weights --quick    shows that all runs; the maps mean nothing
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from captum_attnkd.evaluation.explainers import grad_cam
from pictures import draw, options_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder, Imagenette
from torchvision.models import ResNet50_Weights, resnet50

from captum_attnkd import AttentiveKDAttribution

WEIGHTS = ResNet50_Weights.IMAGENET1K_V2


def main() -> None:
    """Read, fit, say how far the surrogate agrees, draw."""
    parser = options_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    parser.add_argument("--random-weights", action="store_true", help="a network that has learned nothing")
    parser.add_argument("--images", type=int, default=2000, help="how many to learn from, at most")
    options = parser.parse_args()
    model = pretrained(options.download, options.random_weights)
    transform = WEIGHTS.transforms(**({"crop_size": 64, "resize_size": 64} if options.quick else {}))
    learn, test = photographs(options.data, transform, options.download, options.images)
    print(f"{len(learn)} images to learn from, {len(test)} held out")

    steps = {"distil_steps": 2, "explain_steps": 2, "batch_size": 4} if options.quick else {}
    attribution = AttentiveKDAttribution(model).fit(DataLoader(learn, batch_size=32, shuffle=True), **steps)
    print(f"{attribution.report_}\n")

    shown = torch.stack([test[index][0] for index in range(0, len(test), max(len(test) // 8, 1))][:8])
    with torch.no_grad():
        top, classes = model(shown).softmax(dim=1).topk(2, dim=1)
    first, second = classes.unbind(dim=1)
    print(f"Of the {len(shown)} images shown, {attribution.agreement(shown)}.")
    maps = {
        "ours\nfirst class": attribution.saliency(shown, target=first),
        "first and\nnot second": attribution.saliency(shown, target=first, versus=second),
        "Grad-CAM\nfirst class": grad_cam(model, model.layer4)(shown, first),
    }
    names = WEIGHTS.meta["categories"]
    captions = [
        "\n".join(f"{names[i]} {p:.0%}" for p, i in zip(*pair, strict=True)) for pair in zip(top, classes, strict=True)
    ]
    path = draw(options.out / "imagenet_resnet50.png", pixels_of(shown), maps, captions)
    attribution.save(options.out / "imagenet_resnet50.safetensors")
    print(f"\nPicture: {path}\nSurrogate: {options.out / 'imagenet_resnet50.safetensors'}")


def pretrained(download: bool, random: bool) -> nn.Module:
    """ResNet-50 in evaluation mode; nothing is fetched unless asked for."""
    if random:
        torch.manual_seed(0)
        return resnet50().eval()
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS.url).name
    if not download and not kept.exists():
        raise SystemExit(f"{kept} is not there; --download fetches it, --random-weights does without")
    return resnet50(weights=WEIGHTS).eval()


def photographs(root: Path, transform: Callable, download: bool, limit: int) -> tuple[Dataset, Dataset]:
    """Images to learn from and images held out, brought to what the weights were trained on."""
    if download and not root.exists():
        Imagenette(root, split="train", size="320px", download=True)
    unpacked = root / "imagenette2-320"
    root = unpacked if unpacked.exists() else root
    try:
        if (root / "train").is_dir() and (root / "val").is_dir():
            learn, test = (ImageFolder(root / split, transform) for split in ("train", "val"))
        else:
            learn = test = ImageFolder(root, transform)
    except FileNotFoundError as error:
        raise SystemExit(f"{error}; --download fetches Imagenette where DATA is not there") from error
    drawn = torch.Generator().manual_seed(0)
    order = torch.randperm(len(learn), generator=drawn).tolist()
    if learn is test:
        held_out = max(len(order) // 10, 1)
        return Subset(learn, order[held_out:][:limit]), Subset(test, order[:held_out])
    return Subset(learn, order[:limit]), Subset(test, torch.randperm(len(test), generator=drawn).tolist())


def pixels_of(images: Tensor) -> Tensor:
    """Back from the model's scale to [0, 1]."""
    mean, deviation = (
        torch.tensor(values)[:, None, None] for values in (WEIGHTS.transforms().mean, WEIGHTS.transforms().std)
    )
    return images * deviation + mean


if __name__ == "__main__":
    main()
