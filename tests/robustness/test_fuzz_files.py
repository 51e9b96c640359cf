"""Damaged, altered and forged files: refused by an error of ours, or exactly the maps of the whole one; nothing else happens."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from toy_task import OneConvolution, assert_same_weights, fit_quickly, weights_of

from captum_attnkd import AttentiveKDAttribution, AttnKDError, CheckpointError, InputError
from captum_attnkd import checkpoint as files

pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore:.*non-writable")]
Counted = Callable[[int, int], int]
GIB = 2**30


SHOWN = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(6))
LOADER = [torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return OneConvolution(4, 3)


# -- what must not happen ----------------------------------------------------------------------------------------------

_watching, _deeds = False, Counter[str]()
_DEEDS = (
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching and (event in _DEEDS or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))):
        _deeds[f"{event} {args[:1]}"] += 1


@contextlib.contextmanager
def harmless(folder: Path, spare: int = GIB) -> Iterator[None]:
    """Fail if anything is unpickled, started, sent, written or changed; and have a large allocation fail."""
    global _watching
    if not getattr(sys, "_audited_by_fuzz", False):
        sys.addaudithook(_audit)  # for good: there is no way to take one out
        sys._audited_by_fuzz = True  # type: ignore[attr-defined]
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with open("/proc/self/statm") as statm:
        in_use = int(statm.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    _deeds.clear()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (in_use + spare, limits[1]))
        _watching = True
        yield
    finally:
        _watching = False
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not _deeds
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# -- ways to damage a file ---------------------------------------------------------------------------------------------


def flip(content: bytearray, drawn: random.Random) -> bytearray:
    for _ in range(drawn.choice([1, 1, 1, 2, 8, 64])):
        content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    return content


def truncate(content: bytearray, drawn: random.Random) -> bytearray:
    return content[: drawn.randrange(len(content))]


def overwrite(content: bytearray, drawn: random.Random) -> bytearray:
    start, length = drawn.randrange(len(content)), drawn.choice([1, 8, 64, 4096])
    filling = drawn.choice([b"\0", b"\xff", b"{", bytes([drawn.randrange(256)])])
    content[start : start + length] = filling * len(content[start : start + length])
    return content


def insert(content: bytearray, drawn: random.Random) -> bytearray:
    start = drawn.randrange(len(content))
    content[start:start] = drawn.randbytes(drawn.choice([1, 4, 100]))
    return content


def remove(content: bytearray, drawn: random.Random) -> bytearray:
    start = drawn.randrange(len(content))
    del content[start : start + drawn.choice([1, 4, 100])]
    return content


def exchange(content: bytearray, drawn: random.Random) -> bytearray:
    """Two blocks of the tensors' bytes change places: the file stays sound."""
    length = drawn.choice([4, 16, 256])
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    one, other = (drawn.randrange(begin, len(content) - length) for _ in range(2))
    content[one : one + length], content[other : other + length] = (
        content[other : other + length],
        content[one : one + length],
    )
    return content


def header_of_another_size(content: bytearray, drawn: random.Random) -> bytearray:
    content[:8] = struct.pack("<Q", drawn.choice([0, 1, 2, 100, 2**31, 2**40, 2**63, 2**64 - 1, len(content)]))
    return content


def header_of_ones_own(content: bytearray, drawn: random.Random) -> bytearray:
    """A header that asks for what there is not: huge, negative, deep, doubled, overlapping."""
    header = drawn.choice(
        [
            '{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
            '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
            '{"a":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,16]}}',
            '{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
            '{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
            '{"a":' * 5000 + "1" + "}" * 5000,
            '{"__metadata__":{"captum_attnkd":' + json.dumps("[" * 200000) + "}}",
            '{"__metadata__":{"captum_attnkd":' + json.dumps('{"kind":' * 900 + "1" + "}" * 900) + "}}",
            '{"__metadata__":{"captum_attnkd":3}}',
            '{"__metadata__":[]}',
            "[]",
            "null",
            "{}",
            '"' + "a" * 100000 + '"',
            '{"__metadata__":{"captum_attnkd":"{}"}}',
            '{"__metadata__":{"captum_attnkd":"[]"}}',
            '{"__metadata__":{"captum_attnkd":""}}',
            '{"__metadata__":{"captum_attnkd":"' + "9" * 6000 + '"}}',
            '{"__metadata__":{"captum_attnkd":"{\\"kind\\":\\"surrogate\\",\\"format\\":'
            + drawn.choice(["NaN", "Infinity", "1e999", "-5", "[]"])
            + '}"}}',
        ]
    )
    encoded = header.encode()
    return bytearray(struct.pack("<Q", len(encoded)) + encoded + b"\0" * drawn.choice([0, 16]))


