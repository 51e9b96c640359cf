"""Studies: what was worked out is not worked out again, what changed is; failures stay in their cells; tables by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from captum_attnkd.evaluation.explainers import Explainer
from captum_attnkd.evaluation.methods import METHODS, Method
from captum_attnkd.evaluation.metrics import Case, Measured, Metric, find_metric
from captum_attnkd.evaluation.sources import ImageSet
from captum_attnkd.evaluation.statistics import holm, paired_interval, paired_test
from captum_attnkd.evaluation.store import Store, key
from captum_attnkd.evaluation.study import Outcome, Study
from captum_attnkd.evaluation.subject import Contrast, ContrastSurrogate, Subject
from captum_attnkd.evaluation.summary import leaders, means, scores, summary
from torch import Tensor, nn

COUNT, CLASSES = 7, 3
IMAGES = torch.rand(COUNT, 2, 6, 6, generator=torch.Generator().manual_seed(0))
MASKS = torch.zeros(COUNT, 6, 6, dtype=torch.bool)
MASKS[:, 1:3, 1:4] = True


def linear(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(2 * 36, CLASSES)).eval()


def subject_of(model: nn.Module | None = None, **more: Any) -> Subject:
    settings: dict[str, Any] = {"batch": 3, "precision": "fp32"} | more
    model = linear() if model is None else model
    layer = list(model.children())[1] if settings.pop("layer", False) else None
    return Subject(model, layer, torch.zeros(2), torch.ones(2), **settings)


def data_of(images: Tensor = IMAGES, **more: Any) -> ImageSet:
    settings: dict[str, Any] = {"targets": torch.arange(len(images)) % CLASSES, "masks": MASKS[: len(images)]} | more
    return ImageSet(images, tuple(f"image {index}" for index in range(len(images))), **settings)


class Counting:
    """A method and a metric that write down what they were asked."""

    def __init__(self) -> None:
        self.images = 0
        self.metrics = 0
        self.fail_at = -1
        self.failure: BaseException = KeyboardInterrupt()

    def method(self, name: str = "counting", **more: Any) -> Method:
        def build(subject: Subject, scale: float = 1.0) -> Explainer:
            def explain(images: Tensor, classes: Tensor) -> Tensor:
                if 0 <= self.fail_at <= self.images:
                    raise self.failure
                self.images += len(images)
                return scale * images[:, :1] * (classes + 1).reshape(-1, 1, 1, 1)

            return explain

        return Method(name, "gradients", build, **more)

    def metric(self, name: str = "counted", **more: Any) -> Metric:
        def measure(case: Case, power: float = 1.0) -> Measured:
            self.metrics += 1
            values = case.maps.mean(dim=(1, 2, 3)) ** power
            values[0] = torch.nan
            return Measured({name: values, "second": -values}, {name: "higher"}, {name: case.maps.flatten(1)[:, :4]})

        return Metric(name, "faithfulness", measure, **more)

    def run(self, store: Store, **more: Any) -> tuple[dict[str, Outcome], int, int]:
        """A study's outcomes, and how many images and metrics were worked out for it."""
        self.images = self.metrics = 0
        settings: dict[str, Any] = {
            "subject": subject_of(), "data": data_of(), "methods": [self.method()], "metrics": [self.metric()],
        } | more  # fmt: skip
        outcomes = Study(**settings, store=store, progress=False).run()
        return outcomes, self.images, self.metrics


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def same(one: Outcome, other: Outcome) -> None:
    assert one.maps is not None
    assert other.maps is not None
    assert torch.equal(one.maps, other.maps)
    assert one.measured.keys() == other.measured.keys()
    for name, measured in one.measured.items():
        found = other.measured[name]
        assert list(measured.scores) == list(found.scores)
        assert measured.better == found.better
        for part in ("scores", "curves"):
            for label, values in getattr(measured, part).items():
                torch.testing.assert_close(getattr(found, part)[label], values, rtol=0, atol=0, equal_nan=True)


# -- the store -----------------------------------------------------------------------------------------------------------


def test_a_second_run_works_nothing_out_again_and_says_the_same(
    counting: Counting, store: Store, tmp_path: Path
) -> None:
    first, images, metrics = counting.run(store)
    assert (images, metrics) == (COUNT, 1)
    assert first["counting"].seconds >= 0
    maps = first["counting"].maps
    assert maps is not None
    assert torch.equal(maps, IMAGES[:, :1] * (torch.arange(COUNT) % 3 + 1).reshape(-1, 1, 1, 1))
    second, images, metrics = counting.run(Store(tmp_path / "store"))
    assert (images, metrics) == (0, 0)
    assert np.isnan(second["counting"].seconds)
    same(first["counting"], second["counting"])


