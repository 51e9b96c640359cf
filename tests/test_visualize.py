"""What the pictures show, not how they look: axes, scales, frames, and refusals."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toy_task import CLASSES, TinyNet, nothing_changes

from captum_attnkd import AttentiveKDAttribution, InputError, MissingExtraError, NotFittedError, visualize
from captum_attnkd.drawing import display, write_gif

NAMES = ["red", "green", "blue", "yellow"]


def titles(figure: Any) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


def rows_of(figure: Any, rows: int) -> list[list[Any]]:
    axes = figure.axes
    return [axes[row * len(axes) // rows : (row + 1) * len(axes) // rows] for row in range(rows)]


def scales(axes: list[Any], word: str) -> set[tuple[float, float]]:
    """The scales of those axes whose title begins with a word."""
    found = {axis.images[-1].get_clim() for axis in axes if axis.get_title().startswith(word)}
    assert found, f"no title begins with {word!r}"
    return found


# -- look --------------------------------------------------------------------------------------------------------------


def test_a_look_tells_what_the_levels_see(fitted: AttentiveKDAttribution, model: TinyNet, images: Tensor) -> None:
    look = fitted.look(images, 2)
    assert look.target.tolist() == [2] * len(images)
    torch.testing.assert_close(look.probabilities, model(images).softmax(dim=1).detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(look.asked, look.probabilities[:, 2])
    assert [tuple(level.shape) for level in look.attention] == [tuple(level.shape) for level in look.evidence]
    assert all(len(level) == len(images) and level.shape[1] == 1 for level in look.attention)


def test_evidence_adds_up_to_the_levels_score(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    seen, _ = fitted.surrogate.student(images)
    for level, logits in zip(fitted.look(images, 1).evidence, seen.level_logits, strict=True):
        torch.testing.assert_close(level.mean(dim=(1, 2, 3)), logits[:, 1], atol=1e-4, rtol=1e-4)


def test_a_look_without_a_class_is_at_the_predicted_one(compact: AttentiveKDAttribution, images: Tensor) -> None:
    look = compact.look(images)
    assert torch.equal(look.target, look.probabilities.argmax(dim=1))


# -- panel -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_a_panel_has_a_row_an_image(fitted: AttentiveKDAttribution, images: Tensor, count: int) -> None:
    levels = len(fitted.look(images[:1]).attention)
    assert len(visualize.panel(fitted, images[:count]).axes) == count * (4 + levels)
    assert len(visualize.panel(fitted, images[:count], target=0, versus=1).axes) == count * (5 + levels)


def test_a_panel_names_classes_and_tells_probabilities(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    look = fitted.look(images[:2])
    named = [NAMES[index] for index in look.target.tolist()]
    rows = rows_of(visualize.panel(fitted, images[:2], names=NAMES), 2)
    for row, name, probability in zip(rows, named, look.asked.tolist(), strict=True):
        assert row[0].get_title() == f"{name}: {probability:.2f}"
        assert row[1].get_title() == f"why {name}?"
        assert row[-1].get_yticklabels()[0].get_text() == name
        widths = [bar.get_width() for bar in row[-1].patches]
        assert widths == sorted(widths, reverse=True)
        assert len(widths) == CLASSES  # fewer classes than `most`


def test_long_names_are_shortened_so_that_titles_do_not_overlap(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    names = [f"a class with the long name {index}" for index in range(CLASSES)]
    figure = visualize.panel(fitted, images[:1], target=0, versus=1, names=names)
    figure.savefig(io.BytesIO())  # which places the titles
    boxes = [axis.title.get_window_extent() for axis in figure.axes if axis.get_title()]
    assert len(boxes) > 5
    assert all(one.x1 <= other.x0 for one, other in pairwise(sorted(boxes, key=lambda box: box.x0)))


def test_attention_has_one_scale_a_row_and_masks_run_from_0_to_1(
    fitted: AttentiveKDAttribution, images: Tensor
) -> None:
    look = fitted.look(images[:3])
    rows = rows_of(visualize.panel(fitted, images[:3], target=0, versus=1, names=NAMES), 3)
    for index, row in enumerate(rows):
        ((low, high),) = scales(row, "attention")
        assert low == 0
        assert high == pytest.approx(max(float(level[index].max()) for level in look.attention))
        assert scales(row, "why red?") == {(0, 1)}
        assert scales(row, "red,\nnot green?") == {(-1, 1)}


def test_what_a_mask_keeps_is_shown_and_the_rest_is_the_mean_colour(
    fitted: AttentiveKDAttribution, images: Tensor
) -> None:
    mean, deviation = 0.5, 0.2
    figure = visualize.panel(fitted, images[:1], mean=mean, deviation=deviation)
    whole, kept = (np.asarray(figure.axes[place].images[0].get_array()) for place in (0, 2))
    inside = (fitted.saliency(images[:1])[0, 0] >= visualize.BORDER).numpy()
    assert 0 < inside.mean() < 1
    np.testing.assert_allclose(kept[inside], whole[inside], atol=1e-6)
    colour = (fitted.look(images[:1]).mean * deviation + mean).clamp(0, 1).numpy()
    np.testing.assert_allclose(kept[~inside], np.broadcast_to(colour, kept[~inside].shape), atol=1e-6)


def test_a_contrast_has_the_sign_of_the_favoured_class(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    forth, back = (
        np.asarray(visualize.panel(fitted, images[:1], target=a, versus=b).axes[3].images[-1].get_array())
        for a, b in ((0, 1), (1, 0))
    )
    assert np.abs(forth).max() > 0.1
    np.testing.assert_allclose(forth, -back, atol=1e-5)


def test_doubt_is_shown(fitted: AttentiveKDAttribution, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visualize.panel(fitted, images[:1]).axes[-1].get_xlabel().startswith("trust 0.")
    good = fitted.trust(images[:1])
    for changed, says in (
        ({"score": torch.tensor([0.4])}, "distrust 0.40\ntop quarter alone"),
        ({"whole": torch.tensor([0.03])}, "the class is hardly seen: 0.03\ntop quarter alone"),
    ):
        monkeypatch.setattr(fitted, "trust", lambda *_, changed=changed: replace(good, **changed))
        label = visualize.panel(fitted, images[:1]).axes[-1].xaxis.label
        assert label.get_text().startswith(says)
        assert label.get_color() == visualize.drawing.DOUBT
    doubtful = replace(good, agrees=torch.tensor([False]))
    monkeypatch.setattr(fitted, "trust", lambda *_: doubtful)
    assert visualize.panel(fitted, images[:1], names=NAMES).axes[-1].get_xlabel() == "distrust: surrogate disagrees"


def test_a_picture_leaves_model_and_process_as_they_were(
    fitted: AttentiveKDAttribution, session_model: TinyNet, images: Tensor, tmp_path: Path
) -> None:
    with nothing_changes(session_model):
        visualize.panel(fitted, images[:1], target=0, versus=1)
        visualize.levels(fitted, images[:1])
        visualize.deletion_gif(fitted, images[0], tmp_path / "a.gif", steps=2)


def test_one_channel_and_a_compact_student(
    captum_fitted: AttentiveKDAttribution, captum_images: Tensor, compact: AttentiveKDAttribution, images: Tensor
) -> None:
    figure = visualize.panel(captum_fitted, captum_images[:2], target=[1, 2], versus=0)
    assert figure.axes[0].images[0].get_array().shape == captum_images.shape[-2:]
    assert len(visualize.panel(compact, images[:1]).axes) == 4 + len(compact.look(images[:1]).attention)


# -- levels ------------------------------------------------------------------------------------------------------------


def test_levels_have_two_rows_an_image_and_one_scale_a_row(fitted: AttentiveKDAttribution, images: Tensor) -> None:
    figure = visualize.levels(fitted, images[:2], target=1, names=NAMES)
    rows = rows_of(figure, 4)
    assert {len(row) for row in rows} == {1 + len(fitted.look(images[:1]).attention)}
    for attention, evidence in zip(rows[::2], rows[1::2], strict=True):
        assert len(scales(attention, "attention")) == 1
        ((low, high),) = scales(evidence, "evidence")
        assert low == -high < 0
        assert max(np.abs(axis.images[-1].get_array()).max() for axis in evidence[1:]) == pytest.approx(high)


# -- deletion ----------------------------------------------------------------------------------------------------------


def test_a_gif_has_a_frame_a_step_and_the_image_vanishes_by_rank(
    fitted: AttentiveKDAttribution, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    frames = visualize.drawing.frames

    def watched(pictures: list[Any], curve: list[float], title: str) -> Any:
        drawn.update(pictures=pictures, curve=curve)
        return frames(pictures, curve, title)

    monkeypatch.setattr(visualize.drawing, "frames", watched)
    visualize.deletion_gif(fitted, images[0], tmp_path / "deletion.gif", 2, steps=8)
    with Image.open(tmp_path / "deletion.gif") as animation:
        assert animation.n_frames == 9
    order = fitted.saliency(images[:1], 2).flatten().argsort(descending=True, stable=True)
    for step, picture in enumerate(drawn["pictures"]):
        changed = (picture != drawn["pictures"][0]).any(axis=-1).flatten()
        count = round(step * len(order) / 8)
        assert changed[order[:count]].all()
        assert not changed[order[count:]].any()
    assert drawn["curve"][0] == pytest.approx(float(fitted.look(images[:1], 2).asked), abs=1e-5)


def test_the_probability_falls_first_where_the_map_is_right(
    fitted: AttentiveKDAttribution, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves: list[list[float]] = []
    monkeypatch.setattr(visualize.drawing, "frames", lambda pictures, curve, title: curves.append(curve) or [])
    monkeypatch.setattr(visualize.drawing, "write_gif", lambda *_: None)
    for image in images:
        visualize.deletion_gif(fitted, image, tmp_path / "none.gif", steps=5)
    mean = np.mean(curves, axis=0)
    assert mean[1] < mean[0] - 0.3


def test_a_failure_leaves_the_older_file_and_no_half_one(
    fitted: AttentiveKDAttribution, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deletion.gif"
    path.write_bytes(b"older")

    def fails_midway(pictures: Any, draft: Path, milliseconds: int) -> None:
        write_gif(pictures, draft, milliseconds)
        raise OSError("no space left")

    monkeypatch.setattr(visualize.drawing, "write_gif", fails_midway)
    with pytest.raises(OSError, match="no space"):
        visualize.deletion_gif(fitted, images[0], path, steps=1)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


# -- how images are shown ------------------------------------------------------------------------------------------------


def test_images_are_shown_as_before_they_were_normalised() -> None:
    plain = torch.rand(2, 3, 5, 7)
    mean, deviation = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    normal = (plain - mean[:, None, None]) / deviation[:, None, None]
    for shown, wanted in zip(display(normal, mean, deviation.tolist())(normal), plain, strict=True):
        np.testing.assert_allclose(shown, wanted.permute(1, 2, 0), atol=1e-6)


def test_images_in_unit_range_are_shown_as_they_are_and_others_stretched_one_by_one() -> None:
    unit = torch.rand(2, 1, 4, 4) * 0.5
    np.testing.assert_array_equal(display(unit, None, None)(unit)[1], unit[1, 0])
    far = torch.stack([unit[0], unit[1] * 30 - 7])
    shown = display(far, None, None)
    for picture in shown(far):
        assert picture.min() == pytest.approx(0, abs=1e-5)
        assert picture.max() == pytest.approx(1, abs=1e-5)
    # What is made of an image is shown on the image's own scale.
    assert shown((far + far.amin()) / 2)[1].max() < 0.9


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"names": ["only", "two"]}, "names must be 4"),
        ({"names": "abcd"}, "names must be 4"),
        ({"mean": 0.5}, "belong together"),
        ({"mean": [0.1, 0.2], "deviation": 1.0}, "mean has 2 numbers"),
        ({"mean": 0.1, "deviation": 0.0}, "positive"),
        ({"mean": "grey", "deviation": 1.0}, "must be numbers"),
        ({"target": 9}, "classes 0 to 3"),
        ({"versus": 9}, "classes 0 to 3"),
        ({"target": 1, "versus": 1}, "rival"),
        ({"most": 0}, "most"),
        ({"most": 2.5}, "most"),
    ],
)
def test_a_panel_refuses_in_one_line(
    fitted: AttentiveKDAttribution, images: Tensor, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as raised:
        visualize.panel(fitted, images[:2], **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 24, 24), torch.zeros(1, 1, 24, 24), "image", torch.zeros(0, 3, 24, 24)]
)
def test_wrong_images_are_refused(fitted: AttentiveKDAttribution, wrong: Any, tmp_path: Path) -> None:
    for draw in (visualize.panel, visualize.levels):
        with pytest.raises(InputError):
            draw(fitted, wrong)
    if not (isinstance(wrong, Tensor) and wrong.shape == (3, 24, 24)):  # which is an image
        with pytest.raises(InputError):
            visualize.deletion_gif(fitted, wrong, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_too_much_for_a_figure_is_refused(fitted: AttentiveKDAttribution, images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too many"):
        visualize.levels(fitted, images[:1].repeat(visualize.MOST_ROWS + 1, 1, 1, 1))
    for steps in (0, -1, 10**6, True, 1.5):
        with pytest.raises(InputError, match="steps"):
            visualize.deletion_gif(fitted, images[0], tmp_path / "a.gif", steps=steps)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one image"):
        visualize.deletion_gif(fitted, images[:2], tmp_path / "a.gif")


def test_nothing_is_drawn_before_a_fit(images: Tensor) -> None:
    with pytest.raises(NotFittedError):
        visualize.panel(AttentiveKDAttribution(nn.Identity()), images)


def test_what_is_not_installed_is_named(
    fitted: AttentiveKDAttribution, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"Pillow: pip install 'captum-attnkd\[visualize\]'"):
        visualize.deletion_gif(fitted, images[0], tmp_path / "a.gif", steps=1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        visualize.panel(fitted, images[:1])
