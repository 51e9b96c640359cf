"""What the attribution answers, kept and loaded, repeated, and whether its maps explain the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_task import (
    TinyNet,
    assert_same_weights,
    fit_quickly,
    loader_of,
    nothing_changes,
    random_net,
    rank_correlation,
    single_squares,
    squares,
    weights_of,
)

from captum_attnkd import AttentiveKDAttribution, FitReport
from captum_attnkd.plan import make_plan
from captum_attnkd.quantus import explain_func
from captum_attnkd.surrogate import Query
from captum_attnkd.target import Target

HeldOut = tuple[Tensor, Tensor, Tensor]
each = pytest.mark.parametrize("which", ["fitted", "by_gradients", "compact"])


# -- maps --------------------------------------------------------------------------------------------------------------


@each
def test_saliency_is_one_map_an_image_between_zero_and_one(
    which: str, images: Tensor, request: pytest.FixtureRequest
) -> None:
    masks = request.getfixturevalue(which).saliency(images, target=2)
    assert masks.shape == (6, 1, 24, 24)
    assert masks.dtype == torch.float32
    assert 0 <= float(masks.min()) < float(masks.max()) <= 1


def test_attribute_shows_the_saliency_in_every_channel(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    masks, maps = fitted.saliency(images, target=2), fitted.attribute(images, target=2)
    assert torch.equal(maps, masks.expand_as(images))


def test_versus_asks_why_one_class_rather_than_the_other(fitted: AttentiveKDAttribution) -> None:
    both_objects, places = squares([[(0, 3, 3), (1, 14, 14)], [(0, 15, 2), (1, 2, 15)]], seed=3)
    forward = fitted.saliency(both_objects, target=0, versus=1)
    backward = fitted.saliency(both_objects, target=1, versus=0)
    assert forward.shape == (2, 1, 24, 24)
    assert not torch.equal(forward, fitted.saliency(both_objects, target=0))
    for image in range(2):
        at_first, at_second = places[image, 0].bool(), places[image, 1].bool()
        assert float(forward[image, 0][at_first].mean()) > float(forward[image, 0][at_second].mean())
        assert float(backward[image, 0][at_first].mean()) < float(backward[image, 0][at_second].mean())


def test_versus_can_differ_from_image_to_image(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    together = fitted.saliency(images[:2], target=[0, 1], versus=[3, 2])
    torch.testing.assert_close(together[:1], fitted.saliency(images[:1], target=0, versus=3), atol=1e-4, rtol=0)
    torch.testing.assert_close(together[1:], fitted.saliency(images[1:2], target=1, versus=2), atol=1e-4, rtol=0)


@each
def test_saliency_all_equals_the_classes_asked_one_by_one(
    which: str, images: Tensor, request: pytest.FixtureRequest
) -> None:
    attribution = request.getfixturevalue(which)
    everything = attribution.saliency_all(images)
    assert everything.shape == (6, 4, 24, 24)
    for label in range(4):
        single = attribution.saliency(images, target=label)
        torch.testing.assert_close(everything[:, label : label + 1], single, atol=1e-5, rtol=0)
    torch.testing.assert_close(attribution.saliency_all(images, [3, 0]), everything[:, [3, 0]], atol=1e-5, rtol=0)
    for_each = attribution.saliency_all(images[:2], torch.tensor([[3, 0], [1, 2]]))
    torch.testing.assert_close(for_each[1], everything[1, [1, 2]], atol=1e-5, rtol=0)


def test_one_pass_of_the_model_answers_every_question(
    model: TinyNet, fitted: AttentiveKDAttribution, images: Tensor
) -> None:
    for ask in (
        lambda: fitted.saliency_all(images),
        lambda: fitted.attribute(images),
        lambda: fitted.attribute(images, target=1),
        lambda: fitted.saliency(images, target=1, versus=2),
        lambda: fitted.agreement(images),
    ):
        before = model.calls
        ask()
        assert model.calls == before + 1


def test_a_compact_student_asks_the_model_only_where_it_must(
    model: TinyNet, compact: AttentiveKDAttribution, images: Tensor
) -> None:
    before = model.calls
    compact.saliency_all(images)
    compact.attribute(images, target=1)
    assert model.calls == before
    compact.attribute(images)
    compact.agreement(images)
    assert model.calls == before + 2


def test_the_same_question_has_the_same_answer(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    assert torch.equal(fitted.attribute(images, target=1), fitted.attribute(images, target=1))


def test_to_moves_the_surrogate_and_leaves_the_model(model: TinyNet, loader: Any) -> None:
    attribution = fit_quickly(AttentiveKDAttribution(model), loader)
    assert attribution.device == torch.device("cpu")
    assert attribution.to("meta") is attribution
    assert attribution.device == torch.device("meta")
    assert next(model.parameters()).device == torch.device("cpu")


# -- what it says of itself --------------------------------------------------------------------------------------------


@each
def test_the_report_has_sensible_figures(which: str, request: pytest.FixtureRequest) -> None:
    attribution = request.getfixturevalue(which)
    report = attribution.report_
    assert isinstance(report, FitReport)
    assert (report.student, report.judge) == (("compact", "student") if which == "compact" else ("grafted", "target"))
    assert (report.images, report.held_out) == (144, 16)
    for share in ("agreement", "agreement_masked", "kept", "deleted", "kept_unfitted", "deleted_unfitted"):
        assert 0 <= getattr(report, share) <= 1, share
    assert report.agreement >= 0.9
    assert report.divergence >= 0
    assert report.kept > report.deleted
    assert report.distil_steps == 60
    assert report.explain_steps == (10 if which == "compact" else 100)
    assert report.seconds > 0
    assert report.target_queries >= 60 * 16
    assert report.parameters == sum(p.numel() for p in attribution.surrogate.parameters())


def test_the_report_prints_as_a_table_with_one_column_of_names(fitted: AttentiveKDAttribution) -> None:
    lines = str(fitted.report_).splitlines()
    assert len(lines) >= 10
    starts = {len(line) - len(line[line.index("  ") :].lstrip()) for line in lines if "  " in line}
    assert len(starts) == 1
    assert "agreement with the target" in str(fitted.report_)


def test_the_images_of_the_report_were_sent_to_the_model(untrained: TinyNet) -> None:
    sent = 0

    def counting(images: Tensor) -> Tensor:
        nonlocal sent
        sent += len(images)
        return untrained(images)

    report = fit_quickly(AttentiveKDAttribution(counting), loader_of(40, 1)).report_
    assert report is not None
    probes_and_examples = 2 + 2 * 4
    assert report.target_queries <= sent <= report.target_queries + probes_and_examples


@each
def test_agreement_equals_a_computation_by_hand(
    model: TinyNet, which: str, held_out: HeldOut, request: pytest.FixtureRequest
) -> None:
    attribution = request.getfixturevalue(which)
    images = held_out[0]
    found = attribution.agreement(images)
    with torch.no_grad():
        wanted = model(images).double().softmax(dim=1).numpy()
        own = attribution.surrogate.student(images)[0].logits.double().softmax(dim=1).numpy()
    rows = np.arange(len(images))
    named = wanted.argmax(axis=1)
    assert found.target_class.tolist() == named.tolist()
    assert found.student_class.tolist() == own.argmax(axis=1).tolist()
    assert found.agrees.tolist() == (named == own.argmax(axis=1)).tolist()
    kl = (wanted * (np.log(wanted) - np.log(own))).sum(axis=1)
    np.testing.assert_allclose(found.divergence.numpy(), kl, atol=1e-4)
    np.testing.assert_allclose(found.target_probability.numpy(), wanted[rows, named], atol=1e-5)
    np.testing.assert_allclose(found.student_probability.numpy(), own[rows, named], atol=1e-5)
    assert f"{int(found.agrees.sum())} of {len(images)} images agree" in str(found)


# -- kept and loaded ---------------------------------------------------------------------------------------------------


@each
def test_a_loaded_surrogate_gives_the_same_maps(
    which: str, images: Tensor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    attribution = request.getfixturevalue(which)
    attribution.save(tmp_path / "surrogate.safetensors")
    loaded = AttentiveKDAttribution.load(tmp_path / "surrogate.safetensors", attribution.forward_func)
    assert loaded.is_fitted
    assert loaded.report_ == attribution.report_
    assert_same_weights(weights_of(loaded), weights_of(attribution))
    for target in (None, 2):
        assert torch.equal(loaded.attribute(images, target=target), attribution.attribute(images, target=target))
    assert torch.equal(loaded.agreement(images).divergence, attribution.agreement(images).divergence)


@each
def test_a_copy_goes_its_own_way(which: str, images: Tensor, request: pytest.FixtureRequest) -> None:
    attribution = request.getfixturevalue(which)
    maps = attribution.attribute(images, target=2)
    copied = copy.deepcopy(attribution)
    assert torch.equal(copied.attribute(images, target=2), maps)
    for parameter in copied.surrogate.parameters():
        parameter.zero_()
    assert not torch.equal(copied.attribute(images, target=2), maps)
    assert torch.equal(attribution.attribute(images, target=2), maps)


def test_what_was_loaded_can_be_saved_again_byte_for_byte(
    model: TinyNet, fitted: AttentiveKDAttribution, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "one")
    AttentiveKDAttribution.load(tmp_path / "one", model).save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_saved_file_is_readable_by_whom_the_umask_lets(fitted: AttentiveKDAttribution, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    fitted.save(tmp_path / "surrogate")
    assert (tmp_path / "surrogate").stat().st_mode == plain.stat().st_mode


def test_a_grafted_checkpoint_holds_nothing_of_the_model(
    model: TinyNet, fitted: AttentiveKDAttribution, tmp_path: Path
) -> None:
    import safetensors.torch

    fitted.save(tmp_path / "surrogate")
    tensors = safetensors.torch.load_file(tmp_path / "surrogate")
    for parameter in model.parameters():
        assert not any(t.shape == parameter.shape and torch.equal(t, parameter) for t in tensors.values())


# -- repeated ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(student: Any, model: TinyNet) -> None:
    first, again, other = (
        weights_of(fit_quickly(AttentiveKDAttribution(model, student=student), loader_of(40, 1), steps=6, seed=seed))
        for seed in (3, 3, 4)
    )
    assert_same_weights(first, again)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_same_seed_gives_the_same_weights_whatever_the_users_random_numbers_are(model: TinyNet) -> None:
    results = []
    for state in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            results.append(weights_of(fit_quickly(AttentiveKDAttribution(model), loader_of(40, 1), seed=3)))
    assert_same_weights(*results)


def test_a_second_fit_starts_anew(model: TinyNet) -> None:
    once = fit_quickly(AttentiveKDAttribution(model), loader_of(40, 1))
    twice = fit_quickly(fit_quickly(AttentiveKDAttribution(model), loader_of(60, 2), seed=9), loader_of(40, 1))
    assert_same_weights(weights_of(once), weights_of(twice))


# -- for Quantus -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def quantus() -> Any:
    """Imported before a test's model is looked at: the import alone draws random numbers (rich, which it needs, does)."""
    return pytest.importorskip("quantus", reason="the extra 'evaluation' is not installed")


