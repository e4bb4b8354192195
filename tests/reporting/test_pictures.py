"""Drawn detections, sheets, curves: what can be measured in them, and that files are whole."""

import csv
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densenet_backbones.data.categories import Categories
from densenet_backbones.metrics.coco import format_coco_results
from densenet_backbones.metrics.coco_evaluation import evaluate_coco
from densenet_backbones.metrics.voc import VocClass, VocEvaluation
from densenet_backbones.reporting import pictures
from densenet_backbones.reporting.colors import get_class_color
from densenet_backbones.reporting.instance_pictures import draw_beside_ground_truth
from densenet_backbones.reporting.pictures import draw_detections, make_sheet, save_picture
from densenet_backbones.reporting.plots import (
    _find_steps_per_epoch,
    plot_confidence_curves,
    plot_confusion,
    plot_pr_curves,
    plot_training_curves,
)

NAMES = ("ant", "bee", "a very long name of a class that no small image has room for")


def gray(height, width, value=128):
    return np.full((height, width, 3), value, np.uint8)


def drawn_on(image, *rows, scores=True):
    """Draw rows (x1, y1, x2, y2, label, score)."""
    rows = np.array(rows, float).reshape(-1, 6)
    return draw_detections(image, rows[:, :4], rows[:, 4], NAMES, rows[:, 5] if scores else None)


@pytest.mark.parametrize("side", [160, 640, 2000])
def test_a_box_is_where_it_belongs_in_its_class_color(side):
    image = gray(side, side)
    box = np.array([0.3, 0.4, 0.8, 0.9]) * side
    result = drawn_on(image, (*box, 2, 0.5))
    assert (image == 128).all()  # the image given is left alone
    colored = (result == get_class_color(2)).all(axis=2)
    y, x = int(0.65 * side), int(0.55 * side)
    columns, rows = np.flatnonzero(colored[y]), np.flatnonzero(colored[:, int(0.75 * side)])
    thickness = max(1, round(side / 240))
    assert columns.min() == round(box[0])
    assert columns.max() == round(box[2]) - 1
    assert rows.max() == round(box[3]) - 1
    assert len(columns) == 2 * thickness
    assert (result[y, x] == 128).all()  # nothing inside
    assert (result[: int(0.2 * side)] == 128).all()  # and nothing far away


