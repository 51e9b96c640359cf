"""The student: where its features come from, what a level makes of them, and what the levels say of a class."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_attnkd.attention import Attended, LevelAttention
from captum_attnkd.classifier import LocalClassifier
from captum_attnkd.student import BackboneTrunk, ConvTrunk, LevelHead, Student, pick

CHANNELS, CLASSES = (3, 5, 4), 6
SIZES = ((8, 10), (4, 5), (2, 3))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


class Given:
    """A trunk that gives what it was given, and remembers how it was asked."""

    def __init__(self, trained: bool = True, answer: Tensor | None = None) -> None:
        self.trained, self.answer = trained, answer
        self.features = [torch.randn(2, c, *size) for c, size in zip(CHANNELS, SIZES, strict=True)]
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, images: Tensor, *extra: Any) -> tuple[list[Tensor], Tensor | None]:
        self.asked.append((images, *extra))
        return self.features, self.answer


def stirred(module: nn.Module) -> None:
    """Random weights everywhere, so that nothing is silent for being new."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)


# -- trunks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "widths", "levels"),
    [
        ((10, 10), [32], [(5, 5)]),
        ((24, 30), [32, 64], [(12, 15), (6, 8)]),
        ((40, 40), [32, 64, 128], [(20, 20), (10, 10), (5, 5)]),
        ((79, 500), [32, 64, 128], [(40, 250), (20, 125), (10, 63)]),
        ((80, 80), [32, 64, 128, 256], [(40, 40), (20, 20), (10, 10), (5, 5)]),
        ((160, 165), [16, 32, 64, 128, 128], [(40, 42), (20, 21), (10, 11), (5, 6)]),
        ((640, 640), [16, 32, 64, 128, 128], [(160, 160), (80, 80), (40, 40), (20, 20)]),
    ],
)
def test_a_trunk_of_our_own_has_as_many_stages_as_the_images_allow(
    image_size: tuple[int, int], widths: list[int], levels: list[tuple[int, int]]
) -> None:
    trunk = ConvTrunk(3, image_size)
    assert trunk.trained
    assert trunk.widths == widths
    assert trunk.sizes(image_size) == levels
    if max(image_size) < 200:
        features, answer = trunk.eval()(torch.rand(1, 3, *image_size))
        assert [tuple(level.shape) for level in features] == [
            (1, width, *size) for width, size in zip(widths[-4:], levels, strict=True)
        ]
        assert answer is None


def test_a_stage_adds_its_block_to_what_it_was_given() -> None:
    stage = ConvTrunk(3, (24, 24)).eval().stages[0]
    stirred(stage)
    images = torch.rand(2, 3, 24, 24)
    given = stage.down(images)
    assert float(given.detach().min()) == 0, "rectified"
    torch.testing.assert_close(stage(images), (given + stage.block(given)).relu())


