"""Why this species and not that one? Drawn birds that differ in a single part, and the map that says which.

The birds are drawn, so it is known exactly where the answer lies; `versus=` asks for it. Grad-CAM has no such option, but it
can be asked the same of a function that returns the difference of the two scores.

python examples/fine_grained_birds.py            the classifier is trained once, in minutes, and kept in out/
python examples/fine_grained_birds.py --quick    seconds, with figures that mean nothing
"""

from __future__ import annotations

import torch
from captum.attr import LayerAttribution, LayerGradCam
from captum_attnkd.evaluation.classifiers import find_classifier
from captum_attnkd.evaluation.datasets.birds import SPECIES, Birds, birds, parts_between, train_bird_net
from captum_attnkd.evaluation.localisation import pointing_game, saliency_share
from captum_attnkd.evaluation.statistics import paired_interval
from pictures import draw, options_of
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution


def main() -> None:
    """Train a classifier of birds, fit, and ask "why this and not that" of birds it has not seen."""
    options = options_of(__doc__).parse_args()
    quick = options.quick
    data = birds(64 if quick else 3600, seed=0)
    model = train_bird_net(data, epochs=1) if quick else find_classifier("birds", kept=options.out).model
    steps = {"distil_steps": 3, "explain_steps": 3} if quick else {}
    attribution = AttentiveKDAttribution(model).fit(data.images.split(64), **steps)
    print(f"{attribution.report_}\n")

    test = birds(12 if quick else 96, seed=1)
    with torch.no_grad():
        right = (model(test.images).argmax(dim=1) == test.labels).float().mean()
    print(f"The classifier names {right:.1%} of {len(test)} birds it has not seen rightly, of {len(SPECIES)} species.")
    rivals = rivals_of(test)
    where = test.discriminative(rivals)  # the one part that differs
    ours = attribution.saliency(test.images, target=test.labels, versus=rivals)
    maps = {
        "why this\nnot that": ours,
        "why this": attribution.saliency(test.images, target=test.labels),
        "Grad-CAM\nlast stage": grad_cam(model, model[-4], test, rivals),
        "Grad-CAM\nmiddle stage": grad_cam(model, model[4], test, rivals),
    }
    for name, found in maps.items():
        points, mass = pointing_game(found, where).mean(), saliency_share(found, where).mean()
        print(f"{name.replace(chr(10), ', '):<24} maximum on the part {points:.1%}, mass on it {mass:.1%}")
    for name, found in list(maps.items())[2:]:
        lead, low, high = paired_interval(pointing_game(ours, where) - pointing_game(found, where))
        print(f"maximum on the part, ours less {name.replace(chr(10), ', ')}: {lead:+.3f} [{low:+.3f}, {high:+.3f}]")

    shown = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:6]
    captions = [caption(int(test.labels[i]), int(rivals[i])) for i in shown]
    path = draw(
        options.out / "fine_grained_birds.png", test.images[shown], {name: found[shown] for name, found in maps.items()},
        captions, where[shown],
    )  # fmt: skip
    print(f"\nPicture: {path}; outlined: the part that differs")


def rivals_of(test: Birds) -> Tensor:
    """For each bird, one of the species that differ from its own in a single part, drawn at random: (N,)."""
    drawn = torch.Generator().manual_seed(0)
    near = [[b for b in range(len(SPECIES)) if len(parts_between(a, b)) == 1] for a in range(len(SPECIES))]
    return torch.tensor([near[a][int(torch.randint(len(near[a]), (), generator=drawn))] for a in test.labels.tolist()])


def grad_cam(model: nn.Module, layer: nn.Module, test: Birds, rivals: Tensor) -> Tensor:
    """Captum's Grad-CAM of the score of each bird's species less that of its rival: (N, 1, H, W)."""

    def lead(images: Tensor) -> Tensor:
        scores = model(images)
        return scores.gather(1, test.labels[:, None])[:, 0] - scores.gather(1, rivals[:, None])[:, 0]

    coarse = LayerGradCam(lead, layer).attribute(test.images, relu_attributions=True)
    return LayerAttribution.interpolate(coarse, test.images.shape[-2:], "bilinear").detach()


def caption(own: int, rival: int) -> str:
    """The question, and the part that answers it."""
    return f"{SPECIES[own].name}\nnot {SPECIES[rival].name}"


if __name__ == "__main__":
    main()
