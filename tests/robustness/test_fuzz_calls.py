"""Generated calls with arguments that cannot be meant: a sound answer or an error of ours, and nothing is changed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from toy_task import TinyNet, assert_same_weights, fit_quickly, loader_of, nothing_changes, random_net, weights_of

from captum_attnkd import Agreement, AttentiveKDAttribution, AttnKDError, Trust
from captum_attnkd.target import SLOWEST

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore"),  # what torch says of tensors hardly anyone uses
]
Counted = Callable[[int, int], int]
NAN, INF = float("nan"), float("inf")


def repeat(strategy: st.SearchStrategy[Any], times: int, check: Callable[[Any], None]) -> None:
    """Check as many examples; the same ones every time."""

    @settings(
        max_examples=times, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def run(example: Any) -> None:
        check(example)

    run()


class Tally:
    """What became of the calls, by kind of error; a refusal must be of ours and say something."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def call(
        self, ask: Callable[[], Any], sound: Callable[[Any], None], also: tuple[type[Exception], ...] = ()
    ) -> None:
        refusal: Exception | None = None
        try:
            sound(ask())
        except (AttnKDError, *also) as error:
            refusal = error
        assert refusal is None or str(refusal)
        self.seen["answered" if refusal is None else type(refusal).__name__] += 1

    def refused(self, at_least: int) -> None:
        """Fail if fewer calls were refused: the generator would then have little to do with its purpose."""
        total = sum(self.seen.values()) - self.seen["answered"]
        print(f"refused {total}, of all {dict(self.seen)}")
        assert total >= at_least, self.seen


# -- what is generated -------------------------------------------------------------------------------------------------

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]
sides = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 16, 24, 31])
shapes = st.one_of(
    st.lists(sides, max_size=6).map(tuple),
    st.tuples(st.integers(0, 4), st.sampled_from([0, 1, 2, 3, 4]), sides, sides),
    st.tuples(st.integers(1, 3), st.just(3), sides, sides),
)
values = st.sampled_from([0.0, 1.0, -1.0, NAN, INF, -INF, 1e30, -1e38, 3e38, 1e300, 1e-45, 65504.0])