def quantus_call(held_out: HeldOut, model: TinyNet, attribution: AttentiveKDAttribution) -> dict[str, Any]:
    images, labels, places = (tensor[:5].numpy() for tensor in held_out)
    return {
        "model": model, "x_batch": images, "y_batch": labels, "a_batch": None, "s_batch": places,
        "explain_func": explain_func(attribution, batch_size=2), "channel_first": True, "softmax": False, "device": "cpu",
    }  # fmt: skip


def test_quantus_localisation_metrics_run_with_our_explain_func(
    quantus: Any, model: TinyNet, fitted: AttentiveKDAttribution, held_out: HeldOut
) -> None:
    call = quantus_call(held_out, model, fitted)
    quiet = {"disable_warnings": True, "normalise": False, "abs": False, "display_progressbar": False}
    hits = quantus.PointingGame(**quiet)(**call)
    mass = quantus.RelevanceMassAccuracy(**quiet)(**call)
    masks = fitted.saliency(held_out[0][:5], target=held_out[1][:5])[:, 0].double()
    places = held_out[2][:5, 0].double()
    by_hand = (masks * places).sum(dim=(1, 2)) / masks.sum(dim=(1, 2))
    np.testing.assert_allclose(np.array(mass, dtype=float), by_hand.numpy(), rtol=1e-4)
    tops = masks.flatten(1).argmax(dim=1)
    assert [bool(hit) for hit in hits] == [bool(place.flatten()[top]) for place, top in zip(places, tops, strict=True)]


