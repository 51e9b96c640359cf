"""A model that goes wrong in the midst of a fit: a clear error, everything as before, and the fit can be gone on with."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import fit, shuffling
from toy_task import TinyNet, assert_same_weights, changes, from_the_call, raising, random_net, state_of, weights_of

from captum_attnkd import AttentiveKDAttribution, TargetError
from captum_attnkd.fitting import Fit, FitSettings
from captum_attnkd.validation import Validation


@pytest.fixture(autouse=True)
def frequent_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are saved at every held-out check; two steps apart, so that fits of a second have some."""
    monkeypatch.setattr("captum_attnkd.attribution.FitSettings", functools.partial(FitSettings, check_every=2))


class Unsteady(TinyNet):
    """Answers through `trouble` while that is set; where the fit is then, it is told by the test."""

    trouble: Callable[[torch.Tensor], Any] | None = None

    def forward(self, images: torch.Tensor, gain: torch.Tensor | None = None) -> Any:
        scores = super().forward(images, gain)
        return scores if self.trouble is None else self.trouble(scores)


def unsteady() -> Unsteady:
    net = Unsteady().eval()
    net.load_state_dict(random_net(11).state_dict())
    return net


TROUBLES: dict[str, tuple[Callable[[torch.Tensor], Any], type[BaseException], str]] = {
    "raises": (raising(ConnectionError("the line is down")), ConnectionError, "the line is down"),
    "raises RuntimeError": (raising(RuntimeError("the kernel failed")), RuntimeError, "the kernel failed"),
    "Ctrl-C": (raising(KeyboardInterrupt()), KeyboardInterrupt, ""),
    "NaN": (lambda scores: scores * float("nan"), TargetError, "NaN"),
    "infinite": (lambda scores: scores + torch.tensor([float("inf"), 0, 0, 0]), TargetError, "infinite"),
    "more classes": (lambda scores: torch.cat([scores, scores], dim=1), TargetError, "4 classes before, and now with 8"),
    "fewer classes": (lambda scores: scores[:, :3], TargetError, "4 classes before, and now with 3"),
    "fewer images": (lambda scores: scores[:-1], TargetError, "shape"),
    "all images at once": (lambda scores: scores.mean(dim=0, keepdim=True), TargetError, "shape"),
    "no tensor": (lambda scores: {"scores": scores}, TargetError, "returned dict"),
}  # fmt: skip

# Where in a fit: the method at whose nth call the trouble begins.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "before stage 1": (Fit, "_calibrate", 1),
    "stage 1, the first check": (Validation, "distillation", 1),
    "stage 1": (Fit, "_placed", 12),
    "stage 2": (Validation, "explanation", 2),
    "stage 2, a step": (Fit, "_save", 5),
    "the report": (Validation, "figures", 1),
}


def fit_it(net: TinyNet, student: str, state: Path | None, **settings: Any) -> AttentiveKDAttribution:
    return fit(net, student, shuffling(), state, distil_steps=6, explain_steps=6, **settings)


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captum_attnkd.attribution.FitSettings", functools.partial(FitSettings, check_every=2))
        return {student: weights_of(fit_it(unsteady(), student, None)) for student in ("grafted", "compact")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every trouble at every moment in the full counts; else every trouble, and every moment, some time."""
    if "case" not in metafunc.fixturenames:
        return
    cases = [("grafted", trouble, moment) for trouble in TROUBLES for moment in MOMENTS]
    cases += [("compact", trouble, moment) for trouble in TROUBLES for moment in ("stage 1", "stage 2")]
    if metafunc.config.getoption("--counts") != "full":
        cases = cases[::7]
    metafunc.parametrize("case", cases, ids=["-".join(case) for case in cases])


def test_a_fit(tmp_path: Path, wanted: dict[str, Any], case: tuple[str, str, str]) -> None:
    student, name, moment = case
    check(student, tmp_path, wanted, *TROUBLES[name], MOMENTS[moment])


def check(
    student: str,
    folder: Path,
    wanted: dict[str, Any],
    trouble: Any,
    error: type[BaseException],
    says: str,
    moment: tuple[Any, str, int],
) -> None:
    net, state = unsteady(), folder / "state"
    attribution = AttentiveKDAttribution(net, student=student)  # type: ignore[arg-type]
    before = state_of(net)
    settings = {"distil_steps": 6, "explain_steps": 6, "batch_size": 8, "progress": False, "resume_from": state}
    with pytest.MonkeyPatch.context() as patch:
        calls = from_the_call(patch, moment, lambda: setattr(net, "trouble", trouble))
        with pytest.raises(error, match=says):
            attribution.fit(shuffling(), **settings)  # type: ignore[arg-type]
        assert calls[0] >= moment[2]
    assert changes(before, state_of(net)) == []
    assert not attribution.is_fitted
    net.trouble = None
    resumed = attribution.fit(shuffling(), **settings)  # type: ignore[arg-type]
    assert_same_weights(weights_of(resumed), wanted[student])


@pytest.mark.parametrize(("trouble", "error", "says"), TROUBLES.values(), ids=TROUBLES.keys())
def test_after_the_fit(trouble: Any, error: type[BaseException], says: str) -> None:
    net, images = unsteady(), torch.randn(3, 3, 24, 24)
    attribution = fit_it(net, "grafted", None)
    maps, before = attribution.attribute(images, target=1), state_of(net)
    for ask in (attribution.attribute, attribution.saliency_all, attribution.agreement):
        net.trouble = trouble
        with pytest.raises(error, match=says):
            ask(images)
        net.trouble = None
    assert changes(before, state_of(net)) == []
    assert torch.equal(attribution.attribute(images, target=1), maps)


def test_a_model_that_sleeps_now_and_then_changes_nothing(wanted: dict[str, Any]) -> None:
    net = unsteady()

    def sleepy(scores: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05 if net.calls % 10 == 0 else 0)
        return scores

    net.trouble = sleepy
    assert_same_weights(weights_of(fit_it(net, "grafted", None)), wanted["grafted"])


def test_a_network_of_the_users_is_as_before_after_a_fit_that_failed_and_is_taught_again_by_the_next() -> None:
    own = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, stride=2)
    )  # fmt: skip
    own[0].bias.requires_grad_(False)
    net, images = unsteady(), torch.randn(3, 3, 24, 24)
    attribution = AttentiveKDAttribution(net, student="compact", backbone=own)
    settings: dict[str, Any] = {"distil_steps": 4, "explain_steps": 2, "batch_size": 8, "progress": False}
    attribution.fit(shuffling(), **settings)
    maps, before = attribution.attribute(images, target=1), state_of(own)
    with pytest.MonkeyPatch.context() as patch:
        from_the_call(patch, (Validation, "explanation", 1), lambda: setattr(net, "trouble", raising(OSError("gone"))))
        with pytest.raises(OSError, match="gone"):
            attribution.fit(shuffling(), seed=1, **settings)
    assert changes(before, state_of(own)) == []
    net.trouble = None
    assert torch.equal(attribution.attribute(images, target=1), maps)
    attribution.fit(shuffling(), seed=1, **settings)
    after = {name: own.state_dict()[name] for name in ("0.weight", "0.bias", "3.weight")}
    assert not torch.equal(after["0.weight"], before["value of 0.weight"])
    assert not torch.equal(after["3.weight"], before["value of 3.weight"])
    assert torch.equal(after["0.bias"], before["value of 0.bias"])  # the user keeps it as it is
