"""Trust in single maps: high where student, model and map go together, low where one of them is broken."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_task import CLASSES, TinyNet

from captum_attnkd import AttentiveKDAttribution, InputError, Trust, TrustWarning
from captum_attnkd.agreement import Agreement
from captum_attnkd.explanation import Mask, standardise
from captum_attnkd.objectives import Pixels
from captum_attnkd.perturbation import blurred
from captum_attnkd.surrogate import Query
from captum_attnkd.trust import trust_in

PIXELS = Pixels(torch.zeros(3), torch.ones(3))


def trusted(
    model: TinyNet, mask: Mask, images: Tensor, labels: Tensor, whole: Tensor, student: Tensor | None = None
) -> Trust:
    agreement = Agreement.between(whole, whole if student is None else student)
    return trust_in(mask, images, Query(labels[:, None]), lambda x: model(x).log_softmax(1), PIXELS, whole, agreement)


def mask_of(places: Tensor) -> Mask:
    return Mask(standardise(places.float()), torch.zeros(len(places), 1), torch.tensor(1.0))


def test_a_map_of_the_object_is_trusted_and_its_reverse_is_not(
    model: TinyNet, held_out: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, places = held_out
    smooth = blurred(places.float(), 5.0)  # without ties
    with torch.no_grad():
        whole = model(images).log_softmax(1)
        right, reverse = (trusted(model, mask_of(sign * smooth), images, labels, whole) for sign in (1, -1))
    assert bool((right.score > 0.8).all()), right
    assert bool((reverse.score < 0.5).all()), reverse  # what is deleted is what counts
    torch.testing.assert_close(right.whole, whole.exp().gather(1, labels[:, None])[:, 0])


def test_the_score_is_what_its_docstring_says(model: TinyNet, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        whole = model(images).log_softmax(1)
        student = (0.5 * model(images)).log_softmax(1)
        arbitrary = torch.randn(len(images), 1, 24, 24, generator=torch.Generator().manual_seed(0))
        trust = trusted(model, mask_of(arbitrary), images, labels, whole, student)
    most = torch.stack([trust.whole, trust.kept, trust.deleted]).amax(0)
    expected = (-trust.divergence).exp() * (1 + (trust.kept - trust.deleted) / most) / 2
    torch.testing.assert_close(trust.score, expected)
    assert bool((trust.divergence > 0).all())
    assert bool(((trust.score >= 0) & (trust.score <= 1)).all())


def test_where_student_and_model_disagree_there_is_none(model: TinyNet, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        whole = model(images).log_softmax(1)
        trust = trusted(model, mask_of(images[:, :1, :24, :24]), images, labels, whole, whole.roll(1, dims=1))
    assert not trust.agrees.any()
    assert not trust.score.any()


def test_a_fitted_attribution_trusts_its_own_maps_and_asks_thrice_an_image(
    fitted: AttentiveKDAttribution, model: TinyNet, images: Tensor, labels: Tensor
) -> None:
    before = fitted._target.queries
    trust = fitted.trust(images)
    assert fitted._target.queries - before == 3 * len(images)
    assert float(trust.score.mean()) > 0.7
    alone = torch.cat([fitted.trust(image[None]).score for image in images])
    torch.testing.assert_close(alone, trust.score, atol=1e-4, rtol=0)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    assert float(fitted.trust(noise).score.mean()) < float(trust.score.mean()) - 0.1
    wrong = fitted.trust(images, target=(labels + 1) % CLASSES)
    assert bool((wrong.whole < 0.5).all()), "the class asked about, not the one predicted"
    against = fitted.trust(images, target=labels, versus=(labels + 1) % CLASSES)
    assert bool((against.whole > 0.5).all())
    assert "trust" in str(trust)


def test_attribute_warns_of_maps_below_the_threshold_and_names_them(
    fitted: AttentiveKDAttribution, model: TinyNet, images: Tensor
) -> None:
    scores = fitted.trust(images).score
    worst = int(scores.argmin())
    least = float((scores.sort().values[0] + scores.sort().values[1]) / 2)
    try:
        fitted.warn_below = least
        with pytest.warns(
            TrustWarning, match=rf"1 of {len(images)} images have a trust score below .*: image {worst} \("
        ):
            warned = fitted.attribute(images)
        fitted.warn_below = float(scores.min()) * 0.99
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            silent = fitted.attribute(images)
    finally:
        fitted.warn_below = None
    assert torch.equal(warned, silent)
    assert torch.equal(silent, fitted.attribute(images))


def test_the_warning_names_the_line_that_asked_and_a_loaded_surrogate_warns_too(
    fitted: AttentiveKDAttribution, model: TinyNet, images: Tensor, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "surrogate.safetensors")
    loaded = AttentiveKDAttribution.load(tmp_path / "surrogate.safetensors", model, warn_below=1.0)
    for ask in (loaded.attribute, loaded.saliency):
        with pytest.warns(TrustWarning) as caught:
            ask(images)
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("value", [0, -0.1, 1.5, "high"])
def test_a_threshold_out_of_range_is_refused(model: TinyNet, value: object) -> None:
    with pytest.raises(InputError, match="warn_below"):
        AttentiveKDAttribution(model, warn_below=value)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="warn_below"):
        AttentiveKDAttribution(model).warn_below = value  # type: ignore[assignment]