def changed_image() -> ImageSet:
    images = IMAGES.clone()
    images[2, 0, 0, 0] += 1e-3
    return data_of(images)


def changed_target() -> ImageSet:
    targets = torch.arange(COUNT) % CLASSES
    targets[4] = 0
    return data_of(targets=targets)


CHANGES: dict[str, tuple[Callable[[Counting], dict[str, Any]], int, int]] = {
    "other weights": (lambda c: {"subject": subject_of(linear(1))}, COUNT, 1),
    "other statistics": (lambda c: {"subject": replace(subject_of(), mean=torch.ones(2))}, 0, 1),
    "other statistics, of which the method knows": (
        lambda c: {"subject": replace(subject_of(), mean=torch.ones(2)), "methods": [c.method(of_data=True)]},
        COUNT,
        1,
    ),
    "other code of the method": (lambda c: {"methods": [c.method(source="new")]}, COUNT, 0),
    "other code of the metric": (lambda c: {"metrics": [c.metric(source="new")]}, 0, 1),
    "another seed": (lambda c: {"subject": subject_of(seed=1)}, COUNT, 1),
    "another layer": (lambda c: {"subject": subject_of(layer=True)}, COUNT, 0),
    "another precision of metrics": (lambda c: {"subject": subject_of(precision="bf16")}, 0, 1),
    "another batch": (lambda c: {"subject": subject_of(batch=5)}, 0, 1),  # some draw for a batch at once
    "another setting": (lambda c: {"methods": [c.method(settings={"scale": 2.0})]}, COUNT, 1),
    "another name": (lambda c: {"methods": [c.method("other")]}, COUNT, 0),
    "another metric": (lambda c: {"metrics": [c.metric("other")]}, 0, 1),
    "another setting of the metric": (lambda c: {"metrics": [c.metric(settings={"power": 2.0})]}, 0, 1),
    "one image": (lambda c: {"data": changed_image()}, 1, 1),
    "one class": (lambda c: {"data": changed_target()}, 1, 1),
    "fewer images": (lambda c: {"data": data_of(IMAGES[:4])}, 0, 1),
    "other masks": (lambda c: {"data": data_of(masks=~MASKS)}, 0, 1),
    "masks that are parts": (lambda c: {"data": data_of(masks=None, parts=MASKS)}, 0, 1),
    "rivals, though numbered alike": (
        lambda c: {"data": data_of(targets=torch.zeros(COUNT).long(), rivals=torch.arange(COUNT) % CLASSES)},
        COUNT,
        1,
    ),
    "one more method": (lambda c: {"methods": [c.method(), c.method("other", settings={"scale": 3.0})]}, COUNT, 1),
    "one more metric": (lambda c: {"metrics": [c.metric(), c.metric("other")]}, 0, 1),
    "nothing": (lambda c: {}, 0, 0),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_only_what_a_change_touches_is_worked_out_again(counting: Counting, store: Store, change: str) -> None:
    counting.run(store)
    make, images, metrics = CHANGES[change]
    more = make(counting)
    outcomes, *worked_out = counting.run(store, **more)
    assert worked_out == [images, metrics]
    fresh, *_ = counting.run(Store(None), **more)
    for name in outcomes:
        same(outcomes[name], fresh[name])


def test_another_fit_of_the_surrogate_changes_learned_methods_alone(counting: Counting, store: Store) -> None:
    class Fitted:
        def __init__(self, seed: int) -> None:
            self.surrogate = linear(seed)

    methods = [counting.method(), counting.method("learned", learned=True, settings={"scale": 2.0})]
    counting.run(store, subject=subject_of(surrogate=Fitted(1)), methods=methods)
    assert counting.run(store, subject=subject_of(surrogate=Fitted(1)), methods=methods)[1] == 0
    assert counting.run(store, subject=subject_of(surrogate=Fitted(2)), methods=methods)[1] == COUNT


def test_a_method_that_sees_all_images_at_once_is_asked_again_for_any_other(counting: Counting, store: Store) -> None:
    methods = [counting.method(at_once=True)]
    assert counting.run(store, methods=methods)[1] == COUNT
    assert counting.run(store, methods=methods)[1] == 0
    assert counting.run(store, methods=methods, data=changed_image())[1] == COUNT


def test_a_metric_that_asks_the_method_depends_on_it(counting: Counting, store: Store) -> None:
    metrics = [counting.metric(asks_method=True)]
    assert counting.run(store, metrics=metrics)[2] == 1
    assert counting.run(store, metrics=metrics)[2] == 0
    assert counting.run(store, metrics=metrics, methods=[counting.method("other")])[2] == 1, "though the maps are equal"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_file_counts_as_missing(counting: Counting, store: Store, tmp_path: Path, damage: str) -> None:
    first, *_ = counting.run(store)
    for kind in ("map", "scores"):
        files = sorted((tmp_path / "store" / kind).glob("*.safetensors"))
        assert len(files) == (COUNT if kind == "map" else 1)
        whole = bytearray(files[0].read_bytes())
        whole[-2] ^= 255
        content = {"cut": bytes(whole[:-9]), "flip": bytes(whole), "empty": b"", "foreign": b"not a file of ours"}
        files[0].write_bytes(content[damage])
    again, images, metrics = counting.run(store)
    assert (images, metrics) == (1, 1)
    same(first["counting"], again["counting"])
    assert counting.run(store)[1:] == (0, 0), "it was mended"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError("killed")])
