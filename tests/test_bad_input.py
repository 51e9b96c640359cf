"""Whatever is wrong with what comes in: one clear error of ours, and nothing is changed."""

from __future__ import annotations

import errno
import json
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from toy_task import (
    TinyNet,
    assert_same_weights,
    fit_quickly,
    loader_of,
    nothing_changes,
    random_net,
    state_of,
    weights_of,
)
from toy_task import changes as changed_parts

from captum_attnkd import (
    AttentiveKDAttribution,
    AttnKDError,
    CheckpointError,
    InputError,
    LoaderError,
    NotFittedError,
    TargetError,
)

GOOD = loader_of(40, seed=1)


def refused(forward_func: Any, loader: Any, error: type[BaseException], says: str | None, **settings: Any) -> None:
    """A first fit is refused and leaves nothing; a second one is refused and leaves the first one's surrogate."""
    module = forward_func if isinstance(forward_func, nn.Module) else nn.Module()
    attribution = AttentiveKDAttribution(forward_func)
    with nothing_changes(module), pytest.raises(error, match=says):
        fit_quickly(attribution, loader, **settings)
    assert not attribution.is_fitted
    assert attribution.report_ is None


def refused_twice(net: TinyNet, loader: Any, error: type[BaseException], says: str | None, **settings: Any) -> None:
    refused(net, loader, error, says, **settings)
    attribution = fit_quickly(AttentiveKDAttribution(net), GOOD)
    weights, report = weights_of(attribution), attribution.report_
    with nothing_changes(net), pytest.raises(error, match=says):
        fit_quickly(attribution, loader, seed=5, **settings)
    assert_same_weights(weights_of(attribution), weights)
    assert attribution.report_ is report


# -- unfitted ----------------------------------------------------------------------------------------------------------


def test_an_unfitted_attribution_cannot_be_saved_moved_or_asked_its_classes(untrained: TinyNet, tmp_path: Path) -> None:
    attribution = AttentiveKDAttribution(untrained)
    asked: list[Callable[[], Any]] = [
        lambda: attribution.save(tmp_path / "none.safetensors"),
        lambda: attribution.to("cpu"),
        lambda: attribution.classes,
        lambda: attribution.device,
        lambda: attribution.attribute(GOOD[0][0]),
    ]
    for ask in asked:
        with pytest.raises(NotFittedError, match=r"call fit\(loader\) first"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_callable_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="must be callable"):
        AttentiveKDAttribution(torch.zeros(3))


# -- loaders -----------------------------------------------------------------------------------------------------------