DAMAGES = [
    flip,
    flip,
    flip,
    truncate,
    overwrite,
    insert,
    remove,
    exchange,
    exchange,
    header_of_another_size,
    header_of_ones_own,
]


# -- ways to alter what a file says ------------------------------------------------------------------------------------

ABSURD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    64,
    10**6,
    10**9,
    2**31,
    2**62,
    2**63,
    -(2**63),
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    1e308,
    "",
    "x",
    "0",
    "\0",
    "\ud800",
    "🦆" * 50,
    "a" * 5000,
    "../../etc/passwd",
    "__class__",
    "float32",
    "int64",
    "onnx",
    "grafted",
    "compact",
    "custom",
    "vit_h_14",
    "resnet50",
    "tokens",
    "maps",
    [],
    [1],
    [0, 0],
    [-1, 2, 3],
    [3, 10**9, 10**9],
    [[]],
    [None],
    {},
    {"a": 1},
    {"__reduce__": 1},
    [1, 8, 8],
    [1, 8, 9],
]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested lists and mappings."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def altered(about: dict[str, Any], drawn: random.Random) -> dict[str, Any]:
    about = copy.deepcopy(about)
    for _ in range(drawn.choice([1, 1, 1, 2, 3])):
        path = drawn.choice(list(places(about)))
        holder: Any = about
        for key in path[:-1]:
            holder = holder[key]
        way = drawn.random()
        if way < 0.8 or isinstance(holder, list):
            holder[path[-1]] = copy.deepcopy(drawn.choice(ABSURD))
        elif way < 0.9:
            del holder[path[-1]]
        else:
            holder[drawn.choice(["extra", "é", "kind", "plan"])] = holder[path[-1]]
    if drawn.random() < 0.05:
        deep: Any = 1
        for _ in range(drawn.choice([50, 300, 900])):
            deep = [deep]
        about["deep"] = deep
    return about


def tampered(tensors: dict[str, Tensor], drawn: random.Random) -> dict[str, Tensor]:
    tensors = dict(tensors)
    name, other = drawn.sample(sorted(tensors), 2)
    one = tensors[name]
    way = drawn.randrange(9)
    if way == 0:
        tensors[name], tensors[other] = tensors[other], one
    elif way == 1:
        tensors[drawn.choice(["x", "surrogate.", "best.x", "optimiser.x.y", "optimiser.0.step", "probe", "é"])] = (
            tensors.pop(name)
        )
    elif way == 2:
        tensors[name] = torch.zeros(drawn.choice([(), (0,), (1,), (3, 3), (64,), (1, 1, 1, 1), (65,)]))
    elif way == 3:
        tensors[name] = one.flatten()[:-1] if one.numel() > 1 else torch.zeros(2)
    elif way == 4:
        tensors[name] = one.to(drawn.choice([torch.float64, torch.float16, torch.int64, torch.bool]))
    elif way == 5:
        tensors[name] = torch.full_like(one.float(), drawn.choice([float("nan"), float("inf")]))
    elif way == 6:
        del tensors[name]
    elif way == 7:
        tensors[f"{name}.more"] = one.clone()
    else:
        tensors[name] = one[None].contiguous()
    return tensors


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any], forged: bool) -> None:
    """A sound safetensors file; forged, it also has the digest of what it now holds."""
    if forged:
        about.pop("digest", None)
        with contextlib.suppress(RecursionError):
            about["digest"] = files._digest(about, tensors)
    held = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(held, path, metadata={"captum_attnkd": json.dumps(about)})


def parts_of(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name).clone() for name in opened.keys()}, json.loads(  # noqa: SIM118
            opened.metadata()["captum_attnkd"]
        )


