"""The page and the files of a study: what they say, what they never say, and that they can be read on a phone."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from captum_attnkd.evaluation.explainers import Explainer
from captum_attnkd.evaluation.methods import METHODS, Method
from captum_attnkd.evaluation.metrics import OWN, Case, Measured, Metric
from captum_attnkd.evaluation.report import About, versions, write_report
from captum_attnkd.evaluation.sources import ImageSet
from captum_attnkd.evaluation.store import Store
from captum_attnkd.evaluation.study import Outcome, Study
from captum_attnkd.evaluation.subject import Subject
from captum_attnkd.evaluation.summary import leaders, scores
from torch import nn

EVIL = '<script>alert("x")</script>'
WHY = "it broke <b>here</b>"
NAMES = ("saliency", "grad-cam", "random")
COLUMNS = ("insertion", "deletion", "insertion less deletion", "insertion less deletion, unseen fills")


def _broken(subject: Subject) -> Explainer:
    raise RuntimeError(WHY)


def _fails_for_some(case: Case) -> Measured:
    if float(case.maps[0].std()) > 0.25:  # uniform noise alone
        raise ValueError("not of noise")
    return Measured({"spread": case.maps.flatten(1).std(dim=1)}, {"spread": "lower"})


def _study(folder: Path) -> Study:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(3)
        )
        images = torch.rand(6, 3, 32, 32)
        model(images)
    masks = torch.zeros(6, 32, 32, dtype=torch.bool)
    masks[:4, 8:20, 8:20] = True
    names = (EVIL, *(f"image {index}" for index in range(5)))
    data = ImageSet(images, names, torch.tensor([1, 0, 2, 1, 0, 2]), masks, skipped=(f"{EVIL}.png: no image",))
    subject = Subject(model.eval(), model[2], torch.full((3,), 0.5), torch.full((3,), 0.3))
    methods = [*(METHODS[name] for name in NAMES), Method("broken", "perturbation", _broken)]
    own = {metric.name: metric for metric in OWN}
    metrics = [
        own["insertion-deletion"], own["pointing"], own["part-hit"],
        Metric("spread", "complexity", _fails_for_some),
    ]  # fmt: skip
    return Study(subject, data, methods, metrics, Store(folder), progress=False)


ABOUT = About(
    "Of <small> things", "attnkd compare --images 'a b'", "net", "folder:x", ("cat", EVIL, "dog"), seconds=3.0
)
COSTS = pd.DataFrame(
    [
        {"method": "forward pass", "batch": 1, "ms": 1.0, "ratio": 1.0, "peak_mib": math.nan, "failure": ""},
        {"method": "saliency", "batch": 1, "ms": 2.0, "ratio": 2.0, "peak_mib": 3.0, "failure": ""},
        {"method": "grad-cam", "batch": 1, "ms": 12.0, "ratio": 12.0, "peak_mib": 3.0, "failure": ""},
        {"method": "random", "batch": 1, "ms": 0.5, "ratio": 0.5, "peak_mib": 0.0, "failure": ""},
        {"method": "broken", "batch": 0, "ms": math.nan, "ratio": math.nan, "peak_mib": math.nan, "failure": WHY},
    ]
)


@dataclasses.dataclass
class Made:
    study: Study
    outcomes: dict[str, Outcome]
    page: Path

    @property
    def folder(self) -> Path:
        return self.page.parent

    @property
    def text(self) -> str:
        return self.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    study = _study(folder / "store")
    outcomes = study.run()
    return Made(study, outcomes, write_report(folder / "new" / "out", study, outcomes, ABOUT, costs=COSTS, gallery=3))


@dataclasses.dataclass
class Cell:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    inside: list[dict[str, str]] = dataclasses.field(default_factory=list)


class Page(HTMLParser):
    """All tags, and tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[tuple[str, list[list[Cell]]]] = []
        self.words = ""
        self._cell: Cell | None = None
        self._code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        self._code = tag in ("script", "style")
        if tag == "table":
            self.tables.append((attributes.get("class", ""), []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self._cell = Cell(tag, attributes)
            self.tables[-1][1][-1].append(self._cell)
        elif self._cell is not None:
            self._cell.inside.append(attributes)

    def handle_endtag(self, tag: str) -> None:
        self._code = False
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._code:
            return
        self.words += data
        if self._cell is not None:
            self._cell.text += data

    def of_class(self, name: str) -> list[list[list[Cell]]]:
        return [rows for kind, rows in self.tables if kind == name]

    def scores(self) -> dict[tuple[str, str], Cell]:
        """By method and column."""
        found = {}
        for head, *rows in self.of_class("scores"):
            columns = [re.split(r"\s*[↑↓]", cell.text.strip())[0] for cell in head]
            for row in rows:
                method = row[0].text.strip()
                name = next(known for known in (*NAMES, "broken") if method.startswith(known))
                found |= {(name, column): cell for column, cell in zip(columns[1:], row[1:], strict=True)}
        return found


@pytest.fixture(scope="module")
def page(made: Made) -> Page:
    return Page(made.text)


def test_the_page_asks_for_nothing_from_anywhere(made: Made, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert not re.match(r"(?:\w+:)?//", attributes.get(name, "")), attributes
    assert not re.search(r"@import|url\s*\(|https?:|fetch\(|XMLHttpRequest", made.text)
    links = [a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")]
    assert sorted(links) == ["scores.csv", "study.json", "summary.csv"]
    assert all((made.folder / link).exists() for link in links)


def test_links_within_the_page_lead_somewhere(page: Page) -> None:
    places = [a["id"] for _, a in page.tags if "id" in a]
    assert len(places) == len(set(places))
    assert {a["href"][1:] for tag, a in page.tags if tag == "a" and a["href"].startswith("#")} <= set(places)


def test_names_are_text_whatever_they_hold(made: Made, page: Page) -> None:
    assert EVIL not in made.text
    assert page.words.count(EVIL) >= 3  # an image, a class, a file that was skipped
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "Of <small> things" in page.words
    assert WHY in page.words


def test_families_stand_in_tables_of_their_own(page: Page) -> None:
    heads = [[" ".join(cell.text.split()) for cell in rows[0]] for rows in page.of_class("scores")]
    assert [len(head) - 1 for head in heads] == [4, 2, 1]
    assert heads[0][1] == "insertion ↑"
    assert heads[0][2] == "deletion ↓"
    assert heads[1][1] == "pointing game ↑ n = 4"  # two of six images have no mask
    assert heads[1][2] == "part-hit"  # could be measured for no method, and is not left out


def test_cells_hold_the_means_and_marks_of_the_outcomes(made: Made, page: Page) -> None:
    cells = page.scores()
    for column in COLUMNS:
        best, near = leaders(made.outcomes, "insertion-deletion", column)
        for name in NAMES:
            mean = float(made.outcomes[name].measured["insertion-deletion"].scores[column].mean())
            cell = cells[name, column]
            assert float(cell.attributes["data-value"]) == pytest.approx(mean, abs=1e-6)
            assert float(cell.text.split("●")[0].split("○")[0].replace("\N{MINUS SIGN}", "-")) == pytest.approx(
                mean, rel=0.02
            )
            assert ("best" in cell.attributes.get("class", "")) == (name == best) == ("●" in cell.text)
            shown = [inside.get("aria-label", "") for inside in cell.inside]
            assert ("not significantly worse than the best" in shown) == (name in near and name != best)
    means = {name: float(cells[name, "deletion"].attributes["data-value"]) for name in NAMES}
    assert "●" in cells[min(means, key=means.__getitem__), "deletion"].text  # the lower the better


def test_what_failed_has_its_reason_and_no_number(page: Page) -> None:
    cells = page.scores()
    failed = {place: cell for place, cell in cells.items() if "failed" in cell.attributes.get("class", "")}
    assert {column for name, column in failed if name == "broken"} == {*COLUMNS, "pointing game", "part-hit", "spread"}
    assert ("random", "spread") in failed
    assert ("saliency", "spread") not in failed
    for (name, _), cell in failed.items():
        assert cell.text.strip().startswith("failed")
        assert not re.search(r"\d", cell.text)
        assert "data-value" not in cell.attributes
        if name == "broken":
            assert WHY in cell.attributes["title"]
    assert "not of noise" in failed["random", "spread"].attributes["title"]


def test_wins_and_losses_are_counted_as_the_summary_has_them(made: Made, page: Page) -> None:
    measured = pd.read_csv(made.folder / "summary.csv").dropna(subset="column")  # the rest are failures
    table = measured.set_index(["method", "column"], verify_integrity=True)
    (rows,) = page.of_class("short")
    for head, better, worse, level in rows[1:5]:
        column = head.text.split("\N{NO-BREAK SPACE}")[0].strip()
        row = {name: table.loc[(name, column)] for name in NAMES[1:]}
        sign = 1 if row["random"]["better"] == "higher" else -1
        told = {name: sign * one["less"] for name, one in row.items() if one["p"] < 0.05}
        assert [name for name in NAMES[1:] if name in better.text] == [name for name, less in told.items() if less < 0]
        assert [name for name in NAMES[1:] if name in worse.text] == [name for name, less in told.items() if less > 0]
        assert level.text.startswith(str(len(row) - len(told)))


def test_losses_are_named(tmp_path: Path, made: Made) -> None:
    better = dict(made.outcomes)
    measured = better["grad-cam"].measured["insertion-deletion"]
    raised = {name: values + 10 for name, values in measured.scores.items()}
    better["grad-cam"] = dataclasses.replace(
        better["grad-cam"], measured={"insertion-deletion": dataclasses.replace(measured, scores=raised)}
    )
    few = dataclasses.replace(made.study, data=made.study.data, methods=[METHODS["saliency"], METHODS["grad-cam"]])
    text = Page(write_report(tmp_path, few, {name: better[name] for name in NAMES[:2]}, ABOUT).read_text()).words
    assert re.search(r"It loses to\s+grad-cam on 3 columns", text)


def test_files_hold_what_was_found(made: Made) -> None:
    table, every = pd.read_csv(made.folder / "summary.csv"), pd.read_csv(made.folder / "scores.csv")
    for name in NAMES:
        for column in COLUMNS:
            mean = float(made.outcomes[name].measured["insertion-deletion"].scores[column].mean())
            row = table[(table["method"] == name) & (table["column"] == column)]
            assert row["mean"].item() == pytest.approx(mean, abs=1e-6)
            scores = every[(every["method"] == name) & (every["column"] == column)]
            assert list(scores["image"]) == list(made.study.data.names)
            assert scores["score"].mean() == pytest.approx(mean, abs=1e-6)


def test_the_record_is_strict_json_and_whole(made: Made) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    record = json.loads((made.folder / "study.json").read_text(), parse_constant=refuse)
    assert record["n"] == 6
    assert record["asked"] == "given"
    assert record["reference"] == "saliency"
    assert record["accuracy"] == pytest.approx(made.study.right)
    assert record["versions"] == versions()
    assert record["about"]["command"] == ABOUT.command
    assert record["skipped"] == list(made.study.data.skipped)
    assert {"method": "broken", "metric": None, "reason": f"RuntimeError: {WHY}"} in record["failures"]
    assert {(one["method"], one["metric"]) for one in record["failures"]} >= {
        ("random", "spread"),
        ("grad-cam", "part-hit"),
    }
    assert record["metrics"][0]["settings"] == {"steps": 10}
    assert len(record["summary"]) == len(pd.read_csv(made.folder / "summary.csv"))
    assert record["costs"][0]["peak_mib"] is None  # was NaN
    assert [image["name"] for image in record["images"]] == list(made.study.data.names)


def test_nothing_but_the_files_is_left(made: Made) -> None:
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "report.html",
        "scores.csv",
        "study.json",
        "summary.csv",
    ]


def test_a_file_is_not_harmed_by_a_write_that_fails(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scores.csv").write_text("before")

    def full(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, made.study, made.outcomes, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]
    assert (tmp_path / "scores.csv").read_text() == "before"


def test_the_gallery_shows_every_method_on_images_spread_evenly(page: Page) -> None:
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert all(a["src"].startswith("data:image/jpeg;base64,") and a["alt"] for a in pictures)
    assert [a["alt"] for a in pictures if ": map of " not in a["alt"]] == [EVIL, "image 1", "image 4"]
    assert len(pictures) == 3 * (1 + len(NAMES))  # the broken method has none


def test_curves_have_a_line_a_method(page: Page) -> None:
    lines = [a for tag, a in page.tags if tag == "polyline"]
    assert len(lines) == 10 * len(NAMES)  # five fills, insertion and deletion
    assert all(len(a["points"].split()) == 11 for a in lines)
    assert sum("reference" in a["class"] for a in lines) == 10
    dashed = {a["data-line"] for a in lines if a["stroke-dasharray"]}
    assert dashed == {a["data-line"] for a in lines if "grey" in a["class"]}
    assert len(dashed) == 1


def test_too_few_images_are_said_to_be_too_few(made: Made, page: Page, tmp_path: Path) -> None:
    assert "Too few images" in page.words  # six, four methods: 2 / 64 * 3 > 0.05
    few = dataclasses.replace(made.study, methods=made.study.methods[:2])
    outcomes = {name: made.outcomes[name] for name in NAMES[:2]}
    assert "Too few images" not in write_report(tmp_path, few, outcomes, ABOUT).read_text()


def _ours(subject: Subject) -> Explainer:
    return lambda images, targets: images.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("measured", [True, False])
def test_the_fit_stands_beside_the_costs(made: Made, tmp_path: Path, measured: bool) -> None:
    methods = [Method("saliency", "ours", _ours, learned=True), *made.study.methods[1:3]]
    study = dataclasses.replace(made.study, methods=methods)
    seconds = {"saliency": 0.002, "grad-cam": 0.012, "random": 0.0005}
    outcomes = {name: dataclasses.replace(made.outcomes[name], seconds=one) for name, one in seconds.items()}
    about = dataclasses.replace(ABOUT, fit={"seconds": 100.0, "target_queries": 5000, "agreement": 0.9})
    text = write_report(tmp_path, study, outcomes, about, costs=COSTS if measured else None).read_text()
    (rows,) = Page(text).of_class("costs")
    assert "1 min 40 s" in rows[-3][-1].text
    last = {row[0].text.split("\n")[0].strip(): row[-1].text.strip() for row in rows[1:]}
    assert next(text for name, text in last.items() if name.startswith("grad-cam")) == "10,000"
    assert next(text for name, text in last.items() if name.startswith("random")) == "never"
    assert "5,000" in text


def test_rivals_and_predictions_are_told(made: Made, tmp_path: Path) -> None:
    data = dataclasses.replace(made.study.data, rivals=torch.tensor([2, 1, 0, 2, 1, 0]))
    words = Page(
        write_report(tmp_path, dataclasses.replace(made.study, data=data), made.outcomes, ABOUT).read_text()
    ).words
    assert "not of a rival" in words
    assert f"{EVIL}, not dog" in words


def test_a_study_in_which_all_failed_has_a_report_too(made: Made, tmp_path: Path) -> None:
    study = dataclasses.replace(made.study, methods=made.study.methods[3:])
    page = Page(write_report(tmp_path, study, {"broken": made.outcomes["broken"]}, ABOUT).read_text())
    assert "Nothing could be compared" in page.words
    assert WHY in page.words


def test_names_that_are_no_text_are_written_all_the_same(made: Made, tmp_path: Path) -> None:
    data = dataclasses.replace(made.study.data, names=("caf\udce9.png", *made.study.data.names[1:]))
    path = write_report(tmp_path, dataclasses.replace(made.study, data=data), made.outcomes, ABOUT)
    assert "caf\\udce9.png" in path.read_text(encoding="utf-8")
    listed = scores(made.outcomes, data.names)["image"]
    assert listed.iloc[0].encode() == b"caf\\udce9.png", "text, which is all that a table of pandas takes with pyarrow"


def test_an_unknown_reference_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean saliency"):
        write_report(tmp_path / "none", made.study, made.outcomes, ABOUT, reference="salience")
    assert not (tmp_path / "none").exists()


# -- in a browser --------------------------------------------------------------------------------------------------------------

chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium to look at the page with")


def _said(page: Path, script: str, width: int, folder: Path) -> str:
    """What a script in a frame of that width says of a copy of the page; a window cannot be as narrow as a phone."""
    inner = folder / "copy.html"
    told = "parent.postMessage(String((() => {%s})()), '*')" % script  # noqa: UP031
    inner.write_text(
        page.read_text().replace("</body>", f"<script>addEventListener('load', () => {told})</script></body>")
    )
    outer = folder / "frame.html"
    outer.write_text(
        f"<iframe src='copy.html' width='{width}' height='900' style='border:0'></iframe><p id='said'></p>"
        "<script>addEventListener('message', (m) => { document.getElementById('said').textContent = m.data })</script>"
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=3000",
        f"--user-data-dir={folder}/profile",
    ]
    command = ["chromium", *flags, "--window-size=1600,1000", "--dump-dom", str(outer)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r'<p id="said">(.*?)</p>', answer, re.DOTALL)
    assert found is not None, answer
    return found.group(1)


@chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_never_scrolls_sideways(made: Made, tmp_path: Path, width: int) -> None:
    script = "return document.documentElement.scrollWidth + ' ' + innerWidth"
    wide, window = (int(number) for number in _said(made.page, script, width, tmp_path).split())
    assert window == width
    assert wide <= window


@chromium
def test_a_click_on_a_header_sorts_and_another_turns_round(made: Made, tmp_path: Path) -> None:
    script = """
        const table = document.querySelector('table.scores'), button = table.querySelectorAll('.sort')[2], said = [];
        for (let turn = 0; turn < 2; turn++) {
            button.click();
            const order = button.closest('th').getAttribute('aria-sort');
            said.push(order + ':' + [...table.tBodies[0].rows].map((row) => row.cells[0].firstChild.data.trim()).join(','));
        }
        table.querySelector('.sort').click();
        return said.join(';') + ';' + table.querySelectorAll('[aria-sort]').length;
    """
    first, second, sorted_by = _said(made.page, script, 1400, tmp_path).split(";")
    means = {
        name: float(made.outcomes[name].measured["insertion-deletion"].scores["deletion"].mean()) for name in NAMES
    }
    rising = sorted(NAMES, key=means.__getitem__)
    assert (
        first == f"ascending:{','.join([*rising, 'broken'])}"
    )  # the lower the better: best first; what failed is last
    assert second == f"descending:{','.join([*rising[::-1], 'broken'])}"
    assert sorted_by == "1"


@chromium
def test_the_legend_picks_out_lines(made: Made, tmp_path: Path) -> None:
    script = """
        document.querySelectorAll('.key')[1].click();
        const lit = [...document.querySelectorAll('.panels .lit')];
        return lit.length + ' ' + new Set(lit.map((line) => line.querySelector('title').textContent)).size;
    """
    assert _said(made.page, script, 1400, tmp_path) == "10 1"
