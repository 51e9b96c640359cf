"""The command as a user meets it: names to models and images, a study that goes on, errors in a line."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from captum_attnkd.evaluation import classifiers, explainers
from captum_attnkd.evaluation.benchmarks import ablation, scale
from captum_attnkd.evaluation.benchmarks.verification import verify
from captum_attnkd.evaluation.classifiers import Classifier, find_classifier
from captum_attnkd.evaluation.cli import app
from captum_attnkd.evaluation.preparing import prepare, put_together
from captum_attnkd.evaluation.sources import Rest, load, square
from captum_attnkd.evaluation.subject import AsLogits
from captum_attnkd.evaluation.workers import work_ahead
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from typer import Typer
from typer.testing import CliRunner

from captum_attnkd import AttentiveKDAttribution

MODEL = """
import torch
from torch import nn
from captum_attnkd.evaluation.classifiers import Classifier

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    return Classifier(net.eval(), 32, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c", "d"))

def many():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 24))
    return Classifier(net.eval(), 32, (0.5,) * 3, (0.5,) * 3)

def function():
    net = make().model
    @torch.no_grad()
    def ask(images):
        return net(images).softmax(dim=1)
    return Classifier(ask, 32, (0.5,) * 3, (0.5,) * 3)

def colours():
    def ask(images):
        shades = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
        return -5 * torch.cdist(images.mean(dim=(2, 3)), shades)
    return Classifier(ask, 32, (0.5,) * 3, (0.5,) * 3)

def upside(subject):
    return lambda images, classes: -images.mean(dim=1, keepdim=True)

def sleepy(subject):
    import os, pathlib, time
    pathlib.Path(f"asleep-{os.getpid()}").touch()
    time.sleep(120)

def deadly(subject):
    import os
    os._exit(1)

number = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module `mine` and photographs of noise, as the working directory."""
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(24):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / f"{index:02d}.png"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def run(*arguments: str, app: Typer = app) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


STUDY = ("study", "-m", "mine:make", "-i", "photos", "--held-out", "6", "--out", "here", "--batch", "3", "--no-costs")


def test_a_study_from_the_command_line_and_again_from_its_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (*STUDY, "--methods", "saliency,grad-cam,random", "--metrics", "insertion-deletion,Sparseness")
    code, said = run(*asked)
    assert code == 0, said
    assert "6 images of 3x32x32, 3 methods, 2 metrics" in said
    first = pd.read_csv(place / "here" / "scores.csv")
    assert set(first["method"]) == {"saliency", "grad-cam", "random"}
    assert (first.groupby(["method", "metric"])["image"].nunique() == 6).all()
    about = json.loads((place / "here" / "study.json").read_text())
    assert about["about"]["model"] == "mine:make"
    assert (place / "here" / "report.html").stat().st_size > 10_000

    def broken(*_: object) -> None:
        raise AssertionError("maps that are kept must not be made again")

    monkeypatch.setattr(explainers.Saliency, "attribute", broken)
    code, said = run(*asked)
    assert code == 0
    assert "failed" not in said
    pd.testing.assert_frame_equal(first, pd.read_csv(place / "here" / "scores.csv"))


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fits of one step; how many images each was given."""
    fit = AttentiveKDAttribution.fit
    seen: list[int] = []

    def short(self: AttentiveKDAttribution, loader: torch.utils.data.DataLoader, **settings: object) -> object:
        seen.append(sum(len(batch) for batch in loader))
        settings |= {"distil_steps": 1, "explain_steps": 1, "batch_size": 4}
        return fit(self, loader, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(AttentiveKDAttribution, "fit", short)
    return seen


def test_ours_is_fitted_on_the_rest_and_kept(place: Path, short_fits: list[int]) -> None:
    code, said = run(*STUDY, "--fit", "rest", "--methods", "ours,random", "--metrics", "road")
    assert code == 0, said
    assert short_fits == [18], "24 photographs, 6 of them held out"
    assert "18 images brought to 32x32, pixels in [0, 1] less 0.5, 0.5, 0.5 and over 0.5, 0.5, 0.5" in said
    assert (place / "here" / "surrogate.safetensors").exists()
    code, said = run(
        *STUDY, "--surrogate", "here/surrogate.safetensors", "--methods", "ours,random", "--metrics", "road"
    )
    assert code == 0, said
    assert len(short_fits) == 1


def test_images_come_as_the_surrogate_knows_them_or_it_is_said(place: Path) -> None:
    pixels = torch.rand(40, 3, 24, 24, generator=torch.Generator().manual_seed(1)) - 0.5
    made = AttentiveKDAttribution(importlib.import_module("mine").make().model)
    made.fit(pixels.split(10), distil_steps=1, explain_steps=1, progress=False).save("small.safetensors")
    asked = ("study", "-m", "mine:make", "-i", "photos", "--surrogate", "small.safetensors", "--methods", "ours", "--metrics",
             "Sparseness", "--no-costs", "--out", "here")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        code, said = run(*asked)
    assert code == 0, said
    assert "24 images of 3x24x24, 1 methods" in said, "not the model's 32"
    with pytest.warns(UserWarning, match=r"a mean of -?\d.*normalised alike \(--mean, --deviation\)"):
        code, said = run(*asked, "--mean", "0.5", "--deviation", "0.1")
    assert code == 0, said
    assert run("--version")[1].startswith("attnkd of captum_attnkd ")


def test_a_study_that_measures_nothing_has_failed(place: Path) -> None:
    code, said = run(*STUDY, "--methods", "random", "--metrics", "pointing")
    assert code == 2
    assert "needs masks" in said
    assert "nothing could be measured" in said


HELD_OUT = ("-m", "mine:make", "-i", "photos", "--held-out", "6", "--fit", "rest", "--out", "here")


def test_trust_tells_what_it_foretells_of_each_set(place: Path, short_fits: list[int]) -> None:
    code, said = run("trust", *HELD_OUT, "--other", "photos")
    assert code == 0, said
    table = pd.read_csv(place / "here" / "trust.csv")
    assert table.groupby("set").size().to_dict() == dict.fromkeys(
        ("as they are", "noise", "blur", "JPEG, quality 10", "other data"), 6
    )
    assert table["trust"].between(0, 1).all()
    assert (place / "here" / "trust.png").exists()


def test_an_ablation_compares_parts_over_seeds(place: Path, short_fits: list[int]) -> None:
    code, said = run(*HELD_OUT, "--parts", "no attention", "--seeds", "2", app=ablation.app)
    assert code == 0, said
    assert short_fits == [16] * 4, "two of the rest are held out, the same for all"
    assert re.search(r"no attention( +-?\d\.\d{3}){6}", said), said


def test_single_checks_are_made_by_name(place: Path) -> None:
    photos = ("sanity", "-m", "mine:make", "-i", "photos", "--out", "here")
    code, said = run(*photos, "--methods", "centre", "--checks", "class,constant shift")
    assert code == 0, said
    verdicts = json.loads((place / "here" / "sanity.json").read_text())["centre"]
    assert {one["check"]: one["passed"] for one in verdicts} == {"class": False, "constant shift": True}
    code, said = run(*photos, "--checks", "classes")
    assert code == 2
    assert "no check 'classes'; there are: weights put at random" in said


@pytest.mark.parametrize("command", ["trust", "sanity", ""])
def test_images_with_rivals_are_refused_where_single_classes_are_asked_about(
    place: Path, short_fits: list[int], command: str
) -> None:
    of_pairs = ("-m", "mine:many", "-i", "bird-pairs:2", "--fit", "birds-train:20", "--out", "here")
    code, said = run(command, *of_pairs) if command else run(*of_pairs, app=ablation.app)
    assert code == 2
    assert "single classes; these images come with rivals" in said


def test_speed_prints_a_table_and_when_the_fit_pays(place: Path) -> None:
    code, said = run(
        "speed", "-m", "mine:make", "-i", "photos", "--methods", "saliency,integrated-gradients", "--batches", "1,4",
        "--repeats", "1", "--classes", "1,3", "--out", "here",
    )  # fmt: skip
    assert code == 0, said
    table = pd.read_csv(place / "here" / "speed.csv")
    assert set(table["batch"]) == {1, 4}
    assert {"saliency", "saliency, 3 classes"} < set(table["method"])
    slow, quick = (table[table["method"] == name]["ms"].min() for name in ("integrated-gradients", "forward pass"))
    assert slow > quick


def test_scale_prints_what_was_measured_and_an_estimate(place: Path) -> None:
    given = ("--counts", "64,1280", "--steps", "2", "--images", "5000", "--processes", "2")
    code, said = run("-m", "mine:make", *given, app=scale.app)
    assert code == 0, said
    assert re.search(r"^\s+1280( +\d+\.\d){2}", said, re.MULTILINE)
    hours = [
        float(value) for value in re.findall(r"(?:images|steps|checks|together) +(\d+\.\d\d)$", said, re.MULTILINE)
    ]
    assert len(hours) == 4
    assert hours[-1] == pytest.approx(sum(hours[:-1]), abs=0.02)
    code, said = run("-m", "mine:function", app=scale.app)
    assert code == 2
    assert "this needs a torch module" in said


def test_our_metrics_agree_with_independent_implementations(place: Path) -> None:
    (place / "set" / "images").mkdir(parents=True)
    (place / "set" / "masks").mkdir()
    for index in range(6):
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[5 : 15 + 2 * index, 10:30] = 255
        Image.fromarray(mask).save(place / "set" / "masks" / f"{index:02d}.png")
        (place / "photos" / f"{index:02d}.png").rename(place / "set" / "images" / f"{index:02d}.png")
    prepared = prepare("mine:make", "masked:set", folder=place / "here", batch=4)
    table = verify(prepared.subject, prepared.data, torch.arange(6) % 4, repeats=1).set_index("with")
    assert list(table["numbers compared"]) == [6 * 16, 4 * 4, 6, 6, 6]
    assert float(table["largest difference"].max()) < 2e-5


def test_a_model_that_is_only_a_function_fails_where_layers_are_needed_and_nowhere_else(place: Path) -> None:
    code, said = run(
        "study", "-m", "mine:function", "-i", "photos", "--limit", "4", "--out", "here", "--no-costs",
        "--methods", "occlusion,grad-cam,random", "--metrics", "insertion-deletion",
    )  # fmt: skip
    assert code == 0
    assert "failed: grad-cam: ValueError: the model has no layer with a spatial extent" in said
    table = pd.read_csv(place / "here" / "summary.csv")
    assert set(table[table["failure"].isna()]["method"]) == {"occlusion", "random"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "mine:make", "-i", "photos", "--methods", "grad-kam"), "did you mean grad-cam"),
        (("-m", "mine:make", "-i", "photos", "--metrics", "raod"), "did you mean road"),
        (("-m", "mine:make", "-i", "photos", "--methods", "ours"), "--fit"),
        (("-m", "mine:make", "-i", "photos", "--fit", "rest"), "--held-out"),
        (("-m", "mine:make", "-i", "photos", "--held-out", "24"), "24 of them cannot be held out"),
        (("-m", "mine:make", "-i", "nowhere"), "no file or folder nowhere"),
        (("-m", "mine:make", "-i", "bird:3"), "did you mean birds"),
        (("-m", "mine:makes", "-i", "photos"), "cannot be imported"),
        (("-m", "mine:number", "-i", "photos"), "is a int"),
        (("-m", "resnet5", "-i", "photos"), "did you mean resnet50"),
        (("-m", "resnet18", "-i", "photos", "--weights", "BEST"), "has no weights 'BEST'"),
        (("-m", "mine:make", "-i", "photos", "--layer", "nine"), "has no layer 'nine'"),
        (("-m", "mine:make", "-i", "photos", "--mean", "a,b"), "--mean is one or three numbers"),
        (("-m", "mine:make", "-i", "photos", "--fit", "digits:20"), "one of the kinds ...-train"),
        (("-m", "mine:make", "-i", "photos", "--methods", "random,random"), "two methods named random"),
        (("-m", "mine:make", "-i", "photos", "--device", "gpu"), "--device gpu cannot be used"),
        (("-m", "mine:make", "-i", "photos", "--precision", "fp16"), "precision must be"),
        (("-m", "mine:colours", "-i", "photos", "--mosaics", "3"), "needs 4 classes"),
        (("-m", "mine:make", "-i", "digits:4"), "cannot take images of shape (1, 64, 64)"),
        (("-m", "mine:make", "-i", "photos", "--methods", "random", "--reference", "rise"), "not among the methods"),
    ],
)
def test_what_the_user_can_mend_is_said_in_a_line(place: Path, arguments: tuple[str, ...], said: str) -> None:
    code, output = run("study", *arguments, "--out", "here")
    assert code == 2
    assert said in output
    assert len(output.strip().splitlines()) == 1