def test_quantus_pixel_flipping_runs_with_our_explain_func(
    quantus: Any, session_model: TinyNet, fitted: AttentiveKDAttribution, held_out: HeldOut
) -> None:
    metric = quantus.PixelFlipping(
        features_in_step=144, perturb_baseline="mean", disable_warnings=True, return_auc_per_sample=False,
        normalise=False, abs=False, display_progressbar=False,
    )  # fmt: skip
    call = quantus_call(held_out, session_model, fitted)
    ours, reverse = explain_func(fitted), lambda *args, **kwargs: 1 - explain_func(fitted)(*args, **kwargs)
    curves, reversed_curves = (np.array(metric(**call | {"explain_func": f}), dtype=float) for f in (ours, reverse))
    assert curves.shape == reversed_curves.shape
    assert curves.shape[0] == 5
    assert np.isfinite(curves).all()
    assert curves.mean() < reversed_curves.mean()  # the class goes sooner when our salient pixels go first


def test_the_explain_func_gives_float_arrays_of_one_channel_and_ignores_unknown_keys(
    model: TinyNet, fitted: AttentiveKDAttribution, held_out: HeldOut
) -> None:
    images, labels, _ = held_out
    maps = explain_func(fitted, batch_size=5)(model, images.numpy(), labels.numpy(), method="?", device="cpu", other=1)
    assert isinstance(maps, np.ndarray)
    assert (maps.shape, maps.dtype) == ((24, 1, 24, 24), np.float32)
    np.testing.assert_allclose(maps, fitted.saliency(images, target=labels).numpy(), atol=1e-4)


