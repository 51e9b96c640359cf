"""On a GPU: everything that runs on a CPU does there, and says the same. Skipped where there is none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from captum_attnkd.evaluation.classifiers import Classifier
from captum_attnkd.evaluation.preparing import prepare
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from toy_task import TinyNet, fit_quickly, loader_of, nothing_changes, rank_correlation, single_squares, weights_of

from captum_attnkd import AttentiveKDAttribution, InputError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


@pytest.fixture(scope="module")
def there(session_model: TinyNet) -> TinyNet:
    """The trained model, a copy on the GPU."""
    return copy.deepcopy(session_model).cuda().eval()


@pytest.fixture(autouse=True)
def untouched(there: TinyNet) -> Iterator[None]:
    """The GPU's generator and the model stay as they are."""
    drawn = torch.cuda.get_rng_state()
    with nothing_changes(there):
        yield
    assert torch.equal(torch.cuda.get_rng_state(), drawn), "the GPU's random numbers go on as if nothing had been"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "gradients"])
def fitted_there(
    request: pytest.FixtureRequest, there: TinyNet, loader: list[tuple[Tensor, Tensor]]
) -> AttentiveKDAttribution:
    """Fitted on the GPU from images on the CPU, as `fitted` is, in the precision that it chooses."""
    return AttentiveKDAttribution(there, gradients=request.param).fit(
        loader, distil_steps=60, explain_steps=100, progress=False
    )


Asked = Callable[[AttentiveKDAttribution, Tensor, Tensor], Tensor]
QUESTIONS: dict[str, Asked] = {
    "attribute": lambda found, images, classes: found.attribute(images, target=classes)[:, :1],
    "a class against another": lambda found, images, classes: found.saliency(images, classes, versus=(classes + 1) % 4),
    "all classes": lambda found, images, classes: found.saliency_all(images).flatten(0, 1)[:, None],
    "refined": lambda found, images, classes: found.refine(images, target=classes, steps=5),
}


