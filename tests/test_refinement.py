"""Refined maps: better by the model's own word, each image for itself, nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_task import CLASSES, TinyNet, loader_of

from captum_attnkd import AttentiveKDAttribution, InputError


@pytest.fixture(scope="module")
def coarse(session_model: TinyNet) -> AttentiveKDAttribution:
    """Hardly fitted: there is room for improvement."""
    return AttentiveKDAttribution(session_model).fit(
        loader_of(160, seed=1), distil_steps=5, explain_steps=0, progress=False
    )


def share_on(maps: Tensor, places: Tensor) -> Tensor:
    return (maps * places).flatten(1).sum(1) / maps.flatten(1).sum(1)


def test_steps_bring_a_coarse_map_onto_the_object(
    coarse: AttentiveKDAttribution, model: TinyNet, held_out: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, places = held_out
    begun, done = coarse.saliency(images, labels), coarse.refine(images, labels, steps=40)
    assert done.shape == begun.shape
    assert bool(((done >= 0) & (done <= 1)).all())

    # Whatever the masks' size: how often the place of an object is ranked above a place beside it.
    def auc(maps: Tensor) -> Tensor:
        ranks = maps.flatten(1).argsort(1).argsort(1).float()
        inside = places.flatten(1).float()
        n = inside.sum(1)
        return ((ranks * inside).sum(1) - n * (n - 1) / 2) / (n * (inside.shape[1] - n))

    assert float((auc(done) - auc(begun)).mean()) > 0, (auc(done).mean(), auc(begun).mean())
    assert float((coarse.trust(images, labels).score).mean()) > 0  # the surrogate still answers


class Reversed(torch.autograd.Function):
    """The identity, whose gradient leads the wrong way."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


class Misled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.net(Reversed.apply(images))
        return scores


def test_a_map_that_steps_have_made_worse_is_not_given(model: TinyNet, images: Tensor, labels: Tensor) -> None:
    misled = AttentiveKDAttribution(Misled(model).eval())
    misled.fit(loader_of(160, seed=1), distil_steps=5, explain_steps=0, progress=False)
    begun, done = misled.saliency(images, labels), misled.refine(images, labels, steps=30)
    kept = [torch.equal(one, other) for one, other in zip(begun, done, strict=True)]
    assert sum(kept) >= len(kept) - 1, "but where an accident has made it better"


def test_no_steps_give_the_map_itself(coarse: AttentiveKDAttribution, model: TinyNet, images: Tensor) -> None:
    torch.testing.assert_close(coarse.refine(images, steps=0), coarse.saliency(images))


def test_an_image_does_not_see_its_neighbours(coarse: AttentiveKDAttribution, model: TinyNet, images: Tensor) -> None:
    together = coarse.refine(images, steps=5)
    alone = torch.cat([coarse.refine(image[None], steps=5) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_it_is_the_class_asked_about_that_is_refined(
    coarse: AttentiveKDAttribution, model: TinyNet, images: Tensor, labels: Tensor
) -> None:
    one, other = (coarse.refine(images, target=classes, steps=5) for classes in (labels, (labels + 1) % CLASSES))
    assert float((one - other).abs().max()) > 0.1
    against = coarse.refine(images, target=labels, versus=(labels + 1) % CLASSES, steps=5)
    assert float((one - against).abs().max()) > 0.01


def test_the_model_keeps_its_gradients_and_the_surrogate_its_weights(
    coarse: AttentiveKDAttribution, images: Tensor
) -> None:
    model = coarse.forward_func
    assert isinstance(model, nn.Module)
    weights = {name: tensor.clone() for name, tensor in coarse.surrogate.state_dict().items()}
    parameter = next(model.parameters())
    parameter.grad = torch.ones_like(parameter)
    try:
        coarse.refine(images, steps=2)
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
        assert parameter.requires_grad
    finally:
        parameter.grad = None
    assert all(torch.equal(weights[name], tensor) for name, tensor in coarse.surrogate.state_dict().items())


def test_arguments_a_sample_go_with_every_version_of_it(
    coarse: AttentiveKDAttribution, model: TinyNet, images: Tensor
) -> None:
    gain = torch.linspace(0.5, 1.5, len(images))
    together = coarse.refine(images, additional_forward_args=gain, steps=3)
    alone = torch.cat(
        [
            coarse.refine(image[None], additional_forward_args=g[None], steps=3)
            for image, g in zip(images, gain, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_outputs_only_the_student_judges(compact: AttentiveKDAttribution, images: Tensor) -> None:
    before = compact._target.queries
    maps = compact.refine(images, target=0, steps=3)
    assert maps.shape == (len(images), 1, 24, 24)
    assert compact._target.queries == before


@pytest.mark.parametrize("steps", [-1, 2.5, True, None])
def test_steps_that_cannot_be_meant_are_refused(coarse: AttentiveKDAttribution, images: Tensor, steps: object) -> None:
    with pytest.raises(InputError, match="steps"):
        coarse.refine(images, steps=steps)  # type: ignore[arg-type]