def test_torchvision_models_take_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    there = models.mobilenet_v3_small(weights=None)
    save_file(there.state_dict(), tmp_path / "w.safetensors")
    found = find_classifier("mobilenet_v3_small", str(tmp_path / "w.safetensors"))
    assert isinstance(found.model, nn.Module)
    assert not found.model.training
    torch.testing.assert_close(found.model.state_dict(), there.state_dict(), rtol=0, atol=0)


def test_our_classifiers_are_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[bool] = []
    network, _, about = classifiers.OURS["digits"]()

    def made() -> tuple[nn.Module, object, Classifier]:
        fresh, _, its = classifiers._digits()

        def trained(shuffled: bool) -> nn.Module:
            times.append(shuffled)
            return network

        return fresh, trained, its

    monkeypatch.setitem(classifiers.OURS, "digits", made)
    one, two = (find_classifier("digits", kept=tmp_path).model for _ in range(2))
    assert times == [False]
    for _ in range(2):
        find_classifier("digits", kept=tmp_path, shuffled=True)
    assert times == [False, True], "kept apart from the one with its own labels"
    images = torch.rand(2, 1, about.size, about.size)
    assert isinstance(one, nn.Module)
    assert isinstance(two, nn.Module)
    wanted: Tensor = network(images)
    assert torch.equal(one(images), wanted)
    assert torch.equal(two(images), wanted)


