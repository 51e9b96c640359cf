"""Sensitivity: gradient x features at every level, by hand and by what must hold of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_attribution import class_activation_maps, deletion
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer
from toy_task import TinyNet, fit_quickly, loader_of, random_net, rank_correlation, single_squares

from captum_attnkd import AttentiveKDAttribution, InputError
from captum_attnkd.levels import Tapped, find_levels
from captum_attnkd.objectives import Explanation, Pixels
from captum_attnkd.plan import Plan, make_plan
from captum_attnkd.sensitivity import Recorded, sensitivity
from captum_attnkd.surrogate import Query, Surrogate
from captum_attnkd.target import Target


def surrogate_of(model: nn.Module, images: Tensor, classes: int, **how: object) -> Surrogate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        target = Target(model)
        return make_plan(target, images[:2], classes, gradients=True, **how).build(target).eval()  # type: ignore[arg-type]


def maps_of(surrogate: Surrogate, images: Tensor, query: Query) -> list[Tensor]:
    seen, _ = surrogate.see(images)
    assert seen.recorded is not None
    return sensitivity(seen.recorded, query.directions)


def test_at_the_deepest_level_it_is_the_classes_own_weights_less_those_of_all_others(
    model: TinyNet, images: Tensor
) -> None:
    classes = torch.tensor([[0, 2]]).expand(len(images), 2)
    found = maps_of(surrogate_of(model, images, 4), images, Query(classes))[-1]
    with torch.no_grad():
        features = model.features(images)
        probabilities = model(images).softmax(dim=1)
    weights = model.head.weight.detach()
    for place, label in enumerate((0, 2)):
        others = probabilities.clone()
        others[:, label] = 0
        slope = (
            weights[label] - others / others.sum(dim=1, keepdim=True) @ weights
        )  # of the log-odds, by the last layer
        by_hand = torch.einsum("bc,bchw->bhw", slope, features) / features[0, 0].numel()
        torch.testing.assert_close(found[:, place], by_hand, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lead", [0.0, 8.0, 40.0])
def test_the_direction_is_the_slope_of_the_log_odds_and_does_not_vanish_where_the_model_is_sure(lead: float) -> None:
    scores = torch.tensor([[lead, 1.0, -1.0, 0.5], [0.3, 0.2, lead, 0.1]])
    directions = list(Query(torch.tensor([[0, 1], [2, 3]])).directions(scores.log_softmax(dim=1)))
    for place, classes in enumerate(([0, 2], [1, 3])):
        leaf = scores.double().requires_grad_()
        pairs = zip(leaf, classes, strict=True)
        odds = [row[label] - row[[k for k in range(4) if k != label]].logsumexp(0) for row, label in pairs]
        (slope,) = torch.autograd.grad(sum(odds), leaf)
        torch.testing.assert_close(directions[place].double(), slope, atol=1e-5, rtol=1e-5)
        assert bool((directions[place].abs().amax(dim=1) == 1).all())


def test_maps_do_not_depend_on_how_strong_the_sensitivity_is(
    by_gradients: AttentiveKDAttribution, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = by_gradients.saliency(images, target=1)
    monkeypatch.setattr(
        "captum_attnkd.surrogate.sensitivity", lambda *given: [1e-2 * level for level in sensitivity(*given)]
    )
    torch.testing.assert_close(by_gradients.saliency(images, target=1), maps, atol=1e-4, rtol=1e-3)


def homogeneous() -> nn.Sequential:
    """Without biases: scores are, at every level, the sum of gradient x features (Euler)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layers: list[nn.Module] = []
        for deep, wide in ((3, 8), (8, 12), (12, 16)):
            layers += [nn.Conv2d(deep, wide, 3, stride=2, padding=1, bias=False), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5, bias=False)).eval()


def test_at_every_level_it_adds_up_to_how_far_a_class_leads_its_rival() -> None:
    net, images = homogeneous(), torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    query = Query(torch.tensor([[0], [1], [4]]), torch.tensor([[2], [3], [0]]))
    with torch.no_grad():
        scores = net(images)
    lead = scores.gather(1, query.positive) - scores.gather(1, query.negative)  # type: ignore[arg-type]
    levels = maps_of(surrogate_of(net, images, 5), images, query)
    assert len(levels) == 3
    for level in levels:
        torch.testing.assert_close(level.sum(dim=(2, 3)), lead, atol=1e-5, rtol=1e-4)