# -- saved surrogates --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["grafted", "compact"])
def saved(request: pytest.FixtureRequest, net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    fit_quickly(AttentiveKDAttribution(net, student=request.param), LOADER).save(folder / "whole")
    return folder


def test_a_damaged_surrogate_is_refused_or_gives_the_maps_of_the_whole_one(
    net: nn.Module, saved: Path, counted: Counted
) -> None:
    whole = (saved / "whole").read_bytes()
    wanted = AttentiveKDAttribution.load(saved / "whole", net).attribute(SHOWN)
    broken, seen, times = saved / "broken", Counter[str](), counted(150, 4000)
    for number in range(times):
        drawn = random.Random(number)
        broken.write_bytes(drawn.choice(DAMAGES)(bytearray(whole), drawn))
        with harmless(saved):
            try:
                maps = AttentiveKDAttribution.load(broken, net).attribute(SHOWN)
            except CheckpointError:
                seen["refused"] += 1
            else:
                assert torch.equal(maps, wanted), f"damage {number} was not noticed"
                seen["the same maps"] += 1
    print(dict(seen))
    assert seen["refused"] >= 0.95 * times


def test_an_altered_surrogate_is_refused(net: nn.Module, saved: Path, counted: Counted) -> None:
    tensors, about = parts_of(saved / "whole")
    broken = saved / "broken"
    for number in range(counted(50, 1000)):
        drawn = random.Random(number)
        changed = (tampered(tensors, drawn), about) if drawn.random() < 0.5 else (tensors, altered(about, drawn))
        write(broken, *changed, forged=False)
        if (
            parts_of(broken)[1] == about
            and not (changed[0].keys() ^ tensors.keys())
            and all(torch.equal(changed[0][name], tensors[name]) for name in tensors)
        ):
            continue  # two of the same were exchanged
        with harmless(saved), pytest.raises(CheckpointError):
            AttentiveKDAttribution.load(broken, net)


def test_a_forged_surrogate_is_refused_or_gives_finite_maps_and_never_more(
    net: nn.Module, saved: Path, counted: Counted
) -> None:
    """Whoever computes the digest anew can make any surrogate there could be; but no crash, and nothing huge."""
    tensors, about = parts_of(saved / "whole")
    broken, seen, times = saved / "broken", Counter[str](), counted(150, 3000)
    for number in range(times):
        drawn = random.Random(number)
        which = drawn.random()
        write(
            broken,
            tampered(tensors, drawn) if which < 0.4 else tensors,
            altered(about, drawn) if which > 0.3 else dict(about),
            forged=True,
        )
        with harmless(saved):
            try:
                loaded = AttentiveKDAttribution.load(broken, net, check_target=drawn.random() < 0.5)
                maps = loaded.attribute(SHOWN)
            except AttnKDError as error:
                seen[type(error).__name__] += 1
            else:
                assert bool(torch.isfinite(maps).all())
                str(loaded.report_)
                seen["loaded"] += 1
    print(dict(seen))
    assert seen["CheckpointError"] >= times // 2


# -- states of a fit ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 1, 2])
def state(request: pytest.FixtureRequest, net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a fit that ended in stage 0, in stage 1, or well."""
    folder = tmp_path_factory.mktemp("state")
    stage: int = request.param
    original, saves = files.write, 0

    class GoneError(Exception):
        """The fit ends here."""

    def ending(*args: Any) -> None:
        nonlocal saves
        original(*args)
        saves += 1
        if args[3]["at"]["stage"] == stage and stage < 2:
            raise GoneError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write", ending)
        with contextlib.suppress(GoneError):
            go_on(net, folder / "whole")
    assert json.loads(json.dumps(parts_of(folder / "whole")[1]))["at"]["stage"] == stage
    return folder


def go_on(net: nn.Module, path: Path | None) -> AttentiveKDAttribution:
    return fit_quickly(AttentiveKDAttribution(net), LOADER, steps=2, resume_from=path)


def test_a_damaged_state_is_refused_and_kept(net: nn.Module, state: Path, counted: Counted) -> None:
    whole = (state / "whole").read_bytes()
    broken, times, same = state / "broken", counted(15, 400), 0
    for number in range(times):
        drawn = random.Random(number)
        content = drawn.choice(DAMAGES)(bytearray(whole), drawn)
        if content == whole:
            same += 1
            continue
        broken.write_bytes(content)
        with harmless(state), pytest.raises(CheckpointError):
            go_on(net, broken)
    assert same < 0.2 * times


def test_a_forged_state_is_refused_or_ends_in_finite_weights(
    net: nn.Module, state: Path, tmp_path: Path, counted: Counted
) -> None:
    tensors, about = parts_of(state / "whole")
    broken, seen = tmp_path / "broken", Counter[str]()
    for number in range(counted(12, 400)):
        drawn = random.Random(number)
        which, told = drawn.random(), dict(about)
        if which > 0.4:
            told["at"] = altered(about["at"], drawn)
        write(broken, tampered(tensors, drawn) if which < 0.6 else tensors, told, forged=True)
        before = broken.read_bytes()
        try:
            fitted = go_on(net, broken)
        except AttnKDError as error:
            seen[type(error).__name__] += 1
            assert broken.read_bytes() == before
        else:
            seen["went on"] += 1
            assert all(bool(torch.isfinite(tensor).all()) for tensor in weights_of(fitted).values())
    print(dict(seen))
    assert seen["CheckpointError"]


def test_a_whole_state_is_gone_on_with(net: nn.Module, state: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    copied.write_bytes((state / "whole").read_bytes())
    assert_same_weights(weights_of(go_on(net, copied)), weights_of(go_on(net, None)))


# -- names that are not those of files ---------------------------------------------------------------------------------


def folder_of(path: Path) -> Path:
    path.mkdir()
    return path


def pipe_of(path: Path) -> Path:
    os.mkfifo(path)
    return path


def socket_of(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))
    return path


def loop_of(path: Path) -> Path:
    path.symlink_to(path)
    return path


NAMES: list[tuple[str, Callable[[Path], Any], type[Exception]]] = [
    ("a folder", folder_of, OSError),
    ("a pipe", pipe_of, OSError),
    ("a socket", socket_of, OSError),
    ("a link to itself", loop_of, OSError),
    ("a name too long", lambda path: path.with_name("n" * 256), OSError),
    ("a path too long", lambda path: path.joinpath(*["d" * 200] * 30), OSError),
    ("in a file", lambda path: path.parent / "file" / "x", OSError),
    ("in no folder", lambda path: path / "x", OSError),
    ("a null byte", lambda path: f"{path}\0", InputError),
    ("a lone surrogate", lambda path: f"{path}\ud800", InputError),
    ("a number", lambda path: 3, InputError),
    ("bytes", lambda path: bytes(path), InputError),
]


@pytest.mark.parametrize("do", ["load", "save", "fit"])
@pytest.mark.parametrize(("make", "error"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES])
def test_what_is_no_file_is_refused_and_left_alone(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str, make: Any, error: type[Exception]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a text")
    path = make(tmp_path / "name")
    kinds = {found.name: found.lstat().st_mode for found in tmp_path.iterdir()}
    fitted = fit_quickly(AttentiveKDAttribution(net), LOADER, steps=1) if do == "save" else AttentiveKDAttribution(net)
    asked: dict[str, Callable[[], Any]] = {
        "load": lambda: AttentiveKDAttribution.load(path, net),
        "save": lambda: fitted.save(path),
        "fit": lambda: go_on(net, path),
    }
    with pytest.raises(error):
        asked[do]()
    assert {found.name: found.lstat().st_mode for found in tmp_path.iterdir()} == kinds
    assert (tmp_path / "file").read_text() == "a text"


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full", "/dev/stdin"])
def test_devices_are_not_read(net: nn.Module, device: str) -> None:
    with pytest.raises(FileNotFoundError):
        AttentiveKDAttribution.load(device, net)


def test_links_and_the_folder_above_are_followed_and_links_stay_links(net: nn.Module, tmp_path: Path) -> None:
    fitted = fit_quickly(AttentiveKDAttribution(net), LOADER, steps=1)
    (tmp_path / "inner").mkdir()
    link, content = tmp_path / "inner" / "link", tmp_path / "content"
    link.symlink_to("../content")
    for _ in range(2):  # to where nothing is yet, and to what is there
        fitted.save(link)
        assert link.is_symlink()
        assert content.is_file()
        assert not content.is_symlink()
    for path in (link, tmp_path / "inner" / ".." / "content"):
        assert torch.equal(AttentiveKDAttribution.load(path, net).attribute(SHOWN), fitted.attribute(SHOWN))
    assert {path.name for path in tmp_path.rglob("*")} == {"inner", "link", "content"}


def test_the_longest_name_that_a_file_can_have_is_written(net: nn.Module, tmp_path: Path) -> None:
    fitted, path = fit_quickly(AttentiveKDAttribution(net), LOADER, steps=1), tmp_path / ("n" * 255)
    fitted.save(path)
    assert AttentiveKDAttribution.load(path, net).is_fitted


def test_what_was_loaded_does_not_follow_what_the_file_becomes(net: nn.Module, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "surrogate"
    path.write_bytes((saved / "whole").read_bytes())
    loaded = AttentiveKDAttribution.load(path, net)
    wanted = loaded.attribute(SHOWN)
    with open(path, "r+b") as opened:  # in place, as `cp` does; had the file stayed mapped, this would kill the process
        opened.truncate(0)
    loaded.save(tmp_path / "again")
    assert torch.equal(loaded.attribute(SHOWN), wanted)
    assert (tmp_path / "again").read_bytes() == (saved / "whole").read_bytes()