def test_a_study_that_was_stopped_goes_on_where_it_was(
    counting: Counting, store: Store, failure: BaseException
) -> None:
    counting.fail_at, counting.failure = 3, failure
    if isinstance(failure, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            counting.run(store)
    else:
        assert counting.run(store)[0]["counting"].failure == "MemoryError: killed"
    assert counting.images == 3
    counting.fail_at = -1
    outcomes, images, metrics = counting.run(store)
    assert (images, metrics) == (COUNT - 3, 1)
    same(outcomes["counting"], counting.run(Store(None))[0]["counting"])


@pytest.mark.parametrize("name", ["smooth-grad", "gradient-shap", "random"])
def test_a_resumed_study_has_the_maps_of_one_that_was_not_stopped(store: Store, name: str) -> None:
    metrics: list[Metric] = []
    Study(subject_of(), data_of(IMAGES[:2]), [METHODS[name]], metrics, store, progress=False).run()
    resumed = Study(subject_of(), data_of(), [METHODS[name]], metrics, store, progress=False).run()[name].maps
    whole = Study(subject_of(), data_of(), [METHODS[name]], metrics, Store(None), progress=False).run()[name].maps
    assert resumed is not None
    assert whole is not None
    torch.testing.assert_close(resumed, whole)


def test_without_a_folder_nothing_is_kept(counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = Store(None)
    assert counting.run(nowhere)[1:] == counting.run(nowhere)[1:] == (COUNT, 1)
    assert list(tmp_path.iterdir()) == []


def test_keys_tell_all_parts_apart_and_where_they_end() -> None:
    parts: list[Sequence[Any]] = [
        ("ab", "c"), ("a", "bc"), ("a", "b", "c"), (["a", "b"],), (1,), (1.5,), ("1",), ({"x": 1},), ({"x": 2},), (None,),
        (torch.zeros(2),), (torch.zeros(1, 2),), (torch.zeros(2, dtype=torch.int32),), (torch.tensor([0, 1e-30]),),
        (torch.zeros(2, dtype=torch.bool),), (), (1, 2), (12,),
    ]  # fmt: skip
    assert len({key(*part) for part in parts}) == len(parts)
    assert key({"a": 1, "b": 2}, torch.eye(3)) == key({"b": 2, "a": 1}, torch.eye(3).T.contiguous().T)


def test_a_part_that_no_key_can_be_made_of_is_refused() -> None:
    with pytest.raises(TypeError):
        key({"function": print})
    with pytest.raises(TypeError):
        key({"tensor": torch.zeros(3)})  # inside settings, where its middle would not be told


# -- failures ------------------------------------------------------------------------------------------------------------------


def test_failures_stand_in_their_cells_and_stop_nothing_else(counting: Counting, store: Store) -> None:
    def broken(subject: Subject) -> Explainer:
        raise ValueError("needs a layer")

    def answering(found: Callable[[Tensor], Any]) -> Callable[[Subject], Explainer]:
        return lambda subject: lambda images, classes: found(images)

    def nan(images: Tensor) -> Tensor:
        maps = images[:, :1].clone()
        maps[-1, 0, 2, 2] = torch.nan
        return maps

    methods = [
        Method("unbuilt", "gradients", broken),
        Method("three channels", "gradients", answering(lambda x: x.repeat(1, 2, 1, 1)[:, :3])),
        Method("too few", "gradients", answering(lambda x: x[:1, :1])),
        Method("small", "gradients", answering(lambda x: x[:, :1, :3])),
        Method("nan", "gradients", answering(nan)),
        Method("infinite", "gradients", answering(lambda x: x[:, :1] / 0)),
        counting.method(),
    ]
    metrics = [
        Metric("raises", "complexity", lambda case: 1 / 0),  # type: ignore[arg-type, return-value]
        Metric("too few numbers", "complexity", lambda case: Measured({"few": torch.zeros(2)}, {"few": "higher"})),
        Metric("parts", "localisation", lambda case: Measured({}, {}), needs="parts"),
        counting.metric(),
    ]
    outcomes, *_ = counting.run(store, methods=methods, metrics=metrics)
    failures = {name: outcome.failure for name, outcome in outcomes.items()}
    assert failures["unbuilt"] == "ValueError: needs a layer"
    assert "maps of shape (3, 3, 6, 6)" in failures["three channels"]
    assert "maps of shape (1, 1, 6, 6)" in failures["too few"]
    assert "maps of shape (3, 1, 3, 6)" in failures["small"]
    assert "NaN or infinite values" in failures["nan"]
    assert "NaN or infinite values" in failures["infinite"]
    assert all(outcomes[name].maps is None and not outcomes[name].measured for name in failures if failures[name])
    fine = outcomes["counting"]
    assert fine.failure == ""
    assert list(fine.measured) == ["counted"]
    assert fine.failures["raises"].startswith("ZeroDivisionError")
    assert "few: (2,) numbers for 7 images" in fine.failures["too few numbers"]
    assert "needs parts" in fine.failures["parts"]
    table = summary(outcomes)
    assert set(table[table["failure"] != ""]["method"]) == set(failures)
    assert len(table[table["failure"] != ""]) == 6 + 3
    again, images, _ = counting.run(store, methods=methods, metrics=metrics)
    assert again["nan"].failure == failures["nan"]
    assert images == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": torch.tensor([0, 1, 2, 3, 0, 1, 2])},
        {"targets": torch.tensor([0, 1, 2, -1, 0, 1, 2])},
        {"rivals": torch.tensor([3, 0, 0, 0, 0, 0, 0])},
    ],
)
def test_classes_that_the_model_does_not_have_are_refused(wrong: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="the model answers with 3"):
        Study(subject_of(), data_of(**wrong), [], [], Store(None))