def test_questions_of_one_batch_may_have_rivals_or_none(model: TinyNet, images: Tensor) -> None:
    surrogate, wanted = surrogate_of(model, images, 4), torch.zeros(len(images), 1, dtype=torch.int64)
    rivals = torch.full_like(wanted, -1)
    alone = maps_of(surrogate, images, Query(wanted))
    rivals[0] = 2
    mixed = maps_of(surrogate, images, Query(wanted, rivals))
    for one, other in zip(alone, mixed, strict=True):
        torch.testing.assert_close(one[1:], other[1:])
        assert not torch.allclose(one[0], other[0])


class Wide(nn.Module):
    """Four levels; a skip connection goes round the third."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(c, 6, 3, stride=2, padding=1) for c in (3, 6, 6, 6, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = [images]
        for stage in self.stages:
            features.append(torch.relu_(stage(features[-1])))  # in place: what is tapped must not change
        return self.head((features[-1] + nn.functional.avg_pool2d(features[-3], 4)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def test_only_the_three_deepest_levels_are_recorded_and_gone_back_to() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Wide().eval()
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    surrogate = surrogate_of(net, images, 4)
    assert [head.attention.view.in_channels for head in surrogate.student.heads] == [6] * 4  # type: ignore[union-attr]
    seen, _ = surrogate.see(images)
    assert seen.recorded is not None
    assert [output.requires_grad for output in seen.recorded.outputs] == [False, True, True, True]
    before = net.stages[0].weight, net.stages[1].weight
    answer = seen.recorded.log_probabilities.sum()
    assert torch.autograd.grad(answer, before, retain_graph=True, allow_unused=True) == (None, None), "not recorded"
    for one, other in zip(seen.scaled, surrogate.student(images)[0].scaled, strict=True):
        torch.testing.assert_close(one, other)
    wanted = torch.ones(2, 1, dtype=torch.int64)
    found = maps_of(surrogate, images, Query(wanted))
    assert [level.shape[-1] for level in found] == [20, 10, 5]
    third = net.stages[2](net.stages[1](net.stages[0](images).relu()).relu()).relu().detach().requires_grad_()
    fifth = net.stages[4](net.stages[3](third).relu()).relu()
    answer = net.head((fifth + nn.functional.avg_pool2d(third, 4)).mean(dim=(2, 3)))
    (slope,) = torch.autograd.grad(torch.logit(answer.softmax(dim=1)[:, 1]).sum(), third)
    torch.testing.assert_close(found[0][:, 0], (slope * third).sum(dim=1), atol=1e-6, rtol=1e-4)


class Pair(NamedTuple):
    features: Tensor
    size: int


class Wrapped(nn.Module):
    def __init__(self, stage: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.stage, self.wrap = stage, wrap

    def forward(self, given: Any) -> Any:
        return self.wrap(self.stage(given if isinstance(given, Tensor) else given[0]))


class First(nn.Module):
    def forward(self, given: Any) -> Tensor:
        return given[0].mean(dim=(2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "wrap", [lambda x: (x, 1), lambda x: [x], lambda x: Pair(x, 3)], ids=["tuple", "list", "named"]
)
def test_levels_that_answer_with_more_than_a_tensor_are_recorded_alike(wrap: Callable[[Tensor], Any]) -> None:
    net, images = homogeneous(), torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    stages = [Wrapped(nn.Sequential(*list(net)[place : place + 2]), wrap) for place in (0, 2, 4)]
    answering = nn.Sequential(*stages, First(), net[-1]).eval()
    query = Query(torch.ones(2, 1, dtype=torch.int64))
    names = [f"{place}" for place in range(3)]
    found = maps_of(surrogate_of(answering, images, 5, levels=names), images, query)
    for one, other in zip(found, maps_of(surrogate_of(net, images, 5), images, query), strict=True):
        torch.testing.assert_close(one, other)


def test_tokens_are_brought_to_their_places_and_the_class_token_left_out() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=4).eval()
        nn.init.normal_(net.heads[0].weight)  # zero as it comes
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tapped = Tapped(net, find_levels(net, images))
    assert {level.layout for level in tapped.levels} == {"tokens"}
    outputs, answer = tapped.outputs(images, recorded_from=0)
    recorded = Recorded(tuple(outputs), 0, lambda found: tapped.fold(found, (32, 32)), answer.log_softmax(dim=1))
    found = sensitivity(recorded, Query(torch.tensor([[1], [3]])).directions)
    score = torch.logit(answer.softmax(dim=1)[[0, 1], [1, 3]]).sum()
    for level, output in zip(found, outputs, strict=True):
        (slope,) = torch.autograd.grad(score, output, retain_graph=True)
        patches = (slope * output).sum(dim=2)[:, 1:]
        torch.testing.assert_close(level, patches.reshape(2, 1, 4, 4))


def test_an_unfitted_surrogate_is_the_class_activation_map_still(
    model: TinyNet, held_out: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, _ = held_out
    surrogate = surrogate_of(model, images, 4)
    seen, _ = surrogate.see(images)
    with torch.no_grad():
        maps = surrogate.explain(images, seen, Query(labels[:, None])).saliency((24, 24))
    assert rank_correlation(maps, class_activation_maps(model, images, labels)) > 0.99


def test_what_is_seen_carries_no_gradient_and_equals_the_plain_pass(model: TinyNet, images: Tensor) -> None:
    surrogate = surrogate_of(model, images, 4)
    seen, answer = surrogate.see(images)
    plain, plain_answer = surrogate.student(images)
    assert answer is not None
    assert plain_answer is not None
    torch.testing.assert_close(answer, plain_answer)
    torch.testing.assert_close(seen.logits, plain.logits)
    factors = [factor for level in seen.attended for factor in level]
    assert not any(t.requires_grad for t in (answer, seen.logits, *seen.scaled, *factors, *seen.attention))


def test_the_fitted_maps_delete_no_worse_than_without_gradients_and_change_with_the_sensitivity(
    model: TinyNet,
    fitted: AttentiveKDAttribution,
    by_gradients: AttentiveKDAttribution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels, places = single_squares(64, seed=33)
    maps = by_gradients.saliency(images, target=labels)
    learned = deletion(model, images, labels, maps)
    assert learned < deletion(model, images, labels, fitted.saliency(images, target=labels)) + 0.02
    assert float(places.flatten(1).gather(1, maps.flatten(1).argmax(dim=1, keepdim=True)).mean()) >= 0.95
    monkeypatch.setattr(
        "captum_attnkd.surrogate.sensitivity", lambda *given: [-level for level in sensitivity(*given)]
    )  # the sign turned round
    turned = by_gradients.saliency(images, target=labels)
    assert rank_correlation(maps, turned) < 0.99
    assert learned < deletion(model, images, labels, turned)


def test_no_recorded_pass_is_kept_while_the_judge_is_asked_nor_afterwards(
    model: TinyNet, by_gradients: AttentiveKDAttribution, images: Tensor
) -> None:
    """It holds as much memory as the judge's own pass will need."""
    target, asked = Target(model), []

    def judge(shown: Tensor) -> Tensor:
        asked.append(recorded_passes())
        return target.log_probabilities(shown)

    pixels = Pixels(images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)))
    Explanation(surrogate_of(model, images, 4), judge, pixels)(images, torch.Generator().manual_seed(0))
    by_gradients.trust(images)
    assert asked == [0, 0]
    assert recorded_passes() == 0