def test_the_explain_func_refuses_a_model_it_was_not_fitted_to(
    fitted: AttentiveKDAttribution, untrained: TinyNet, images: Tensor
) -> None:
    with pytest.raises(ValueError, match="another model"):
        explain_func(fitted)(untrained, images.numpy(), np.zeros(6, dtype=int))


# -- whether the maps explain the model --------------------------------------------------------------------------------


def unfitted_logits(model: TinyNet, images: Tensor, labels: Tensor) -> Tensor:
    """Mask logits (B, 1, h, w) of a surrogate that has learned nothing."""
    target = Target(model)
    with nothing_changes(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        plan = make_plan(target, images[:2], 4)
        assert plan.exact
        surrogate = plan.build(target).eval()
        seen, _ = surrogate.student(images)
        return surrogate.explain(images, seen, Query(labels[:, None])).logits


def class_activation_maps(model: TinyNet, images: Tensor, labels: Tensor) -> Tensor:
    """The local log-posterior of the class (B, 1, H, W), by hand from the model's features and last layer."""
    with torch.no_grad():
        scores = torch.einsum("kc,bchw->bkhw", model.head.weight, model.features(images))
        posterior = (scores + model.head.bias[:, None, None]).log_softmax(dim=1)
        maps = posterior[torch.arange(len(images)), labels][:, None]
        maps = (maps - maps.mean(dim=(2, 3), keepdim=True)) / maps.std(dim=(2, 3), keepdim=True, correction=0)
        return F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)