@pytest.mark.parametrize("side", [160, 2000])
def test_the_label_is_readable_and_grows_with_the_image(side):
    box = np.array([0.3, 0.4, 0.8, 0.9]) * side
    above = int(box[1]) - max(1, side // 240)
    changed = (drawn_on(gray(side, side), (*box, 1, 0.5))[:above] != 128).any(axis=2)
    height = np.flatnonzero(changed.any(axis=1))
    assert height.max() - height.min() + 1 >= max(9, side // 50)
    unscored = drawn_on(gray(side, side), (*box, 1, 0.5), scores=False)[:above]
    assert (unscored != 128).any(axis=2).sum() < changed.sum()  # the score takes room


corner = st.floats(-40, 130)
found = st.lists(
    st.tuples(corner, corner, corner, corner, st.integers(1, 3), st.floats(0, 1)), max_size=12
)


@settings(max_examples=60)
@given(found, st.integers(1, 120), st.integers(1, 120), st.booleans())
def test_anything_can_be_drawn(rows, height, width, scores):
    rows = [(min(a, c), min(b, d), max(a, c), max(b, d), k, s) for a, b, c, d, k, s in rows]
    result = drawn_on(gray(height, width), *rows, scores=scores)
    assert result.shape == (height, width, 3)
    assert result.dtype == np.uint8


@pytest.mark.parametrize("label", [1, 3])
@pytest.mark.parametrize("place", [(0, 0), (150, 0), (0, 150), (150, 150), (150, 80), (-30, -30)])
def test_labels_stay_inside_the_image(label, place, monkeypatch):
    tags = []
    original = pictures._draw_tag
    monkeypatch.setattr(
        pictures, "_draw_tag", lambda o, tag, c, f: (tags.append(tag), original(o, tag, c, f))
    )
    x, y = place
    drawn_on(gray(160, 160), (x, y, x + 10, y + 10, label, 0.5))
    (tag,) = tags
    left, top, right, bottom = tag.place
    assert left >= 0
    assert top >= 0
    assert right <= 160
    assert bottom <= 160
    assert tag.text.endswith("0.50")
    assert tag.text.startswith("a very long…" if label == 3 else "ant") or "…" in tag.text


def test_labels_of_neighbors_do_not_cover_each_other(monkeypatch):
    tags = []
    monkeypatch.setattr(pictures, "_draw_tag", lambda o, tag, c, f: tags.append(tag))
    drawn_on(gray(300, 300), *[(50, 100 + 2 * i, 150, 200, 1, 0.9 - i / 10) for i in range(4)])
    assert len(tags) == 4
    for i, a in enumerate(tags):
        for b in tags[:i]:
            assert pictures._measure_covered(np.array([a.place]), np.array([b.place])) == 0
    tags.clear()
    drawn_on(gray(300, 300), *[(50, 100, 150, 200, 1, 0.9)] * 40)
    assert 4 <= len(tags) < 40  # a crowd: boxes without names instead of names upon names


def test_the_image_and_the_labels_are_checked():
    for image in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\)"):
            draw_detections(image, np.zeros((0, 4)), np.zeros(0), NAMES)
    for label in (0, 4):
        with pytest.raises(ValueError, match=r"labels must lie in \[1, 3\]"):
            drawn_on(gray(9, 9), (0, 0, 5, 5, label, 1))


def test_class_colors_differ():
    colors = np.array([get_class_color(label) for label in range(1, 21)], float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    assert distances[~np.eye(20, dtype=bool)].min() > 20
    assert np.diagonal(distances, 1).min() > 100  # neighboring labels differ most


@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=7),
    st.one_of(st.none(), st.integers(1, 5)),
    st.booleans(),
)
@settings(max_examples=40)
def test_a_montage_holds_every_image(sizes, columns, titled):
    images = [gray(h, w, 10 * i) for i, (h, w) in enumerate(sizes, start=1)]
    sheet = make_sheet(images, columns, ["title"] * len(images) if titled else None)
    for i in range(1, len(images) + 1):
        assert (sheet == 10 * i).all(axis=2).any()
    if columns:
        per_row = min(columns, len(images))
        assert sheet.shape[1] == per_row * (min(480, max(w for _, w in sizes)) + 8) + 8
    assert (sheet[:8] == 255).all()
    assert (sheet[:, :8] == 255).all()


def test_a_montage_keeps_images_of_one_size_as_they_are():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (50, 70, 3), np.uint8) for _ in range(3)]
    sheet = make_sheet(images, columns=2)
    assert sheet.shape == (2 * 58 + 8, 2 * 78 + 8, 3)
    assert (sheet[8:58, 86:156] == images[1]).all()
    assert (sheet[66:116, 8:78] == images[2]).all()
    assert (make_sheet([]) == 255).all()
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        make_sheet(images, 0)
    with pytest.raises(ValueError, match="3 images but 1 titles"):
        make_sheet(images, titles=["one"])


def test_ground_truth_stands_beside_predictions():
    boxes, labels = np.array([[20.0, 20, 60, 60]]), np.array([1])
    sheet = draw_beside_ground_truth(
        [gray(80, 80)] * 2, [(boxes, labels)] * 2, [(boxes, labels + 1, np.array([0.9]))] * 2, NAMES
    )
    half = sheet.shape[1] // 2
    left, right = sheet[:, :half], sheet[:, half:]
    assert (left == get_class_color(1)).all(axis=2).any()
    assert not (left == get_class_color(2)).all(axis=2).any()
    assert (right == get_class_color(2)).all(axis=2).any()
    assert sheet.shape[1] == 2 * (320 + 8) + 8  # small images are shown enlarged
    with pytest.raises(ValueError, match="2 images, 1 ground truths and 0 predictions"):
        draw_beside_ground_truth([gray(8, 8)] * 2, [(boxes, labels)], [], NAMES)
    assert draw_beside_ground_truth([], [], [], NAMES).size


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "picture.png"
    image = np.random.default_rng(0).integers(0, 255, (9, 11, 3), np.uint8)
    save_picture(path, image)
    assert (np.array(Image.open(path)) == image).all()

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_picture(path, image * 0)
    assert (np.array(Image.open(path)) == image).all()
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


# --- curves and matrices -----------------------------------------------------------------------


def pixels(path):
    return np.array(Image.open(path).convert("RGB"))


def has_color(path, color):
    return (np.abs(pixels(path).astype(int) - color).max(axis=2) < 3).any()


