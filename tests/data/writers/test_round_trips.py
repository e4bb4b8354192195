"""Data written in another layout is read again as it was."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instance_sets import KEYPOINTS, write_instances
from mask_sets import masks, some_masks, write_camvid, write_coco, write_voc
from PIL import Image

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.instances import read_instances
from densenet_backbones.data.readers.coco.boxes import read_coco
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.writers.writing import WRITERS, write_data_set

NAMES = ("cat", "dog & <cat>", "100 %", "épée: 'x', \"y\"")


def describe(data):
    """Names and boxes of each image, in the order of the images' names."""
    return [
        (
            record.path.stem,
            (record.width, record.height),
            [data.categories.names[label - 1] for label in record.labels],
            record.boxes.tolist(),
        )
        for record in sorted(data.records, key=lambda record: record.path.name)
    ]


@st.composite
def boxes(draw, width, height):
    """A float32 box that is more than a pixel wide and high, as VOC's are."""
    sides = []
    for side in (width, height):
        low = draw(st.floats(0.0078125, side - 2, width=32) | st.integers(0, side - 2))
        high = draw(st.floats(float(np.float32(low)) + 1.25, side) | st.just(side))
        sides.append((low, high))
    (x1, x2), (y1, y2) = sides
    return np.array([x1, y1, x2, y2], np.float32)


@st.composite
def sets(draw, root):
    """Two splits with random boxes; one image has none."""
    parts = {}
    for split, count in (("train", 3), ("val", 2)):
        records = []
        for n in range(count):
            width, height = draw(st.integers(4, 900)), draw(st.integers(4, 900))
            path = root / split / f"{split} {n}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (width, height), (n, 9, 9)).save(path)
            own = [draw(boxes(width, height)) for _ in range(n)]
            labels = np.array([draw(st.integers(1, len(NAMES))) for _ in own], np.int64)
            stacked = np.array(own, np.float32).reshape(-1, 4)
            flags = np.zeros(len(own), bool)
            records.append(ImageRecord(n + 1, path, width, height, stacked, labels, flags))
        parts[split] = DetectionSet(f"x/{split}", records, Categories.from_names(NAMES))
    return parts