def recorded_passes() -> int:
    gc.collect()
    return sum(type(thing) is Recorded for thing in gc.get_objects())


def test_a_surrogate_of_gradients_is_read_again_as_one(
    model: TinyNet, by_gradients: AttentiveKDAttribution, images: Tensor, tmp_path: Path
) -> None:
    by_gradients.save(tmp_path / "saved")
    loaded = AttentiveKDAttribution.load(tmp_path / "saved", model)
    assert loaded.plan.gradients
    assert torch.equal(loaded.saliency(images, target=1), by_gradients.saliency(images, target=1))
    again = fit_quickly(loaded, loader_of(32, 1))
    assert again.plan.gradients, "what was loaded is fitted anew as it was"


def test_a_plan_of_an_older_file_is_without_gradients(fitted: AttentiveKDAttribution) -> None:
    told = {name: value for name, value in fitted.plan.as_dict().items() if name != "gradients"}
    assert Plan.from_dict(told) == fitted.plan
    with pytest.raises(TypeError, match="gradients"):
        Plan.from_dict(told | {"gradients": "yes"})


def test_a_compact_student_goes_back_through_itself(loader: list[tuple[Tensor, Tensor]], images: Tensor) -> None:
    net = random_net(3)

    def outputs_only(shown: Tensor) -> Tensor:
        with torch.no_grad():
            return net(shown)

    made = fit_quickly(AttentiveKDAttribution(outputs_only, gradients=True), loader)
    maps = made.saliency(images, target=2)
    assert made.plan.student == "compact"
    assert bool((maps.flatten(1).std(dim=1) > 0).all())
    one_by_one = torch.cat([made.saliency(image[None], target=2) for image in images])
    torch.testing.assert_close(maps, one_by_one, atol=1e-4, rtol=0)


def test_it_cannot_be_exported_and_says_why(by_gradients: AttentiveKDAttribution, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gradients=True"):
        by_gradients.export(tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gradients", ["yes", 1, None])
def test_only_true_and_false_are_taken(model: TinyNet, gradients: object) -> None:
    with pytest.raises(InputError, match="gradients must be True or False"):
        AttentiveKDAttribution(model, gradients=gradients)  # type: ignore[arg-type]
