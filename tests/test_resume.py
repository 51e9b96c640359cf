"""A fit that was interrupted goes on to the weights it would have had; several processes end with the same weights."""

from __future__ import annotations

import functools
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from toy_task import TinyNet, assert_same_weights, loader_of, nothing_changes, random_net, weights_of

from captum_attnkd import AttentiveKDAttribution, CheckpointError, LoaderError
from captum_attnkd import checkpoint as files
from captum_attnkd.fitted import probe_answer
from captum_attnkd.fitting import FitSettings

HERE = Path(__file__).parent
STEPS = 15


@pytest.fixture(autouse=True)
def frequent_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are saved at every held-out check; five steps apart, so that fits of a second have some."""
    monkeypatch.setattr("captum_attnkd.attribution.FitSettings", functools.partial(FitSettings, check_every=5))


class Images(Dataset[Tensor]):
    """Images; from the moment it has given `lasts` of them, it is lost."""

    def __init__(self, lasts: float = math.inf) -> None:
        self.images = torch.cat([images for images, _ in loader_of(44, 1)])
        self.given, self.lasts = 0, lasts

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.given += 1
        if self.given > self.lasts:
            raise OSError("the disk went away")
        return self.images[index]


def shuffling(lasts: float = math.inf, own_generator: bool = False) -> DataLoader[Tensor]:
    generator = torch.Generator().manual_seed(1) if own_generator else None
    return DataLoader(Images(lasts), batch_size=8, shuffle=True, generator=generator)


def fit(net: TinyNet, student: Any, loader: Any, state: Path | None = None, **settings: Any) -> AttentiveKDAttribution:
    settings = {"distil_steps": STEPS, "explain_steps": STEPS, "batch_size": 8, "progress": False} | settings
    return AttentiveKDAttribution(net, student=student).fit(loader, resume_from=state, **settings)


def progress_in(state: Path) -> tuple[int, int]:
    at = files.read(state, "fit")[1]["at"]
    return at["stage"], at["step"]


# The survey asks for 44 images, a pass of a stage for 44 more (five steps): stage 1 ends after 176, stage 2 after 308. A compact
# student is distilled on three times as many a step, of which a pass has one, and ends a pass with it: stage 1 ends after 508,
# stage 2 after 640.
@pytest.mark.parametrize(
    ("student", "stage", "lasts", "own_generator"),
    [("grafted", 0, 150, False), ("grafted", 1, 290, True), ("compact", 0, 350, True), ("compact", 1, 600, False)],
)
def test_a_resumed_fit_ends_with_exactly_the_weights_of_one_never_interrupted(
    model: TinyNet, tmp_path: Path, student: Any, stage: int, lasts: int, own_generator: bool
) -> None:
    wanted = fit(model, student, shuffling(own_generator=own_generator))
    state = tmp_path / "state.safetensors"
    with pytest.raises(LoaderError, match="the disk went away"):
        fit(model, student, shuffling(lasts, own_generator), state)
    assert progress_in(state) in [(stage, 5), (stage, 10)]  # in the midst of the stage
    resumed = fit(model, student, shuffling(own_generator=own_generator), state)
    assert_same_weights(weights_of(resumed), weights_of(wanted))
    assert resumed.report_ is not None
    assert wanted.report_ is not None
    told, meant = resumed.report_.as_dict(), wanted.report_.as_dict()
    for cost in ("seconds", "target_queries"):  # the repeated steps cost something
        assert told.pop(cost) > 0
        meant.pop(cost)
    assert told == meant


def test_a_fit_interrupted_again_and_again_still_ends_with_the_same_weights(model: TinyNet, tmp_path: Path) -> None:
    wanted = fit(model, "grafted", shuffling())
    state = tmp_path / "state.safetensors"
    for lasts in (100, 150, 160):
        with pytest.raises(LoaderError):
            fit(model, "grafted", shuffling(lasts), state)
    assert_same_weights(weights_of(fit(model, "grafted", shuffling(), state)), weights_of(wanted))


def test_keeping_a_state_changes_no_weight(model: TinyNet, tmp_path: Path) -> None:
    with_state = fit(model, "grafted", shuffling(), tmp_path / "state")
    assert_same_weights(weights_of(with_state), weights_of(fit(model, "grafted", shuffling())))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_finished_fit_is_not_fitted_again(model: TinyNet, tmp_path: Path) -> None:
    first = fit(model, "compact", shuffling(), tmp_path / "state")
    images = Images(lasts=44)  # a second look through the loader is all that it may take
    again = fit(model, "compact", DataLoader(images, batch_size=8, shuffle=True), tmp_path / "state")
    assert_same_weights(weights_of(again), weights_of(first))


_KILLED = """
    import functools, os, signal, sys
    sys.path.insert(0, {here!r})
    import captum_attnkd.attribution as door
    import test_resume as mine
    from captum_attnkd.fitting import FitSettings
    from toy_task import random_net
    import torch

    torch.set_num_threads(1)
    door.FitSettings = functools.partial(FitSettings, check_every=5)

    class Killer(mine.Images):
        def __getitem__(self, index):
            if self.given >= {lasts}:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    loader = mine.DataLoader(Killer(), batch_size=8, shuffle=True)
    mine.fit(random_net(11), {student!r}, loader, mine.Path({state!r}))
    print("never reached")
