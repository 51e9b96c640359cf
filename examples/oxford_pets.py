"""Oxford-IIIT Pets: 37 breeds, and for every photograph where the animal is. Does the map lie on it?

A ResNet-18 with ImageNet's weights gets a new last layer for the breeds, taught on `trainval`; the maps are judged on `test`
against the animals' masks. The map of a classifier need not cover the animal; a face may be all that the model looks at.

python examples/oxford_pets.py --data DATA --download    fetches data (800 MB) and weights (45 MB), if they are not there
python examples/oxford_pets.py --data DATA               DATA holds oxford-iiit-pet/ with images/ and annotations/
python examples/oxford_pets.py --data DATA --random-weights --quick    shows that all runs; the maps mean nothing
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from captum_attnkd.evaluation.explainers import grad_cam
from captum_attnkd.evaluation.localisation import pointing_game, saliency_share
from captum_attnkd.evaluation.sources import square
from captum_attnkd.evaluation.training import train
from pictures import draw, options_of
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import OxfordIIITPet
from torchvision.models import ResNet18_Weights, resnet18

from captum_attnkd import AttentiveKDAttribution

WEIGHTS, KINDS = ResNet18_Weights.IMAGENET1K_V1, ("category", "segmentation")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ANIMAL = 1  # in the trimaps: 2 is the background, 3 the border between them


def main() -> None:
    """Teach the last layer, fit, judge the maps by the animals' masks, draw."""
    parser = options_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with oxford-iiit-pet/ in it")
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    parser.add_argument("--random-weights", action="store_true", help="a network that has learned nothing")
    parser.add_argument("--images", type=int, default=1500, help="how many to learn from, at most")
    parser.add_argument("--held-out", type=int, default=200, help="how many to judge the maps by, at most")
    options = parser.parse_args()
    side = 96 if options.quick else 224  # pixels
    learn = pets(options.data, "trainval", side, options.images, options.download)
    test = pets(options.data, "test", side, options.held_out, options.download)
    breeds = test.dataset.classes
    model = classifier(learn, len(breeds), options.download, options.random_weights)

    steps = {"distil_steps": 2, "explain_steps": 2, "batch_size": 4} if options.quick else {}
    loader = DataLoader(learn, batch_size=32, shuffle=True, collate_fn=images_only)
    attribution = AttentiveKDAttribution(model).fit(loader, **steps)
    print(f"{attribution.report_}\n")

    images = torch.stack([image for image, _ in test])
    labels, where = torch.tensor([truth[0] for _, truth in test]), torch.stack([truth[1] for _, truth in test])
    with torch.no_grad():
        named = torch.cat([model(some).argmax(dim=1) for some in images.split(32)])
    print(
        f"The model names the breed of {(named == labels).float().mean():.1%} of {len(images)} held-out animals rightly."
    )
    cam = grad_cam(model, model.layer4)
    maps = {
        "ours": torch.cat(
            [attribution.saliency(x, target=t) for x, t in zip(images.split(32), named.split(32), strict=True)]
        ),
        "Grad-CAM": torch.cat([cam(x, t) for x, t in zip(images.split(32), named.split(32), strict=True)]),
    }
    for name, found in maps.items():
        points, mass = pointing_game(found, where).mean(), saliency_share(found, where).mean()
        print(f"{name:<10} maximum on the animal {points:.1%}, mass on it {mass:.1%}")
    print(f"{'by chance':<10} {where.float().mean():.1%}, the share of the pixels that are animal")
    shown = [images[:8] * torch.tensor(DEVIATION)[:, None, None] + torch.tensor(MEAN)[:, None, None], where[:8]]
    path = draw(
        options.out / "oxford_pets.png", shown[0], {name: found[:8] for name, found in maps.items()},
        [breeds[i] for i in named[:8]], shown[1],
    )  # fmt: skip
    print(f"\nPicture: {path}; outlined: the animal")


def pets(root: Path, split: str, side: int, limit: int, download: bool) -> Subset:
    """Photographs as the model takes them, with (breed, where the animal is), spread over the breeds."""
    transform = square(side, MEAN, DEVIATION)

    def truth(both: tuple[int, Image.Image]) -> tuple[int, Tensor]:
        trimap = np.asarray(both[1].resize((side, side), Image.Resampling.NEAREST))
        return both[0], torch.from_numpy(trimap == ANIMAL)

    try:
        data = OxfordIIITPet(root, split, KINDS, transform=transform, target_transform=truth, download=download)
    except RuntimeError as error:
        raise SystemExit(f"{error} --download fetches it into {root}.") from error
    return Subset(data, range(0, len(data), max(len(data) // limit, 1))[:limit])


def classifier(learn: Dataset, breeds: int, download: bool, random: bool) -> nn.Module:
    """ResNet-18 with a new last layer, the only one that is taught; nothing is fetched unless asked for."""
    torch.manual_seed(0)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS.url).name
    if not random and not download and not kept.exists():
        raise SystemExit(f"{kept} is not there; --download fetches it, --random-weights does without")
    model = resnet18(weights=None if random else WEIGHTS).eval()
    width, model.fc = model.fc.in_features, nn.Identity()
    with torch.no_grad():
        features = [(model(image[None])[0], truth[0]) for image, truth in learn]
    labels = torch.tensor([label for _, label in features])
    inputs = torch.stack([feature for feature, _ in features])[:, :, None, None]
    head = nn.Sequential(nn.Flatten(), nn.Linear(width, breeds))
    model.fc = train(head, inputs, labels, epochs=60, batch=min(64, len(labels)))[1]
    return model


def images_only(items: list) -> Tensor:
    """A batch of images; the truth is not learned from."""
    return torch.stack([image for image, _ in items])


if __name__ == "__main__":
    main()