def test_a_model_that_answers_with_nan_is_refused() -> None:
    model = linear()
    model[1].bias.data[1] = torch.nan  # type: ignore[index, union-attr, operator]
    with pytest.raises(ValueError, match="NaN"):
        Study(subject_of(model), data_of(), [], [], Store(None))


# -- what is asked ---------------------------------------------------------------------------------------------------------


def test_without_classes_the_predicted_ones_are_asked_about() -> None:
    asked: list[int] = []

    def noted(images: Tensor, classes: Tensor) -> Tensor:
        asked.extend(classes.tolist())
        return images[:, :1]

    method = Method("noted", "gradients", lambda subject: noted)
    study = Study(subject_of(), data_of(targets=None), [method], [], Store(None), progress=False)
    study.run()
    predicted = linear()(IMAGES).argmax(dim=1)
    assert asked == study.targets.tolist() == predicted.tolist()
    assert study.right is None
    known = Study(subject_of(), data_of(targets=(predicted + (torch.arange(7) == 2)) % 3), [method], [], Store(None))
    assert known.right == pytest.approx(6 / 7)


def test_with_rivals_every_method_is_asked_why_this_and_not_that(store: Store) -> None:
    seen: list[tuple[Subject, Tensor]] = []

    def build(subject: Subject) -> Explainer:
        def explain(images: Tensor, classes: Tensor) -> Tensor:
            seen.append((subject, classes))
            return METHODS["input-x-gradient"].on(subject)(images, classes)

        return explain

    class Fitted:
        surrogate, classes = linear(1), CLASSES

        def saliency(self, images: Tensor, target: Tensor, versus: Tensor) -> Tensor:
            return images[:, :1] * (10 * target + versus).reshape(-1, 1, 1, 1)

    targets = torch.arange(COUNT) % CLASSES
    rivals = (targets + 1 + torch.arange(COUNT) % 2) % CLASSES
    data = data_of(targets=targets, rivals=rivals, parts=MASKS)
    methods = [Method("asked", "gradients", build), METHODS["ours"]]
    metrics = [find_metric("part-mass"), find_metric("drop-increase"), find_metric("AvgSensitivity")]
    outcomes = Study(subject_of(surrogate=Fitted()), data, methods, metrics, store, progress=False).run()
    subject, _ = seen[0]
    assert isinstance(subject.model, Contrast)
    assert isinstance(subject.surrogate, ContrastSurrogate)
    assert torch.cat([classes for _, classes in seen]).tolist() == (targets * CLASSES + rivals).tolist()
    weights = linear()[1].weight.detach()  # type: ignore[index, union-attr]
    slopes = (weights[targets] - weights[rivals]).reshape(IMAGES.shape)
    torch.testing.assert_close(outcomes["asked"].maps, (slopes * IMAGES).abs().sum(dim=1, keepdim=True))
    torch.testing.assert_close(outcomes["ours"].maps, IMAGES[:, :1] * (10 * targets + rivals).reshape(-1, 1, 1, 1))
    assert "images come with rivals" in outcomes["asked"].failures["AvgSensitivity"]
    assert set(outcomes["asked"].measured) == {"part-mass", "drop-increase"}
    # Metrics ask about the class itself, and the same maps without rivals are others.
    plain = Study(subject_of(), replace(data, rivals=None), methods[:1], metrics[:1], store, progress=False).run()
    assert not torch.allclose(plain["asked"].maps, outcomes["asked"].maps)  # type: ignore[arg-type]


