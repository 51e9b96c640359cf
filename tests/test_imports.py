"""What `import captum_attnkd` brings along, and what it promises. Counted in modules: times differ from machine to machine."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

import pytest

import captum_attnkd

# Slow to import, or needed by few.
ON_DEMAND = ("accelerate", "jinja2", "matplotlib", "onnx", "pandas", "PIL", "quantus", "scipy", "skimage", "sklearn",
             "torchvision", "transformers", "typer")  # fmt: skip


def brought(statement: str, beforehand: str) -> set[str]:
    """Modules that a statement imports in a fresh process, beyond those of what was imported beforehand."""
    code = f"import sys, json; {beforehand}; old = set(sys.modules); {statement}; print(json.dumps([*{{*sys.modules}} - old]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["captum_attnkd", "captum_attnkd.visualize", "captum_attnkd.quantus"])
def test_importing_brings_nothing_slow_beyond_torch_and_captum(module: str) -> None:
    modules = brought(f"import {module}", "import torch, captum.attr, tqdm.auto")
    tops = {name.partition(".")[0] for name in modules}
    assert "captum_attnkd" in tops
    assert tops.isdisjoint(ON_DEMAND)
    assert len({name for name in modules if not name.startswith("captum_attnkd")}) <= 25


def test_pictures_studies_and_quantus_are_imported_on_demand() -> None:
    modules = brought("import captum_attnkd", "import torch, captum.attr")
    assert not {
        name
        for name in modules
        if name.startswith(tuple(f"captum_attnkd.{part}" for part in ("visualize", "drawing", "evaluation", "quantus")))
    }


def test_what_is_public_is_there_fits_on_a_screen_and_is_described() -> None:
    names = captum_attnkd.__all__
    assert sorted(set(names)) == sorted(names)
    assert len(names) <= 24
    for name in names:
        thing: Any = getattr(captum_attnkd, name)
        assert name == "__version__" or (thing.__doc__ and thing.__module__.startswith("captum_attnkd."))


def test_every_error_is_caught_by_the_base_class() -> None:
    errors = importlib.import_module("captum_attnkd.errors")
    raised = [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, Exception)]
    assert len(raised) > 5
    assert all(issubclass(error, captum_attnkd.AttnKDError) for error in raised)
    assert {error.__name__ for error in raised} <= set(captum_attnkd.__all__)
