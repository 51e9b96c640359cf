"""How many small faults in a module do the tests find? `mutation.py student`, or several names, or none for all of them.

Each mutant is one change of the source: another operator, a constant one higher or lower, a negated condition, a statement
left out, nothing returned, two arguments swapped. It is killed when a test of the module's own test file fails. Mutants live in a
copy of the tree. Each is tried in a fork of a process that has PyTorch loaded already: to start one anew, as cosmic-ray and mutmut
do, takes longer than the tests.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "captum_attnkd"
LIMIT = 120  # seconds for one mutant; the tests of a module take a few
MODULES = (
    "checkpoint",
    "explanation",
    "objectives",
    "student",
)  # each with a test file of its own, and that alone is asked
LOADED = ("accelerate", "captum.metrics", "captum.testing.helpers.basic_models", "pytest", "torchvision", "tqdm.auto")
_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_BOUNDS: dict[type[ast.AST], tuple[type[ast.AST], type[ast.AST]]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
}  # fmt: skip


class Mutator(ast.NodeTransformer):
    """Walks a module and makes its change number `wanted`, counted from 0; without one it only counts."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted, self.count, self.made = wanted, 0, ""

    def _turn(self, node: ast.AST, what: str) -> bool:
        self.count += 1
        if self.count - 1 != self.wanted:
            return False
        self.made = f"line {getattr(node, 'lineno', '?')}: {what}"
        return True

    def _annotated(self, node: ast.AST) -> ast.AST:
        return node  # types are mypy's

    visit_ImportFrom = visit_Import = visit_JoinedStr = _annotated  # noqa: N815 - ast's names

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Its methods and values, not its bases."""
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Its body and defaults, not its annotations."""
        node.args.defaults = [self.visit(default) for default in node.args.defaults]
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Its value."""
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """Asserts in the package are for mypy."""
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Numbers and truth values; the wording of messages is free."""
        if isinstance(node.value, bool):
            changes = [not node.value]
        elif isinstance(node.value, (int, float)):
            changes = [node.value + 1, node.value - 1]
        else:
            return node
        for change in changes:
            if self._turn(node, f"{node.value!r} -> {change!r}"):
                return ast.copy_location(ast.Constant(change), node)
        return node

    def _operator(self, node: ast.BinOp | ast.AugAssign | ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        other = _SWAPPED.get(type(node.op))
        if other and self._turn(node, f"{type(node.op).__name__} -> {other.__name__}"):
            node.op = other()  # type: ignore[assignment]
        return node

    visit_BinOp = visit_AugAssign = visit_BoolOp = _operator  # noqa: N815 - ast's names

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """`not x` and `-x` become `x`."""
        self.generic_visit(node)
        return node.operand if self._turn(node, f"{type(node.op).__name__} left out") else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """Each comparison negated; at a bound also without, or with, equality."""
        self.generic_visit(node)
        for place, operator in enumerate(node.ops):
            for other in _BOUNDS.get(type(operator), (_SWAPPED.get(type(operator)),)):
                if other and self._turn(node, f"{type(operator).__name__} -> {other.__name__}"):
                    node.ops[place] = other()  # type: ignore[call-overload]
                    return node
        return node

    def _condition(self, node: ast.If | ast.IfExp | ast.While) -> ast.AST:
        self.generic_visit(node)
        # A single comparison is negated above.
        if not isinstance(node.test, (ast.Compare, ast.UnaryOp)) and self._turn(node, "condition negated"):
            node.test = ast.UnaryOp(ast.Not(), node.test)
        return node

    visit_If = visit_IfExp = visit_While = _condition  # noqa: N815 - ast's names

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        """A filter left out."""
        self.generic_visit(node)
        if node.ifs and self._turn(node.ifs[0], "filter left out"):
            node.ifs = []
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """The first two arguments swapped."""
        self.generic_visit(node)
        first = node.args[:2]
        plain = len(first) == 2 and not any(isinstance(argument, ast.Starred) for argument in first)
        if plain and ast.dump(first[0]) != ast.dump(first[1]) and self._turn(node, "arguments swapped"):
            node.args[:2] = first[::-1]
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        """None instead."""
        self.generic_visit(node)
        if node.value is not None and self._turn(node, "None returned"):
            node.value = None
        return node

    def _statement(self, node: ast.Expr | ast.Assign | ast.Raise) -> ast.AST:
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Yield)):
            return node  # a docstring; a generator without its yield is none
        self.generic_visit(node)
        return ast.copy_location(ast.Pass(), node) if self._turn(node, "left out") else node

    visit_Expr = visit_Assign = visit_Raise = _statement  # noqa: N815 - ast's names


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """What was changed, and the changed source, one change at a time."""
    tree = ast.parse(source)
    counter = Mutator()
    counter.visit(copy.deepcopy(tree))
    for number in range(counter.count):
        mutator = Mutator(number)
        changed = ast.fix_missing_locations(mutator.visit(copy.deepcopy(tree)))
        yield mutator.made, ast.unparse(changed)


def killed(test: Path) -> bool:
    """Whether a test of the file fails, or takes too long."""
    child = os.fork()
    if child == 0:
        _try(test)
    until = time.monotonic() + LIMIT
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.02)
    return done[1] != 0


def _try(test: Path) -> None:
    """Run tests, and end with the exit status they give."""
    os.setpgid(0, 0)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    import pytest

    code = 99
    try:
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", str(test)]))
    finally:
        os._exit(code)


def measure(module: str, place: Path, sample: int | None, seed: int) -> None:
    """Print the mutants of a module that its tests do not kill, and how many they kill of how many."""
    path, test = place / PACKAGE / f"{module}.py", place / "tests" / f"test_{module}.py"
    original = path.read_text()
    if killed(test):
        raise SystemExit(f"{test.name} fails without any change")
    made = list(mutants(original))
    chosen = made if sample is None or sample >= len(made) else random.Random(seed).sample(made, sample)
    survivors = 0
    for what, source in chosen:
        path.write_text(source)
        if not killed(test):
            survivors += 1
            print(f"{module}.py {what}", flush=True)
    path.write_text(original)
    share = 1 - survivors / len(chosen)
    print(
        f"{module}.py: {len(chosen) - survivors} of {len(chosen)} mutants killed, {share:.1%}; {len(made)} in all",
        flush=True,
    )


def main() -> None:
    """Copy the tree, load what every test needs, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    parser.add_argument("--sample", type=int, help="of each module, so many mutants drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="mutants-"))
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(place)}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = True
    try:
        for name in (PACKAGE, "tests"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", place)
        os.chdir(place)
        sys.path.insert(0, str(place))
        for name in LOADED:
            importlib.import_module(name)
        for module in asked.modules:
            measure(module, place, asked.sample, asked.seed)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
