"""Any image classifier can be explained: with gradients or from outputs only, whatever its images and its outputs."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers_targets import ScoreService, TinyCNN, awaken, batches, blobs, fingerprint, quick_fit
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd.explanation import unit
from captum_attnkd.objectives import Distillation, Explanation, Pixels
from captum_attnkd.plan import Plan, make_plan
from captum_attnkd.sensitivity import sensitivity
from captum_attnkd.surrogate import Query, Surrogate
from captum_attnkd.target import Target

# -- A. torchvision's networks, with gradients ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    size: int
    levels: dict[str, tuple[int, int]]  # module: side, channels
    classifier: str = "exact"


NETWORKS = {
    "resnet18": Expected(96, {"layer1": (24, 64), "layer2": (12, 128), "layer3": (6, 256), "layer4": (3, 512)}),
    "resnet50": Expected(96, {"layer1": (24, 256), "layer2": (12, 512), "layer3": (6, 1024), "layer4": (3, 2048)}),
    "vgg16": Expected(
        96,
        {"features.15": (24, 256), "features.22": (12, 512), "features.29": (6, 512), "features": (3, 512)},
        "none",
    ),
    "mobilenet_v3_small": Expected(
        96, {"features.1": (24, 16), "features.3": (12, 24), "features.8": (6, 48), "features": (3, 576)}
    ),
    "densenet121": Expected(
        96,
        {
            "features.denseblock1": (24, 256),
            "features.denseblock2": (12, 512),
            "features.denseblock3": (6, 1024),
            "features": (3, 1024),
        },
    ),
    "efficientnet_b0": Expected(
        96, {"features.2": (24, 24), "features.3": (12, 40), "features.5": (6, 112), "features": (3, 1280)}
    ),
    "convnext_tiny": Expected(
        96, {"features.1": (24, 96), "features.3": (12, 192), "features.5": (6, 384), "features": (3, 768)}
    ),
    "regnet_y_400mf": Expected(
        96,
        {
            "trunk_output.block1": (24, 48),
            "trunk_output.block2": (12, 104),
            "trunk_output.block3": (6, 208),
            "trunk_output": (3, 440),
        },
    ),
    "inception_v3": Expected(
        299, {"Conv2d_4a_3x3": (71, 192), "Mixed_5d": (35, 288), "Mixed_6e": (17, 768), "Mixed_7c": (8, 2048)}
    ),
    "vit_b_16": Expected(
        112,
        {
            "encoder.layers.encoder_layer_4": (7, 768),
            "encoder.layers.encoder_layer_8": (7, 768),
            "encoder": (7, 768),
        },
        "begun",
    ),
    "swin_t": Expected(
        224, {"features.1": (56, 96), "features.3": (28, 192), "features.5": (14, 384), "permute": (7, 768)}
    ),
}
CLASSES = 10
FALL = 1e-4  # of a loss in one step: short enough for curvature not to matter, long enough for rounding not to


@dataclass
class Grafted:
    name: str
    expected: Expected
    network: nn.Module
    images: Tensor
    target: Target
    plan: Plan
    surrogate: Surrogate
    before: tuple[Any, ...]


@pytest.fixture(scope="module", params=list(NETWORKS))
def grafted(request: pytest.FixtureRequest) -> Grafted:
    """A network with random weights and an unfitted surrogate grafted on it."""
    expected = NETWORKS[request.param]
    options = {"inception_v3": {"init_weights": False}, "vit_b_16": {"image_size": expected.size}}.get(
        request.param, {}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.get_model(request.param, weights=None, num_classes=CLASSES, **options)
        images = blobs(4, 3, expected.size, expected.size)
        awaken(network, images)
        before = fingerprint(network)
        target = Target(network)
        plan = make_plan(target, images[:2], CLASSES)
        surrogate = plan.build(target)  # draws its weights as well
    with torch.no_grad():
        features, _ = surrogate.student.trunk(images)
    surrogate.student.calibrate(features)
    return Grafted(request.param, expected, network, images, target, plan, surrogate, before)


def test_levels_of_every_octave_are_found(grafted: Grafted) -> None:
    plan = grafted.plan
    found = {level.module: (level.size, level.channels) for level in plan.levels}
    assert found == {name: ((side, side), channels) for name, (side, channels) in grafted.expected.levels.items()}
    assert [level.module for level in plan.levels] == list(grafted.expected.levels), "finest first"
    assert plan.student == "grafted"


def test_the_target_s_own_classifier_is_found_where_it_has_one(grafted: Grafted) -> None:
    kind = "exact" if grafted.plan.exact else "begun" if grafted.plan.classifier else "none"
    assert kind == grafted.expected.classifier


@torch.no_grad()
def test_before_fitting_an_exact_student_answers_as_its_target(grafted: Grafted) -> None:
    seen, answer = grafted.surrogate.eval().student(grafted.images[:2])
    wanted = grafted.network(grafted.images[:2])
    assert (wanted[0] - wanted[1]).abs().max() > 0.1, "the images must be told apart for this to mean anything"
    torch.testing.assert_close(answer, wanted.log_softmax(dim=1), atol=1e-3, rtol=1e-3)
    alike = torch.allclose(seen.logits, wanted, atol=1e-2, rtol=1e-2)
    assert alike == (grafted.expected.classifier == "exact")


def test_a_few_steps_lower_the_loss_of_each_stage(grafted: Grafted) -> None:
    surrogate, images = grafted.surrogate, grafted.images[:2]
    pixels = Pixels(images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)))
    ask = grafted.target.log_probabilities
    stages = [
        (Distillation(surrogate.student, ask, pixels), surrogate.student),
        (Explanation(surrogate, ask, pixels), surrogate.explanation),
    ]
    for objective, taught in stages:
        parameters, losses = list(taught.parameters()), []
        for _ in range(3):
            loss = objective(images, torch.Generator().manual_seed(3))
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
            square = sum(float(slope.square().sum()) for slope in slopes if slope is not None)
            with torch.no_grad():  # the steeper, the shorter: each step should lower the loss by FALL
                for parameter, slope in zip(parameters, slopes, strict=True):
                    if slope is not None:
                        parameter.sub_(FALL / square * slope)
            losses.append(float(loss.detach()))
        assert losses[0] - losses[2] > FALL, (type(objective).__name__, losses)  # half of what two steps promise
    assert fingerprint(grafted.network) == grafted.before


def test_fit_and_attribute_work_and_leave_the_network_untouched(grafted: Grafted) -> None:
    attribution = AttentiveKDAttribution(grafted.network).fit(
        batches(grafted.images, 2), distil_steps=2, explain_steps=1, batch_size=2, progress=False
    )
    assert attribution.report_ is not None
    assert (attribution.report_.student, attribution.report_.judge) == ("grafted", "target")
    images = grafted.images[:2]
    maps = attribution.attribute(images, target=[1, 2])
    assert maps.shape == images.shape
    assert maps.is_contiguous()
    assert bool(torch.isfinite(maps).all())
    assert bool((maps.flatten(1).std(dim=1) > 1e-3).all()), "a map must not be constant"
    assert fingerprint(grafted.network) == grafted.before


def test_every_level_is_sensitive_to_the_class_asked_about_whatever_its_layout(grafted: Grafted) -> None:
    """Of each image alone, and to first order right: features a little larger raise the score by as much as the maps add up to."""
    surrogate, network, images = grafted.surrogate.eval(), grafted.network, grafted.images[:2]
    query = Query(torch.tensor([[1], [2]]))
    maps = sensitivity_of(surrogate, images, query)
    assert [tuple(level.shape[-2:]) for level in maps] == [level.size for level in grafted.plan.levels]
    # In float32 rounding, which a batch's size changes, switches single units of a network of random weights on and off.
    network.double()
    both = sensitivity_of(surrogate, images.double(), query)
    alone = sensitivity_of(surrogate, images[1:].double(), Query(query.positive[1:]))
    network.float()
    for one, level in zip(alone, both, strict=True):
        torch.testing.assert_close(unit(one[0]), unit(level[1]), atol=1e-2, rtol=0)
    assert all(bool((level != 0).any()) for level in maps[:-1])
    deepest = grafted.plan.levels[-1]
    module, share = network.get_submodule(deepest.module), 1e-2
    scores = []
    for sign in (1, -1):
        hook = module.register_forward_hook(lambda _, given, output, sign=sign: output * (1 + sign * share))
        with torch.no_grad():
            scores.append(torch.logit(query.score(network(images).double().log_softmax(dim=1))))
        hook.remove()
    if not deepest.prefix:  # class tokens are not on the map, but are enlarged here as well
        rise = (scores[0] - scores[1]) / (2 * share)
        torch.testing.assert_close(maps[-1].sum(dim=(2, 3)).double(), rise, atol=2e-2, rtol=5e-2)
    assert fingerprint(network) == grafted.before


def sensitivity_of(surrogate: Surrogate, images: Tensor, query: Query) -> list[Tensor]:
    seen, _ = surrogate.student.recorded(0, images)
    assert seen.recorded is not None
    return sensitivity(seen.recorded, query.directions)


# -- B. Outputs only -----------------------------------------------------------------------------------------------------

SIZE = 24


@pytest.fixture
def images() -> Tensor:
    return blobs(12, 3, SIZE, SIZE)


def assert_maps(attribution: AttentiveKDAttribution, images: Tensor) -> Tensor:
    maps = attribution.attribute(images)
    assert isinstance(maps, Tensor)
    assert maps.shape == images.shape
    assert maps.dtype == images.dtype
    assert bool(torch.isfinite(maps).all())
    assert bool((maps.float().flatten(1).std(dim=1) > 1e-3).all())
    assert float(maps.min()) >= 0
    assert float(maps.max()) <= 1
    return maps


def chosen(attribution: AttentiveKDAttribution) -> tuple[str, str]:
    assert attribution.report_ is not None
    return attribution.report_.student, attribution.report_.judge


def test_a_plain_function_without_gradients_gets_a_compact_student_that_judges_itself(images: Tensor) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    def colours(batch: Tensor) -> Tensor:
        return torch.from_numpy(batch.numpy().mean(axis=(2, 3)) @ weights)

    attribution = quick_fit(colours, images)
    assert chosen(attribution) == ("compact", "student")
    assert attribution.classes == 4
    assert_maps(attribution, images)


def test_enough_steps_teach_a_compact_student_what_a_function_answers() -> None:
    images = blobs(64, 3, 16, 16)
    attribution = quick_fit(
        lambda batch: torch.from_numpy(batch.numpy().mean(axis=(2, 3)) * 4), images, distil_steps=60, batch_size=16
    )
    assert attribution.report_ is not None
    assert attribution.report_.agreement >= 0.8


def test_a_function_with_gradients_is_its_own_judge(images: Tensor) -> None:
    network = TinyCNN()
    attribution = quick_fit(lambda batch: network(batch), images)
    assert chosen(attribution) == ("compact", "target")
    assert_maps(attribution, images)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_a_torchscript_module_gets_a_compact_student_and_judges_where_gradients_flow(how: str, images: Tensor) -> None:
    module = torch.jit.script(TinyCNN()) if how == "scripted" else torch.jit.trace(TinyCNN(), images[:2])
    attribution = quick_fit(module, images)
    assert chosen(attribution) == ("compact", "target")
    assert_maps(attribution, images)
    assert all(p.grad is None for p in module.parameters())


def test_a_frozen_torchscript_module_works_too(images: Tensor) -> None:
    module = torch.jit.freeze(torch.jit.script(TinyCNN()))
    attribution = quick_fit(module, images)
    assert chosen(attribution)[0] == "compact"
    assert_maps(attribution, images)


def test_a_dynamically_quantised_module_gets_a_compact_student(images: Tensor) -> None:
    module = torch.ao.quantization.quantize_dynamic(TinyCNN(), {nn.Linear}, dtype=torch.qint8)
    attribution = quick_fit(module, images)
    assert chosen(attribution) == ("compact", "student"), "int8 products carry no gradient"
    assert_maps(attribution, images)


def test_layers_that_take_float32_alone_are_fitted_to_where_bf16_would_be_chosen(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_attnkd.devices._bf16", lambda device, precision, gradients: not gradients)
    module = torch.ao.quantization.quantize_dynamic(TinyCNN(), {nn.Linear}, dtype=torch.qint8)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError):
        module(images)  # else there is nothing to be tested
    assert_maps(quick_fit(module, images, precision="auto"), images)


def test_a_module_under_data_parallel_is_unwrapped_and_grafted(images: Tensor) -> None:
    network = TinyCNN()
    wrapped = nn.DataParallel(network).eval()
    images = images.to(next(network.parameters()).device)  # where there is a GPU, it has moved the network there
    before = fingerprint(wrapped)
    attribution = quick_fit(wrapped, images)
    assert chosen(attribution) == ("grafted", "target")
    assert fingerprint(wrapped) == before
    torch.testing.assert_close(assert_maps(attribution, images), assert_maps(quick_fit(network, images), images))


def test_a_module_under_data_parallel_also_takes_a_compact_student(images: Tensor) -> None:
    wrapped = nn.DataParallel(TinyCNN()).eval()
    images = images.to(next(wrapped.parameters()).device)
    attribution = quick_fit(wrapped, images, student="compact")
    assert chosen(attribution) == ("compact", "target")
    assert_maps(attribution, images)


def test_a_compiled_module_is_unwrapped_and_grafted(images: Tensor) -> None:
    network = TinyCNN()
    attribution = quick_fit(torch.compile(network, backend="eager"), images)
    assert chosen(attribution) == ("grafted", "target")
    torch.testing.assert_close(assert_maps(attribution, images), assert_maps(quick_fit(network, images), images))


def test_an_exported_program_behind_a_function_is_its_own_judge(images: Tensor) -> None:
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(TinyCNN(), (images[:2],), dynamic_shapes=({0: batch},)).module()
    attribution = quick_fit(lambda shown: program(shown), images)
    assert chosen(attribution) == ("compact", "target")
    assert_maps(attribution, images)


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_gradients_that_a_user_has_gathered_stay_as_they_are(student: str, images: Tensor) -> None:
    network = TinyCNN()
    network(images).logsumexp(dim=1).sum().backward()
    gathered = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert len(gathered) == 6
    quick_fit(network, images, student=student)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gathered[name], atol=0, rtol=0)


def test_an_onnx_runtime_session_behind_a_function_gets_a_compact_student(tmp_path: Path, images: Tensor) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is an optional dependency of the tests")
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    network, file = TinyCNN(), tmp_path / "tiny.onnx"
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.onnx.export(
        network, (images[:2],), file, input_names=["images"], dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def ask(shown: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": shown.numpy()})[0])

    torch.testing.assert_close(ask(images), network(images).detach(), atol=1e-4, rtol=1e-4)
    attribution = quick_fit(ask, images)
    assert chosen(attribution) == ("compact", "student")
    assert_maps(attribution, images)
    with torch.no_grad():
        assert attribution.agreement(images).target_class.tolist() == network(images).argmax(dim=1).tolist()


def test_a_web_service_is_never_asked_faster_than_allowed_and_every_image_is_counted() -> None:
    images, rate = blobs(12, 3, 16, 16), 80.0
    service = ScoreService(TinyCNN(), (3, 16, 16))
    with service.running():

        def ask(shown: Tensor) -> Tensor:
            body = np.ascontiguousarray(shown.numpy(), dtype=np.float32).tobytes()
            with urllib.request.urlopen(urllib.request.Request(service.address, data=body), timeout=30) as answer:
                return torch.from_numpy(np.frombuffer(answer.read(), np.float32).copy().reshape(len(shown), -1))

        attribution = quick_fit(ask, images, max_images_per_second=rate, distil_steps=8)
        assert chosen(attribution) == ("compact", "student")
        assert attribution.report_ is not None
        served = service.images
        assert served == attribution.report_.target_queries
        assert attribution._target.queries == served
        assert service.arrivals[-1][0] - service.arrivals[0][0] > 0.5, "else the bound was not put to the test"
        assert service.busiest(least_seconds=0.25) <= 1.15 * rate
        # The last request's own images are paid for by the wait that would follow it.
        first, last = service.arrivals[0][0], service.arrivals[-1][0]
        assert (served - service.arrivals[-1][1]) / (last - first) <= 1.02 * rate

        attribution.attribute(images, target=1)
        assert service.images == served, "a class given, a compact student does not ask the service again"
        attribution.attribute(images)
        assert service.images == served + len(images), "else it asks which class is predicted, once an image"


# -- C. Images, outputs and numbers of many kinds ------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["grafted", "compact"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(10, 10), (28, 28), (33, 47), (64, 48)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_images_of_every_size_and_number_of_channels(size: tuple[int, int], channels: int, student: str) -> None:
    images = blobs(8, channels, *size)
    attribution = quick_fit(TinyCNN(channels), images, student=student)
    assert chosen(attribution) == (student, "target")
    assert_maps(attribution, images)


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_images_of_299_by_299(student: str) -> None:
    images = blobs(4, 3, 299, 299)
    attribution = quick_fit(TinyCNN(), images, student=student, batch_size=2, explain_steps=1)
    assert_maps(attribution, images[:2])


@pytest.mark.parametrize("student", ["grafted", "compact"])
@pytest.mark.parametrize("classes", [2, 1000])
def test_two_classes_and_a_thousand(classes: int, student: str, images: Tensor) -> None:
    attribution = quick_fit(TinyCNN(classes=classes), images, student=student)
    assert attribution.classes == classes
    assert_maps(attribution, images)
    assert attribution.saliency_all(images[:1], targets=[0, classes - 1]).shape == (1, 2, SIZE, SIZE)
    assert attribution.saliency(images[:1], target=0, versus=classes - 1).shape == (1, 1, SIZE, SIZE)


class Ending(nn.Module):
    """A network whose scores pass one more function."""

    def __init__(self, network: nn.Module, ending: Any) -> None:
        super().__init__()
        self.network, self.ending = network, ending
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.ending(self.network(images))


@pytest.mark.parametrize("classes", [2, 5, 1000])
@pytest.mark.parametrize("student", ["grafted", "compact"])
@pytest.mark.parametrize(
    ("ending", "kind"),
    [(nn.Softmax(dim=1), "probabilities"), (nn.LogSoftmax(dim=1), "logits")],
    ids=["probabilities", "log-probabilities"],
)
def test_probabilities_and_log_probabilities_are_explained_like_logits(
    ending: nn.Module, kind: str, student: str, classes: int, images: Tensor
) -> None:
    network = TinyCNN(classes=classes)
    # Rounding differs, and the optimiser's first steps are as long for small gradients as for large ones: short steps.
    plain = quick_fit(network, images, student=student, learning_rate=5e-4)
    other = quick_fit(Ending(network, ending), images, student=student, learning_rate=5e-4)
    assert other._target.output == kind
    assert other.plan is not None
    assert other.plan.exact == (student == "grafted")
    torch.testing.assert_close(
        other.agreement(images).target_probability, plain.agreement(images).target_probability, atol=1e-4, rtol=1e-3
    )
    apart = (other.attribute(images) - plain.attribute(images)).abs()
    assert float(apart.max()) < 0.1
    assert float(apart.mean()) < 0.005


def test_what_the_outputs_are_can_be_told(images: Tensor) -> None:
    network = TinyCNN()
    chances = network(images).softmax(dim=1).detach().amax(dim=1)
    halved = quick_fit(Ending(network, lambda scores: scores.softmax(dim=1) / 2), images, output="probabilities")
    torch.testing.assert_close(halved.agreement(images).target_probability, chances, atol=1e-4, rtol=1e-4)
    literal = quick_fit(Ending(network, nn.Softmax(dim=1)), images, output="logits")
    again = network(images).softmax(dim=1).softmax(dim=1).detach().amax(dim=1)
    torch.testing.assert_close(literal.agreement(images).target_probability, again, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("student", ["grafted", "compact"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_targets_of_other_precisions_are_fed_their_own(
    dtype: torch.dtype, student: str, precision: str, images: Tensor
) -> None:
    network, given = TinyCNN().to(dtype), images.to(dtype)
    before = fingerprint(network)
    attribution = quick_fit(network, given, student=student, precision=precision)
    assert chosen(attribution) == (student, "target")
    assert_maps(attribution, given)
    assert fingerprint(network) == before
    assert attribution.plan is not None
    assert attribution.plan.exact == (student == "grafted")
    # The answer is the network's own, up to its rounding.
    torch.testing.assert_close(
        attribution.agreement(given).target_probability,
        TinyCNN()(images).detach().softmax(dim=1).amax(dim=1),
        atol=2e-2,
        rtol=0,
    )


def test_a_torchvision_network_named_as_backbone_of_a_compact_student() -> None:
    images = blobs(8, 3, 64, 64)
    attribution = quick_fit(TinyCNN(), images, backbone="resnet18")
    assert chosen(attribution) == ("compact", "target")
    assert attribution.plan is not None
    assert [level.module for level in attribution.plan.levels] == ["layer1", "layer2", "layer3", "layer4"]
    assert_maps(attribution, images)


def test_a_module_passed_as_backbone_is_trained_in_place(images: Tensor) -> None:
    network, backbone = TinyCNN(), TinyCNN(seed=1)
    before, untrained = fingerprint(network), backbone.first.weight.detach().clone()
    attribution = quick_fit(network, images, backbone=backbone, distil_steps=4)
    assert chosen(attribution) == ("compact", "target")
    assert_maps(attribution, images)
    assert not torch.equal(backbone.first.weight, untrained)
    assert fingerprint(network) == before


class Conditioned(TinyCNN):
    """Takes a second argument; without it, it is a TinyCNN."""

    def forward(self, images: Tensor, gain: Tensor | None = None) -> Tensor:
        return super().forward(images if gain is None else images * gain)


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_additional_forward_args_reach_the_model(student: str, images: Tensor) -> None:
    network = Conditioned()
    attribution = quick_fit(network, images, student=student)
    plain = attribution.attribute(images, target=1)
    gain = torch.ones(1, 3, 1, 1)
    torch.testing.assert_close(attribution.attribute(images, 1, additional_forward_args=gain), plain)
    gain = gain * torch.tensor([-3.0, 0.0, 2.0])[None, :, None, None]
    wanted = network(images, gain).detach().softmax(dim=1)
    found = attribution.agreement(images, additional_forward_args=(gain,))
    assert found.target_class.tolist() == wanted.argmax(dim=1).tolist()
    torch.testing.assert_close(found.target_probability, wanted.amax(dim=1), atol=1e-4, rtol=1e-4)
    changed = attribution.attribute(images, 1, additional_forward_args=(gain,))
    # A grafted student looks through the model's own layers, so what these see matters; a compact one sees the images.
    assert torch.allclose(changed, plain) == (student == "compact")


@pytest.mark.parametrize("size", [(48, 40), (16, 16), (25, 64)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_images_of_another_size_than_fitted(size: tuple[int, int], student: str, images: Tensor) -> None:
    attribution = quick_fit(TinyCNN(), images, student=student)
    assert_maps(attribution, blobs(3, 3, *size))


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_one_image_alone_has_the_map_it_has_in_a_batch(student: str, images: Tensor) -> None:
    attribution = quick_fit(TinyCNN(), images, student=student)
    together = attribution.attribute(images, target=2)
    torch.testing.assert_close(attribution.attribute(images[3:4], target=2), together[3:4], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_the_layout_in_memory_changes_no_map(student: str, images: Tensor) -> None:
    attribution = quick_fit(TinyCNN(), images, student=student)
    plain = attribution.attribute(images, target=0)
    spaced = torch.zeros(*images.shape[:3], 2 * SIZE)[..., ::2]
    spaced.copy_(images)
    layouts = {
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "transposed": images.transpose(2, 3).contiguous().transpose(2, 3),
        "every second element": spaced,
        "expanded": images[:1].expand(3, -1, -1, -1),
    }
    for name, laid_out in layouts.items():
        maps = attribution.attribute(laid_out, target=0)
        assert maps.is_contiguous(), name
        torch.testing.assert_close(
            maps, plain[:1].expand_as(maps) if name == "expanded" else plain, atol=1e-4, rtol=1e-4
        )


class Viewing(TinyCNN):
    """Flattens with `view`, as many a tutorial's network: it cannot take what follows from channels-last images."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16 * 12 * 12, 5)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(images))))
        return self.last(hidden.view(len(images), -1))


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_a_network_that_flattens_with_view_can_be_fitted(student: str, images: Tensor) -> None:
    network = Viewing()
    attribution = quick_fit(network, images, student=student)
    assert chosen(attribution) == (student, "target")
    maps = assert_maps(attribution, images)
    last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(attribution.attribute(last), maps, atol=1e-4, rtol=1e-4)


class PooledByMaximum(TinyCNN):
    """Its classifier is not applied to the mean of the features."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(hidden.amax(dim=(2, 3)))


def test_small_scores_are_no_reason_to_take_a_classifier_for_exact(images: Tensor) -> None:
    network = PooledByMaximum()
    with torch.no_grad():
        network.head.weight.mul_(1e-4)
        network.head.bias.zero_()
    plan = make_plan(Target(network), images[:2], 5)
    assert plan.classifier == ("head",)
    assert not plan.exact
