"""Data that is legitimate and odd: other encodings, delimiters, ids and names of the same pictures.

What is read is compared with the same layout as its tool usually writes it.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from foreign_sets import (
    coco_json,
    save_mask,
    write_annots_and_images,
    write_coco,
    write_coco_beside,
    write_cvat,
    write_darknet,
    write_labelimg,
    write_labelme,
    write_roboflow_yolo,
    write_tensorflow_csv,
    write_ultralytics,
    write_yolo_lists,
)
from labelled_pictures import CLASSES, PICTURES, save_image, write_text
from PIL import Image

from densenet_backbones.data.classification.reading import recognize_classes
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.recognition.recognize import recognize

BOXES = {
    picture.stem: sorted((thing.name, *map(float, thing.box)) for thing in picture.things)
    for picture in PICTURES
}


def read_boxes(path):
    """Class and box of the objects of each picture."""
    parts = recognize(path, "detection").splits
    data = read_detection([dict(part.source) for part in parts], classes=list(CLASSES))
    return {
        record.path.stem: sorted(
            (CLASSES[label - 1], *box)
            for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
        )
        for record in data.records
    }


def rewrite(root, pattern, change=lambda text: text, encoding="utf-8"):
    """Change the text of files."""
    for path in sorted(root.rglob(pattern)):
        path.write_bytes(change(path.read_text("utf-8")).encode(encoding))


def end_as_windows(text):
    return f"\ufeff{text}".replace("\n", "\r\n")


def use_decimal_commas(text):
    head, *rows = text.replace(",", ";").splitlines()
    return "\n".join([head, *(re.sub(r";(\d+)(?=;|$)", r";\1,0", row) for row in rows)])


def use_tabs(text):
    return text.replace(",", "\t")


def declare_utf_16(text):
    return f'<?xml version="1.0" encoding="utf-16"?>\n{text}'


@pytest.mark.parametrize(
    ("write", "change"),
    [
        (write_coco, lambda r: rewrite(r, "*.json", end_as_windows)),
        (write_labelimg, lambda r: rewrite(r, "photo*.xml", end_as_windows)),
        (write_labelimg, lambda r: rewrite(r, "photo*.xml", declare_utf_16, "utf-16")),
        (write_ultralytics, lambda r: rewrite(r, "*.[ty]*[tl]", end_as_windows)),
        (write_yolo_lists, lambda r: rewrite(r, "*.txt", encoding="utf-16")),
        (write_darknet, lambda r: rewrite(r, "obj.*", end_as_windows)),
        (write_labelme, lambda r: rewrite(r, "*.json", end_as_windows)),
        (write_cvat, lambda r: rewrite(r, "*.xml", end_as_windows)),
        (write_tensorflow_csv, lambda r: rewrite(r, "*.csv", end_as_windows)),
        (write_tensorflow_csv, lambda r: rewrite(r, "*.csv", use_tabs, "utf-16")),
        (write_tensorflow_csv, lambda r: rewrite(r, "*.csv", lambda t: t.replace(",", ";"))),
        (write_tensorflow_csv, lambda r: rewrite(r, "*.csv", use_decimal_commas)),
    ],
)  # fmt: skip
def test_encodings_ends_of_lines_and_delimiters(write, change, tmp_path):
    root = tmp_path / "Käfer & Co #1 (50%)"
    write(root)
    change(root)
    found = read_boxes(root)
    assert {s: [(n, *map(round, b)) for n, *b in v] for s, v in found.items()} == BOXES


def number_by_text(content):
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for annotation in content["annotations"]:
        annotation["id"] = f"{annotation['id']:05}"
        annotation["image_id"] = f"image {annotation['image_id']}"
        annotation["category_id"] = str(annotation["category_id"])
    for category in content["categories"]:
        category["id"] = str(category["id"])


def test_ids_of_coco_may_be_texts(tmp_path):
    write_coco_beside(tmp_path)
    content = json.loads(coco_json(PICTURES))
    number_by_text(content)
    write_text(tmp_path / "annotations.json", json.dumps(content))
    assert read_boxes(tmp_path) == BOXES
    content["annotations"][3]["image_id"] = "image 99"
    write_text(tmp_path / "annotations.json", json.dumps(content))
    with pytest.raises(DataError, match=r"annotations\[3\] .*image_id \d+ is not among the images"):
        read_boxes(tmp_path)


@pytest.mark.parametrize("write_name", ["https://host/x/{}", "C:\\data\\{}", "X/{}"])
def test_names_of_other_machines_addresses_and_case(write_name, tmp_path):
    def name(picture):
        plain = write_name.format(picture.name)
        return plain.replace(" ", "%20") if "//" in plain else plain.upper()

    for picture in PICTURES:
        save_image(picture, tmp_path / "photos")
    write_text(tmp_path / "labels.json", coco_json(PICTURES, name=name))
    assert read_boxes(tmp_path) == BOXES


def test_annotations_in_another_case_than_their_images(tmp_path):
    write_labelimg(tmp_path)
    for path in tmp_path.glob("photo*.xml"):
        path.rename(path.with_name(path.name.upper()))
    assert read_boxes(tmp_path) == BOXES


def test_tasks_whose_images_have_the_same_names(tmp_path):
    for n, picture in enumerate(PICTURES[:2]):
        write_cvat(tmp_path / "whole")
        task = tmp_path / f"data/task_{n}"
        save_image(picture, task / "images", "frame_0.png")
        text = (tmp_path / "whole/annotations.xml").read_text()
        (own,) = re.findall(rf'<image [^>]*name="{picture.name}".*?</image>', text)
        text = own.replace(picture.name, "frame_0.png")
        write_text(task / "annotations.xml", f"<annotations>{text}</annotations>")
    found = recognize(tmp_path / "data", "detection")
    data = read_detection([dict(part.source) for part in found.splits])
    boxes = {r.path.parts[-3]: len(r.boxes) for r in data.records}
    assert boxes == {"task_0": 2, "task_1": 2}
    sizes = {r.path.parts[-3]: (r.width, r.height) for r in data.records}
    assert sizes == {f"task_{n}": PICTURES[n].size for n in (0, 1)}


def test_tables_of_labels_with_semicolons(tmp_path):
    for picture in PICTURES:
        save_image(picture, tmp_path / "photos")
    rows = [f"{p.name};{'ab'[n % 2]}" for n, p in enumerate(PICTURES)]
    write_text(tmp_path / "labels.csv", "\ufeff" + "\r\n".join(["image;class", *rows]))
    (split,) = recognize_classes(tmp_path).splits
    assert split.images == 6


# ------------------------------------------------------------------------------ one sentence


def write_elsewhere(root):
    write_annots_and_images(root.parent / "real")
    root.mkdir(exist_ok=True)
    shutil.move(root.parent / "real/annots", root / "annots")
    (root / "images").symlink_to(root.parent / "real/images")


def write_archive_in_folder(root):
    write_roboflow_yolo(root / "in")
    shutil.make_archive(str(root / "export"), "zip", root / "in")
    shutil.rmtree(root / "in")


def write_video(root):
    save_image(PICTURES[0], root)
    write_text(root / "a.xml", '<annotations><track id="0" label="cat"></track></annotations>')


def write_masks(root, suffix, values):
    for picture in PICTURES:
        save_image(picture, root / "images")
        save_mask(picture.draw_labels(values), root / "masks" / f"{picture.stem}.{suffix}")


@pytest.mark.parametrize(
    ("write", "kind", "said"),
    [
        (write_elsewhere, "detection", r"1 link out of the folder, 'images': not followed"),
        (write_archive_in_folder, "detection", r"export\.zip is an archive: give it"),
        (write_video, "detection", "CVAT's tracks of a video; export the task as CVAT for images"),
        (lambda r: write_masks(r, "jpg", (0, 255, 255)), "segmentation", "masks are JPEG, which"),
    ],
)
def test_what_is_not_read_is_said_with_the_fix(write, kind, said, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    with pytest.raises(DataError, match=said):
        recognize(root, kind)


def test_an_archive_that_has_no_place_is_said(tmp_path, monkeypatch):
    write_archive_in_folder(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match=r"export\.zip: can be unpacked neither .*XDG_CACHE_HOME"):
        recognize(tmp_path / "export.zip")


def test_a_value_of_masks_that_is_ignored_is_said(tmp_path):
    write_masks(tmp_path, "png", (0, 127, 255))
    assert "background, class 127 (255 is ignored);" in recognize(tmp_path, "segmentation").lines[2]


def test_further_masks_of_an_image_are_said_to_be_left_out(tmp_path):
    for picture in PICTURES:
        save_image(picture, tmp_path / "images")
        ends = ("_mask", "_mask_1") if picture is PICTURES[0] else ("_mask",)
        for end in ends:
            save_mask(picture.draw_labels(), tmp_path / "masks" / f"{picture.stem}{end}.png")
    said = recognize(tmp_path, "segmentation").lines[2]
    name = f"masks/{PICTURES[0].stem}_mask_1.png"
    assert f"warning: 1 picture left out in masks, without the ending _mask: {name!r};" in said


def test_a_split_without_masks_is_said(tmp_path):
    for number, picture in enumerate(PICTURES):
        split = ("train", "val", "test")[number % 3]
        save_image(picture, tmp_path / "images" / split)
        if split != "test":
            save_mask(picture.draw_labels(), tmp_path / "masks" / split / f"{picture.stem}.png")
    found = recognize(tmp_path, "segmentation")
    assert "no masks of test" in found.lines[0]
    assert [(split.name, split.images) for split in found.splits] == [("train", 2), ("val", 2)]


@pytest.mark.parametrize("draw", [
    lambda labels: labels.astype(np.uint16), lambda labels: labels > 0,
    lambda labels: np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[labels],
])  # fmt: skip
def test_masks_of_16_bits_of_one_and_of_colors(draw, tmp_path):
    for picture in PICTURES:
        save_image(picture, tmp_path / "images")
        path = Path(tmp_path, "masks", f"{picture.stem}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw(picture.draw_labels())).save(path)
    assert recognize(tmp_path, "segmentation").splits[0].images == 6


@pytest.mark.parametrize(
    ("write", "name", "line"),
    [
        (write_tensorflow_csv, "train_labels.csv", 2),
        (write_coco_beside, "annotations.json", 1),
        (write_darknet, "obj.names", 1),
        (write_ultralytics, "labels/train/photo 1.txt", 1),
        (write_labelme, "photo 1.json", 1),
        (write_yolo_lists, "train.txt", 1),
        (write_labelimg, "photo 1.xml", 1),
        (write_cvat, "annotations.xml", 1),
    ],
)
def test_a_letter_of_another_encoding_is_said_with_its_line(write, name, line, tmp_path):
    """Which Excel, Notepad and old tools write."""
    write(tmp_path)
    (path,) = tmp_path.rglob(Path(name).name)
    lines = path.read_bytes().splitlines(keepends=True)
    last = len(lines[line - 1].rstrip()) - 1
    lines[line - 1] = lines[line - 1][:last] + "ä".encode("latin-1") + lines[line - 1][last:]
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=rf"{path.name}: .*line {line}\b.*UTF-8"):
        for part in recognize(tmp_path, "detection").splits:
            read_detection([dict(part.source)])
