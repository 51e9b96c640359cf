"""The documentation: its code runs, its commands parse, its links resolve, it needs no network, and no error is left out."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import sys
import types
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import typer
from torch import Tensor, nn

from captum_attnkd import AttentiveKDAttribution
from captum_attnkd import errors as raised_on_purpose
from captum_attnkd.fitting import FitSettings
from captum_attnkd.target import Target

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLASSES, SIDE = 10, 32

FENCE = re.compile(r"^(?P<ticks>```+)(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=ticks)\s*$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r'data-not-run="([^"]+)"')


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str, str]]:
    """Line, info and code of a page's fenced blocks in a language."""
    text = page.read_text()
    found = []
    for fence in FENCE.finditer(text):
        first = re.match(r"\s*\{?\s*\.?(\w*)", fence["info"])
        if first and first[1] == language:
            found.append((text[: fence.start()].count("\n") + 2, fence["info"], fence["code"]))
    return found


# -- what the pages take for granted ---------------------------------------------------------------------------------


class Network(nn.Module):
    """The reader's model: small, and with random weights."""

    def __init__(self, seed: int = 0, classes: int = CLASSES) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Linear(16, classes)
        with torch.no_grad():
            self.head.weight.mul_(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


class HuggingFace(nn.Module):
    """A model that is called and answers as those of `transformers` do."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = Network()

    def forward(self, pixel_values: Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(logits=self.vit(pixel_values))


def taken_for_granted() -> dict[str, Any]:
    """The names that pages use without defining them."""
    drawn = torch.Generator().manual_seed(0)
    pictures = torch.randn(20, 3, SIDE, SIDE, generator=drawn)
    labels = torch.randint(CLASSES, (20,), generator=drawn)
    model = Network().eval()
    masks = torch.zeros(4, SIDE, SIDE, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    return {
        "torch": torch,
        "model": model,
        "retrained_model": Network(seed=1).eval(),
        "scorer": Network(classes=1).eval(),
        "hugging_face_model": HuggingFace(),
        "predict": lambda array: model(torch.as_tensor(array)).detach().numpy(),
        "loader": [(pictures[:10], labels[:10]), (pictures[10:], labels[10:])],
        "val_loader": [torch.randn(4, 3, SIDE, SIDE, generator=drawn)],
        "images": pictures[:4],
        "labels": labels[:4],
        "masks": masks,
        "url": "https://classifier.example/scores",
    }


def answering(model: nn.Module) -> types.ModuleType:
    """A stand-in for `requests` whose service holds the model."""

    def post(url: str, *, json: dict[str, Any], timeout: float | None = None) -> Any:
        with torch.no_grad():
            scores = model(torch.tensor(json["images"])).tolist()
        return types.SimpleNamespace(json=lambda: {"scores": scores}, raise_for_status=lambda: None)

    fake = types.ModuleType("requests")
    fake.post = post  # type: ignore[attr-defined]
    return fake


def put_photo(image: Tensor) -> None:
    from torchvision.utils import save_image

    Path("photos/cats").mkdir(parents=True)
    save_image(image, "photos/cats/one.png")


def put_onnx(model: Network, images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=1, max=1024)
        torch.onnx.export(
            model, (images,), "classifier.onnx", input_names=["images"], dynamo=True, dynamic_shapes=({0: batch},), verbose=False
        )  # fmt: skip


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every fit takes two steps a stage, whatever the page says; its arguments are checked all the same."""
    fit = AttentiveKDAttribution.fit
    short = {"distil_steps": 2, "explain_steps": 2, "batch_size": 4, "progress": False}

    @functools.wraps(fit)
    def quick(self: AttentiveKDAttribution, loader: Any, **settings: Any) -> AttentiveKDAttribution:
        return fit(self, loader, **{**settings, **short})

    monkeypatch.setattr(AttentiveKDAttribution, "fit", quick)
    monkeypatch.setattr(Target, "_wait_for_turn", lambda *_: None)
    assert FitSettings().explain_steps > 2, "else nothing is shortened"
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # of the page on several GPUs
    GradientState._reset_state()


# -- code --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
@pytest.mark.usefixtures("short_fits")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_every_block_of_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = taken_for_granted()
    monkeypatch.setitem(sys.modules, "requests", answering(namespace["model"]))
    text = page.read_text()  # what it reads from the reader's folder is put there
    if '"photos"' in text:
        put_photo(namespace["images"][0])
    if '"classifier.onnx"' in text:
        put_onnx(namespace["model"], namespace["images"])
    torch.manual_seed(0)
    for line, info, code in blocks(page, "python"):
        if NOT_RUN.search(info):
            continue
        # Lines of the page stand in the traceback.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def test_blocks_that_are_not_run_say_why_and_are_few() -> None:
    everything = [(page, line, info) for page in PAGES for line, info, _ in blocks(page, "python")]
    odd = [f"{named(page)}:{line}" for page, line, info in everything if info.strip() != "python"]
    reasons = [reason for _, _, info in everything for reason in NOT_RUN.findall(info)]
    assert len(odd) == len(reasons), f"blocks of Python with something else than a reason in their info: {odd}"
    assert len(reasons) == 0, "blocks that cannot run are counted here: raise this number with care"
    assert len(everything) > 40


@pytest.mark.parametrize("page", [page for page in PAGES if "attnkd " in page.read_text()], ids=named)
def test_every_attnkd_command_parses(page: Path) -> None:
    from captum_attnkd.evaluation.cli import app

    program: Any = typer.main.get_command(app)
    for code in (fence["code"] for fence in FENCE.finditer(page.read_text()) if "python" not in fence["info"]):
        for command in code.replace("\\\n", " ").splitlines():
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
                words.pop(0)
            if words and words[0] == "attnkd":
                _, name, *options = words
                program.commands[name].make_context(name, options)  # raises where an option is unknown or missing


# -- troubleshooting ---------------------------------------------------------------------------------------------------


def messages() -> Iterator[tuple[str, str]]:
    """Where, and what: every error of ours and every warning, with … for what varies."""
    ours = {name for name in dir(raised_on_purpose) if name.endswith("Error")} | {"FileNotFoundError", "OSError"}
    for path in sorted((ROOT / "captum_attnkd").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            made = isinstance(node, (ast.Raise, ast.Return))  # a helper returns the error that others raise
            call = node.exc if isinstance(node, ast.Raise) else node.value if isinstance(node, ast.Return) else node
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            if (made and name in ours) or (not made and name == "warn"):
                yield f"{path.name}:{node.lineno}", re.sub("…+", "…", told(call.args[0]))


def told(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return told(node.left) + told(node.right)
    return "".join(told(part) for part in node.values) if isinstance(node, ast.JoinedStr) else "…"


def test_every_error_and_warning_is_under_troubleshooting() -> None:
    page = (ROOT / "docs/how-to/troubleshooting.md").read_text()
    there = set(re.findall(r"^`(.+)`$", page, re.MULTILINE))
    found = dict(messages())
    assert len(found) > 80
    assert not {where: message for where, message in found.items() if message not in there}
    others = {
        message for message in there - set(found.values()) if "explain_func" not in message and "future" not in message
    }
    assert not others, "messages that the package no longer has"


# -- the built pages ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A built page: its anchors, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.classes: set[str] = set()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.classes.update(given.get("class", "").split())
        self.anchors.update(given[key] for key in ("id", "name") if key in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag != "a":
            self.loads += [given[key] for key in ("src", "href", "srcset", "data", "poster") if given.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: MkDocs itself refuses pages and anchors that are not there."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


def test_links_and_anchors_of_the_built_pages_resolve(site: Path) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= 20
    dead = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("data:"):
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            aim = aim / "index.html" if aim.is_dir() else aim
            if not aim.is_file() or (parts.fragment and aim in pages and parts.fragment not in pages[aim].anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not [link for link in dead if not link.endswith("#__skip")]


def test_the_built_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Page(path.read_text())
        assert not [load for load in page.loads if urlsplit(load).netloc], path.name
        assert "mermaid" not in page.classes, "its script would be fetched"
        assert "arithmatex" not in page.classes, f"{path.name}: an equation was not brought to MathML"
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", style.read_text()), style.name


def test_the_built_pages_hold_what_is_put_into_them(site: Path) -> None:
    how = Page((site / "how-it-works.html").read_text())
    assert {"math", "svg"} <= how.tags
    assert (site / "assets/quickstart.png").read_bytes() == (ROOT / "examples/quickstart.png").read_bytes()
    evidence = (site / "evidence.html").read_text()
    assert "<td>Integrated Gradients</td>" in evidence
    assert "--8&lt;--" not in evidence
    reference = Page((site / "reference/evaluation.html").read_text())
    assert "captum_attnkd.evaluation.methods.Method" in reference.anchors


def test_the_readme_links_to_files_that_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme:
            assert not parts.path or (ROOT / parts.path).exists(), link
            assert parts.path or parts.fragment in headings, link


# -- citation ----------------------------------------------------------------------------------------------------------


def test_the_citation_names_this_version() -> None:
    import yaml

    from captum_attnkd import __version__

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["cff-version"], str(cited["version"])) == ("1.2.0", __version__)
    assert {"title", "message", "authors"} <= cited.keys()
    assert cited["references"][0]["doi"] == "10.3390/s21041280"
