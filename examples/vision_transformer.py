"""A vision transformer of torchvision, small, trained on digits for a minute; its student is grafted on its blocks.

A transformer keeps one resolution from its first block to its last: all levels tapped have the same 8x8 tokens. Here the
images are small (64x64), so that their pixels are a level too and the maps are fine; of a transformer for 224x224 the maps stay
at the tokens' 14x14. The blocks are named by `levels=` because this transformer has a stem of convolutions, whose finer levels
would be found by themselves.

python examples/vision_transformer.py            minutes on two cores
python examples/vision_transformer.py --quick    seconds, with maps that mean nothing
"""

from __future__ import annotations

import torch
from captum.attr import Saliency
from captum_attnkd.evaluation.datasets.digits import SIZE, ScatteredDigits, scattered_digits
from captum_attnkd.evaluation.localisation import pointing_game, saliency_share
from captum_attnkd.evaluation.training import train
from pictures import draw, options_of
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.explanation import resized
from captum_attnkd.surrogate import Query

BLOCKS = ["encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_2", "encoder"]


def main() -> None:
    """Train, fit, print the levels, point and draw."""
    options = options_of(__doc__).parse_args()
    quick = options.quick
    data, test = digits(128 if quick else 4000, "train"), digits(12 if quick else 100, "test")
    torch.manual_seed(0)
    model = train(small_transformer(), data.images, data.labels[:, 0], epochs=1 if quick else 8, rate=1e-3)
    with torch.no_grad():
        right = (model(test.images).argmax(dim=1) == test.labels[:, 0]).float().mean()
    print(f"The transformer reads {right:.1%} of {len(test)} held-out canvases rightly.\n")

    steps = {"distil_steps": 3, "explain_steps": 3} if quick else {}
    attribution = AttentiveKDAttribution(model, levels=BLOCKS).fit(data.images.split(64), **steps)
    print(f"{attribution.report_}\n")
    for level in attribution.plan.levels:
        print(f"tapped: {level.module:<32}{level.layout}, {level.size[0]}x{level.size[1]}")

    labels, where = test.labels[:, 0], test.masks[:, 0]
    gradients = Saliency(model).attribute(test.images.clone().requires_grad_(), target=labels)
    maps = {
        "ours": attribution.saliency(test.images, target=labels),
        "what it\nbegan with": begun_with(attribution, test.images, labels),
        "Saliency": gradients.sum(dim=1, keepdim=True),
    }
    print()
    for name, found in maps.items():
        points, mass = pointing_game(found, where).mean(), saliency_share(found, where).mean()
        print(f"{' '.join(name.split()):<20} maximum on the digit {points:.1%}, mass on its ink {mass:.1%}")
    path = draw(
        options.out / "vision_transformer.png", test.images[:8], {name: found[:8] for name, found in maps.items()},
        [f"a {label}" for label in labels[:8]],
    )  # fmt: skip
    print(f"\nPicture: {path}")


def digits(count: int, split: str) -> ScatteredDigits:
    """Canvases with three distractors, in the three channels that torchvision's transformer takes."""
    made = scattered_digits(count, seed=0, split=split, pieces=3)
    return ScatteredDigits(made.images.repeat(1, 3, 1, 1), made.labels, made.masks)


def small_transformer() -> VisionTransformer:
    """Four blocks of 64 tokens, behind a stem of convolutions: without one, a transformer needs far more images."""
    stem = [ConvStemConfig(out_channels=width, kernel_size=3, stride=2) for width in (24, 48, 96)]
    return VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=192, num_classes=10,
        conv_stem_configs=stem,
    )  # fmt: skip


def begun_with(attribution: AttentiveKDAttribution, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The class activation map of the student's last level, before the explanation network: (B, 1, H, W)."""
    surrogate = attribution.surrogate
    with torch.no_grad():
        seen, _ = surrogate.student(images)
        coarse = surrogate.prior(seen, Query(labels[:, None]))
    return resized(coarse, (SIZE, SIZE)).clamp_min(0)


if __name__ == "__main__":
    main()