@st.composite
def odd_tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of every shape, kind, layout and place, most of them no images."""
    shape, dtype, value = draw(shapes), draw(st.sampled_from(DTYPES)), draw(values)
    way = draw(st.integers(0, 11))
    tensor = torch.full(shape, 0.5, dtype=torch.float64)
    if tensor.numel() and draw(st.booleans()):
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
    else:
        tensor.fill_(value)
    whole = not (dtype.is_floating_point or dtype.is_complex)
    tensor = (tensor.nan_to_num(0, 1, -1).clamp(-1, 200) if whole else tensor).to(dtype)
    if way == 0:
        return tensor.to("meta")
    if way == 1 and dtype is not torch.float8_e4m3fn:
        return tensor.to_sparse()
    if way == 2:
        return tensor.expand(draw(st.integers(1, 3)), *shape)
    if way == 3 and tensor.ndim > 1:
        return tensor.transpose(0, -1)
    if way == 4 and dtype.is_floating_point and dtype is not torch.float8_e4m3fn:
        return tensor.clone().requires_grad_()
    if way == 5 and tensor.ndim > 1:
        return torch.nested.nested_tensor([torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)])
    if way == 6:
        return torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)
    return tensor


class Odd:
    """An object of no use to anyone."""


def nesting_itself() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


no_tensors = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.complex_numbers(),
    st.sampled_from(
        [Odd(), Odd, len, nn.Linear(2, 2), nn.Linear, np.zeros((2, 3, 24, 24)), np.float32(3), {}, set(), (), []]
    ),
    st.lists(st.integers(-3, 9), max_size=4),
    st.lists(st.floats(), max_size=4),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.builds(nesting_itself),
    odd_tensors().map(lambda tensor: [tensor]),
    odd_tensors().map(lambda tensor: (tensor, tensor)),
)
odd_images = st.one_of(odd_tensors(), odd_tensors(), odd_tensors().map(lambda tensor: (tensor,)), no_tensors)
odd_classes = st.one_of(
    st.none(),
    no_tensors,
    odd_tensors(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 6),
    st.integers(0, 3),
    st.lists(
        st.one_of(st.integers(-1, 4), st.floats(), st.none(), st.booleans(), st.tuples(st.integers(-1, 5))), max_size=4
    ),
    st.lists(st.lists(st.integers(-1, 4), max_size=3), max_size=3),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=3),
    st.sampled_from(
        [
            np.array([0, 1]),
            np.array(["a", "b"]),
            np.array([None, 1]),
            np.array([0.5]),
            np.array([2**63], dtype=np.uint64),
            np.array([1 + 2j]),
            np.int8(2),
            np.array(3),
            torch.tensor([2**62]),
            torch.tensor(1, device="meta"),
            torch.tensor([1, 2], dtype=torch.uint16),
            range(2),
            iter([0, 1]),
        ]
    ),
)


# -- asking ------------------------------------------------------------------------------------------------------------


def sound_maps(answer: Any) -> None:
    maps = answer[0] if isinstance(answer, tuple) else answer
    assert maps.ndim == 4
    assert maps.is_contiguous()
    assert bool(torch.isfinite(maps).all())
    assert float(maps.min()) >= 0
    assert float(maps.max()) <= 1


def sound_agreement(answer: Agreement) -> None:
    assert bool(torch.isfinite(answer.divergence).all())
    assert bool(torch.isfinite(answer.target_probability).all())
    assert bool(torch.isfinite(answer.student_probability).all())


def sound_trust(answer: Trust) -> None:
    assert bool(torch.isfinite(answer.divergence).all())
    for shares in (answer.score, answer.whole, answer.kept, answer.deleted):
        assert float(shares.min()) >= 0
        assert float(shares.max()) <= 1 + 1e-6


@pytest.mark.parametrize("which", ["fitted", "by_gradients", "compact"])
def test_odd_images_and_classes_are_answered_soundly_or_refused(
    model: TinyNet, which: str, images: Tensor, counted: Counted, request: pytest.FixtureRequest
) -> None:
    attribution: AttentiveKDAttribution = request.getfixturevalue(which)
    before, tally, good = attribution.attribute(images, target=1), Tally(), images[:2]
    asks: list[tuple[Callable[..., Any], Callable[[Any], None]]] = [
        (lambda odd, classes: attribution.attribute(odd, classes), sound_maps),
        (lambda odd, classes: attribution.attribute(good, classes), sound_maps),
        (lambda odd, classes: attribution.saliency(odd, 1, 2), sound_maps),
        (lambda odd, classes: attribution.saliency(good, 1, versus=classes), sound_maps),
        (lambda odd, classes: attribution.saliency_all(good, classes), sound_maps),
        (lambda odd, classes: attribution.saliency_all(odd, classes), sound_maps),
        (lambda odd, classes: attribution.agreement(odd), sound_agreement),
        (lambda odd, classes: attribution.trust(odd, classes), sound_trust),
        (lambda odd, classes: attribution.refine(odd, classes, steps=1), sound_maps),
        (lambda odd, classes: attribution.look(odd, classes), lambda answer: None),
    ]
    times = counted(300, 9000)

    def check(example: tuple[int, Any, Any]) -> None:
        place, odd, classes = example
        ask, sound = asks[place]
        tally.call(lambda: ask(odd, classes), sound)

    repeat(st.tuples(st.integers(0, len(asks) - 1), odd_images, odd_classes), times, check)
    tally.refused(int(0.8 * times))
    assert torch.equal(attribution.attribute(images, target=1), before)


def test_files_devices_and_settings_that_cannot_be_meant_are_refused(
    model: TinyNet, fitted: AttentiveKDAttribution, tmp_path: Path, counted: Counted
) -> None:
    saved = tmp_path / "surrogate"
    fitted.save(saved)
    content, tally, times = saved.read_bytes(), Tally(), counted(150, 2000)
    paths = st.one_of(
        no_tensors,
        st.text(max_size=8).map(lambda name: f"{tmp_path}/none/{name}"),
        st.just(tmp_path),
        st.just("\0"),
        st.sampled_from(["", "/", "/dev/null", "/proc/self/mem", "\ud800", "a" * 300, "../" * 2000, str(saved) + "\0"]),
    )
    devices = st.one_of(
        no_tensors, st.sampled_from(["cuda:99", "cpu:x", "gpu", "", "mps", "hpu", "cpu", None, 1e-300, 0.009])
    )
    asks: list[Callable[[Any, Any], Any]] = [
        lambda path, device: AttentiveKDAttribution.load(path, model),
        lambda path, device: AttentiveKDAttribution.load(saved, model, device=device),
        lambda path, device: AttentiveKDAttribution.load(saved, path),
        lambda path, device: AttentiveKDAttribution.load(saved, model, max_images_per_second=device),
        lambda path, device: AttentiveKDAttribution.load(saved, model).to(device),
        lambda path, device: fitted.save(path),
    ]

    def refuses_nothing_new(answer: Any) -> None:
        assert answer is None or answer.is_fitted

    def check(example: tuple[int, Any, Any]) -> None:
        place, path, device = example
        if place == 2 and callable(path):
            return  # a callable is a model until it is asked
        if place == 5 and isinstance(path, str) and not path.startswith("/"):
            return  # a name in the working folder, which is not ours to write to
        if place == 3 and isinstance(device, (int, float)) and SLOWEST <= device < 100:
            return  # it does as it is told, and waits
        tally.call(lambda: asks[place](path, device), refuses_nothing_new, also=(OSError,))

    repeat(st.tuples(st.integers(0, len(asks) - 1), paths, devices), times, check)
    tally.refused(times // 2)
    assert saved.read_bytes() == content
    assert list(tmp_path.iterdir()) == [saved]


# -- constructing and fitting ------------------------------------------------------------------------------------------

GOOD = loader_of(24, seed=1)
odd_numbers = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 0),
    st.integers(2**31, 2**300),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(
        [NAN, INF, -1, 10**400, 0.5, "1", b"1", [1], (1,), {}, np.array([1, 2]), torch.tensor(1), np.int64(3), Odd]
    ),
)


def test_constructors_refuse_what_cannot_be_meant(untrained: TinyNet, counted: Counted) -> None:
    tally, times = Tally(), counted(200, 3000)
    names = ("forward_func", "student", "levels", "backbone", "output", "max_images_per_second")
    odd = st.one_of(no_tensors, odd_tensors(), odd_numbers, st.just("grafted"), st.just(["features.2"]))

    def check(example: tuple[str, Any]) -> None:
        given_ = {"forward_func": untrained, example[0]: example[1]}
        tally.call(lambda: AttentiveKDAttribution(**given_), lambda made: None)

    repeat(st.tuples(st.sampled_from(names), odd), times, check)
    tally.refused(int(0.7 * times))


class Emits:
    """A loader of the given batches, of which one may be a call that raises."""

    def __init__(self, batches: list[Any], fails: bool) -> None:
        self.batches, self.fails = batches, fails

    def __iter__(self) -> Iterator[Any]:
        if self.fails and not self.batches:
            raise ValueError("cannot begin")
        yield from self.batches
        if self.fails:
            raise RuntimeError("cannot go on")


class Hostile(dict[str, Any]):
    """A mapping that says it has everything, and gives nothing."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> Any:
        raise ZeroDivisionError(key)