def test_an_unfitted_surrogate_is_the_class_activation_map(model: TinyNet, held_out: HeldOut) -> None:
    images, labels, _ = held_out
    logits = unfitted_logits(model, images, labels)
    by_hand = class_activation_maps(model, images, labels)
    assert rank_correlation(F.interpolate(logits, size=(24, 24), mode="bilinear"), by_hand) > 0.999
    finest = F.interpolate(by_hand, size=logits.shape[-2:], mode="bilinear", align_corners=False)
    unit = (finest - finest.mean(dim=(2, 3), keepdim=True)) / finest.std(dim=(2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(logits, unit, atol=1e-2, rtol=0)


def deletion(model: TinyNet, images: Tensor, labels: Tensor, maps: Tensor) -> float:
    """Mean probability of the class while the most salient pixels turn grey; the lower, the better the order."""
    order = maps.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).reshape(maps.shape)
    kept = []
    with torch.no_grad():
        for share in (0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.2):
            shown = torch.where(order < share * 24 * 24, torch.zeros_like(images), images)
            kept.append(model(shown).softmax(dim=1).gather(1, labels[:, None]).mean())
    return float(torch.stack(kept).mean())


def test_a_fitted_surrogate_deletes_better_than_an_unfitted_one_and_than_chance(
    model: TinyNet, fitted: AttentiveKDAttribution
) -> None:
    images, labels, _ = single_squares(64, seed=33)
    learned = deletion(model, images, labels, fitted.saliency(images, target=labels))
    begun = deletion(model, images, labels, unfitted_logits(model, images, labels))
    chance = deletion(model, images, labels, torch.rand(64, 1, 24, 24, generator=torch.Generator().manual_seed(1)))
    assert learned < begun < chance


def test_the_maps_point_at_the_object(fitted: AttentiveKDAttribution) -> None:
    images, labels, places = single_squares(64, seed=33)
    tops = fitted.saliency(images, target=labels).flatten(1).argmax(dim=1, keepdim=True)
    assert float(places.flatten(1).gather(1, tops).mean()) >= 0.95


def test_the_maps_follow_the_class_asked_about(fitted: AttentiveKDAttribution) -> None:
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    images, places = squares([[(a, 2, 3), (b, 15, 14)] for a, b in pairs], seed=4)
    for index, (a, b) in enumerate(pairs):
        maps = fitted.saliency_all(images[index : index + 1], [a, b])[0]
        at_a, at_b = places[index, a].bool(), places[index, b].bool()
        assert float(maps[0][at_a].mean()) > float(maps[0][at_b].mean()), f"class {a} beside {b}"
        assert float(maps[1][at_b].mean()) > float(maps[1][at_a].mean()), f"class {b} beside {a}"


def test_the_maps_depend_on_what_the_model_has_learned(
    model: TinyNet, fitted: AttentiveKDAttribution, loader: Any, held_out: HeldOut
) -> None:
    images, labels, _ = held_out
    steps = {"distil_steps": 30, "explain_steps": 50, "batch_size": 16}
    again = fit_quickly(AttentiveKDAttribution(model), loader, seed=1, **steps)
    other = fit_quickly(AttentiveKDAttribution(random_net(5)), loader, **steps)
    maps = fitted.saliency(images, target=labels)
    same_model = rank_correlation(maps, again.saliency(images, target=labels))
    random_model = rank_correlation(maps, other.saliency(images, target=labels))
    assert random_model < same_model - 0.2


def test_a_fit_leaves_no_accelerator_state_behind_and_joins_one_that_is_there() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    model, images = TinyNet().eval(), torch.rand(12, 3, 24, 24)

    def fit() -> AttentiveKDAttribution:
        return AttentiveKDAttribution(model).fit([images], distil_steps=1, explain_steps=1, progress=False)

    assert not AcceleratorState._shared_state
    fit()
    assert not AcceleratorState._shared_state
    try:
        own = Accelerator(cpu=True)
        fit()
        assert AcceleratorState._shared_state, "the user's own state must survive"
        assert own.device == Accelerator().device
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