def test_maps_made_on_a_gpu_point_at_the_object(
    fitted_there: AttentiveKDAttribution, held_out: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, classes, places = held_out
    maps = fitted_there.saliency(images.cuda(), target=classes).cpu()
    highest = maps.flatten(1).argmax(dim=1)
    hit = places.flatten(1).gather(1, highest[:, None]).mean()
    assert float(hit) >= 0.9
    assert fitted_there.report_ is not None
    assert fitted_there.report_.agreement >= 0.95


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_a_surrogate_fitted_on_a_gpu_says_the_same_on_a_cpu(
    ask: Asked,
    fitted_there: AttentiveKDAttribution,
    session_model: TinyNet,
    images: Tensor,
    labels: Tensor,
    tmp_path: Path,
) -> None:
    fitted_there.save(tmp_path / "surrogate.safetensors")
    here = AttentiveKDAttribution.load(tmp_path / "surrogate.safetensors", session_model)
    assert here.device.type == "cpu"
    maps = ask(fitted_there, images.cuda(), labels.cuda())
    assert maps.is_cuda
    beside = ask(here, images, labels)
    assert maps.shape == beside.shape
    # Convolutions in TF32, which is torch's default on a GPU, carry three decimals.
    assert rank_correlation(maps.cpu(), beside) > 0.99
    torch.testing.assert_close(maps.cpu(), beside, atol=0.05, rtol=0)


def test_trust_and_agreement_of_a_gpu_are_those_of_a_cpu(
    fitted_there: AttentiveKDAttribution, session_model: TinyNet, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    fitted_there.save(tmp_path / "surrogate.safetensors")
    here = AttentiveKDAttribution.load(tmp_path / "surrogate.safetensors", session_model)
    trusted, beside = fitted_there.trust(images.cuda(), target=labels), here.trust(images, target=labels)
    torch.testing.assert_close(trusted.score.cpu(), beside.score, atol=0.05, rtol=0)
    agreed, same = fitted_there.agreement(images.cuda()), here.agreement(images)
    assert torch.equal(agreed.agrees.cpu(), same.agrees)


def test_a_surrogate_fitted_on_a_cpu_can_be_loaded_onto_a_gpu(
    fitted: AttentiveKDAttribution, there: TinyNet, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "surrogate.safetensors")
    loaded = AttentiveKDAttribution.load(tmp_path / "surrogate.safetensors", there)
    assert loaded.device.type == "cuda"
    maps = loaded.attribute(images.cuda(), target=labels)
    assert rank_correlation(maps[:, :1].cpu(), fitted.saliency(images, target=labels)) > 0.99


def test_images_left_on_the_cpu_are_refused(fitted_there: AttentiveKDAttribution, images: Tensor) -> None:
    with pytest.raises(InputError, match="images are on cpu, the surrogate is on cuda"):
        fitted_there.attribute(images, target=0)


def test_a_function_works_where_its_images_are(there: TinyNet, held_out: tuple[Tensor, Tensor, Tensor]) -> None:
    loader = [images.cuda() for images, _ in loader_of(64, seed=3)]

    def outputs_only(images: Tensor) -> Tensor:
        assert images.is_cuda
        with torch.no_grad():
            return there(images)

    found = fit_quickly(AttentiveKDAttribution(outputs_only), loader)
    assert found.device.type == "cuda"
    assert found.attribute(held_out[0].cuda(), target=1).is_cuda


def test_a_model_on_the_cpu_stays_there(session_model: TinyNet, loader: list[tuple[Tensor, Tensor]]) -> None:
    found = fit_quickly(AttentiveKDAttribution(session_model), loader)
    assert found.device.type == "cpu"
    assert not AcceleratorState._shared_state
    assert not PartialState._shared_state


def test_an_interrupted_fit_goes_on(there: TinyNet, loader: list[tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    whole = fit_quickly(AttentiveKDAttribution(there), loader, steps=20)
    stopped = AttentiveKDAttribution(there)
    there.fail_at, there.failure = there.calls + 60, KeyboardInterrupt()  # type: ignore[assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            fit_quickly(stopped, loader, steps=20, resume_from=tmp_path / "fit.state")
    finally:
        there.fail_at, there.failure = -1, ValueError("the model broke")
    assert (tmp_path / "fit.state").exists()
    fit_quickly(stopped, loader, steps=20, resume_from=tmp_path / "fit.state")
    one, other = weights_of(whole), weights_of(stopped)
    for name, tensor in one.items():  # the order of sums is not fixed on a GPU
        torch.testing.assert_close(tensor, other[name], atol=0.02, rtol=0.02)


def test_batches_in_bf16_give_maps_like_those_in_float32(there: TinyNet, loader: list[tuple[Tensor, Tensor]]) -> None:
    images, classes, _ = single_squares(24, seed=9)
    maps = [
        AttentiveKDAttribution(there)
        .fit(loader, distil_steps=60, explain_steps=100, progress=False, precision=precision)
        .saliency(images.cuda(), target=classes)
        for precision in ("fp32", "bf16")
    ]
    assert rank_correlation(maps[0].cpu(), maps[1].cpu()) > 0.6  # two fits of different seeds are no more alike


def test_a_study_brings_model_and_surrogate_to_the_gpu(
    fitted: AttentiveKDAttribution, session_model: TinyNet, images: Tensor, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "surrogate.safetensors")
    for place, image in enumerate(images[:4]):
        to_pil_image((image / 4 + 0.5).clamp(0, 1)).save(tmp_path / f"{place}.png")
    found = Classifier(copy.deepcopy(session_model), size=24, mean=(0.5,) * 3, deviation=(0.25,) * 3)
    with mock.patch("captum_attnkd.evaluation.preparing.find_classifier", return_value=found):
        subject = prepare(
            "mine:make", str(tmp_path), folder=tmp_path, surrogate=tmp_path / "surrogate.safetensors", device="cuda"
        ).subject
    assert subject.device.type == "cuda"
    assert subject.surrogate is not None
    assert subject.surrogate.device.type == "cuda"


class Narrow(nn.Module):
    """A model in half precision."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.net(images)
        return scores


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_explained(
    dtype: torch.dtype, there: TinyNet, loader: list[tuple[Tensor, Tensor]]
) -> None:
    narrow = Narrow(there, dtype).eval()
    found = fit_quickly(AttentiveKDAttribution(narrow), [(images.to(dtype), labels) for images, labels in loader])
    maps = found.attribute(loader[0][0].to("cuda", dtype), target=1)
    assert maps.dtype == dtype
    assert bool(torch.isfinite(maps).all())
