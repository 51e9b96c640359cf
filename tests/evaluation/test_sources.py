"""Sources: every kind is read from files made here, masks land on their object, and what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum_attnkd.evaluation.datasets.birds import SPECIES, parts_between
from captum_attnkd.evaluation.sources import ImageSet, Rest, Transform, load, opened, square
from PIL import Image
from torch import Tensor

PLAIN = square(20, [0.0] * 3, [1.0] * 3)


def picture(path: Path, size: tuple[int, int] = (40, 30), box: tuple[int, int, int, int] = (10, 6, 20, 24)) -> None:
    """A black image (width, height) with a white box (left, top, right, bottom), the last two just outside of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(path)


def mask_of(
    path: Path, size: tuple[int, int] = (40, 30), box: tuple[int, int, int, int] = (10, 6, 20, 24), value: int = 255
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = value
    Image.fromarray(pixels).save(path)


def assert_on_the_box(data: ImageSet) -> None:
    """Masks lie where the images are bright: 10 to 20 of 40 columns and 6 to 24 of 30 rows, brought to 20 by 20."""
    assert data.masks is not None
    assert data.masks.dtype == torch.bool
    wanted = torch.zeros(20, 20, dtype=torch.bool)
    wanted[4:16, 5:10] = True
    for image, mask in zip(data.images, data.masks, strict=True):
        assert float((mask == wanted).float().mean()) > 0.96  # a row or column of borders
        assert bool(((image.mean(dim=0) > 0.5) == wanted).all())


# -- folders ---------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_to_its_depth_and_what_is_broken_is_named(tmp_path: Path) -> None:
    for name in ("b.png", "deep/a.jpg", "c.webp"):
        picture(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    for source in (f"folder:{tmp_path}", str(tmp_path)):
        data = load(source, PLAIN)
        assert data.images.shape == (3, 3, 20, 20)
        assert data.names == ("b", "c", "deep/a")
        assert data.masks is None
        assert data.targets is None
        told = {Path(line.partition(": ")[0]).name: line for line in data.skipped}
        assert set(told) == {"broken.png", "empty.jpg", "folder.jpg"}
        assert "Error" in told["broken.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_no_damage_to_a_file_is_more_than_a_reason(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    damaged, rng = tmp_path / f"damaged.{suffix}", np.random.default_rng(0)
    reasons = 0
    for cut in range(0, min(len(whole), 300), 7):
        damaged.write_bytes(whole[:cut])
        reasons += isinstance(opened(damaged), str)
    for _ in range(100):
        changed = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 60), 3):
            changed[place] = rng.integers(256)
        damaged.write_bytes(changed)
        opened(damaged)
    assert reasons > 5


def test_an_image_too_large_to_be_true_is_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "a.bmp")
    claimed = bytearray((tmp_path / "a.bmp").read_bytes())
    claimed[18:26] = (30000).to_bytes(4, "little") * 2  # its width and height
    (tmp_path / "b.bmp").write_bytes(claimed)
    data = load(str(tmp_path), PLAIN)
    assert data.names == ("a",)
    assert "b.bmp: DecompressionBombError" in data.skipped[0]


