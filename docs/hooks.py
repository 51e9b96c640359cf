"""What the documentation needs beside MkDocs' plugins: equations without scripts, the README's figure, the API's source."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "examples" / "quickstart.png"  # once in the repository, and used by the README as well
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_startup(**_: Any) -> None:
    """Lay the packages out as they are installed: the API reference is read from the source, never imported."""
    source = ROOT / "build" / "docs-source"
    shutil.rmtree(source, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", "templates")
    shutil.copytree(ROOT / "captum_attnkd", source / "captum_attnkd", ignore=unwanted)
    shutil.copytree(ROOT / "evaluation", source / "captum_attnkd" / "evaluation", ignore=unwanted)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the README's figure along."""
    files.append(File.generated(config, f"assets/{FIGURE.name}", content=FIGURE.read_bytes()))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Equations as MathML, which browsers draw by themselves."""
    return _EQUATION.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    kind = "block" if found[1] == "div" else "inline"
    equation = convert(html.unescape(found[2]).strip(), display=kind)
    return f'<div class="equation">{equation}</div>' if kind == "block" else equation
