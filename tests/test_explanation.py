"""The explanation network: what it begins as, what it looks at, and what its answer means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_attnkd.attention import Pointwise
from captum_attnkd.explanation import TOGETHER, ExplanationNetwork, FusedLevel, Mask, resized, squashed, standardise

CHANNELS, SIZES = (3, 5, 4), ((57, 20), (56, 14), (16, 9))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


def network(stirred: bool = True) -> ExplanationNetwork:
    """One with random weights everywhere, its zero last layers too."""
    made = ExplanationNetwork(CHANNELS, SIZES)
    if stirred:
        for layer in (made.readout, made.extent):
            nn.init.normal_(layer.weight, std=0.3)
            nn.init.normal_(layer.bias)
    return made.eval()


def question(batch: int = 2, queries: int = 3) -> dict[str, Any]:
    """All that the network is told of `batch` images and `queries` classes each."""
    return {
        "levels": [
            FusedLevel(torch.randn(batch, c, *size), torch.rand(batch, 1, *size))
            for c, size in zip(CHANNELS, SIZES, strict=True)
        ],
        "evidence": [torch.randn(batch, queries, *size) for size in SIZES],
        "posterior": torch.randn(batch, queries, *SIZES[-1]),
        "probability": torch.rand(batch, queries),
    }


def inputs_of(module: nn.Module, made: ExplanationNetwork, asked: dict[str, Any]) -> tuple[Tensor, Mask]:
    """What a layer is given while the network answers, and the answer."""
    given: list[Tensor] = []
    with module.register_forward_hook(lambda _, arguments, __: given.append(arguments[0])):
        mask = made(**asked)
    (only,) = given
    return only, mask


# -- maps --------------------------------------------------------------------------------------------------------------


def test_a_standardised_map_has_zero_mean_and_unit_deviation_and_a_constant_one_is_zero() -> None:
    maps = standardise(5 + 3 * torch.randn(2, 3, 7, 9))
    torch.testing.assert_close(maps.mean(dim=(2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.std(dim=(2, 3), correction=0), torch.ones(2, 3), atol=1e-5, rtol=0)
    assert not standardise(torch.full((1, 1, 4, 4), 3.0)).any()
    faint = standardise(1e-4 * torch.tensor([[-1.0, 1.0]]))
    assert float(faint.abs().max()) == pytest.approx(0.1, rel=0.01), (
        "what is nearly constant is not blown up to full size"
    )


def test_resampling_is_bilinear_between_the_middles_of_the_pixels_and_idle_at_the_same_size() -> None:
    maps = torch.randn(1, 2, 4, 6)
    assert resized(maps, (4, 6)) is maps
    ramp = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    torch.testing.assert_close(resized(ramp, (1, 4)).flatten(), torch.tensor([0, 0.25, 0.75, 1]))


def test_the_slow_sigmoid_is_the_sigmoid_below_and_falls_and_rises_slowly_at_its_ends() -> None:
    given = torch.tensor([-8 - math.e + 1, -8.0, -7.0, -1.0, 0.0, 2.0, 6.0])
    wanted = [torch.sigmoid(torch.tensor(x)) for x in (-9.0, -8.0, -7.0, -1.0)] + [0.5, 0.75, 0.875]
    torch.testing.assert_close(squashed(given), torch.tensor([float(value) for value in wanted]))


@pytest.mark.parametrize(("share", "inside"), [(0.2, 21), (0.4, 41), (1e-6, 1), (0.05, 6), (3.0, 100)])
def test_a_quarter_stands_at_the_border_of_the_extent(share: float, inside: int) -> None:
    logits = standardise(torch.randn(1, 2, 10, 10))
    mask = Mask(logits, torch.tensor([[math.log(share), math.log(0.3)]]), torch.tensor(0.5))
    shown = mask.saliency((10, 10))
    assert int((shown[0, 0] >= 0.25 - 1e-6).sum()) == inside, "of a hundred positions"
    assert int((shown[0, 1] >= 0.25 - 1e-6).sum()) == 31, "each class has its own"
    border = logits[0, 0].flatten().sort(descending=True).values[inside - 1]
    torch.testing.assert_close(shown[0, 0], squashed((logits[0, 0] - border) / 0.2) ** 2)
    assert mask.saliency((30, 25)).shape == (1, 2, 30, 25)


# -- before fitting ----------------------------------------------------------------------------------------------------


def test_a_new_network_answers_with_the_posterior_and_a_tenth_of_the_image() -> None:
    asked = question()
    mask = network(stirred=False)(**asked)
    torch.testing.assert_close(mask.logits, standardise(resized(standardise(asked["posterior"]), SIZES[0])))
    torch.testing.assert_close(mask.extent, torch.full((2, 3), math.log(0.1)))
    torch.testing.assert_close(mask.spread, F.softplus(torch.tensor(-0.5)))


def test_levels_are_the_narrower_the_finer_and_the_finest_of_all_are_not_asked_for_the_class() -> None:
    made = network()
    assert [layer.out_channels for layer in made.lateral] == [16, 32, 48]
    looks = [layer.in_channels for layer in made.query]
    assert looks == [16, 16 + 1, 1 + 1], "what is below; evidence"
    assert [layer.out_channels for layer in made.rise] == [16, 32]
    assert [layer.out_channels for layer in made.query] == [16, 16, 16]


# -- what it looks at --------------------------------------------------------------------------------------------------


def test_each_image_and_each_class_is_answered_for_itself() -> None:
    made, asked = network(), question()
    whole = made(**asked)
    for image in range(2):
        for query in range(3):
            one, which = slice(image, image + 1), slice(query, query + 1)
            alone = made(
                [FusedLevel(*(part[one] for part in level)) for level in asked["levels"]],
                [level[one, which] for level in asked["evidence"]],
                asked["posterior"][one, which],
                asked["probability"][one, which],
            )
            torch.testing.assert_close(alone.logits, whole.logits[one, which], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(alone.extent, whole.extent[one, which], atol=1e-4, rtol=1e-4)


def test_more_classes_than_are_decoded_at_a_time_come_in_their_order() -> None:
    made, asked = network(), question(queries=TOGETHER + 3)
    mask = made(**asked)
    for first in (0, TOGETHER - 1, TOGETHER + 2):
        alone = {
            "evidence": [level[:, first : first + 1] for level in asked["evidence"]],
            "posterior": asked["posterior"][:, first : first + 1],
            "probability": asked["probability"][:, first : first + 1],
        }
        one = made(**asked | alone)
        torch.testing.assert_close(mask.logits[:, first : first + 1], one.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mask.extent[:, first : first + 1], one.extent, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("apart", [False, True], ids=["whole", "its last channel apart"])
def test_a_pointwise_layer_is_a_convolution_of_1x1(layout: torch.memory_format, apart: bool) -> None:
    layer, maps = Pointwise(5, 3), torch.randn(2, 5, 6, 4)
    expected = F.conv2d(maps, layer.weight, layer.bias)
    laid = (maps[:, :-1] if apart else maps).contiguous(memory_format=layout)
    found = layer(laid, maps[:, -1:]) if apart else layer(laid)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_answer_is_the_prior_and_what_is_read_out_of_the_decoder() -> None:
    made, asked = network(), question()
    below, mask = inputs_of(made.readout, made, asked)
    assert float(below.detach().min()) == 0, "rectified"
    assert below.shape == (6, 16, *SIZES[0])
    refined = made.readout(below).reshape(2, 3, *SIZES[0])
    prior = resized(standardise(asked["posterior"]), SIZES[0])
    torch.testing.assert_close(mask.logits, standardise(prior + refined))
    summary = torch.cat([below.mean(dim=(2, 3)), below.amax(dim=(2, 3))], dim=1)
    torch.testing.assert_close(mask.extent, math.log(0.1) + made.extent(summary).reshape(2, 3))


def test_the_extent_is_learned_from_the_decoder_but_does_not_shape_it() -> None:
    made, asked = network(), question()
    made(**asked).extent.sum().backward()
    shaped = [name for name, parameter in made.named_parameters() if parameter.grad is not None]
    assert sorted(shaped) == ["extent.bias", "extent.weight"]


def test_the_deepest_query_sees_the_prior_and_the_evidence() -> None:
    made, asked = network(), question()
    looks, _ = inputs_of(made.query[2], made, asked)
    prior = standardise(asked["posterior"])
    torch.testing.assert_close(looks[:, 0], prior.flatten(0, 1))
    torch.testing.assert_close(looks[:, 1], standardise(asked["evidence"][2]).flatten(0, 1))
    assert looks.shape[1] == 2


def test_a_finer_query_sees_what_came_from_the_deeper_one_enlarged() -> None:
    made, asked = network(), question()
    deeper: list[Tensor] = []
    with made.query[2].register_forward_hook(lambda _, __, answer: deeper.append(answer)):
        looks, _ = inputs_of(made.query[1], made, asked)
    scenes = made._scenes(asked["levels"])
    context = made.context[2](scenes[2]).repeat_interleave(3, dim=0)
    certainty = made.certainty(asked["probability"].reshape(6, 1))[:, :, None, None]
    below = (deeper[0] + context + certainty).relu()
    torch.testing.assert_close(looks[:, :16], resized(below, SIZES[1]))
    torch.testing.assert_close(looks[:, 16], standardise(asked["evidence"][1]).flatten(0, 1))
    finer: list[Tensor] = []
    with made.query[1].register_forward_hook(lambda _, __, answer: finer.append(answer)):
        looks, _ = inputs_of(made.query[0], made, asked)
    below = (finer[0] + made.context[1](scenes[1]).repeat_interleave(3, dim=0)).relu()
    torch.testing.assert_close(looks, resized(below, SIZES[0]))  # nothing of how probable the class is, a second time


def test_a_scene_is_what_a_level_shows_and_what_came_from_the_deeper_one() -> None:
    made, asked = network(), question()
    scenes = made._scenes(asked["levels"])
    assert [tuple(scene.shape) for scene in scenes] == [
        (2, width, *size) for width, size in zip((16, 32, 48), SIZES, strict=True)
    ]
    features, attention = asked["levels"][2]
    deepest = made.smooth[2](made.lateral[2](torch.cat([features, 2 * attention - 1], dim=1)))
    torch.testing.assert_close(scenes[2], deepest)
    features, attention = asked["levels"][1]
    shown = made.lateral[1](torch.cat([features, 2 * attention - 1], dim=1))
    torch.testing.assert_close(scenes[1], made.smooth[1](shown + resized(made.rise[1](deepest), SIZES[1])))
    assert float(scenes[0].detach().min()) == 0, "rectified"


def test_attention_that_has_learned_nothing_says_nothing() -> None:
    made, asked = network(), question()
    asked["levels"] = [FusedLevel(level.features, torch.full_like(level.attention, 0.5)) for level in asked["levels"]]
    before = made(**asked).logits
    with torch.no_grad():
        for layer in made.lateral:
            layer.weight[:, -1] = 9.0
    torch.testing.assert_close(made(**asked).logits, before)