def test_images_of_other_modes_look_the_same(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
    colours = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    images = {
        "1-plain": colours,
        "2-grey": Image.fromarray(grey),
        "3-alpha": colours.convert("RGBA"),
        "4-palette": colours.convert("P", palette=Image.Palette.ADAPTIVE),
        "5-sixteen": Image.fromarray(grey.astype(np.uint16) * 257),
        "6-integers": Image.fromarray(grey.astype(np.int32) * 257),
        "7-grey-alpha": Image.fromarray(grey).convert("LA"),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.{'tif' if name == '6-integers' else 'png'}")
    for data in (load(str(tmp_path), PLAIN), load(str(tmp_path), square(20, [0.0], [1.0]))):
        assert data.skipped == ()
        assert len(data) == len(images)
        assert float(data.images.amax()) > 0.95
        for name, image in zip(data.names, data.images, strict=True):
            assert float((image - data.images[0]).abs().max()) < 0.03, name


def test_a_square_is_standardised_and_keeps_no_proportions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(40, 30), box=(0, 0, 20, 30))
    transform: Transform = square(10, [0.5, 0.25, 0.0], [0.5, 1.0, 2.0])
    image = transform(Image.open(tmp_path / "a.png"))
    assert image.shape == (3, 10, 10)
    torch.testing.assert_close(image[:, 5, 0], torch.tensor([1.0, 0.75, 0.5]))
    torch.testing.assert_close(image[:, 5, 9], torch.tensor([-1.0, -0.25, 0.0]))


def test_a_limit_is_spread_evenly(tmp_path: Path) -> None:
    for index in range(10):
        picture(tmp_path / f"{index}.png")
    assert load(str(tmp_path), PLAIN, limit=5).names == ("0", "2", "4", "6", "8")
    assert load(str(tmp_path), PLAIN, limit=3).names == ("0", "3", "6")
    assert len(load(str(tmp_path), PLAIN, limit=99)) == 10


def test_a_limit_of_what_is_held_out_is_apart_from_a_smaller_set_held_out(tmp_path: Path) -> None:
    for index in range(10):
        picture(tmp_path / f"{index}.png")
    more, less = load(str(tmp_path), PLAIN, held_out=7), load(str(tmp_path), PLAIN, held_out=4)
    first = load(str(tmp_path), PLAIN, limit=3, held_out=7)
    assert first.names == more.names[:3]
    assert sorted(first.names + less.names) == sorted(more.names)


def test_what_is_held_out_and_the_rest_are_all_images_once(tmp_path: Path) -> None:
    for index in range(9):
        picture(tmp_path / f"{index}.png", box=(index, 0, index + 4, 30))
    source = f"folder:{tmp_path}"
    held, rest = load(source, PLAIN, held_out=3), Rest(source, PLAIN, held_out=3)
    assert len(held) == 3
    assert len(rest) == 6
    every = torch.cat([held.images, torch.cat(list(rest.batches(4)))])
    everything = load(source, PLAIN).images
    same = (every[:, None] - everything[None]).abs().amax(dim=(2, 3, 4)) == 0
    assert same.sum(dim=0).tolist() == [1] * 9
    assert load(source, PLAIN, held_out=3).names == held.names, "the same ones each time"
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"not learned from .*0\.png"):
        assert sum(len(batch) for batch in Rest(source, PLAIN).batches(1)) == 8
    with pytest.raises(ValueError, match="9 images; 9 of them cannot be held out"):
        load(source, PLAIN, held_out=9)


def test_masks_lie_on_their_images_and_those_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "lost", "small", "torn"):
        picture(tmp_path / "images" / f"{name}.png")
    mask_of(tmp_path / "masks" / "a.png")
    mask_of(tmp_path / "masks" / "b.bmp", value=1)
    mask_of(tmp_path / "masks" / "small.png", size=(20, 15), box=(5, 3, 10, 12))
    (tmp_path / "masks" / "torn.png").write_bytes(b"no image")
    data = load(f"masked:{tmp_path}", PLAIN)
    assert data.names == ("a", "b")
    assert_on_the_box(data)
    reasons = {Path(line.partition(": ")[0]).stem: line.partition(": ")[2] for line in data.skipped}
    assert reasons["lost"] == "it has no mask"
    assert reasons["small"] == "its mask is 20x15, the image 40x30"
    assert reasons["torn"].startswith("its mask: UnidentifiedImageError")


def test_a_folder_without_masks_says_what_is_missing(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"needs .*masks"):
        load(f"masked:{tmp_path}", PLAIN)


# -- annotation files --------------------------------------------------------------------------------------------------------


def annotated(root: Path, name: str, *boxes: tuple[Any, ...], body: str | None = None) -> None:
    picture(root / "JPEGImages" / f"{name}.jpg")
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><bndbox>{''.join(f'<{s}>{v}</{s}>' for s, v in zip(sides, box, strict=False))}</bndbox></object>"
        for box in boxes
    )
    file = root / "Annotations" / f"{name}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(body or f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>")


