"""The same seed, images and number of threads: the same bytes, in this process and in another (docs/determinism.md)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_task import fit_quickly, loader_of, random_net, single_squares, weights_of

from captum_attnkd import AttentiveKDAttribution

STUDENTS = ("grafted", "compact")
each_student = pytest.mark.parametrize("student", STUDENTS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digest(tensors: dict[str, Tensor]) -> str:
    """Of names and bytes: equal values of another sign of zero, say, are not the same."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def outcome(student: Any, **settings: Any) -> str:
    """Weights, all kinds of answers, and the file of a fit."""
    loader, images = loader_of(40, 1), single_squares(5, seed=3)[0]
    made = fit_quickly(AttentiveKDAttribution(random_net(11), student=student), loader, steps=5, **settings)
    agreed = made.agreement(images)
    answers = {
        "attribute": made.attribute(images),
        "saliency": made.saliency(images, target=0, versus=1),
        "saliency_all": made.saliency_all(images),
        "divergence": agreed.divergence,
        "classes": agreed.student_class,
    }
    return digest(weights_of(made)) + digest(answers)


@each_student
def test_fits_of_one_process_are_the_same_byte_by_byte(student: str, counted: Callable[[int, int], int]) -> None:
    found = set()
    for turn in range(counted(2, 6)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(turn)  # the user's numbers are none of its business
            found.add(outcome(student))
    assert len(found) == 1
    assert outcome(student, seed=1) not in found


@pytest.mark.slow  # a process of its own, with its imports
def test_fits_of_another_process_are_the_same_byte_by_byte() -> None:
    script = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parent)!r}]
        import torch
        import test_determinism as mine
        torch.set_num_threads(1)
        print(*(mine.outcome(student) for student in mine.STUDENTS))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=500, check=True
    )
    assert ended.stdout.split() == [outcome(student) for student in STUDENTS]


@each_student
def test_answers_asked_again_and_from_a_file_are_the_same_byte_by_byte(student: Any, tmp_path: Path) -> None:
    net, images = random_net(11), single_squares(5, seed=3)[0]
    made = fit_quickly(AttentiveKDAttribution(net, student=student), loader_of(40, 1))
    made.save(tmp_path / "one")
    loaded = AttentiveKDAttribution.load(tmp_path / "one", net)
    loaded.save(tmp_path / "two")
    found = {digest({"all": one.saliency_all(images)}) for one in (made, made, loaded)}
    assert len(found) == 1
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_split_does_not_depend_on_the_order_of_the_images() -> None:
    from captum_attnkd.images import survey

    loader = loader_of(40, 1)
    one, other = survey(loader), survey([(images.flip(0), labels) for images, labels in reversed(loader)])
    assert one.threshold == other.threshold
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.held_out, other.held_out)