def test_pr_curves_show_each_class_with_objects(tmp_path):
    # Names that matplotlib would take for a formula or hide.
    categories = Categories(("$x_{1$", "_bee", "cat"), (1, 2, 3))
    truth = {
        "images": [{"id": 1, "height": 99, "width": 99}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": [30 * i, 5, 20, 20]} for i in (1, 2)
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(categories.names, start=1)],
    }
    boxes = np.array([[30, 5, 50, 25], [0, 60, 9, 80], [60, 5, 80, 20]], float)
    prediction = {
        "boxes": boxes,
        "labels": np.array([1, 2, 2]),
        "scores": np.array([0.9, 0.8, 0.7]),
    }
    results = format_coco_results([{"image_id": 1, **prediction}], categories)
    plot_pr_curves(evaluate_coco(truth, results), tmp_path / "pr.png")
    assert has_color(tmp_path / "pr.png", get_class_color(2))
    assert not has_color(tmp_path / "pr.png", get_class_color(3))  # it has no object
    plot_pr_curves(evaluate_coco(truth, [], image_ids=[]), tmp_path / "empty.png")
    assert pixels(tmp_path / "empty.png").size


def voc_class(name, right, objects):
    right = np.array(right, float)
    scores = np.linspace(0.9, 0.1, len(right))
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return VocClass(name, objects, 0.5, 0.5, np.cumsum(right) / max(objects, 1), precision, scores)


def test_confidence_curves(tmp_path):
    classes = (voc_class("ant", [1, 1, 0, 1], 4), voc_class("bee", [], 2), voc_class("cat", [0], 0))
    plot_confidence_curves(VocEvaluation(classes, 0.5, 3), tmp_path / "curves.png", 0.45)
    assert has_color(tmp_path / "curves.png", get_class_color(1))
    assert not has_color(tmp_path / "curves.png", get_class_color(3))
    plot_confidence_curves(VocEvaluation(classes[2:], 0.5, 3), tmp_path / "none.png")
    many = tuple(voc_class(f"class {i}", [1, 0], 2) for i in range(90))
    plot_confidence_curves(VocEvaluation(many, 0.5, 3), tmp_path / "many.png")


@pytest.mark.parametrize("classes", [1, 5, 40])
def test_confusion_matrices_of_any_size(classes, tmp_path):
    matrix = np.random.default_rng(0).integers(0, 9, (classes + 1, classes + 1))
    matrix[0] = 0  # a class without objects
    names = [f"class {i}" for i in range(classes)]
    plot_confusion(matrix, names, tmp_path / "confusion.png")
    height, width, _ = pixels(tmp_path / "confusion.png").shape
    assert width > height > 200
    with pytest.raises(ValueError, match=f"must be {classes + 1} x {classes + 1} for {classes}"):
        plot_confusion(matrix[1:], names, tmp_path / "other.png")


def test_training_curves_from_a_csv_logger(tmp_path):
    fields = ["epoch", "step", "lr", "train/loss", "train/class", "val/AP", "val/AP50"]
    with open(tmp_path / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for step in range(40):
            row = {"epoch": step // 10, "step": step}
            writer.writerow(row | {"lr": 0.1, "train/loss": 90 / (1 + step), "train/class": 1})
            if step % 10 == 9:
                writer.writerow(row | {"val/AP": step / 100, "val/AP50": "nan"})
    plot_training_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert has_color(tmp_path / "curves.png", (0, 0, 0))
    assert has_color(tmp_path / "curves.png", get_class_color(1))
    (tmp_path / "metrics.csv").write_text("epoch,step,lr\n")
    plot_training_curves(tmp_path / "metrics.csv", tmp_path / "nothing.png")
    assert not has_color(tmp_path / "nothing.png", get_class_color(1))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: has no columns 'epoch' and 'step'"):
        plot_training_curves(tmp_path / "other.csv", tmp_path / "x.png")


@given(st.integers(1, 50), st.integers(1, 6), st.integers(1, 20))
def test_the_steps_of_an_epoch_are_found_from_the_log(steps, epochs, every):
    logged = sorted(
        {*range(every - 1, steps * epochs, every), *range(steps - 1, steps * epochs, steps)}
    )
    rows = np.array(logged, float)
    assert _find_steps_per_epoch(rows // steps, rows) == steps