def test_boxes_of_voc_count_from_one_and_hold_their_last_pixel(tmp_path: Path) -> None:
    annotated(tmp_path, "a", (11, 7, 20, 24))
    annotated(tmp_path, "b", (11, 7, 15, 24), ("16", "7.0", "20", "24"))
    annotated(tmp_path, "c")
    annotated(tmp_path, "d-outside", (11, 7, 60, 24))
    annotated(tmp_path, "e-reversed", (20, 7, 11, 24))
    annotated(tmp_path, "f-short", (11, 7))
    annotated(tmp_path, "g-torn", body="<annotation><filename>g.jpg")
    annotated(tmp_path, "h-words", ("left", 7, 20, 24))
    annotated(tmp_path, "i-gone", (11, 7, 20, 24))
    (tmp_path / "JPEGImages" / "i-gone.jpg").unlink()
    data = load(f"voc:{tmp_path}", PLAIN)
    assert data.names == ("a", "b", "c")
    assert data.masks is not None
    assert_on_the_box(data.taken(torch.tensor([0, 1])))
    assert not bool(data.masks[2].any()), "no box, no mask"
    reasons = {Path(line.partition(": ")[0]).stem: line for line in data.skipped}
    assert {name[0] for name in reasons} == set("defghi")
    assert "outside the image of (40, 30)" in reasons["d-outside"]
    assert "ParseError" in reasons["g-torn"]
    full = load(f"voc:{tmp_path}", lambda image: torch.zeros(3, 30, 40))
    assert full.masks is not None
    wanted = torch.zeros(30, 40, dtype=torch.bool)
    wanted[6:24, 10:20] = True
    assert torch.equal(full.masks[0], wanted), "to the pixel"
    with pytest.raises(FileNotFoundError, match=r"no annotations .*Annotations"):
        load(f"voc:{tmp_path / 'JPEGImages'}", PLAIN)


def test_polygons_of_coco(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / "images" / f"{name}.png")
    around = [10, 6, 19, 6, 19, 23, 10, 23]
    about = {
        "images": [{"id": index, "file_name": f"val/{name}.png"} for index, name in enumerate("abcd")]
        + [{"id": 9, "file_name": "gone.png"}],
        "annotations": [
            {"image_id": 0, "segmentation": [around]},
            {"image_id": 1, "segmentation": [[10, 6, 19, 6, 19, 14, 10, 14]]},
            {"image_id": 1, "segmentation": [[10, 15, 19, 15, 19, 23, 10, 23], [1, 2, 3, 4]]},
            {"image_id": 2, "segmentation": {"counts": [1, 2], "size": [30, 40]}},
        ],
    }
    file = tmp_path / "about.json"
    file.write_text(json.dumps(about))
    data = load(f"coco:{file}@{tmp_path / 'images'}", PLAIN)
    assert data.names == ("a", "b", "c", "d")
    assert data.masks is not None
    assert_on_the_box(data.taken(torch.tensor([True, True, False, False])))
    assert not bool(data.masks[2:].any()), "crowds and images without objects have no mask"
    assert "gone.png" in data.skipped[0]
    for damage in ("{", "[]", '{"images": []}', '{"images": [{}], "annotations": [{"image_id": "x"}]}'):
        file.write_text(damage)
        with pytest.raises(ValueError, match="not a COCO file of instances"):
            load(f"coco:{file}@{tmp_path / 'images'}", PLAIN)
    with pytest.raises(ValueError, match=r"coco:annotations\.json@folder"):
        load(f"coco:{file}", PLAIN)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load(f"coco:{tmp_path / 'none.json'}@{tmp_path}", PLAIN)


# -- torchvision's ---------------------------------------------------------------------------------------------------------


