"""What SECURITY.md promises: of the source, by reading it; of what is done, by listening to the interpreter."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_task import TinyNet, loader_of

from captum_attnkd import AttentiveKDAttribution, AttnKDError

ROOT = Path(__file__).parent.parent
FOLDERS = ("captum_attnkd", "evaluation")

# Modules that unpickle, reach the network, start programs or load code by name.
MODULES = {
    "aiohttp", "asyncio", "cPickle", "cloudpickle", "code", "codeop", "ctypes", "dbm", "dill", "ftplib",
    "http", "httpx", "huggingface_hub", "importlib", "joblib", "marshal", "multiprocessing", "pickle", "pty",
    "requests", "runpy", "shelve", "smtplib", "socket", "socketserver", "ssl", "subprocess", "urllib",
    "urllib3", "webbrowser", "xml", "xmlrpc", "yaml",
}  # fmt: skip
HARMLESS = {"importlib.metadata", "importlib.resources"}
# Functions that do, called bare (`eval`) or of something (`torch.load`; but `model.eval()` is none).
BARE = {"__import__", "compile", "eval", "exec"}
OF = {
    "torch": {"compile", "hub", "load", "package", "save"},
    "jit": {"load"},
    "np": {"load", "save", "savez"},
    "numpy": {"load", "save", "savez"},
    "os": {"fork", "popen", "startfile", "system"},
}
ANY = {
    "download_and_extract_archive", "download_url", "import_module", "load_module", "load_state_dict_from_url",
    "read_pickle", "to_pickle", "urlopen", "urlretrieve",
}  # fmt: skip
KEYWORDS = {"allow_pickle", "download", "pickle_module", "shell", "weights_only"}

ALLOWED = {
    ("captum_attnkd/allocator.py", "import ctypes"): "tells glibc how to keep memory; names no library of a user",
    ("captum_attnkd/export.py", "import importlib"): "whether the optional packages of the export are there",
    ("evaluation/methods.py", "import importlib"): "a method or model that the user named as module:object",
    ("evaluation/methods.py", "import_module"): "the same",
    ("evaluation/cli.py", "download="): "handed on from --download",
    ("evaluation/sources.py", "download="): "false unless the user said --download",
    ("evaluation/sources.py", "import xml"): "annotations of VOC; Python's expat refuses entities that grow",
    ("evaluation/workers.py", "import multiprocessing"): "--workers: this program's own processes on this machine",
    ("evaluation/classifiers.py", "weights="): "torchvision's, where the user named them",
}


def risks(tree: ast.AST) -> Iterator[str]:
    """What in a module can run foreign code, or reach beyond this machine."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots = [alias.name.split(".")[0] for alias in node.names if alias.name not in HARMLESS]
            yield from (f"import {root}" for root in roots if root in MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            root = str(node.module).split(".")[0]
            if root in MODULES and node.module not in HARMLESS:
                yield f"import {root}"
            yield from (
                f"{root}.{alias.name}" for alias in node.names if alias.name in OF.get(root, ()) or alias.name in ANY
            )
        elif isinstance(node, ast.Name) and node.id in BARE:
            yield node.id
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if node.attr in OF.get(owner, ()) or (
                owner == "os" and node.attr.startswith(("exec", "spawn", "posix_spawn"))
            ):
                yield f"{owner}.{node.attr}"
            elif node.attr in ANY:
                yield node.attr
        elif isinstance(node, ast.Call):
            yield from (f"{word.arg}=" for word in node.keywords if word.arg in KEYWORDS)
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            random = [word for word in node.keywords if word.arg == "weights" and not _is_none(word.value)]
            if called == "get_model" and random:
                yield "weights="


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def test_the_source_does_nothing_of_the_kind_but_what_is_named_here_with_its_reason() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), risk)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for risk in risks(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert sorted(found - ALLOWED.keys()) == [], "not allowed"
    assert sorted(ALLOWED.keys() - found) == [], "allowed for nothing"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "import urllib.request as u", "from http import client", "from torch import load", "eval('1')",
        "f = exec", "torch.load(path)", "torch.jit.load(path)", "torch.hub.load('a', 'b')", "np.load(path)", "os.system('ls')",
        "os.execv(a, b)", "frame.to_pickle(path)", "np.memmap(a, allow_pickle=True)", "Pets(a, download=True)",
        "models.get_model(name, weights='DEFAULT')", "import_it.import_module('x')", "__import__('x')",
    ],
)  # fmt: skip
def test_the_reading_finds_what_it_looks_for(line: str) -> None:
    assert list(risks(ast.parse(line)))
    harmless = (
        "model.eval(); re.compile; json.load(file); safetensors.torch.load_file(path); get_model(name, weights=None)"
    )
    assert not list(risks(ast.parse(harmless)))


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("written", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_run(written: str, untrained: TinyNet, tmp_path: Path) -> None:
    path, mark = tmp_path / "file", tmp_path / "mark"
    if written == "pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save(Payload(mark), path)
    with pytest.raises(AttnKDError, match="not a safetensors file"):
        AttentiveKDAttribution.load(path, untrained)
    with pytest.raises(AttnKDError, match="not a safetensors file"):
        AttentiveKDAttribution(untrained).fit(loader_of(16, 1), progress=False, resume_from=path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "the payload works"


def test_a_fit_from_import_to_loading_unpickles_nothing_connects_to_nothing_and_starts_nothing(tmp_path: Path) -> None:
    script = """
        import sys, torch, torchvision, captum.attr, accelerate, safetensors.torch
        heard = []
        watched = ("socket.", "pickle.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "urllib.")
        def listen(event, arguments):
            if event.startswith(watched):
                heard.append((event, str(arguments)[:200]))
        sys.addaudithook(listen)
        import captum_attnkd
        from toy_task import random_net, loader_of
        net, images = random_net(0), loader_of(16, 1)
        for student in ("grafted", "compact"):
            attribution = captum_attnkd.AttentiveKDAttribution(net, student=student)
            few = {"distil_steps": 2, "explain_steps": 2, "batch_size": 8, "progress": False}
            attribution.fit(images, resume_from=f"state-{student}", **few)
            attribution.save("surrogate")
            captum_attnkd.AttentiveKDAttribution.load("surrogate", net).attribute(images[0][0], target=1)
        print(heard)
        import socket
        socket.socket().connect_ex(("127.0.0.1", 9))
        assert heard[-1][0] == "socket.connect"
    """
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": "/nowhere"}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
