"""The table of methods, how they are found by name, and the subject that they explain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from captum_attnkd.evaluation.methods import METHODS, Method, find_method, for_classes
from captum_attnkd.evaluation.metrics import Metric, find_metric
from captum_attnkd.evaluation.subject import Contrast, ContrastSurrogate, Subject, fingerprint, last_spatial_layer
from torch import Tensor, nn
from toy_task import TinyNet, random_net

import captum_attnkd
from captum_attnkd import AttentiveKDAttribution


def subject_of(model: nn.Module, **more: object) -> Subject:
    settings: dict[str, object] = {"precision": "fp32"} | more
    return Subject(model, settings.pop("layer", None), torch.zeros(3), torch.ones(3), **settings)  # type: ignore[arg-type]


# -- names -------------------------------------------------------------------------------------------------------------------


def test_every_method_is_found_by_its_name_and_near_names_are_told() -> None:
    assert all(find_method(name) is method and method.name == name for name, method in METHODS.items())
    with pytest.raises(ValueError, match=r"no method 'gradcam'; did you mean .*grad-cam"):
        find_method("gradcam")
    with pytest.raises(ValueError, match=r"no metric 'pointin'; did you mean pointing"):
        find_metric("pointin")
    with pytest.raises(ValueError, match=r"no method 'qqqq'\. Known: ours, refined-5, "):
        find_method("qqqq")


def test_a_method_or_metric_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(
        "from captum_attnkd.evaluation.methods import Method\n"
        "from captum_attnkd.evaluation.metrics import Measured, Metric\n"
        "def first(subject):\n    return lambda images, classes: images[:, :1]\n"
        "mine = Method('mine', 'gradients', first, {})\n"
        "counted = Metric('counted', 'complexity', lambda case: Measured({}, {}))\n"
        "number = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    images = torch.rand(2, 3, 4, 4)
    for name in ("my_methods:first", "my_methods:mine"):
        method = find_method(name)
        assert isinstance(method, Method)
        assert torch.equal(method.on(subject_of(random_net(0)))(images, torch.tensor([0, 1])), images[:, :1])
    assert find_method("my_methods:mine").name == "mine"
    assert find_method("my_methods:first").name == "my_methods:first"
    assert isinstance(find_metric("my_methods:counted"), Metric)
    with pytest.raises(ValueError, match="is a int; a Method, or a function of a Subject, was expected"):
        find_method("my_methods:number")
    with pytest.raises(ValueError, match="a Metric was expected"):
        find_metric("my_methods:mine")
    for name in ("my_methods:absent", "no_such_module:x"):
        with pytest.raises(ValueError, match="cannot be imported"):
            find_method(name)


def test_what_a_method_lacks_is_said() -> None:
    for name in ("grad-cam", "layer-cam", "guided-grad-cam", "blurred-grad-cam"):
        with pytest.raises(ValueError, match="--layer"):
            METHODS[name].on(subject_of(random_net(0)))
    for name in ("ours", "mean-map"):
        with pytest.raises(ValueError, match="--surrogate"):
            METHODS[name].on(subject_of(random_net(0)))


def test_occlusion_windows_are_shares_of_the_image() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)).eval()
    nn.init.zeros_(model[1].weight)
    model[1].weight.data[0].reshape(3, 32, 32)[:, 16, 16] = 1  # one pixel tells all
    found = METHODS["occlusion"].on(subject_of(model))(torch.ones(1, 3, 32, 32), torch.tensor([0]))[0, 0]
    seen = torch.nonzero(found > 0)
    # Windows of four pixels, every second: the two a side that hold the pixel reach from 14 to 19.
    assert seen.amin(dim=0).tolist() == [14, 14]
    assert seen.amax(dim=0).tolist() == [19, 19]


class Colours:
    """In place of a surrogate: the image's channel of that number."""

    surrogate = nn.Linear(1, 1)
    classes = 3

    def saliency(self, images: Tensor, target: Tensor, versus: Tensor | None = None) -> Tensor:
        rows = torch.arange(len(images))
        return (images[rows, target] - (0 if versus is None else images[rows, versus]))[:, None]