def test_pets_are_their_animal_without_its_border(tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "beagle_2"):
        picture(root / "images" / f"{name}.jpg")
        marks = np.full((30, 40), 2, np.uint8)
        marks[5:25, 9:21] = 3
        marks[6:24, 10:20] = 1
        (root / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
        Image.fromarray(marks).save(root / "annotations" / "trimaps" / f"{name}.png")
    (root / "annotations" / "test.txt").write_text("Abyssinian_1 1 1 1\nbeagle_2 5 2 1\nlost_3 6 2 1\n")
    data = load(f"pets:{tmp_path}", PLAIN)
    assert len(data) == 2
    assert_on_the_box(data)
    assert "OxfordIIITPet 2" in data.skipped[0]


def test_segmentations_of_voc_leave_out_border_and_background(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    picture(root / "JPEGImages" / "one.jpg")
    marks = np.zeros((30, 40), np.uint8)
    marks[5:25, 9:21] = 255
    marks[6:15, 10:20], marks[15:24, 10:20] = 3, 12
    image = Image.fromarray(marks).convert("P")
    image.putdata(marks.flatten())
    (root / "SegmentationClass").mkdir()
    image.save(root / "SegmentationClass" / "one.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("one\n")
    assert_on_the_box(load(f"voc-segmentation:{tmp_path}", PLAIN))


def test_imagenette_has_no_masks(tmp_path: Path) -> None:
    for index, folder in enumerate(("n01440764", "n02102040")):
        picture(tmp_path / "imagenette2" / "val" / folder / f"{index}.jpeg")
    data = load(f"imagenette:{tmp_path}", PLAIN)
    assert len(data) == 2
    assert data.masks is None
    assert data.targets is None, "its ten classes are not the model's"


@pytest.mark.parametrize("kind", ["pets", "voc-segmentation", "imagenette"])
def test_what_is_not_there_is_not_fetched_unasked(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"not below .*; add --download"):
        load(f"{kind}:{tmp_path}", PLAIN)


# -- names that mean nothing -------------------------------------------------------------------------------------------------


def test_unknown_kinds_name_near_ones_and_empty_folders_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'foldr'; did you mean folder"):
        load("foldr:photos", PLAIN)
    with pytest.raises(ValueError, match=r"did you mean .*bird"):
        load("brids:20", PLAIN)
    with pytest.raises(ValueError, match="holds no images"):
        load(f"folder:{tmp_path}", PLAIN)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images; 1 could not be read, the first: .*a\.png"):
        load(f"folder:{tmp_path}", PLAIN)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load(str(tmp_path / "nowhere"), PLAIN)
    with pytest.raises(ValueError, match="whole number, got 'many'"):
        load("digits:many", PLAIN)


def test_sets_whose_parts_do_not_belong_together_are_refused() -> None:
    images, names = torch.zeros(2, 3, 4, 5), ("a", "b")
    fitting: dict[str, Any] = {"targets": torch.zeros(2, dtype=torch.int64), "masks": torch.zeros(2, 4, 5).bool()}
    assert len(ImageSet(images, names, **fitting)) == 2
    for wrong in (
        {"masks": torch.zeros(2, 4, 5)},
        {"masks": torch.zeros(2, 5, 4).bool()},
        {"parts": torch.zeros(1, 4, 5).bool()},
        {"targets": torch.zeros(3, dtype=torch.int64)},
        {"rivals": torch.zeros(2, 1, dtype=torch.int64)},
        {"names": ("a",)},
    ):
        with pytest.raises(ValueError, match=r"must be|names for"):
            ImageSet(**({"images": images, "names": names} | wrong))
    with pytest.raises(ValueError, match="N of at least one"):
        ImageSet(torch.zeros(0, 3, 4, 5), ())


def test_some_of_a_set_keep_what_is_theirs() -> None:
    count = torch.arange(4)
    masks = count[:, None, None] == torch.arange(16).reshape(4, 4)
    data = ImageSet(
        count.float().reshape(4, 1, 1, 1).expand(-1, 1, 4, 4), tuple("abcd"), count, masks, ~masks, 9 - count
    )
    for rows in (torch.tensor([3, 1]), torch.tensor([False, True, False, True])):
        some = data.taken(rows)
        order = [3, 1] if rows.dtype == torch.int64 else [1, 3]
        assert some.names == tuple("abcd"[i] for i in order)
        assert some.images[:, 0, 0, 0].tolist() == order
        assert some.targets is not None
        assert some.targets.tolist() == order
        assert some.rivals is not None
        assert some.rivals.tolist() == [9 - i for i in order]
        assert torch.equal(some.masks, masks[order])  # type: ignore[arg-type]
        assert torch.equal(some.parts, ~masks[order])  # type: ignore[arg-type]


# -- drawn by ourselves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["digits", "two-digits", "digit-mosaics", "birds", "bird-pairs", "digits-train", "birds-train"]
)
def test_drawn_sets_are_the_same_each_time_as_many_as_asked_and_masked(kind: str) -> None:
    data, again = load(f"{kind}:7", PLAIN), load(f"{kind}:7", PLAIN)
    assert len(data) == len(set(data.names)) == 7
    assert torch.equal(data.images, again.images)
    assert len(load(f"{kind}:7", PLAIN, limit=3)) == 3
    assert data.targets is not None
    assert data.masks is not None
    shares = data.masks.flatten(1).float().mean(dim=1)
    assert 0.005 < float(shares.min()) <= float(shares.max()) < 0.5
    if kind.startswith(("digits", "two")):
        assert all(float(x[0][m].mean()) > 0.4 for x, m in zip(data.images, data.masks, strict=True)), "ink"


def test_to_learn_from_and_to_be_tested_on_are_different_drawings() -> None:
    for kind in ("digits", "birds"):
        learned, tested = load(f"{kind}-train:6", PLAIN).images, load(f"{kind}:6", PLAIN).images
        assert float((learned[:, None] - tested[None]).abs().amax(dim=(2, 3, 4)).min()) > 0.05
    with pytest.raises(ValueError, match="digits-train"):
        load("digits:9", PLAIN, held_out=3)


def test_two_digits_are_asked_about_in_turn() -> None:
    data = load("two-digits:6", PLAIN)
    assert data.names[:2] == ("0, left", "0, right")
    assert torch.equal(data.images[0::2], data.images[1::2])
    assert data.masks is not None
    assert data.targets is not None
    assert not bool((data.masks[0::2] & data.masks[1::2]).any())
    left, right = (columns(data.masks[start::2]) for start in (0, 1))
    assert bool((left < right).all())
    assert bool((data.targets[0::2] != data.targets[1::2]).all())


def columns(masks: Tensor) -> Tensor:
    """Their middle column (N,)."""
    return (masks.float().sum(dim=1) * torch.arange(masks.shape[2])).sum(dim=1) / masks.flatten(1).sum(dim=1)


def test_mosaics_are_asked_about_one_cell_after_the_other() -> None:
    data = load("digit-mosaics:5", PLAIN)
    assert data.masks is not None
    assert [mask.float().mean().item() for mask in data.masks] == [0.25] * 5
    assert bool((data.masks[:4].sum(dim=0) == 1).all())
    assert torch.equal(data.masks[0], data.masks[4])


def test_pairs_of_birds_differ_in_the_part_that_is_marked() -> None:
    data = load("bird-pairs:12", PLAIN)
    assert data.targets is not None
    assert data.rivals is not None
    assert data.masks is not None
    assert data.parts is not None
    for own, other in zip(data.targets.tolist(), data.rivals.tolist(), strict=True):
        assert len(parts_between(own, other)) == 1
    assert len(set(data.rivals.tolist())) > 3
    assert int(data.rivals.max()) < len(SPECIES)
    assert bool(data.parts.flatten(1).any(dim=1).all())
    assert not bool((data.parts & ~data.masks).any())
    assert float(data.parts.float().mean()) < 0.5 * float(data.masks.float().mean())


def test_photographs_are_turned_as_the_camera_noted(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # white on the left
    noted = Image.Exif()
    noted[0x0112] = 6  # to be turned clockwise: the left is the top
    Image.fromarray(pixels).save(tmp_path / "one.png", exif=noted)
    image = load(str(tmp_path), square(16, (0.0,) * 3, (1.0,) * 3)).images[0]
    assert float(image[:, :6].min()) > 0.9
    assert float(image[:, 10:].max()) < 0.1