odd_batches = st.one_of(
    odd_images,
    odd_images.map(lambda odd: {"image": odd}),
    odd_images.map(lambda odd: [odd, 1]),
    st.builds(Hostile),
    st.just(GOOD[0]),
    st.just(GOOD[0][0][:, :, :12]),
    st.just(GOOD[0][0].double()),
)
odd_loaders = st.one_of(
    no_tensors,
    odd_tensors(),
    st.lists(odd_batches, max_size=3),
    st.just(itertools.cycle([GOOD[0]])),
    st.builds(Emits, st.lists(odd_batches, max_size=2), st.booleans()),
    st.lists(odd_batches, max_size=2).map(iter),
    st.lists(odd_batches, min_size=1, max_size=2).map(lambda batches: [*GOOD, *batches]),
)
SETTINGS = (
    "distil_steps",
    "explain_steps",
    "batch_size",
    "learning_rate",
    "patience",
    "seed",
    "precision",
    "image_key",
    "accelerator",
    "resume_from",
    "val_loader",
)


def test_fits_refuse_loaders_and_settings_that_cannot_be_meant(
    untrained: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    monkeypatch.chdir(tmp_path)  # a generated name may be one of a state
    attribution = fit_quickly(AttentiveKDAttribution(untrained), GOOD)
    weights, report, tally, times = weights_of(attribution), attribution.report_, Tally(), counted(120, 4000)
    odd_settings = st.one_of(odd_numbers, no_tensors.filter(lambda odd: not isinstance(odd, (int, str))))

    def sound(fitted: AttentiveKDAttribution) -> None:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights_of(fitted).values())
        assert fitted.report_ is not None
        assert math.isfinite(fitted.report_.divergence)

    def check(example: tuple[Any, str, Any]) -> None:
        loader, name, value = example
        fresh = AttentiveKDAttribution(untrained)
        given_ = {"loader": loader} if name == "loader" else {"loader": GOOD, name: value}
        given_ = {"steps": 1, "batch_size": 4} | given_
        if name == "val_loader":
            given_[name] = loader
        tally.call(lambda: fit_quickly(fresh, **given_), sound, also=(OSError,))

    with nothing_changes(untrained):
        repeat(st.tuples(odd_loaders, st.sampled_from(("loader",) * 14 + SETTINGS), odd_settings), times, check)
    tally.refused(int(0.6 * times))
    assert_same_weights(weights_of(attribution), weights)
    assert attribution.report_ is report


def test_a_model_on_a_device_without_memory_is_refused() -> None:
    net = random_net(2).to("meta")
    with pytest.raises(AttnKDError):
        fit_quickly(AttentiveKDAttribution(net), GOOD)