def test_maps_of_several_classes_are_those_of_each(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    subject = subject_of(fitted.forward_func, surrogate=fitted)
    some, asked = images[:2], torch.tensor([2, 0])
    for name in ("ours", "saliency"):
        several = for_classes(METHODS[name], 3)
        found = several.on(subject)(some, asked)
        alone = [METHODS[name].on(subject)(some, torch.full_like(asked, index)) for index in range(3)]
        torch.testing.assert_close(found, torch.cat(alone, dim=1), atol=1e-5, rtol=0)
        assert several.name == f"{name}, 3 classes"
    before = fitted._target.queries
    for_classes(METHODS["ours"], 3).on(subject)(some, asked)
    assert fitted._target.queries - before <= len(some), "one pass for all"


def test_the_mean_map_is_the_mean_of_ours_over_all_images() -> None:
    subject = subject_of(random_net(0), surrogate=Colours(), batch=2)
    images, targets = torch.rand(5, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    ours, mean = (METHODS[name].on(subject)(images, targets) for name in ("ours", "mean-map"))
    assert torch.equal(ours, images[torch.arange(5), targets][:, None])
    torch.testing.assert_close(mean, ours.mean(dim=0, keepdim=True).expand(5, 1, 4, 4))
    assert METHODS["mean-map"].at_once
    assert {name for name, method in METHODS.items() if method.learned} == {
        "ours",
        "mean-map",
        *(f"refined-{n}" for n in (5, 10, 20, 40)),
    }


# -- the subject -------------------------------------------------------------------------------------------------------------


def test_the_subject_is_asked_in_batches_and_answers_log_probabilities() -> None:
    model = random_net(1)
    images = torch.randn(7, 3, 24, 24)
    wanted = model(images).log_softmax(dim=1).detach()
    model.calls = 0
    found = subject_of(model, batch=3).ask(images)
    assert model.calls == 3
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_answers_with_nothing_is_refused(bad: float) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.where(images[:, :2, 0, 0] > 0.5, bad, 0.0)

    images = torch.zeros(5, 3, 2, 2)
    assert bool(torch.isfinite(subject_of(Broken(), batch=2).ask(images)).all())
    images[3], images[4] = 1, 1
    with pytest.raises(ValueError, match="NaN or infinite logits for 2 images"):
        subject_of(Broken(), batch=2).ask(images)


def test_a_class_may_be_impossible() -> None:
    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.0, -torch.inf]]).expand(len(images), 2)

    assert subject_of(Sure()).ask(torch.zeros(1, 3, 2, 2)).tolist() == [[0.0, -torch.inf]]


def test_a_fingerprint_tells_models_apart() -> None:
    def net(activation: nn.Module, stride: int = 1) -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=stride), nn.BatchNorm2d(4), activation)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.5)
        return model

    one, mean = net(nn.ReLU()), torch.zeros(3)
    assert fingerprint(one, mean) == fingerprint(net(nn.ReLU()), torch.zeros(3))
    prints = {fingerprint(one, mean), fingerprint(one, mean + 1), fingerprint(net(nn.Tanh()), mean)}
    prints |= {fingerprint(net(nn.ReLU(), stride=2), mean), fingerprint(one.half(), mean)}
    weight, buffer = net(nn.ReLU()), net(nn.ReLU())
    weight[0].weight.data[0, 0, 0, 0] += 1e-6
    buffer[1].running_mean[0] = 1
    prints |= {fingerprint(weight, mean), fingerprint(buffer, mean)}
    assert len(prints) == 7
    subject = subject_of(random_net(0), surrogate=Colours())
    assert subject.surrogate_fingerprint != subject_of(random_net(0)).surrogate_fingerprint == ""


def test_our_maps_are_known_by_the_code_that_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = subject_of(random_net(0), surrogate=Colours()).surrogate_fingerprint
    (tmp_path / "__init__.py").write_text("another package\n")
    monkeypatch.setattr(captum_attnkd, "__file__", str(tmp_path / "__init__.py"))
    assert subject_of(random_net(0), surrogate=Colours()).surrogate_fingerprint != before


def test_the_last_layer_with_an_extent_is_found_and_no_hook_stays() -> None:
    model, example = random_net(0), torch.zeros(1, 3, 24, 24)
    found = last_spatial_layer(model, example)
    assert found is not None
    assert found[0] == "features"
    assert found[1] is model.features
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 2))
    assert last_spatial_layer(flat, example) is None
    assert last_spatial_layer(nn.Sequential(nn.AdaptiveAvgPool2d(1)), example) is None, "one pixel is no extent"
    model.fail_at = model.calls + 1
    with pytest.raises(ValueError, match="the model broke"):
        last_spatial_layer(model, example)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_contrast_numbers_pairs_of_classes(model: TinyNet, images: Tensor) -> None:
    logits, found = model(images), Contrast(model)(images)
    assert found.shape == (len(images), 16)
    for one in range(4):
        for other in range(4):
            torch.testing.assert_close(found[:, one * 4 + other], logits[:, one] - logits[:, other])


def test_a_surrogate_is_asked_about_the_same_pairs() -> None:
    images = torch.rand(3, 3, 4, 4)
    found = ContrastSurrogate(Colours()).saliency(images, torch.tensor([0 * 3 + 2, 1 * 3 + 0, 2 * 3 + 1]))  # type: ignore[arg-type]
    wanted = torch.stack([images[0, 0] - images[0, 2], images[1, 1] - images[1, 0], images[2, 2] - images[2, 1]])
    assert torch.equal(found, wanted[:, None])
