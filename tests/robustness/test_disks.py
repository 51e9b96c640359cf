"""A disk that fills up, a folder that cannot be written: the old file as it was, nothing beside it, and a clear OSError."""

from __future__ import annotations

import errno
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from captum_attnkd.evaluation.report import _write as write_report
from captum_attnkd.evaluation.store import Store
from toy_task import TinyNet, assert_same_weights, fit_quickly, loader_of, nothing_changes, weights_of

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd import checkpoint as files


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file can grow past so many bytes: the system refuses the write, as on a full disk, with the part before it written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def read_only() -> Iterator[None]:
    """No new file can be made; said in Python, as the tests may run as root, who can write anywhere."""

    def refused(*_: Any, **given: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(given.get("dir")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", refused)
        yield


TROUBLES: dict[str, Callable[[], Any]] = {
    "full at once": lambda: full_after(0),
    "full in the header": lambda: full_after(50),
    "full in the middle": lambda: full_after(5_000),
    "read-only": read_only,
}
each_trouble = pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@each_trouble
@pytest.mark.parametrize("old", [True, False], ids=["over a file", "anew"])
def test_a_surrogate(
    model: TinyNet, fitted: AttentiveKDAttribution, tmp_path: Path, trouble: Callable[[], Any], old: bool
) -> None:
    path = tmp_path / "surrogate"
    if old:
        fitted.save(path)
    before = contents(tmp_path)
    with nothing_changes(model), trouble(), pytest.raises(OSError, match=r"File too large|Read-only"):
        fitted.save(path)
    assert contents(tmp_path) == before
    fitted.save(path)  # the trouble is over
    assert AttentiveKDAttribution.load(path, model).is_fitted


@each_trouble
def test_the_state_of_a_fit(untrained: TinyNet, tmp_path: Path, trouble: Callable[[], Any]) -> None:
    loader, state = loader_of(40, 1), tmp_path / "state"
    attribution = fit_quickly(AttentiveKDAttribution(untrained), loader)
    weights = weights_of(attribution)
    fit_quickly(AttentiveKDAttribution(untrained), loader, seed=1, resume_from=state)
    wanted, before = state.read_bytes(), contents(tmp_path)
    other = tmp_path / "other"
    with nothing_changes(untrained), trouble(), pytest.raises(OSError, match=r"File too large|Read-only"):
        fit_quickly(attribution, loader, seed=2, resume_from=other)
    assert contents(tmp_path) == before
    assert_same_weights(weights_of(attribution), weights)
    with trouble():  # a fit that is finished already is only read
        fit_quickly(attribution, loader, seed=1, resume_from=state)
    assert state.read_bytes() == wanted


@each_trouble
def test_what_a_study_has_worked_out_and_its_report(tmp_path: Path, trouble: Callable[[], Any]) -> None:
    store, page = Store(tmp_path), tmp_path / "report.html"
    store.keep_map("one", torch.ones(1, 8, 8))
    write_report(page, "old" * 3000)
    before = contents(tmp_path)
    with trouble():
        with pytest.raises(OSError, match=r"File too large|Read-only"):
            store.keep_map("one", torch.zeros(1, 80, 80))
        with pytest.raises(OSError, match=r"File too large|Read-only"):
            store.keep_map("two", torch.zeros(1, 80, 80))
        with pytest.raises(OSError, match=r"File too large|Read-only"):
            write_report(page, "new" * 3000)
    assert contents(tmp_path) == before
    found = store.map_of("one")
    assert found is not None
    assert torch.equal(found, torch.ones(1, 8, 8))


def test_a_study_takes_a_damaged_file_for_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep_map("one", torch.ones(1, 8, 8))
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert store.map_of("one") is None


def test_a_draft_is_never_taken_for_a_file(tmp_path: Path) -> None:
    class StopError(Exception):
        """In the midst of a write."""

    def write_half() -> None:
        with files.replacing(tmp_path / "file") as draft:
            draft.write_text("half")
            assert not (tmp_path / "file").exists()
            raise StopError

    with pytest.raises(StopError):
        write_half()
    assert list(tmp_path.iterdir()) == []