def test_a_broken_photograph_is_named_and_does_not_stop_the_fit(place: Path) -> None:
    (place / "photos" / "07.png").write_bytes(b"not an image")
    rest = Rest("photos", square(32, (0.5,) * 3, (0.5,) * 3))
    with pytest.warns(UserWarning, match=r"not learned from .*07\.png"):
        count = sum(len(batch) for batch in rest.batches(8))
    assert count == 23


def test_held_out_and_rest_share_no_image(place: Path) -> None:
    prepared = prepare("mine:make", "photos", folder=place / "here", held_out=6)
    transform = square(32, (0.5,) * 3, (0.5,) * 3)
    rest = [image for batch in Rest("photos", transform, held_out=6).batches() for image in batch]
    assert len(rest) == 18
    assert not any(torch.equal(image, other) for image in prepared.data.images for other in rest)


def test_an_image_of_the_study_is_not_learned_from_under_another_name(place: Path) -> None:
    (place / "more").mkdir()
    for number in range(8, 20):
        shutil.copy(place / "photos" / f"{number:02d}.png", place / "more" / f"copy{number}.png")
    transform = square(32, (0.5,) * 3, (0.5,) * 3)
    studied = load("photos", transform, limit=12).images  # every other one
    with pytest.warns(UserWarning, match=r"not learned from copy\d+: the study has the same image"):
        learned = torch.cat(list(Rest("more", transform, studied=studied).batches()))
    assert len(learned) == 6
    assert not any(torch.equal(image, other) for image in learned for other in studied)


def test_images_are_put_together_for_the_grid_pointing_game(place: Path) -> None:
    (place / "plain").mkdir()
    for index, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]):
        Image.new("RGB", (20, 20), colour).save(place / "plain" / f"{index}.png")
    prepared = prepare("mine:colours", "plain", folder=place / "here", mosaics=8)
    data = prepared.data
    assert data.images.shape == (8, 3, 64, 64), "each cell at the images' own size"
    assert data.targets is not None
    assert data.masks is not None
    wanted = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
    for image, target, mask in zip(data.images, data.targets.tolist(), data.masks, strict=True):
        assert int(mask.sum()) == 32 * 32
        torch.testing.assert_close(image[:, mask], wanted[target][:, None].expand(3, 32 * 32))
    assert len({tuple(mask.flatten().tolist()) for mask in data.masks}) == 4, "each cell is asked about in turn"

    def of_one_size(shown: Tensor) -> Tensor:
        assert shown.shape[-2:] == (32, 32)
        return prepared.subject.model(shown)

    cells = load(str(place / "plain"), square(32, (0.5,) * 3, (0.5,) * 3))
    assert put_together(AsLogits(of_one_size, False, torch.float32), cells, 2, 4).images.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="come with rivals"):
        put_together(prepared.subject.model, replace(data, rivals=data.targets), 2, 4)


def test_workers_find_what_one_process_finds(place: Path) -> None:
    # In one precision: `auto` measures, and on a busy machine two processes may find differently.
    one = ("--precision", "fp32")
    asked = (*STUDY, *one, "--methods", "saliency,mine:upside,random", "--metrics", "insertion-deletion,Sparseness")
    code, said = run(*asked)
    assert code == 0, said
    alone = pd.read_csv(place / "here" / "scores.csv")
    maps = sorted(path.name for path in (place / "here" / "cache" / "map").iterdir())
    shutil.rmtree(place / "here")
    arguments = {
        "model": "mine:make",
        "images": "photos",
        "folder": place / "here",
        "held_out": 6,
        "batch": 3,
        "precision": "fp32",
    }
    store = place / "here" / "cache"
    work_ahead(2, arguments, ["saliency", "mine:upside", "random"], ["insertion-deletion", "Sparseness"], store)
    assert sorted(path.name for path in (store / "map").iterdir()) == maps
    assert len(list((store / "scores").iterdir())) == 6
    code, said = run(*asked, "--workers", "2")
    assert code == 0, said
    pd.testing.assert_frame_equal(alone, pd.read_csv(place / "here" / "scores.csv"), rtol=1e-3)


