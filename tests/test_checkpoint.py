"""Files: what is written is read again, what was changed is refused, and files of this format stay readable."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from toy_task import CLASSES, random_net

from captum_attnkd import CheckpointError
from captum_attnkd import checkpoint as files
from captum_attnkd.plan import Plan, make_plan
from captum_attnkd.target import Target

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4),
}
ABOUT = {"words": "ünïcode", "numbers": [1, 2.5, None], "nested": {"a": True}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def metadata(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as opened:
        return dict(json.loads(opened.metadata()["captum_attnkd"]))


def forged(path: Path, tensors: dict[str, Tensor] | None = None, **about: Any) -> None:
    """The file again, with other tensors or other metadata, and its old digest."""
    with safetensors.safe_open(path, framework="pt") as opened:
        kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    described = metadata(path) | about
    save_file(kept if tensors is None else tensors, path, metadata={"captum_attnkd": json.dumps(described)})


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(path: Path) -> None:
    tensors = TENSORS | {"turned": torch.arange(6.0).reshape(2, 3).T, "learned": nn.Parameter(torch.ones(2))}
    files.write(path, "surrogate", tensors, ABOUT)
    found, about = files.read(path, "surrogate")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert about == ABOUT | {"kind": "surrogate", "format": 2, "version": files.__version__}


def test_files_of_this_format_stay_readable(path: Path) -> None:
    """A digest that is worked out otherwise refuses every file there is: that would be another format."""
    save_file(
        TENSORS,
        path,
        metadata={
            "captum_attnkd": json.dumps(
                {"kind": "k", "format": 2, "version": "0.1.0", **ABOUT, "digest": "5e207888996790288598ad1d0f29fe29"}
            )
        },
    )
    found, about = files.read(path, "k")
    assert torch.equal(found["weight"], TENSORS["weight"])
    assert about["words"] == "ünïcode"


@pytest.mark.parametrize(
    "changed",
    [
        {"weight": torch.arange(6.0).reshape(2, 3) + torch.eye(2, 3)},
        {"weight": torch.arange(6.0).reshape(3, 2)},
        {"weight": torch.arange(6.0).reshape(2, 3).view(torch.int32)},
        {"none": torch.zeros(0, 5)},
        {"more": torch.zeros(1)},
    ],
)
def test_a_tensor_changed_is_damage(path: Path, changed: dict[str, Tensor]) -> None:
    files.write(path, "surrogate", TENSORS, ABOUT)
    forged(path, TENSORS | changed)
    with pytest.raises(CheckpointError, match="damaged: its content is not what was written"):
        files.read(path, "surrogate")


def test_two_tensors_swapped_are_damage(path: Path) -> None:
    files.write(path, "surrogate", {"a": torch.zeros(2), "b": torch.ones(2)}, {})
    forged(path, {"b": torch.zeros(2), "a": torch.ones(2)})
    with pytest.raises(CheckpointError, match="damaged"):
        files.read(path, "surrogate")


@pytest.mark.parametrize(
    "changed", [{"words": "other"}, {"version": "9"}, {"format": 0}, {"more": 1}, {"digest": None}]
)
def test_metadata_changed_is_damage(path: Path, changed: dict[str, Any]) -> None:
    files.write(path, "surrogate", TENSORS, ABOUT)
    forged(path, **changed)
    with pytest.raises(CheckpointError, match="damaged"):
        files.read(path, "surrogate")


def test_kind_and_format_are_checked_before_anything_is_called_damaged(path: Path) -> None:
    files.write(path, "surrogate", TENSORS, ABOUT)
    with pytest.raises(CheckpointError, match="holds a 'surrogate', not a 'fit'"):
        files.read(path, "fit")
    forged(path, format=3, version="5.0")
    with pytest.raises(CheckpointError, match=r"by captum_attnkd 5\.0 in format 3; this is .* up to format 2: upgrade"):
        files.read(path, "surrogate")


def test_a_sound_file_of_an_earlier_format_is_refused_and_says_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(files, "FORMAT_VERSION", 1)
        files.write(path, "surrogate", TENSORS, ABOUT)
    with pytest.raises(CheckpointError, match=r"earlier captum_attnkd, in format 1, .*: fit and save anew"):
        files.read(path, "surrogate")


@pytest.mark.parametrize("header", ["no JSON", "[]", "{}", '{"kind": "k", "format": "one"}', '{"format": 1}'])
def test_metadata_that_make_no_sense_are_refused(path: Path, header: str) -> None:
    save_file(TENSORS, path, metadata={"captum_attnkd": header})
    with pytest.raises(CheckpointError, match="metadata cannot be read"):
        files.read(path, "k")


def test_foreign_files_and_folders_are_refused(path: Path) -> None:
    save_file(TENSORS, path)
    with pytest.raises(CheckpointError, match="not one of captum_attnkd"):
        files.read(path, "k")
    path.write_text("a text")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        files.read(path, "k")
    for missing in (path.parent, path.parent / "none"):
        with pytest.raises(FileNotFoundError, match="no file"):
            files.read(missing, "k")
    with pytest.raises(FileNotFoundError, match=r"no folder .*none"):
        files.write(path.parent / "none" / "file", "k", TENSORS, {})


def test_a_draft_lies_hidden_beside_the_file_until_it_takes_its_place(path: Path) -> None:
    path.write_text("old")
    with files.replacing(path) as draft:
        assert draft.parent == path.parent
        assert draft.name.startswith(".file.")
        assert stat.S_IMODE(draft.stat().st_mode) == 0o600, "nobody else reads a draft"
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_file_is_as_it_was_and_the_draft_is_gone(path: Path) -> None:
    path.write_text("old")

    def interrupted() -> None:
        with files.replacing(path) as draft:
            draft.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_takes_the_files_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr("os.replace", lambda *places: (calls.append("replace"), replace(*places)))
    files.write(path, "k", TENSORS, {})
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_may_be_read_by_whom_the_umask_lets_which_stays_as_it_was(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write(path, "k", TENSORS, {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_are_put_in_their_places() -> None:
    module, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        other.weight.normal_()
        other.num_batches_tracked.fill_(5)
    files.load_weights(module, other.state_dict(), "file")
    assert torch.equal(module.weight, other.weight)
    assert int(module.num_batches_tracked) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("bias"), "file: the tensor 'bias' is missing"),
        (
            lambda tensors: tensors.update(bias=torch.zeros(4)),
            r"'bias' is \(4,\) torch.float32, expected \(3,\) torch.float32",
        ),
        (lambda tensors: tensors.update(bias=torch.zeros(3).double()), "'bias' is .*float64, expected .*float32"),
        (lambda tensors: tensors.update(bias=torch.tensor([0, 1, float("nan")])), "'bias' holds NaN or infinite"),
        (lambda tensors: tensors.update(bias=torch.tensor([0, float("inf"), 1])), "'bias' holds NaN or infinite"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "'more' is not one of this"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change: Any, says: str) -> None:
    module = nn.BatchNorm1d(3)
    tensors = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    change(tensors)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=says):
        files.load_weights(module, tensors, "file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_an_answer_may_differ_by_precision_and_no_more() -> None:
    probe = torch.tensor([[-0.1, -2.4], [-4.0, 0.0]])
    files.check_answer(probe + 0.049, probe, "file", "Net")
    files.check_answer((probe * 1.02).bfloat16(), probe, "file", "Net")
    for other in (probe + torch.tensor([[0.06, 0.0], [0.0, 0.0]]), probe * 1.1, probe[:, :1], probe.flip(1)):
        with pytest.raises(CheckpointError, match="file was fitted to another model than this Net"):
            files.check_answer(other, probe, "file", "Net")


def test_an_architecture_is_the_names_kinds_and_shapes_of_a_modules_parts() -> None:
    class Net(nn.Module):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.first, self.act = nn.Linear(2, width), nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            return self.act(self.first(images))

    assert files.architecture(Target(Net().eval())) == [
        "first=Linear", "act=ReLU", "first.weight:(4, 2)", "first.bias:(4,)",
    ]  # fmt: skip
    assert files.architecture(Target(lambda images: images)) == []
    net = random_net(0)
    assert files.architecture(Target(torch.jit.trace(net, torch.rand(1, 3, 24, 24)))) == []


def test_the_probe_images_are_the_same_for_ever() -> None:
    """Every file holds its model's answers to them: with others, no file would fit its own model."""
    mean, deviation = torch.tensor([10.0, -10.0]), torch.tensor([1.0, 2.0])
    images = files.probe_images((2, 8, 12), mean, deviation)
    assert images.shape == (2, 2, 8, 12)
    noise = (images - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(noise[:, 0, 3, 5], torch.tensor([-0.1223, -0.8110]), atol=1e-3, rtol=0)
    torch.testing.assert_close(noise[:, 1, 7, 0], torch.tensor([-1.1438, -0.4745]), atol=1e-3, rtol=0)
    torch.testing.assert_close(noise.mean(dim=(1, 2, 3)), torch.tensor([-0.0323, -0.1080]), atol=1e-3, rtol=0)


# -- a fit and its metadata --------------------------------------------------------------------------------------------


@pytest.fixture
def fitted_weights() -> tuple[Plan, Target, dict[str, Tensor]]:
    """A plan with its networks' weights, never taught."""
    target = Target(random_net(0))
    target.classes = CLASSES
    plan = make_plan(target, torch.zeros(2, 3, 24, 24), CLASSES)
    return plan, target, plan.build(target).state_dict()


def test_metadata_that_fit_their_weights_pass(fitted_weights: tuple[Plan, Target, dict[str, Tensor]]) -> None:
    plan, target, weights = fitted_weights
    files.check_fit(plan, target, None, weights, "here")


@pytest.mark.parametrize("voices", [None, torch.zeros(0), torch.zeros(65), torch.zeros(1, 3)])
def test_a_student_has_one_to_64_voices(
    fitted_weights: tuple[Plan, Target, dict[str, Tensor]], voices: Tensor | None
) -> None:
    plan, target, weights = fitted_weights
    weights.pop("student.voices")
    if voices is not None:
        weights["student.voices"] = voices
    with pytest.raises(CheckpointError, match=r"^here: the tensor 'student.voices' is missing or out of shape$"):
        files.check_fit(plan, target, None, weights, "here")


@pytest.mark.parametrize("count", [1, 64])
def test_so_many_voices_pass_where_the_networks_have_them(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    weights = {"student.voices": torch.zeros(count)}
    outline = nn.Module()
    outline.student = nn.ParameterDict({"voices": torch.zeros(count)})
    monkeypatch.setattr(Plan, "build", lambda self, target, backbone: outline)
    files.check_fit(Plan("compact", (3, 8, 8), 2), Target(random_net(0)), None, weights, "here")


def test_as_many_levels_as_voices(fitted_weights: tuple[Plan, Target, dict[str, Tensor]]) -> None:
    plan, target, weights = fitted_weights
    fewer = replace(plan, levels=plan.levels[:-1])
    count = len(plan.levels)
    with pytest.raises(CheckpointError, match=f"^here: {count} levels of weights for {count - 1} levels of metadata$"):
        files.check_fit(fewer, target, None, weights, "here")


def test_weights_of_other_sizes_than_the_metadata_tell_are_refused(
    fitted_weights: tuple[Plan, Target, dict[str, Tensor]],
) -> None:
    plan, target, weights = fitted_weights
    with pytest.raises(CheckpointError, match=r"^here: the tensor .* expected"):
        files.check_fit(replace(plan, classes=CLASSES + 1), target, None, weights, "here")


def test_what_is_there_and_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"^{tmp_path} is there already and is not a file$"):
        files.writable(tmp_path)
    with pytest.raises(OSError, match="is there already"), files.replacing(tmp_path):
        pass


def test_a_link_stays_a_link_and_its_file_is_replaced(path: Path, tmp_path: Path) -> None:
    path.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(path)
    with files.replacing(link) as draft:
        draft.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_how_far_an_answer_may_be_off_goes_by_that_of_the_fit() -> None:
    answer, probe = torch.tensor([[-10.0, 0.0]]), torch.tensor([[-10.56, 0.0]])
    files.check_answer(answer, probe, "here", "net")
    with pytest.raises(CheckpointError, match="another model"):
        files.check_answer(probe, answer, "here", "net")