def test_features_are_float32_also_where_the_trunk_runs_in_lower_precision() -> None:
    trunk = ConvTrunk(1, (24, 24)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = trunk(torch.rand(1, 1, 24, 24))
    assert {level.dtype for level in features} == {torch.float32}


def test_a_backbone_is_registered_and_trained_and_a_grafted_trunk_is_neither() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    student = Student(BackboneTrunk(backbone, []), (4,), 2)
    assert not student.grafted
    assert set(backbone.parameters()) <= set(student.parameters())
    assert Student(Given(trained=False), CHANNELS, CLASSES).grafted


# -- one level ---------------------------------------------------------------------------------------------------------


def test_a_level_is_scaled_by_its_own_statistics() -> None:
    head = LevelHead(3, CLASSES)
    features = torch.randn(2, 3, 4, 5)
    assert torch.equal(head.scale(features), features), "before it is calibrated, not at all"
    head.mean.copy_(torch.tensor([1.0, 2.0, -3.0]))
    head.deviation.copy_(torch.tensor([2.0, 0.5, 4.0]))
    scaled = head.scale(features)
    torch.testing.assert_close(scaled[:, 1], (features[:, 1] - 2) / 0.5)
    torch.testing.assert_close(scaled[:, 2], (features[:, 2] + 3) / 4)


def test_calibration_sets_means_and_deviations_and_spares_channels_that_are_silent() -> None:
    trunk = Given()
    student = Student(trunk, CHANNELS, CLASSES)
    level = torch.randn(8, 5, 4, 5) * torch.tensor([1.0, 2.0, 3.0, 1e-4, 0.0])[:, None, None] + 7
    student.calibrate([torch.randn(8, 3, 8, 10), level, torch.randn(8, 4, 2, 3)])
    head = student.heads[1]
    torch.testing.assert_close(head.mean, level.mean(dim=(0, 2, 3)))
    spread = level.std(dim=(0, 2, 3))
    torch.testing.assert_close(head.deviation[:3], spread[:3])
    torch.testing.assert_close(head.deviation[3:], torch.full((2,), 0.1 * float(spread.mean())))
    student.calibrate([torch.zeros(8, c, *size) for c, size in zip(CHANNELS, SIZES, strict=True)])
    assert torch.isfinite(head.scale(torch.zeros(1, 5, 2, 2))).all(), "also where all are"


def test_a_learned_level_classifies_what_attention_leaves_of_the_scaled_features() -> None:
    head = LevelHead(5, CLASSES)
    stirred(head)
    head.mean.fill_(0.5)
    features = torch.randn(2, 5, 4, 6)
    scaled, attended, attention, logits = head(features)
    torch.testing.assert_close(scaled, features - 0.5)
    wanted, gate = head.attention(scaled, scaled)
    torch.testing.assert_close(attended.maps(), wanted.maps())
    torch.testing.assert_close(attention, gate)
    torch.testing.assert_close(
        logits, F.linear(attended.maps().mean(dim=(2, 3)), head.evidence.weight, head.evidence.bias)
    )


def test_an_exact_classifier_stays_the_targets_own_and_sees_its_features() -> None:
    layer = nn.Linear(5, CLASSES)
    head = LevelHead(5, CLASSES, LocalClassifier([layer], exact=True, rectify=True))
    assert [name for name, _ in head.named_parameters() if not name.startswith("attention.")] == []
    head.mean.fill_(0.5)
    features = torch.randn(2, 5, 4, 6)
    scaled, attended, _, logits = head(features)
    torch.testing.assert_close(attended.maps(), features.relu())  # attention begins without effect
    torch.testing.assert_close(logits, layer(features.relu().mean(dim=(2, 3))))
    torch.testing.assert_close(scaled, features - 0.5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_classifier_that_is_not_exact_is_where_the_evidence_begins(bias: bool) -> None:
    layer = nn.Linear(5, CLASSES, bias=bias)
    head = LevelHead(5, CLASSES, LocalClassifier([layer], exact=False))
    assert torch.equal(head.evidence.weight, layer.weight)
    assert not bias or torch.equal(head.evidence.bias, layer.bias)
    head.mean.fill_(0.5)
    features = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(head(features)[1].maps(), features)  # which are what it was made for, not scaled ones
    with torch.no_grad():
        head.evidence.weight.zero_()
    assert bool(layer.weight.any()), "a copy"


def test_evidence_of_the_classes_asked_about_is_theirs_of_all_less_their_rivals() -> None:
    head = LevelHead(5, CLASSES)
    attended = Attended(torch.randn(2, 5, 3, 4), torch.rand(2, 5), torch.rand(2, 1, 3, 4))
    everything = head.all_evidence(attended)
    assert everything.shape == (2, CLASSES, 3, 4)
    product = attended.features * attended.gate[:, :, None, None] * attended.places
    torch.testing.assert_close(attended.maps(), product)
    torch.testing.assert_close(attended.pooled(), product.mean(dim=(2, 3)))
    by_hand = torch.einsum("kc,bchw->bkhw", head.evidence.weight, product) + head.evidence.bias[:, None, None]
    torch.testing.assert_close(everything, by_hand)
    positive, negative = torch.tensor([[2, 0], [5, 1]]), torch.tensor([[1, -1], [0, 4]])
    alone = head.evidence_of(attended, positive, None)
    torch.testing.assert_close(alone[0], by_hand[0, [2, 0]])
    torch.testing.assert_close(alone[1], by_hand[1, [5, 1]])
    against = head.evidence_of(attended, positive, negative)
    torch.testing.assert_close(against[0, 0], by_hand[0, 2] - by_hand[0, 1])
    torch.testing.assert_close(against[0, 1], by_hand[0, 0])
    torch.testing.assert_close(against[1, 0], by_hand[1, 5] - by_hand[1, 0])
    torch.testing.assert_close(against[1], by_hand[1, [5, 1]] - by_hand[1, [0, 4]])


def test_of_all_maps_those_asked_for_are_picked() -> None:
    maps = torch.randn(2, CLASSES, 3, 4)
    positive, negative = torch.tensor([[2, 0], [5, 1]]), torch.tensor([[1, -1], [0, 4]])
    assert torch.equal(pick(maps, positive, None)[1], maps[1, [5, 1]])
    against = pick(maps, positive, negative)
    torch.testing.assert_close(against[0, 0], maps[0, 2] - maps[0, 1])
    assert torch.equal(against[0, 1], maps[0, 0])
    torch.testing.assert_close(against[1], maps[1, [5, 1]] - maps[1, [0, 4]])


# -- all levels --------------------------------------------------------------------------------------------------------


def test_at_first_the_deepest_level_speaks_alone_and_later_each_with_its_voice() -> None:
    trunk = Given()
    student = Student(trunk, CHANNELS, CLASSES)
    assert (student.channels, student.classes) == (CHANNELS, CLASSES)
    seen = student.read(trunk.features)
    assert len(seen.level_logits) == len(seen.attention) == 3
    torch.testing.assert_close(seen.logits, seen.level_logits[-1])
    with torch.no_grad():
        student.voices.copy_(torch.tensor([0.5, -1.0, 2.0]))
    seen = student.read(trunk.features)
    by_hand = 0.5 * seen.level_logits[0] - seen.level_logits[1] + 2 * seen.level_logits[2]
    torch.testing.assert_close(seen.logits, by_hand)


def test_only_the_deepest_level_takes_the_targets_classifier() -> None:
    layer = nn.Linear(4, CLASSES)
    student = Student(Given(trained=False), CHANNELS, CLASSES, LocalClassifier([layer], exact=True))
    assert [hasattr(head, "evidence") for head in student.heads] == [True, True, False]
    assert all(isinstance(head.attention, LevelAttention) for head in student.heads)
    features = torch.randn(2, 4, 2, 3)
    torch.testing.assert_close(student.heads[-1](features)[3], layer(features.mean(dim=(2, 3))))


def test_a_pass_asks_the_trunk_once_with_what_it_was_given_and_in_the_context_for_it() -> None:
    entered: list[str] = []

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        entered.append(f"asked {len(trunk.asked)} times before")
        yield
        entered.append(f"asked {len(trunk.asked)} times after")

    answer = torch.randn(2, CLASSES)
    trunk = Given(trained=False, answer=answer)
    student = Student(trunk, CHANNELS, CLASSES)
    images, gain = torch.rand(2, 3, 16, 20), torch.ones(2)
    seen, found = student(images, gain, fast=noted)
    assert entered == ["asked 0 times before", "asked 1 times after"]
    ((shown, extra),) = trunk.asked
    assert shown is images
    assert extra is gain
    assert found is answer
    torch.testing.assert_close(seen.logits, student.read(trunk.features).logits)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_testimony_is_the_evidence_of_the_levels_asked_and_the_posterior_of_the_deepest(first: int) -> None:
    trunk = Given()
    student = Student(trunk, CHANNELS, CLASSES)
    stirred(student)
    seen = student.read(trunk.features)
    positive, negative = torch.tensor([[2, 0], [5, 1]]), torch.tensor([[1, -1], [0, 4]])
    everything = [head.all_evidence(level) for head, level in zip(student.heads, seen.attended, strict=True)]
    for rivals in (None, negative):
        evidence, posterior = student.testimony(seen, positive, rivals, first)
        assert len(evidence) == 3 - first
        for found, of in zip(evidence, everything[first:], strict=True):
            torch.testing.assert_close(found, pick(of, positive, rivals))
        torch.testing.assert_close(posterior, pick(everything[-1].log_softmax(dim=1), positive, rivals))
    torch.testing.assert_close(
        student.testimony(seen, positive, None)[0][-1], student.testimony(seen, positive, None, 2)[0][0]
    )