"""


@pytest.mark.slow  # a process of its own, with its imports
@pytest.mark.parametrize(
    ("student", "stage", "lasts"), [("grafted", 1, 290), ("compact", 0, 350)], ids=["explaining", "distilling"]
)
def test_a_killed_process_is_gone_on_with_by_another(
    untrained: TinyNet, tmp_path: Path, student: Any, stage: int, lasts: int
) -> None:
    state = tmp_path / "state.safetensors"
    script = textwrap.dedent(_KILLED).format(here=str(HERE), lasts=lasts, student=student, state=str(state))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert "never reached" not in ended.stdout
    assert progress_in(state) in [(stage, 5), (stage, 10)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that was killed
    try:
        resumed = fit(untrained, student, shuffling(), state)
        wanted = fit(untrained, student, shuffling())
    finally:
        torch.set_num_threads(threads)
    assert_same_weights(weights_of(resumed), weights_of(wanted))


def test_drafts_of_a_killed_fit_are_cleared_away_and_those_of_others_are_not(model: TinyNet, tmp_path: Path) -> None:
    left, others = tmp_path / ".state.abcdefgh.part", [".state.b.abcdefgh.part", ".stat.abcdefgh.part", "state.part"]
    for path in (left, *(tmp_path / other for other in others)):
        path.write_text("half a state")
    fit(model, "grafted", shuffling(), tmp_path / "state", distil_steps=1, explain_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "state"])


# -- states that must not be gone on with ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_done(session_model: TinyNet, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The state of a grafted fit in its second stage."""
    state = tmp_path_factory.mktemp("half") / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captum_attnkd.attribution.FitSettings", functools.partial(FitSettings, check_every=5))
        with pytest.raises(LoaderError):
            fit(session_model, "grafted", shuffling(290), state)
    return state.read_bytes()


@pytest.fixture
def half(half_done: bytes, tmp_path: Path) -> Path:
    state = tmp_path / "half.safetensors"
    state.write_bytes(half_done)
    return state


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"distil_steps": 16}, {"learning_rate": 1e-3}, {"batch_size": 9}, {"student": "compact"},
     {"loader": loader_of(44, 2)}],
    ids=["seed", "steps", "rate", "batch", "student", "images"],
)  # fmt: skip
def test_the_state_of_another_fit_is_refused_and_kept(model: TinyNet, half: Path, other: dict[str, Any]) -> None:
    settings = dict(other)
    student, loader = settings.pop("student", "grafted"), settings.pop("loader", shuffling())
    before = half.read_bytes()
    with nothing_changes(model), pytest.raises(CheckpointError, match="state of another fit"):
        fit(model, student, loader, half, **settings)
    assert half.read_bytes() == before


def test_the_state_of_a_fit_to_a_model_with_other_weights_is_refused(half: Path) -> None:
    with pytest.raises(CheckpointError, match="state of another fit"):
        fit(random_net(77), "grafted", shuffling(), half)


def test_a_model_whose_answers_differ_by_rounding_is_the_same_on_another_number_of_threads(
    model: TinyNet, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_attnkd.attribution.probe_answer", lambda *given: probe_answer(*given) + 1e-5)
    with nothing_changes(model):
        assert fit(model, "grafted", shuffling(), half).is_fitted


def test_the_state_of_a_fit_with_other_validation_images_is_refused(model: TinyNet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(LoaderError):
        fit(model, "grafted", shuffling(240), state, val_loader=loader_of(12, 5))
    with pytest.raises(CheckpointError, match="state of another fit"):
        fit(model, "grafted", shuffling(), state, val_loader=loader_of(12, 6))


def test_a_damaged_state_is_refused(model: TinyNet, half: Path) -> None:
    whole = half.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 64
    for broken in (b"", whole[:50], whole[: len(whole) // 2], whole[:-1], b"a text", bytes(flipped)):
        half.write_bytes(broken)
        with nothing_changes(model), pytest.raises(CheckpointError, match="damaged"):
            fit(model, "grafted", shuffling(), half)
        assert half.read_bytes() == broken


def test_a_saved_surrogate_is_no_state(model: TinyNet, fitted: AttentiveKDAttribution, tmp_path: Path) -> None:
    fitted.save(tmp_path / "surrogate")
    with pytest.raises(CheckpointError, match="holds a 'surrogate', not a 'fit'"):
        fit(model, "grafted", shuffling(), tmp_path / "surrogate")


# -- several processes -------------------------------------------------------------------------------------------------

_WORKER = """
    import functools, sys
    sys.path.insert(0, {here!r})
    import torch
    import captum_attnkd.attribution as door
    import test_resume as mine
    from captum_attnkd.fitting import FitSettings
    from toy_task import random_net

    torch.set_num_threads(1)
    door.FitSettings = functools.partial(FitSettings, check_every=5)
    attribution = mine.fit(random_net(11), {student!r}, mine.shuffling(), distil_steps=6, explain_steps=6)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.save([world, attribution.report_.as_dict(), mine.weights_of(attribution)], {folder!r} + f"/{{rank}}.pt")
    torch.distributed.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("student", ["grafted", "compact"])
def test_two_processes_end_with_the_same_weights_and_finite_figures(student: Any, tmp_path: Path) -> None:
    script = textwrap.dedent(_WORKER).format(here=str(HERE), student=student, folder=str(tmp_path))
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [worker.communicate(timeout=200)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(told)[-4000:]
    (world, report, first), (_, other_report, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert world == 2
    parameters = [name for name in first if "running_" not in name]
    assert_same_weights({name: first[name] for name in parameters}, {name: second[name] for name in parameters})
    assert_same_weights(first, second)
    for figure in ("divergence", "kept", "deleted", "agreement"):
        assert math.isfinite(report[figure])
        assert report[figure] == pytest.approx(other_report[figure], abs=1e-6)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in first.values())