def test_a_worker_that_dies_leaves_its_work_to_the_study(place: Path) -> None:
    arguments = {"model": "mine:make", "images": "photos", "folder": place / "here", "limit": 4}
    with pytest.warns(UserWarning, match="came to an end"):
        work_ahead(2, arguments, ["mine:deadly", "random"], ["Sparseness"], place / "here" / "cache")
    code, said = run(*STUDY, "--methods", "random", "--metrics", "Sparseness")
    assert code == 0, said


def test_workers_do_not_outlive_a_study_that_is_killed(place: Path) -> None:
    code = """
if __name__ == "__main__":
    from pathlib import Path
    from captum_attnkd.evaluation.workers import work_ahead
    arguments = {"model": "mine:make", "images": "photos", "folder": Path("here"), "limit": 4}
    work_ahead(2, arguments, ["mine:sleepy", "mine:sleepy"], [], Path("here/cache"))
"""
    (place / "study.py").write_text(code)
    study = subprocess.Popen([sys.executable, "study.py"], cwd=place)
    try:
        for _ in range(600):
            asleep = list(place.glob("asleep-*"))
            if len(asleep) == 2:
                break
            time.sleep(0.1)
        assert len(asleep) == 2
    finally:
        study.kill()
        study.wait()
    workers = [int(path.name.removeprefix("asleep-")) for path in asleep]
    for _ in range(200):
        left = [pid for pid in workers if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"workers {left} live on")


def test_probabilities_are_not_taken_for_logits(place: Path) -> None:
    plain, told = (
        prepare(name, "photos", folder=place / "here", limit=5).subject for name in ("mine:make", "mine:function")
    )
    images = prepare("mine:make", "photos", folder=place / "here", limit=5).data.images
    torch.testing.assert_close(told.ask(images), plain.ask(images), atol=2e-2, rtol=0)  # bf16 where the machine has it
    torch.testing.assert_close(told.model(images).softmax(dim=1), plain.model(images).softmax(dim=1))


def test_models_in_other_precision_are_asked_in_theirs(place: Path) -> None:
    (place / "mine.py").write_text(
        MODEL + "\ndef double():\n    found = make()\n    found.model.double()\n    return found\n"
    )
    code, said = run(
        "study", "-m", "mine:double", "-i", "photos", "--limit", "4", "--out", "here", "--no-costs",
        "--methods", "grad-cam,saliency", "--metrics", "insertion-deletion,PixelFlipping",
    )  # fmt: skip
    assert code == 0
    assert "failed" not in said


def test_a_scripted_and_a_quantised_model_can_be_studied(place: Path) -> None:
    (place / "mine.py").write_text(
        MODEL
        + "\ndef scripted():\n    found = make()\n    return Classifier(torch.jit.script(found.model), 32, (0.5,) * 3,"
        " (0.5,) * 3)\n\ndef quantised():\n    found = make()\n    small = torch.ao.quantization.quantize_dynamic(found.model,"
        " {nn.Linear})\n    return Classifier(small, 32, (0.5,) * 3, (0.5,) * 3)\n"
    )
    for name in ("scripted", "quantised"):
        code, said = run(
            "study", "-m", f"mine:{name}", "-i", "photos", "--limit", "4", "--out", name, "--no-costs",
            "--methods", "occlusion,random", "--metrics", "insertion-deletion",
        )  # fmt: skip
        assert code == 0, said
        assert "failed" not in said


def test_a_method_of_the_users_own_is_found_beside_the_command_and_worked_out_anew_when_it_changes(place: Path) -> None:
    code = "from captum_attnkd.evaluation.methods import Method\n\ndef bright(subject):\n    return lambda x, t: {}\n"
    found = []
    for name, body in (("yours", "x.sum(dim=1, keepdim=True)"), ("yours", "-x.sum(dim=1, keepdim=True)")):
        (place / "yours.py").write_text(code.format(body))
        sys.modules.pop("yours", None)
        importlib.invalidate_caches()
        status, said = run(*STUDY, "--methods", f"{name}:bright,random", "--metrics", "insertion-deletion")
        assert status == 0, said
        table = pd.read_csv(place / "here" / "summary.csv")
        found.append(table[(table["method"] == "yours:bright") & (table["column"] == "insertion")]["mean"].item())
    assert found[0] != found[1]