# -- tables --------------------------------------------------------------------------------------------------------------------


def outcome_of(better: str = "higher", **columns: list[float]) -> Outcome:
    values = {name: torch.tensor(column) for name, column in columns.items()}
    return Outcome(maps=torch.zeros(1), measured={"metric": Measured(values, dict.fromkeys(values, better))})


NAN = float("nan")


def test_every_score_of_every_image() -> None:
    outcomes = {"a": outcome_of(x=[1.0, 2.0], y=[NAN, 4.0]), "b": outcome_of(x=[5.0, 6.0])}
    table = scores(outcomes, ("one", "two"))
    assert list(table.columns) == ["method", "metric", "column", "image", "score"]
    assert set(table["metric"]) == {"metric"}
    rows = [tuple(row) for row in table.drop(columns="metric").fillna(-1).itertuples(index=False)]
    assert rows == [
        ("a", "x", "one", 1), ("a", "x", "two", 2), ("a", "y", "one", -1), ("a", "y", "two", 4), ("b", "x", "one", 5),
        ("b", "x", "two", 6),
    ]  # fmt: skip


def test_a_summary_by_hand() -> None:
    reference = [0.5, 0.6, 0.7, 0.8, NAN, 0.9, 0.4, 0.3]
    worse = [0.1, 0.3, NAN, 0.2, 0.9, 0.3, 0.1, 0.1]
    alike = [0.5, 0.7, 0.6, 0.8, 0.9, 0.9, 0.4, 0.3]
    outcomes = {
        "reference": outcome_of(x=reference), "worse": outcome_of(x=worse), "alike": outcome_of(x=alike),
        "nothing": outcome_of(x=[NAN] * 8), "failed": Outcome(failure="ValueError: no"),
    }  # fmt: skip
    table = summary(outcomes, "reference").set_index("method")
    assert table["n"].to_dict() == {"reference": 7, "worse": 7, "alike": 8, "nothing": 0, "failed": 0}
    assert table.loc["worse", "mean"] == pytest.approx(2.0 / 7)
    known = torch.tensor([value for value in worse if value == value])
    assert tuple(table.loc["worse", ["mean", "low", "high"]]) == pytest.approx(paired_interval(known))
    # Paired where both have a score: images 0, 1, 3, 5, 6 and 7.
    less = torch.tensor([worse[i] - reference[i] for i in (0, 1, 3, 5, 6, 7)])
    assert table.loc["worse", "less"] == pytest.approx(float(less.mean()))
    assert tuple(table.loc["worse", ["less", "less_low", "less_high"]]) == pytest.approx(paired_interval(less))
    other = torch.tensor([a - r for a, r in zip(alike, reference, strict=True) if r == r])
    corrected = holm({"worse": paired_test(less), "alike": paired_test(other)})
    assert table.loc["worse", "p"] == pytest.approx(corrected["worse"]) == pytest.approx(2 * paired_test(less))
    assert table.loc["alike", "p"] == 1
    for name in ("reference", "nothing", "failed"):
        assert np.isnan(table.loc[name, "p"])
        assert np.isnan(table.loc[name, "less"])
    assert table["failure"].to_dict() == dict.fromkeys(outcomes, "") | {"failed": "ValueError: no"}
    without = summary(outcomes)
    assert without["less"].isna().all()
    assert without["p"].isna().all()