@pytest.mark.parametrize("layout", WRITERS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_boxes_are_read_again_bit_for_bit(layout, data, tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    parts = data.draw(sets(root))
    lines = write_data_set(parts, root / "out", layout)
    said = "train 3 images, val 2 images; 5 images are"
    assert lines[0].startswith(f"Written to {root / 'out'}: {said}")
    for split, part in parts.items():
        again = read_detection(root / "out", split, classes=NAMES)
        assert describe(again) == describe(part) and not again.problems
    shutil.rmtree(root)


@pytest.mark.parametrize("layout", WRITERS)
def test_real_boxes_survive_a_way_through_every_layout(layout, shared_data, tmp_path):
    """VOC's and COCO's own files; VOC cannot hold boxes of a pixel, nor crowds."""
    blood = ["RBC", "WBC", "Platelets"]
    for name, split, classes in (("bccd/BCCD", "test", blood), ("coco_tiny", "val2017", None)):
        masks = layout == "coco"
        before = read_detection(shared_data / name, split, classes=classes, masks=masks)
        out = tmp_path / f"{layout} {split}"
        write_data_set({"val": before}, out, layout)
        names = before.categories.names
        assert describe(read_detection(out, "val", classes=names)) == describe(before)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write_instances(tmp_path_factory.mktemp("coco"))


def test_outlines_keypoints_and_crowds_are_written_in_coco_as_they_are(drawn, tmp_path):
    before = read_coco(drawn, "train", keypoints=True)
    write_data_set({"train": before}, tmp_path / "out", "coco")
    after = read_coco(tmp_path / "out", "train", keypoints=True)
    assert describe(after) == describe(before) and after.categories.keypoints == KEYPOINTS
    for one, other in zip(before.records, after.records, strict=True):
        assert [a["iscrowd"] for a in other.annotations] == [0, 0, 0, 1]
        assert [a["area"] for a in one.annotations] == [a["area"] for a in other.annotations]
        objects = [read_instances(r, ("boxes", "masks", "keypoints"), 5) for r in (one, other)]
        np.testing.assert_array_equal(objects[0].masks, objects[1].masks)
        np.testing.assert_array_equal(objects[0].keypoints, objects[1].keypoints)


def test_outlines_without_holes_are_polygons_of_yolo(drawn, tmp_path):
    before = read_coco(drawn, "train")
    plain = replace(before.categories, keypoints=(), skeleton=())
    before = replace(before, categories=plain)
    lines = write_data_set({"train": before}, tmp_path / "out", "yolo")
    assert any("left out: crowd regions: 8" in line for line in lines)
    after = read_detection(tmp_path / "out", "train")
    for one, other in zip(before.records, after.records, strict=True):
        objects = [read_instances(r, ("boxes", "masks")) for r in (one, other)]
        np.testing.assert_array_equal(objects[0].masks, objects[1].masks)


def test_keypoints_are_poses_of_yolo(drawn, tmp_path):
    before = read_coco(drawn, "train", keypoints=True)
    write_data_set({"train": before}, tmp_path / "out", "yolo")
    after = read_detection(tmp_path / "out", "train", keypoints=True)
    assert after.categories.keypoints == KEYPOINTS and describe(after) == describe(before)
    for one, other in zip(before.records, after.records, strict=True):
        objects = [read_instances(r, ("boxes", "keypoints"), 5) for r in (one, other)]
        np.testing.assert_allclose(objects[0].keypoints, objects[1].keypoints, atol=1e-4)


def read_masks(data):
    names = np.array([*data.classes.names, *[""] * 255])
    names[255] = "ignored"
    return {r.path.stem: names[r.read_mask()].tolist() for r in data.records}


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask=masks(smallest=2))
def test_masks_are_read_again_pixel_for_pixel(mask, tmp_path_factory):
    """Pictures become objects, and objects pictures: holes, touching corners, ignored pixels."""
    root = tmp_path_factory.mktemp("masks")
    sources = {"voc": write_voc, "coco": write_coco}
    found = {"a": mask, "b": np.arange(3, dtype=np.uint8)[None].repeat(2, 0)}
    for name, write in sources.items():
        before = read_segmentation(write(root / name, found), "train")
        for layout in sources:
            out = root / f"{name} as {layout}"
            write_data_set({"train": before}, out, layout)
            after = read_segmentation(out, "train")
            assert read_masks(after) == read_masks(before)
    shutil.rmtree(root)


def test_masks_without_a_background_keep_their_classes(tmp_path):
    before = read_segmentation(write_camvid(tmp_path / "in", some_masks(labels=11)), "train")
    for layout in ("voc", "coco"):
        write_data_set({"train": before}, tmp_path / layout, layout)
        after = read_segmentation(tmp_path / layout, "train")
        assert read_masks(after) == read_masks(before)
    write_data_set({"train": before}, tmp_path / "yolo", "yolo")
    assert len(list((tmp_path / "yolo/labels/train").iterdir())) == 3


# -- whole or not at all ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
def test_nothing_is_left_of_what_fails_and_nothing_is_overwritten(layout, drawn, tmp_path):
    data = read_coco(drawn, "train")
    broken = read_coco(shutil.copytree(drawn, tmp_path / "broken"), "train")
    (tmp_path / "broken/train/7.png").unlink()
    with pytest.raises(OSError, match=r"7\.png"):
        write_data_set({"train": broken}, tmp_path / "out/new", layout)
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(DataError, match="full: is there already, and not empty; name a new folder"):
        write_data_set({"train": data}, tmp_path / "full", layout)
    assert os.listdir(tmp_path / "full") == ["file"]
    (tmp_path / "empty").mkdir()
    write_data_set({"train": data}, tmp_path / "empty", layout)
    assert len(read_detection(tmp_path / "empty", "train")) == 8


@pytest.mark.parametrize("layout", WRITERS)
def test_boxes_of_other_sizes_than_the_pictures_are_not_written(layout, drawn, tmp_path):
    data = read_coco(shutil.copytree(drawn, tmp_path / "resized"), "train")
    picture = data.records[2].path
    Image.open(picture).resize((15, 15)).save(picture)  # it was 30x30
    with pytest.raises(DataError, match=r"2\.png: is 15x15 pixels .* looks resized by 0\.5"):
        write_data_set({"train": data}, tmp_path / "new", layout)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layout", WRITERS)
def test_images_of_one_name_or_with_odd_names_get_names_of_their_own(layout, tmp_path):
    records = []
    names = ["a/x.png", "b/x.png", "b/X.jpg", "new\nline, '.png", "c.gif", "-rf.png", "..dots.png"]
    for n, name in enumerate(names):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (0, n, 0)).save(path)
        one = np.array([[0, 0, 5, 2 + n]], np.float32), np.ones(1, np.int64), np.zeros(1, bool)
        records.append(ImageRecord(n + 1, path, 9, 9, *one))
    data = DetectionSet("x", records, Categories.from_names(["cat"]))
    before = {p: p.read_bytes() for p in (tmp_path / "in").rglob("*") if p.is_file()}
    write_data_set({"train": data}, tmp_path / "out", layout)
    after = read_detection(tmp_path / "out", "train")
    found = {record.boxes[0, 3]: read_image(record.path)[0, 0].tolist() for record in after.records}
    assert found.keys() == {2 + n for n in range(7)}
    for height, (red, green, blue) in found.items():
        assert abs(green - (height - 2)) < 3 and red < 3 and blue < 3  # one is a JPEG
    assert {p: p.read_bytes() for p in before} == before


def test_names_that_a_layout_cannot_hold_are_refused(tmp_path, drawn):
    data = read_coco(drawn, "train")
    content = json.loads((drawn / "annotations/instances_train.json").read_text())
    content["categories"][0]["name"] = "cat\x01"
    root = shutil.copytree(drawn, tmp_path / "odd")
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"'cat\\x01' has .*control codes.*--rename"):
        write_data_set({"train": read_coco(root, "train")}, tmp_path / "out", "voc")
    with pytest.raises(DataError, match="do not have the same classes"):
        write_data_set({"train": data, "val": read_coco(root, "train")}, tmp_path / "out", "coco")