class Breaking(Dataset[Tensor]):
    """Gives images until it has given `after` of them, then raises."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.images, self.given, self.after, self.error = torch.cat([batch for batch, _ in GOOD]), 0, after, error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.given += 1
        if self.given > self.after:
            raise self.error
        return self.images[index]


def with_pixel(value: float) -> list[Tensor]:
    images = GOOD[1][0].clone()
    images[3, 1, 5, 5] = value
    return [GOOD[0][0], images]


BAD_LOADERS: list[tuple[str, Callable[[], Any], str]] = [
    ("empty list", lambda: [], "loader is empty"),
    ("empty DataLoader", lambda: DataLoader(TensorDataset(torch.zeros(0, 3, 24, 24))), "loader is empty"),
    ("not iterable", lambda: 7, "must be a DataLoader or another iterable"),
    ("single image", lambda: [GOOD[0][0][:1]], "a single image"),
    ("copies of one image", lambda: [GOOD[0][0][:1].repeat(9, 1, 1, 1)], "are the same"),
    ("3-D batches", lambda: [GOOD[0][0][0]], r"batch 0: a single image \(3, 24, 24\) instead of a batch.*DataLoader\("),
    ("data set", lambda: TensorDataset(GOOD[0][0], GOOD[0][1]), r"batch 0: a single image .*DataLoader\(dataset"),
    ("folder's name", lambda: "photos", "must be a DataLoader.*'photos'"),
    ("empty batch", lambda: [GOOD[0][0], GOOD[0][0][:0]], r"batch 1: images must have the shape"),
    ("shapes that differ", lambda: [GOOD[0][0], GOOD[0][0][..., :20]], r"batch 1: images of shape \(3, 24, 20\) after"),
    ("integers", lambda: [(GOOD[0][0] * 50).to(torch.uint8)], "must be floating point.*uint8"),
    ("complex", lambda: [GOOD[0][0].to(torch.complex64)], "must be floating point"),
    ("arrays", lambda: [GOOD[0][0].numpy()], "must be a tensor.*ndarray"),
    (
        "labels first",
        lambda: [(labels, images) for images, labels in GOOD],
        r"batch 0: \(\d+,\) is no batch of images.*image_key=1",
    ),
    ("NaN", lambda: with_pixel(float("nan")), "batch 1: images hold NaN or infinite"),
    ("infinite", lambda: with_pixel(float("inf")), "batch 1: images hold NaN or infinite"),
    ("mapping without image_key", lambda: [{"image": GOOD[0][0]}], "is a mapping.*'image'.*image_key="),
    ("generator", lambda: (batch for batch in GOOD), "only once"),
    ("iterator", lambda: iter(GOOD), "only once"),
    ("empty tuple", lambda: [()], "has 0 parts"),
    (
        "raises in the survey",
        lambda: DataLoader(Breaking(20, KeyError("lost")), 8),
        "failed at batch 2: KeyError.*lost",
    ),
    ("raises in stage 1", lambda: DataLoader(Breaking(50, OSError("gone")), 8), "failed at batch 1: OSError: gone"),
    ("raises in stage 2", lambda: DataLoader(Breaking(75, OSError("gone")), 8), "failed at batch"),
]


@pytest.mark.parametrize(("make", "says"), [row[1:] for row in BAD_LOADERS], ids=[row[0] for row in BAD_LOADERS])
def test_a_loader_that_cannot_be_used_is_refused(untrained: TinyNet, make: Callable[[], Any], says: str) -> None:
    refused(untrained, make(), LoaderError, says)


def test_a_refused_fit_keeps_the_surrogate_of_the_one_before(untrained: TinyNet) -> None:
    refused_twice(untrained, [], LoaderError, "empty")
    refused_twice(untrained, with_pixel(float("nan")), LoaderError, "NaN")


@pytest.mark.parametrize("bad", [with_pixel(float("nan")), [], [GOOD[0][0][..., :20]]])
def test_a_validation_loader_that_cannot_be_used_is_refused(untrained: TinyNet, bad: Any) -> None:
    refused(untrained, GOOD, LoaderError, "val_loader", val_loader=bad)


def test_images_held_out_that_are_learned_from_are_told(untrained: TinyNet) -> None:
    with pytest.warns(UserWarning, match="40 of the 40 images of val_loader are in the loader too"):
        AttentiveKDAttribution(untrained).fit(GOOD, val_loader=GOOD, distil_steps=1, explain_steps=1, progress=False)


def test_odd_scores_are_told(untrained: TinyNet) -> None:
    def fit(model: Any, **told: Any) -> None:
        AttentiveKDAttribution(model, student="compact", **told).fit(
            GOOD, distil_steps=1, explain_steps=1, progress=False
        )

    with pytest.warns(UserWarning, match="same scores for different images: there is nothing to explain"):
        fit(lambda images: torch.tensor([[0.3, 2.0]]).expand(len(images), 2))
    labels = lambda images: torch.sigmoid(images.mean(dim=(2, 3)) + torch.tensor([4.0, -4, 0]))  # noqa: E731
    with pytest.warns(UserWarning, match="not add up to one.*torch.logit"):
        fit(labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(same scores|add up)")
        fit(labels, output="logits")
        fit(untrained)
        fit(lambda images: untrained(images).softmax(dim=1))


def test_pixels_unlike_those_of_the_fit_are_told(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    with pytest.warns(UserWarning, match=r"pixels lie \d+ deviations from the mean") as caught:
        fitted.saliency(images * 255)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.saliency(images)
        fitted.saliency(torch.full_like(images, 2.0))


def test_one_class_each_or_all_for_each_is_not_guessed(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    classes = torch.tensor([0, 2, 1])
    with pytest.raises(InputError, match=r"3 classes for 3 images: .*targets\[:, None\].*targets.tolist\(\)"):
        fitted.saliency_all(images[:3], classes)
    assert fitted.saliency_all(images[:3], classes[:, None]).shape[1] == 1
    assert fitted.saliency_all(images[:3], classes.tolist()).shape[1] == 3
    assert fitted.saliency_all(images[:1], classes[:1]).shape[1] == 1
    assert fitted.saliency_all(images[:2], classes).shape[1] == 3


def test_a_loader_that_shrinks_after_the_first_pass_is_refused_rather_than_waited_for(untrained: TinyNet) -> None:
    class Shrinking:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return iter(GOOD if self.passes == 1 else [])

    refused(untrained, Shrinking(), LoaderError, "fewer than in the first")


def test_an_image_key_that_is_not_there_is_named(untrained: TinyNet) -> None:
    refused(untrained, [{"image": GOOD[0][0]}], LoaderError, "has no key 'pixels'.*'image'", image_key="pixels")
    refused(untrained, GOOD, LoaderError, "image_key=5 is not one of them", image_key=5)


@pytest.mark.parametrize(
    ("wrapped", "key"),
    [
        (lambda images, labels: images, None),
        (lambda images, labels: (images, labels, ["extra"] * len(images)), None),
        (lambda images, labels: [images, labels], None),
        (lambda images, labels: {"image": images, "label": labels}, "image"),
        (lambda images, labels: (labels, images), 1),
    ],
    ids=["images", "tuple of three", "list", "mapping", "images second"],
)
def test_every_usual_form_of_batch_gives_the_same_fit(untrained: TinyNet, wrapped: Any, key: Any) -> None:
    wanted = weights_of(fit_quickly(AttentiveKDAttribution(untrained), GOOD))
    given = [wrapped(images, labels) for images, labels in GOOD]
    assert_same_weights(weights_of(fit_quickly(AttentiveKDAttribution(untrained), given, image_key=key)), wanted)


def test_settings_that_cannot_be_meant_are_refused(untrained: TinyNet) -> None:
    for setting in (
        {"distil_steps": -1}, {"explain_steps": 1.5}, {"batch_size": 0}, {"learning_rate": 0}, {"learning_rate": float("nan")},
        {"patience": 0}, {"seed": "one"}, {"precision": "fp8"}, {"batch_size": True},
    ):  # fmt: skip
        refused(untrained, GOOD, InputError, next(iter(setting)), **setting)


# -- targets -----------------------------------------------------------------------------------------------------------

BAD_OUTPUTS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("a tuple", lambda scores: (scores, scores), "returned tuple, not a tensor"),
    ("a mapping", lambda scores: {"logits": scores}, "returned dict, not a tensor"),
    ("one column", lambda scores: scores[:, :1], r"shape \(2, 1\) for 2 images"),
    ("one axis", lambda scores: scores[:, 0], r"shape \(2,\) for 2 images"),
    ("three axes", lambda scores: scores[:, None], r"shape \(2, 1, 4\) for 2 images"),
    ("another batch", lambda scores: scores[:1], r"shape \(1, 4\) for 2 images"),
    ("NaN", lambda scores: scores * float("nan"), "returned NaN"),
    ("infinite", lambda scores: scores + torch.tensor([0, 0, 0, float("inf")]), "infinite"),
    ("chance", lambda scores: scores + torch.rand_like(scores), "two different answers"),
]


class Rewired(TinyNet):
    """A model whose scores go through `rewire`."""

    rewire: Callable[[Tensor], Any]

    def forward(self, images: Tensor, gain: Tensor | None = None) -> Any:
        return self.rewire(super().forward(images, gain))


@pytest.mark.parametrize(("rewire", "says"), [row[1:] for row in BAD_OUTPUTS], ids=[row[0] for row in BAD_OUTPUTS])
@pytest.mark.parametrize("kind", ["module", "function"])
def test_a_model_whose_answers_cannot_be_explained_is_refused(kind: str, rewire: Any, says: str) -> None:
    net = Rewired().eval()
    net.rewire = rewire
    refused(net if kind == "module" else lambda images: net(images), GOOD, TargetError, says)


def test_a_model_in_training_mode_is_refused_before_it_is_asked_anything(untrained: TinyNet) -> None:
    attribution = fit_quickly(AttentiveKDAttribution(untrained), GOOD)
    calls = untrained.calls
    for part, says in (
        (untrained, r"\(TinyNet\) is in training mode; call model.eval\(\)"),
        (untrained.dropout, r"'dropout' \(Dropout\).* is in training mode"),
        (untrained.features[1], r"'features.1' \(BatchNorm2d\).* is in training mode"),
    ):
        part.training = True
        refused(untrained, GOOD, TargetError, says)
        for ask in (attribution.attribute, attribution.saliency, attribution.saliency_all, attribution.agreement):
            with nothing_changes(untrained), pytest.raises(TargetError, match=says):
                ask(GOOD[0][0])
        part.training = False
    assert untrained.calls == calls


def test_a_model_that_turns_to_nan_after_the_fit_is_refused(untrained: TinyNet) -> None:
    attribution = fit_quickly(AttentiveKDAttribution(untrained), GOOD)
    with torch.no_grad():
        untrained.head.weight.fill_(float("nan"))
    for ask in (attribution.attribute, attribution.agreement):
        with pytest.raises(TargetError, match="returned NaN"):
            ask(GOOD[0][0])


# -- images and classes of an explanation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [4, -1, 1.0, True, "cat", torch.tensor([0.0, 1.0]), torch.tensor([True, False]), [0, 1.5], [0, 9], [0, 1, 2],
     (0, 1), [(0, 1), (1, 0)], torch.zeros(2, 2, dtype=torch.int64), torch.tensor([0, -1]), {"class": 1}],
    ids=str,
)  # fmt: skip
def test_classes_that_cannot_be_meant_are_refused(fitted: AttentiveKDAttribution, images: Tensor, target: Any) -> None:
    with pytest.raises(InputError, match="target"):
        fitted.attribute(images[:2], target=target)
    with pytest.raises(InputError, match="versus"):
        fitted.saliency(images[:2], target=0, versus=target)


@pytest.mark.parametrize(
    "targets", [[4], [-1], [], [0.5], "cats", [[0, 1]], torch.zeros(2, 2, 2).long(), [[0], [1, 2]]]
)
def test_lists_of_classes_that_cannot_be_meant_are_refused(
    fitted: AttentiveKDAttribution, images: Tensor, targets: Any
) -> None:
    with pytest.raises(InputError, match="targets"):
        fitted.saliency_all(images[:2], targets)


def test_a_rival_that_is_the_class_itself_is_refused(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    with pytest.raises(InputError, match="rival must be another class"):
        fitted.saliency(images[:2], target=[0, 1], versus=[2, 1])


BAD_IMAGES: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("one image without a batch", lambda images: images[0], r"must have the shape \(B, C, H, W\)"),
    ("empty batch", lambda images: images[:0], r"none of them zero, got \(0, 3, 24, 24\)"),
    ("one channel", lambda images: images[:, :1], "images of 3 channels, got 1"),
    ("integers", lambda images: images.long(), "must be floating point"),
    ("array", lambda images: images.numpy(), "must be a tensor"),
    ("None", lambda images: None, "must be a tensor"),
    ("NaN", lambda images: images * float("nan"), "NaN or infinite"),
    ("infinite", lambda images: images / 0, "NaN or infinite"),
]


@pytest.mark.parametrize(("change", "says"), [row[1:] for row in BAD_IMAGES], ids=[row[0] for row in BAD_IMAGES])
@pytest.mark.parametrize("which", ["fitted", "by_gradients", "compact"])
def test_images_that_cannot_be_explained_are_refused(
    model: TinyNet, which: str, images: Tensor, change: Any, says: str, request: pytest.FixtureRequest
) -> None:
    attribution = request.getfixturevalue(which)
    calls = model.calls
    for ask in (attribution.attribute, attribution.saliency, attribution.saliency_all, attribution.agreement):
        with pytest.raises(InputError, match=says):
            ask(change(images))
    assert model.calls == calls


@pytest.mark.parametrize("size", [(24, 40), (48, 48), (12, 16)])
@pytest.mark.parametrize("which", ["fitted", "by_gradients", "compact"])
def test_images_of_another_size_are_explained_at_that_size(
    which: str, size: tuple[int, int], images: Tensor, request: pytest.FixtureRequest
) -> None:
    resized = nn.functional.interpolate(images, size=size, mode="bilinear")
    maps = request.getfixturevalue(which).attribute(resized, target=1)
    assert maps.shape == resized.shape
    assert torch.isfinite(maps).all()
    assert float(maps.std()) > 0


def test_images_too_small_for_the_model_are_refused_with_both_sizes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4)).eval()
    attribution = fit_quickly(AttentiveKDAttribution(net), GOOD)
    for size in (30, 4):
        with nothing_changes(net), pytest.raises(InputError, match=rf"\(3, {size}, {size}\).*fitted on \(3, 24, 24\)"):
            attribution.attribute(torch.zeros(2, 3, size, size), target=1)


# -- interruption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [20, 50, 75])
def test_ctrl_c_while_loading_ends_a_fit_and_changes_nothing(untrained: TinyNet, after: int) -> None:
    refused_twice(untrained, DataLoader(Breaking(after, KeyboardInterrupt()), 8), KeyboardInterrupt, None)


@pytest.mark.parametrize("call", [1, 4, 9])
def test_ctrl_c_inside_the_model_ends_a_fit_and_changes_nothing(untrained: TinyNet, call: int) -> None:
    attribution = fit_quickly(AttentiveKDAttribution(untrained), GOOD)
    weights, before = weights_of(attribution), state_of(untrained)
    untrained.failure, untrained.fail_at = KeyboardInterrupt(), untrained.calls + call  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        fit_quickly(attribution, GOOD, seed=9)
    assert changed_parts(before, state_of(untrained)) == []
    assert_same_weights(weights_of(attribution), weights)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(fitted: AttentiveKDAttribution, tmp_path: Path) -> Path:
    path = tmp_path / "surrogate.safetensors"
    fitted.save(path)
    return path


def header_length(content: bytes) -> int:
    return int(struct.unpack("<Q", content[:8])[0])


def rewritten(path: Path, **about: Any) -> None:
    """Write a file again, its own metadata changed."""
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata())
    tensors = safetensors.torch.load_file(path)
    metadata["captum_attnkd"] = json.dumps(json.loads(metadata["captum_attnkd"]) | about)
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def test_a_truncated_checkpoint_is_refused(model: TinyNet, saved: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, 4, 8, 100, header_length(whole), header_length(whole) + 8, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            AttentiveKDAttribution.load(saved, model)


def test_a_checkpoint_with_bytes_appended_is_refused(model: TinyNet, saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="damaged"):
        AttentiveKDAttribution.load(saved, model)


@pytest.mark.parametrize("bit", [0, 3, 6])
def test_a_checkpoint_with_a_flipped_bit_in_its_header_is_refused(model: TinyNet, saved: Path, bit: int) -> None:
    whole = saved.read_bytes()
    length = header_length(whole)
    for place in [*range(8), *range(8, 8 + length, max(length // 60, 1))]:
        broken = bytearray(whole)
        broken[place] ^= 1 << bit
        saved.write_bytes(bytes(broken))
        with pytest.raises(CheckpointError):
            AttentiveKDAttribution.load(saved, model)


@pytest.mark.parametrize("bit", [0, 6])
def test_a_checkpoint_with_a_flipped_bit_in_its_data_is_refused(model: TinyNet, saved: Path, bit: int) -> None:
    whole = saved.read_bytes()
    start = 8 + header_length(whole)
    for place in (start, start + 1, (start + len(whole)) // 2, len(whole) - 2, len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1 << bit
        saved.write_bytes(bytes(broken))
        with pytest.raises(CheckpointError, match="damaged"):
            AttentiveKDAttribution.load(saved, model)


def test_a_foreign_file_is_refused(model: TinyNet, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, foreign, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not one of captum_attnkd"):
        AttentiveKDAttribution.load(foreign, model)
    foreign.write_text("a text")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        AttentiveKDAttribution.load(foreign, model)
    torch.save({"weight": torch.zeros(3)}, foreign)
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        AttentiveKDAttribution.load(foreign, model)
    with pytest.raises(FileNotFoundError, match="no file"):
        AttentiveKDAttribution.load(tmp_path / "none", model)
    with pytest.raises(FileNotFoundError, match="no file"):
        AttentiveKDAttribution.load(tmp_path, model)


def test_a_checkpoint_of_a_newer_format_says_to_upgrade(model: TinyNet, saved: Path) -> None:
    rewritten(saved, format=99, version="7.0")
    with pytest.raises(CheckpointError, match=r"7\.0 in format 99.*upgrade"):
        AttentiveKDAttribution.load(saved, model)


def test_a_file_of_another_kind_is_refused(model: TinyNet, saved: Path) -> None:
    rewritten(saved, kind="fit")
    with pytest.raises(CheckpointError, match="holds a 'fit', not a 'surrogate'"):
        AttentiveKDAttribution.load(saved, model)


def test_the_state_of_a_fit_is_no_checkpoint(untrained: TinyNet, tmp_path: Path) -> None:
    fit_quickly(AttentiveKDAttribution(untrained), GOOD, resume_from=tmp_path / "state")
    with pytest.raises(CheckpointError, match="holds a 'fit', not a 'surrogate'"):
        AttentiveKDAttribution.load(tmp_path / "state", untrained)


def test_metadata_altered_by_hand_is_refused(model: TinyNet, saved: Path) -> None:
    rewritten(saved, data={"mean": [0.0, 0.0, 0.0], "deviation": [1.0, 1.0, 1.0], "dtype": "float32"})
    with pytest.raises(CheckpointError):
        AttentiveKDAttribution.load(saved, model)


def test_a_checkpoint_is_refused_by_a_model_of_another_architecture(saved: Path, captum_model: nn.Module) -> None:
    with nothing_changes(captum_model), pytest.raises(CheckpointError, match="another architecture"):
        AttentiveKDAttribution.load(saved, captum_model)


def test_a_checkpoint_is_refused_by_the_same_architecture_with_other_weights(
    saved: Path, untrained: TinyNet, images: Tensor
) -> None:
    with nothing_changes(untrained), pytest.raises(CheckpointError, match=r"another model.*other weights"):
        AttentiveKDAttribution.load(saved, untrained)
    insisted = AttentiveKDAttribution.load(saved, untrained, check_target=False)
    assert insisted.attribute(images, target=1).shape == images.shape


def test_a_compact_checkpoint_is_refused_by_another_function(
    compact: AttentiveKDAttribution, tmp_path: Path, untrained: TinyNet
) -> None:
    compact.save(tmp_path / "compact")
    with pytest.raises(CheckpointError, match="another model"):
        AttentiveKDAttribution.load(tmp_path / "compact", lambda images: untrained(images))


def test_a_checkpoint_is_refused_by_a_model_in_training_mode(saved: Path) -> None:
    with pytest.raises(TargetError, match="training mode"):
        AttentiveKDAttribution.load(saved, random_net(0).train())


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace", "captum_attnkd.checkpoint.save_file"])
@pytest.mark.parametrize("error", ["full disk", "ctrl-c"])
def test_a_save_that_fails_leaves_the_old_file_and_no_other(
    fitted: AttentiveKDAttribution, saved: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    old = saved.read_bytes()
    monkeypatch.setattr(broken, (lambda *a, **k: no_space()) if error == "full disk" else interrupted)
    with pytest.raises(OSError if error == "full disk" else KeyboardInterrupt):
        fitted.save(saved)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_a_disk_too_small_for_the_file_is_an_os_error(
    fitted: AttentiveKDAttribution, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_the_library_says_it(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    old = saved.read_bytes()
    monkeypatch.setattr("captum_attnkd.checkpoint.save_file", as_the_library_says_it)
    with pytest.raises(OSError, match=r"could not be written.*No space left"):
        fitted.save(saved)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_not_there_is_an_os_error(fitted: AttentiveKDAttribution, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        fitted.save(tmp_path / "none" / "surrogate")


def test_a_full_disk_ends_a_fit_that_keeps_its_state_with_an_os_error(
    untrained: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", no_space)
    refused(untrained, GOOD, OSError, "No space left", resume_from=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_every_error_of_ours_can_be_caught_as_one() -> None:
    for error in (CheckpointError, InputError, LoaderError, NotFittedError, TargetError):
        assert issubclass(error, AttnKDError)
