"""Captum's contract, point by point as numbered in the project's list."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from captum.attr import Attribution, DataLoaderAttribution, GradientAttribution, NoiseTunnel
from captum.attr import visualization as viz
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn
from toy_task import TinyNet, changes, fit_quickly, loader_of, nothing_changes, random_net, state_of

import captum_attnkd
from captum_attnkd import AttentiveKDAttribution, InputError, NotFittedError

matplotlib.use("Agg")
Questions = list[tuple[str, Callable[[AttentiveKDAttribution, Tensor], Any]]]

ASKED: Questions = [
    ("attribute", lambda attribution, images: attribution.attribute(images)),
    ("attribute with target", lambda attribution, images: attribution.attribute(images, target=1)),
    ("saliency", lambda attribution, images: attribution.saliency(images, target=1, versus=0)),
    ("saliency_all", lambda attribution, images: attribution.saliency_all(images)),
    ("agreement", lambda attribution, images: attribution.agreement(images)),
]
each_question = pytest.mark.parametrize("ask", [ask for _, ask in ASKED], ids=[name for name, _ in ASKED])

TARGETS = [
    ("int", 2, [2, 2, 2]),
    ("0-d tensor", torch.tensor(2), [2, 2, 2]),
    ("1-element tensor", torch.tensor([2]), [2, 2, 2]),
    ("1-D tensor", torch.tensor([0, 3, 1]), [0, 3, 1]),
    ("1-D int32 tensor", torch.tensor([0, 3, 1], dtype=torch.int32), [0, 3, 1]),
    ("list of ints", [0, 3, 1], [0, 3, 1]),
    ("tuple", (2,), [2, 2, 2]),
    ("list of tuples", [(0,), (3,), (1,)], [0, 3, 1]),
]
each_target = pytest.mark.parametrize(
    ("target", "meant"), [row[1:] for row in TARGETS], ids=[str(row[0]) for row in TARGETS]
)


# -- 1: NoiseTunnel calls attribute.__wrapped__ ------------------------------------------------------------------------


def test_attribute_can_be_unwrapped_as_noise_tunnel_does(fitted: AttentiveKDAttribution) -> None:
    assert inspect.isfunction(fitted.attribute.__wrapped__)
    assert next(iter(inspect.signature(fitted.attribute.__wrapped__).parameters)) == "self"


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_runs_on_our_class(fitted: AttentiveKDAttribution, images: Tensor, kind: str) -> None:
    maps = NoiseTunnel(fitted).attribute(images, nt_type=kind, nt_samples=3, stdevs=0.2, target=1)
    assert maps.shape == images.shape
    assert torch.isfinite(maps).all()
    assert maps.abs().sum() > 0


# -- 2: keyword names -------------------------------------------------------------------------------------------------


def test_the_arguments_have_captums_names_and_order(fitted: AttentiveKDAttribution) -> None:
    names = list(inspect.signature(fitted.attribute).parameters)
    assert names[:3] == ["inputs", "target", "additional_forward_args"]


def test_noise_tunnel_without_noise_gives_the_plain_maps_for_targets_and_arguments_per_sample(
    fitted: AttentiveKDAttribution, images: Tensor
) -> None:
    gains, classes = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0, 3, 1])
    plain = fitted.attribute(images[:3], target=classes, additional_forward_args=(gains,))
    tunnel = NoiseTunnel(fitted).attribute(
        images[:3], nt_samples=2, stdevs=0.0, target=classes, additional_forward_args=(gains,)
    )
    torch.testing.assert_close(tunnel, plain, atol=1e-4, rtol=0)
    assert not torch.allclose(plain, fitted.attribute(images[:3], target=classes), atol=1e-3)


def test_sensitivity_max_repeats_targets_and_arguments_per_sample(
    fitted: AttentiveKDAttribution, images: Tensor
) -> None:
    found = sensitivity_max(
        fitted.attribute, images[:3], lambda given: given, n_perturb_samples=2,
        target=torch.tensor([0, 3, 1]), additional_forward_args=torch.tensor([0.5, 1.0, 2.0]),
    )  # fmt: skip
    assert found.shape == (3,)
    assert float(found.max()) < 1e-3  # an unchanged image, asked with its own class and gain, has an unchanged map


# -- 3: a tensor or a 1-tuple, answered in kind ------------------------------------------------------------------------


def test_a_tensor_is_answered_with_a_tensor_and_a_tuple_with_a_tuple(
    fitted: AttentiveKDAttribution, images: Tensor
) -> None:
    plain, packed = fitted.attribute(images, target=1), fitted.attribute((images,), target=1)
    assert isinstance(plain, Tensor)
    assert isinstance(packed, tuple)
    assert len(packed) == 1
    assert torch.equal(packed[0], plain)


def test_a_tuple_of_two_is_refused(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    with pytest.raises(InputError, match="tuple of 2"):
        fitted.attribute((images, images), target=1)


def test_sensitivity_max_runs_on_our_class(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    found = sensitivity_max(fitted.attribute, images, perturb_radius=0.05, n_perturb_samples=2, target=1)
    assert found.shape == (len(images),)
    assert torch.isfinite(found).all()
    assert float(found.max()) > 0


# -- 4: exactly the inputs' shape, contiguous --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_maps_have_the_inputs_shape_and_dtype_and_are_contiguous(
    fitted: AttentiveKDAttribution, images: Tensor, dtype: torch.dtype
) -> None:
    maps = fitted.attribute(images.to(dtype), target=1)
    assert maps.shape == images.shape
    assert maps.dtype == dtype
    assert maps.is_contiguous()
    assert all(stride > 0 for stride in maps.stride())
    assert maps.data_ptr() != images.data_ptr()
    assert torch.equal(maps[:, 0], maps[:, 2])


def test_maps_can_be_written_to_channel_by_channel(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    maps = fitted.attribute(images, target=1)
    before = maps[:, 1].clone()
    maps[:, 0] = 9
    assert torch.equal(maps[:, 1], before)


def test_infidelity_runs_on_our_maps(model: TinyNet, fitted: AttentiveKDAttribution, images: Tensor) -> None:
    def perturbed(given: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.ones_like(given)
        return noise, given - noise

    maps = fitted.attribute(images, target=1)
    found = infidelity(model, perturbed, images, maps, target=1, n_perturb_samples=2)
    assert found.shape == (len(images),)
    assert torch.isfinite(found).all()


# -- 5: no coupling between the samples of a batch ---------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fitted", "by_gradients", "compact"])
def test_a_batch_equals_its_images_one_by_one(which: str, images: Tensor, request: pytest.FixtureRequest) -> None:
    attribution = request.getfixturevalue(which)
    together = attribution.attribute(images, target=[0, 1, 2, 3, 0, 1])
    alone = torch.cat([attribution.attribute(image[None], target=index % 4) for index, image in enumerate(images)])
    assert float((together - alone).abs().max()) <= 1e-4


def test_a_batch_equals_its_images_one_by_one_on_captums_model(
    captum_fitted: AttentiveKDAttribution, captum_images: Tensor
) -> None:
    together = captum_fitted.attribute(captum_images, target=4)
    alone = torch.cat([captum_fitted.attribute(image[None], target=4) for image in captum_images])
    assert float((together - alone).abs().max()) <= 1e-4


def test_an_extreme_neighbour_changes_no_other_map(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    changed = torch.cat([images[:3], 50 * images[3:]])
    calm, wild = fitted.attribute(images, target=1), fitted.attribute(changed, target=1)
    assert float((calm[:3] - wild[:3]).abs().max()) <= 1e-4


def test_maps_are_of_order_one(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    maps = fitted.attribute(100 * images, target=1)
    assert 0 <= float(maps.min()) <= float(maps.max()) <= 1


# -- 6: target in all of Captum's forms --------------------------------------------------------------------------------


@each_target
def test_every_form_of_target_means_what_it_means_in_captum(
    fitted: AttentiveKDAttribution, images: Tensor, target: Any, meant: list[int]
) -> None:
    every_class = fitted.saliency_all(images[:3])
    maps = fitted.attribute(images[:3], target=target)
    wanted = torch.stack([every_class[index, label] for index, label in enumerate(meant)])[:, None]
    torch.testing.assert_close(maps[:, :1], wanted, atol=1e-4, rtol=0)


def test_no_target_means_the_predicted_class(model: TinyNet, fitted: AttentiveKDAttribution, images: Tensor) -> None:
    predicted = model(images).argmax(dim=1)
    assert len(predicted.unique()) > 1
    assert torch.equal(fitted.attribute(images), fitted.attribute(images, target=predicted))


def test_a_compact_student_asks_the_model_which_class_is_predicted(
    model: TinyNet, compact: AttentiveKDAttribution, images: Tensor
) -> None:
    assert torch.equal(compact.attribute(images), compact.attribute(images, target=model(images).argmax(dim=1)))


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), [0, 1], [0, 1, 2, 3], [(0,), (1,)], torch.arange(4), []])
def test_a_target_of_the_wrong_length_is_an_assertion_error(
    fitted: AttentiveKDAttribution, images: Tensor, target: Any
) -> None:
    with pytest.raises(AssertionError):
        fitted.attribute(images[:3], target=target)


@pytest.mark.parametrize("target", [4, -1, torch.tensor([0, 1, 4]), [0, -2, 1], (99,), [(0,), (1,), (4,)]])
def test_a_class_out_of_range_is_named_in_a_clear_error(
    fitted: AttentiveKDAttribution, images: Tensor, target: Any
) -> None:
    with pytest.raises(InputError, match="classes 0 to 3, got"):
        fitted.attribute(images[:3], target=target)


# -- 7: what the class says of itself ----------------------------------------------------------------------------------


def test_the_class_claims_neither_multiplication_by_inputs_nor_a_convergence_delta(
    fitted: AttentiveKDAttribution, images: Tensor
) -> None:
    assert isinstance(fitted, Attribution)
    assert fitted.multiplies_by_inputs is False
    assert fitted.has_convergence_delta() is False
    with pytest.raises(TypeError):
        fitted.attribute(images, target=1, return_convergence_delta=True)
    with pytest.raises(NotImplementedError):
        fitted.attribute_future(images, target=1)


# -- 8: no autograd ----------------------------------------------------------------------------------------------------


def test_it_is_no_gradient_attribution() -> None:
    assert not issubclass(AttentiveKDAttribution, GradientAttribution)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("which", ["fitted", "by_gradients", "compact"])
def test_attribute_needs_no_autograd_and_leaves_the_inputs_without_it(
    which: str, context: Any, images: Tensor, request: pytest.FixtureRequest
) -> None:
    attribution = request.getfixturevalue(which)
    given = images.clone()
    with context():
        maps = attribution.attribute(given, target=1)
    assert not given.requires_grad
    assert given.grad is None
    assert torch.equal(given, images)
    assert not maps.requires_grad
    torch.testing.assert_close(maps.clone(), attribution.attribute(images, target=1), atol=1e-5, rtol=0)


def test_inputs_that_require_a_gradient_keep_it_and_get_none(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    given = images.clone().requires_grad_()
    maps = fitted.attribute(given, target=1)
    assert given.requires_grad
    assert given.grad is None
    assert not maps.requires_grad


# -- 9: the name -------------------------------------------------------------------------------------------------------


def test_the_name_is_readable() -> None:
    assert AttentiveKDAttribution.get_name() == "Attentive Knowledge Distillation"


# -- 10: the model is left as found ------------------------------------------------------------------------------------


def awkward(seed: int = 21) -> TinyNet:
    """A model in a state that no careless code would put back by chance."""
    net = random_net(seed)
    net.features[0].training = True  # a flag that changes nothing, yet must survive
    net.features[0].weight.requires_grad_(False)
    net.head.bias.grad = torch.full((4,), 3.0)
    net.features[4].running_mean.fill_(0.25)
    net.head.register_forward_hook(lambda module, given, output: None)
    return net


@each_question
def test_asking_leaves_the_model_as_found(ask: Callable[..., Any], images: Tensor) -> None:
    net = awkward()
    attribution = fit_quickly(AttentiveKDAttribution(net), loader_of(40, 1))
    with nothing_changes(net):
        ask(attribution, images)


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_a_fit_leaves_the_model_as_found(student: Any) -> None:
    net = awkward()
    with nothing_changes(net):
        fit_quickly(AttentiveKDAttribution(net, student=student), loader_of(40, 1))


@each_question
def test_a_model_that_breaks_while_asked_is_left_as_found(ask: Callable[..., Any], images: Tensor) -> None:
    net = awkward()
    attribution = fit_quickly(AttentiveKDAttribution(net), loader_of(40, 1))
    before = state_of(net)
    net.fail_at = net.calls + 1
    with pytest.raises(ValueError, match="the model broke"):
        ask(attribution, images)
    assert changes(before, state_of(net)) == []
    assert torch.isfinite(attribution.attribute(images, target=1)).all()  # and the attribution still answers


@pytest.mark.parametrize("student", ["grafted", "compact"])
@pytest.mark.parametrize("call", [1, 6, 12])
def test_a_model_that_breaks_in_a_fit_is_left_as_found(student: Any, call: int) -> None:
    net = awkward()
    attribution = AttentiveKDAttribution(net, student=student)
    before = state_of(net)
    net.fail_at = call
    with pytest.raises(ValueError, match="the model broke"):
        fit_quickly(attribution, loader_of(40, 1))
    assert changes(before, state_of(net)) == []
    assert not attribution.is_fitted


def test_asking_leaves_the_random_numbers_of_the_user_alone_also_when_loading(
    model: TinyNet, fitted: AttentiveKDAttribution, tmp_path: Path
) -> None:
    with nothing_changes(model):
        fitted.save(tmp_path / "surrogate.safetensors")
        AttentiveKDAttribution.load(tmp_path / "surrogate.safetensors", model)


# -- 11: any callable --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["module", "data parallel", "scripted", "traced", "function", "method"])
def test_every_kind_of_forward_func_can_be_fitted_and_asked(kind: str, captum_images: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        ).eval()
    forward_func: Any = {
        "module": lambda: net,
        "data parallel": lambda: nn.DataParallel(net).eval(),
        "scripted": lambda: torch.jit.script(net),
        "traced": lambda: torch.jit.trace(net, captum_images[:2]),
        "function": lambda: lambda images: net(images),
        "method": lambda: net.forward,
    }[kind]()
    captum_images = captum_images.to(
        next(net.parameters()).device
    )  # "data parallel" has moved it, where there is a GPU
    attribution = fit_quickly(AttentiveKDAttribution(forward_func), [captum_images])
    assert attribution.report_ is not None
    assert attribution.report_.student == ("grafted" if kind in ("module", "data parallel") else "compact")
    for target in (None, 4):
        maps = attribution.attribute(captum_images[:3], target=target)
        assert maps.shape == (3, 1, 10, 10)
        assert float(maps.max()) > 0


# -- 12: devices -------------------------------------------------------------------------------------------------------


def test_images_on_another_device_fail_with_one_clear_line(images: Tensor) -> None:
    attribution = fit_quickly(AttentiveKDAttribution(random_net(4)), loader_of(40, 1))
    attribution.to("meta")  # a device that every machine has
    with pytest.raises(InputError, match="images are on cpu, the surrogate is on meta; move one of them"):
        attribution.attribute(images, target=1)


# -- 13: no silent all-zero map ----------------------------------------------------------------------------------------


def test_visualize_image_attr_draws_our_maps(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    maps = fitted.attribute(images, target=1)
    for index in range(2):
        shown, original = (tensor[index].permute(1, 2, 0).numpy() for tensor in (maps, images))
        for method in ("heat_map", "blended_heat_map"):
            figure, _ = viz.visualize_image_attr(
                shown, original.clip(0, 1), method=method, sign="positive", use_pyplot=False
            )
            figure.clf()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_an_image_of_one_colour_gives_a_map_that_can_be_drawn(fitted: AttentiveKDAttribution, value: float) -> None:
    maps = fitted.attribute(torch.full((2, 3, 24, 24), value), target=1)
    assert torch.isfinite(maps).all()
    assert bool((maps.flatten(1).amax(dim=1) > 0).all())
    viz.visualize_image_attr(maps[0].permute(1, 2, 0).numpy(), None, method="heat_map", use_pyplot=False)


def test_an_image_far_out_of_range_gives_a_map_or_a_clear_error(fitted: AttentiveKDAttribution) -> None:
    assert torch.isfinite(fitted.attribute(torch.full((2, 3, 24, 24), 1e6), target=1)).all()


# -- 14: what is not meant to work -------------------------------------------------------------------------------------


def test_data_loader_attribution_and_captum_insights_are_not_used(fitted: AttentiveKDAttribution) -> None:
    with pytest.raises(AssertionError):
        DataLoaderAttribution(fitted)
    source = "".join(path.read_text() for path in Path(captum_attnkd.__file__).parent.glob("*.py"))
    assert "DataLoaderAttribution" not in source
    assert "captum.insights" not in source


# -- 15: Captum's generator loops, on its own small model --------------------------------------------------------------

CONVNET_TARGETS: list[tuple[str, Any, int]] = [
    ("single", 0, 4),
    ("single tensor", torch.tensor(9), 4),
    ("single in a tensor", torch.tensor([9]), 4),
    ("single tuple", (3,), 4),
    ("per example", [0, 1, 1, 9], 4),
    ("per example tensor", torch.tensor([0, 1, 1, 9]), 4),
    ("per example tuples", [(0,), (1,), (1,), (9,)], 4),
    ("one image", 5, 1),
    ("one image, list", [5], 1),
]
each_convnet_target = pytest.mark.parametrize(
    ("target", "count"), [row[1:] for row in CONVNET_TARGETS], ids=[row[0] for row in CONVNET_TARGETS]
)


@each_convnet_target
def test_captums_target_loop_gives_each_sample_the_map_of_its_own_class(
    captum_fitted: AttentiveKDAttribution, captum_images: Tensor, target: Any, count: int
) -> None:
    given = captum_images[:count]
    together = captum_fitted.attribute(given, target=target)
    assert together.shape == given.shape
    for index in range(count):
        for_each = isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1)
        own = target[index] if for_each else target
        alone = captum_fitted.attribute(given[index : index + 1], target=own)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


@each_convnet_target
def test_captums_hook_removal_loop_finds_no_hook_left(
    captum_model: nn.Module, captum_fitted: AttentiveKDAttribution, captum_images: Tensor, target: Any, count: int
) -> None:
    with nothing_changes(captum_model):
        captum_fitted.attribute(captum_images[:count], target=target)
        with pytest.raises(AssertionError):  # Captum's loop asks once more with targets that cannot be
            captum_fitted.attribute(captum_images[:count], target=list(range(count + 1)))


@pytest.mark.parametrize("target", [9999, [9999] * 4, torch.full((4,), 9999)])
def test_captums_hook_removal_loop_finds_no_hook_left_after_an_impossible_class(
    captum_model: nn.Module, captum_fitted: AttentiveKDAttribution, captum_images: Tensor, target: Any
) -> None:
    with nothing_changes(captum_model), pytest.raises(InputError):
        captum_fitted.attribute(captum_images[:4], target=target)


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_both_students_work_at_the_size_of_captums_model(student: Any, captum_images: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10), nn.Softmax(dim=1)
        ).eval()
    attribution = fit_quickly(AttentiveKDAttribution(net, student=student), [captum_images])
    maps = attribution.attribute(captum_images, target=7)
    assert maps.shape == captum_images.shape
    assert torch.isfinite(maps).all()


# -- 16: unfitted ------------------------------------------------------------------------------------------------------


@each_question
def test_an_unfitted_attribution_says_what_to_call(ask: Callable[..., Any], model: TinyNet, images: Tensor) -> None:
    with pytest.raises(NotFittedError, match=r"call fit\(loader\) first"):
        ask(AttentiveKDAttribution(model), images)