def test_columns_are_corrected_apart_and_only_those_with_a_direction_stand_in_tables() -> None:
    drawn = torch.Generator().manual_seed(0)

    def one(shift: float) -> Outcome:
        values = {name: torch.rand(12, generator=drawn) + shift for name in ("x", "y", "hidden")}
        return Outcome(maps=torch.zeros(1), measured={"m": Measured(values, {"x": "higher", "y": "lower"})})

    outcomes = {"r": one(0), "a": one(0.3), "b": one(0.6)}
    table = summary(outcomes, "r").set_index(["method", "column"])
    assert set(table.index.get_level_values("column")) == {"x", "y"}
    assert table.loc[("a", "y"), "better"] == "lower"
    for column in ("x", "y"):
        raw = {
            name: paired_test(outcomes[name].measured["m"].scores[column] - outcomes["r"].measured["m"].scores[column])
            for name in ("a", "b")
        }
        for name, p in holm(raw).items():
            assert table.loc[(name, column), "p"] == pytest.approx(p)


def test_means_by_hand() -> None:
    outcomes = {
        "a": outcome_of(x=[1.0, NAN, 3.0]), "b": outcome_of(x=[4.0, 4.0, 4.0]), "failed": Outcome(failure="no"),
    }  # fmt: skip
    outcomes["b"].measured["other"] = Measured({"y": torch.tensor([1.0])}, {"y": "lower"})
    table = means(outcomes)
    assert table.columns.tolist() == ["x ↑", "y ↓"]
    assert table["x ↑"].fillna(-1).to_dict() == {"a": 2, "b": 4, "failed": -1}
    assert means(outcomes, ["metric"]).columns.tolist() == ["x ↑"]
    assert isinstance(means({}), pd.DataFrame)


def test_leaders_are_the_best_and_those_not_significantly_worse() -> None:
    drawn = torch.Generator().manual_seed(1)
    base = torch.rand(30, generator=drawn)
    near, far = base - 0.01 * torch.randn(30, generator=drawn) - 0.001, base - 0.5
    for better, sign in (("higher", 1), ("lower", -1)):
        outcomes = {
            "far": outcome_of(better, x=(sign * far).tolist()), "best": outcome_of(better, x=(sign * base).tolist()),
            "near": outcome_of(better, x=(sign * near).tolist()), "nothing": outcome_of(better, x=[NAN] * 30),
            "failed": Outcome(failure="no"),
        }  # fmt: skip
        assert leaders(outcomes, "metric", "x") == ("best", {"best", "near"})
    assert leaders({"nothing": outcome_of(x=[NAN]), "failed": Outcome(failure="no")}, "metric", "x") == (None, set())
    assert leaders({}, "metric", "x") == (None, set())


def test_leaders_with_ties_and_gaps() -> None:
    values = [0.1, 0.5, 0.3, 0.9, 0.2, 0.8, 0.7]
    outcomes = {"one": outcome_of(x=values), "two": outcome_of(x=values)}
    assert leaders(outcomes, "metric", "x") == ("one", {"one", "two"})
    # Paired on the images both have: there, the gappy one is worse by far.
    full = {"full": outcome_of(x=[1.0] * 16), "gappy": outcome_of(x=[NAN] * 4 + [0.4 + 0.01 * i for i in range(12)])}
    assert leaders(full, "metric", "x") == ("full", {"full"})
    apart = {"first": outcome_of(x=[1.0, NAN]), "second": outcome_of(x=[NAN, 0.5])}
    assert leaders(apart, "metric", "x") == ("first", {"first"}), "nothing can be said of two that share no image"
