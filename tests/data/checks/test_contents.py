"""Data sets that teach nothing are refused, and classes that nothing teaches are named."""

import json
import re

import numpy as np
import pytest
from instance_sets import change, write_instances
from mask_sets import (
    some_masks,
    write_camvid,
    write_coco,
    write_folders,
    write_image,
    write_list,
    write_mask,
    write_panoptic,
    write_sbd,
    write_voc,
)

from densenet_backbones.data.checks.contents import (
    refuse_unlearnable,
    remark_on_corners,
    remark_on_mixed_values,
    remark_on_similar_classes,
    remark_on_unmeasurable,
    remark_on_untaught_classes,
)
from densenet_backbones.data.checks.remarks import remark_on_data
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.masks import statistics as mask_statistics
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.segmentation import SegmentationData
from densenet_backbones.reporting.segmentation_report import tabulate_data
from densenet_backbones.reporting.tables import render

NAMES = ["background", "crack"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# -- objects ---------------------------------------------------------------------------------------


def for_each(edit):
    """An edit of every annotation of a file, which is given its image."""

    def edit_content(content):
        images = {image["id"]: image for image in content["images"]}
        for annotation in content["annotations"]:
            edit(annotation, images[annotation["image_id"]])

    return edit_content


def make_crowd(annotation, image):
    annotation["iscrowd"] = 1


def move_out(annotation, image):
    annotation["bbox"][0] += image["width"]


def share(annotation, image):
    """Corner and size as shares."""
    sides = [image["width"], image["height"]] * 2
    annotation["bbox"] = [v / side for v, side in zip(annotation["bbox"], sides, strict=True)]


def share_of_center(annotation, image):
    """YOLO's form: center and size as shares."""
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x + w / 2, y + h / 2, w, h]
    share(annotation, image)


def share_outline(annotation, image):
    if isinstance(annotation["segmentation"], list):
        sides = (image["width"], image["height"])
        annotation["segmentation"] = [
            [v / sides[n % 2] for n, v in enumerate(polygon)]
            for polygon in annotation["segmentation"]
        ]


FAULTS = {
    "no annotations": (
        lambda content: content.update(annotations=[]),
        "its 8 images have no object that counts, so nothing .*; it has no annotations: add",
    ),
    "all crowds": (
        for_each(make_crowd),
        r"so nothing can be learned from it: all 32 annotations are crowd regions \(iscrowd 1\)",
    ),
    "all outside": (
        for_each(move_out),
        r"24 annotations have faulty boxes \(the first in .*annotation 1 .* lies outside .* and 8",
    ),
    "shares": (for_each(share), "32 of 32 objects end within 2 pixels .* multiply x by the image"),
    "shares of centers": (for_each(share_of_center), "32 of 32 objects end within 2 pixels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_sets_without_an_object_to_learn_are_refused_before_training(fault, tmp_path):
    edit, message = FAULTS[fault]
    data = DetectionData(str(change(write_instances(tmp_path), edit)))
    with pytest.raises(DataError, match=rf"instances_train\.json: .*{message}") as error:
        data.setup("fit")
    assert "\n" not in str(error.value)
    data.setup("validate")


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "all outside"])
def test_sets_that_measure_nothing_are_named(fault, tmp_path):
    """Boxes outside of the image still count in an evaluation: as objects that are not found."""
    data = read_detection(change(write_instances(tmp_path), FAULTS[fault][0]), "train")
    lines = [*remark_on_unmeasurable(data), *remark_on_corners(data)]
    assert len(lines) == 1 and lines[0].startswith(str(data.file))
    said = "end within 2 pixels" if "shares" in fault else "so its scores are undefined"
    assert said in lines[0] and "learned" not in lines[0]


def write_voc_boxes(root, boxes, size=(40, 30), split="train", **tags):
    """Images with one object each, of the class dog."""
    for n, corners in enumerate(boxes):
        write_image(root / f"JPEGImages/{n}.jpg", np.zeros(size[::-1], np.uint8), n)
        names = ("xmin", "ymin", "xmax", "ymax")
        box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(names, corners or (), strict=False))
        flags = "".join(f"<{k}>{v}</{k}>" for k, v in tags.items())
        item = f"<object><name>dog</name>{flags}<bndbox>{box}</bndbox></object>" if corners else ""
        path = root / f"Annotations/{n}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation>{item}</annotation>")
    write_list(root / f"ImageSets/Main/{split}.txt", map(str, range(len(boxes))))
    return root


def test_boxes_of_voc_files_are_looked_at_too(tmp_path):
    data = read_detection(write_voc_boxes(tmp_path / "s", [(0.1, 0.2, 0.5, 0.9)] * 2), "train")
    with pytest.raises(DataError, match=r"s/train: 2 of 2 objects end within 2 pixels"):
        refuse_unlearnable(data)
    data = read_detection(write_voc_boxes(tmp_path / "n", [None]), "train", classes=["dog"])
    with pytest.raises(DataError, match=r"n/train: its 1 image has .* has no annotations"):
        refuse_unlearnable(data)


def test_difficult_objects_teach_but_do_not_count(tmp_path):
    data = read_detection(write_voc_boxes(tmp_path, [(3, 4, 9, 9)], difficult=1), "train")
    refuse_unlearnable(data)
    (line,) = remark_on_unmeasurable(data)
    assert "so its scores are undefined: 1 annotation is marked difficult" in line


def test_some_boxes_of_shares_are_named(tmp_path):
    boxes = [(0.1, 0.2, 0.5, 0.9), *[(3, 4, 9, 9)] * 9]
    data = read_detection(write_voc_boxes(tmp_path / "a", boxes), "train")
    refuse_unlearnable(data)
    (line,) = remark_on_corners(data)
    assert "1 of 10 objects end within 2 pixels of their image's corner" in line
    # A single click among many objects, and images of few pixels, say nothing.
    many = read_detection(write_voc_boxes(tmp_path / "b", [boxes[0], *boxes[1:] * 12]), "train")
    small = read_detection(write_voc_boxes(tmp_path / "c", [(1, 1, 2, 2)], size=(9, 9)), "train")
    assert [*remark_on_corners(many), *remark_on_corners(small)] == []


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_outlines_of_shares_are_found(task, tmp_path):
    def polygons(content):
        content["annotations"] = [
            a for a in content["annotations"] if isinstance(a["segmentation"], list)
        ]

    root = change(write_instances(tmp_path), polygons)
    options = {"task": task, "layout": "coco_instances"}
    assert [*remark_on_corners(read_segmentation(root, "train", **options))] == []
    change(root, for_each(share_outline))
    with pytest.raises(DataError, match=r"train: (8 of 8 objects end|its 8 masks have)"):
        refuse_unlearnable(read_segmentation(root, "train", **options))
    with pytest.raises(DataError, match="8 of 8 objects end within 2 pixels"):
        refuse_unlearnable(read_detection(root, "train"))


def test_classes_without_objects_are_named(tmp_path):
    def add(content):
        content["categories"] += [{"id": n, "name": f"class {n}"} for n in range(20, 26)]

    data = read_detection(change(write_instances(tmp_path), add), "train")
    refuse_unlearnable(data)
    assert [*remark_on_corners(data), *remark_on_unmeasurable(data)] == []
    assert list(remark_on_untaught_classes(data)) == [
        f"{data.name}: classes without an object to learn from: 6 of 8 ('class 20', 'class 21', "
        "'class 22' and 3 more)"
    ]


def test_classes_that_differ_in_case_alone_are_named_with_what_merges_them(tmp_path):
    def add(content):
        names = ("Cat ", "big cat", "c++", "c")
        content["categories"] += [{"id": 20 + n, "name": name} for n, name in enumerate(names)]
        content["categories"][0]["name"] = "cat"

    data = read_detection(change(write_instances(tmp_path), add), "train")
    cats, letters = remark_on_similar_classes(data)
    assert "'cat', 'Cat ' differ in case" in cats
    assert """--data.rename '{"Cat ": "cat"}' makes them one""" in cats
    assert "'c++', 'c' differ in case" in letters
    assert cats in remark_on_data(data, data)


# -- pixels ----------------------------------------------------------------------------------------


def as_255(count=3):
    """Masks of 0 and 255, as most drawing programs write two classes."""
    return {n: np.where(m == 1, 255, 0).astype(np.uint8) for n, m in some_masks(count).items()}


def write_named(root, found, **more):
    """Images and masks of ids, and a classes.yaml that names the classes alone."""
    for name, mask in found.items():
        write_image(root / f"images/train/{name}.jpg", mask)
        write_mask(root / f"masks/train/{name}.png", mask, "L")
    (root / "classes.yaml").write_text(json.dumps({"classes": NAMES, **more}))
    return root


def write_voc_below(root, found):
    return write_voc(root / "VOCdevkit/VOC2030", found, names=None).parents[1]


OF_255 = {
    "classes.yaml": (write_named, None),
    "ignored on purpose": (lambda root, found: write_named(root, found, ignored=[255]), None),
    "camvid": (write_camvid, NAMES),
    "voc": (lambda root, found: write_voc(root, found, names=None, mode="L"), NAMES),
    "voc below": (write_voc_below, NAMES),
    "label map": (lambda root, found: write_voc(root, found, names=NAMES, mode="L"), None),
}


@pytest.mark.parametrize("task", ["multiclass", "binary"])
@pytest.mark.parametrize("kind", OF_255)
def test_masks_of_0_and_255_are_refused_and_the_advice_works(kind, task, tmp_path):
    write, classes = OF_255[kind]
    found = as_255()
    root = write(tmp_path / "data", found)
    # Evaluated on itself: its images are copies of one, which no split parts.
    own = {"val_split": "train", "allow_shared_images": True}
    data = SegmentationData(str(root), classes=classes, task=task, **own)
    with pytest.raises(DataError, match=r"pixels of 'background' alone and .*% ignored") as error:
        data.setup("fit")
    text = str(error.value)
    assert re.search("the ignored id (2 or )?255 stands for 'crack'", text) and "\n" not in text
    # Follow the advice to the letter.
    advice = re.search(r"write (classes: \[.*\]) in (\S+)(?: \(with (.*)\))?, and leave", text)
    lines = [advice[1], *re.split(", (?=masks:|lists:)", advice[3] or "")]
    assert advice[2] == str(root / "classes.yaml")
    (root / "classes.yaml").write_text("\n".join(lines))
    data = SegmentationData(str(root), classes=classes, task=task, **own)
    data.setup("fit")
    assert data.mask_classes.names == tuple(NAMES)
    for record, mask in zip(data.train_set.records, found.values(), strict=True):
        np.testing.assert_array_equal(record.read_mask(), mask == 255)


def test_masks_that_mix_0_and_1_with_0_and_255_are_named(tmp_path):
    found = {**as_255(2), "im9": some_masks(1, labels=2)["im0"] % 255}
    data = read_segmentation(write_named(tmp_path / "mixed", found), "train")
    (line,) = remark_on_mixed_values(data)
    assert "2 masks have ignored pixels and none of 'crack', 1 other has 'crack'" in line
    assert line in list(remark_on_data(data, data))
    bordered = {**found, "im8": some_masks(1, labels=2)["im0"]}  # both in one mask: borders
    for name, masks in (("bordered", bordered), ("whole", {"im9": found["im9"]})):
        data = read_segmentation(write_named(tmp_path / name, masks), "train")
        assert not list(remark_on_mixed_values(data))


WRITERS = [write_voc, write_camvid, write_folders, write_coco, write_panoptic, write_sbd]


def fill(value, size=(9, 7)):
    return {f"im{n}": np.full(size, value, np.uint8) for n in range(3)}


@pytest.mark.parametrize("write", WRITERS)
def test_masks_of_one_class_or_none_are_refused(write, tmp_path):
    masks = {n: np.minimum(mask, 2) for n, mask in some_masks().items()}  # SBD ignores nothing
    refuse_unlearnable(read_segmentation(write(tmp_path / "good", masks), "train"))
    data = read_segmentation(write(tmp_path / "one", fill(0)), "train")
    with pytest.raises(DataError, match=r"its 3 masks have pixels of '\w+' alone and 0.00% ign"):
        refuse_unlearnable(data)
    (line,) = remark_on_unmeasurable(data)
    assert "so its scores say little; label the others' pixels" in line
    if write in (write_sbd, write_coco):
        return  # their masks cannot be ignored altogether: crowds of COCO need an object below
    data = read_segmentation(write(tmp_path / "none", fill(255)), "train")
    with pytest.raises(DataError, match=r"none/train.*: its 3 masks have ignored pixels alone, so"):
        refuse_unlearnable(data)


def test_channels_without_a_pixel_are_refused(tmp_path):
    options = {"task": "multilabel"}
    data = read_segmentation(write_coco(tmp_path / "a", some_masks()), "train", **options)
    refuse_unlearnable(data)
    one = {name: np.where(mask == 1, 1, 0) for name, mask in some_masks().items()}
    data = read_segmentation(write_coco(tmp_path / "b", one), "train", **options)
    refuse_unlearnable(data)
    assert "classes without a pixel to learn from: 1 of 2" in next(remark_on_untaught_classes(data))
    data = read_segmentation(write_coco(tmp_path / "c", fill(0)), "train", **options)
    with pytest.raises(DataError, match=r"have no pixel of any class and 0.00% ignored ones"):
        refuse_unlearnable(data)


def test_a_class_that_occurs_as_an_ignored_value_alone_is_named(tmp_path):
    found = {n: np.where(m == 2, 255, m).astype(np.uint8) for n, m in some_masks().items()}
    data = read_segmentation(write_voc(tmp_path, found, names=None), "train", classes=[*NAMES, "x"])
    refuse_unlearnable(data)
    (line,) = remark_on_untaught_classes(data)
    assert "classes without a pixel to learn from: 1 of 3 ('x'); if the ignored id 255" in line
    assert "{name: 'x', id: 255}]" in line
    clean = {n: np.where(m > 1, 0, m).astype(np.uint8) for n, m in some_masks().items()}
    data = read_segmentation(write_voc(tmp_path / "c", clean, names=None), "train")
    (line,) = remark_on_untaught_classes(data)
    assert line.endswith(
        "classes without a pixel to learn from: 19 of 21 ('bicycle', 'bird', 'boat' and 16 more)"
    )


def test_of_many_masks_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_statistics, "CHECKED_UP_TO", 5)
    monkeypatch.setattr(mask_statistics, "LOOKED_AT", 3)
    read = []
    count_one = mask_statistics._count

    def note(record, count):
        read.append(record)
        return count_one(record, count)

    monkeypatch.setattr(mask_statistics, "_count", note)
    found = {f"{n}": mask for n, mask in enumerate(some_masks(9, labels=2).values())}
    data = read_segmentation(write_named(tmp_path / "a", found), "train")
    refuse_unlearnable(data)
    assert len(read) == 3 and list(remark_on_untaught_classes(data)) == []
    # All are read where the part shows one class alone: the other may be rare.
    read.clear()
    rare = {name: np.where(mask == 1, 0, mask).astype(np.uint8) for name, mask in found.items()}
    rare["1"][2, 2] = 1
    data = read_segmentation(write_named(tmp_path / "b", rare), "train")
    refuse_unlearnable(data)
    assert len(read) == 3 + 9
    (line,) = remark_on_untaught_classes(data)
    assert "classes without a pixel to learn from in 3 masks looked at: 1 of 2 ('crack');" in line
    data = read_segmentation(write_named(tmp_path / "c", as_255(9)), "train")
    with pytest.raises(DataError, match="its 9 masks have pixels of 'background' alone and"):
        refuse_unlearnable(data)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_table_has_the_share_of_ignored_pixels(task, tmp_path):
    found = some_masks(4)
    data = read_segmentation(write_coco(tmp_path, found), "train", task=task)
    table = render([tabulate_data(data, data)])
    total = 4 * 54 * (2 if task == "multilabel" else 1)
    (row,) = [line.split() for line in table.splitlines() if "ignored" in line]
    assert row == ["ignored", f"{8 / total:.2%}", f"{8 / total:.2%}"]


def test_the_table_of_a_large_set_counts_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_statistics, "CHECKED_UP_TO", 5)
    monkeypatch.setattr(mask_statistics, "LOOKED_AT", 3)
    train = read_segmentation(write_voc(tmp_path / "t", some_masks(9)), "train")
    val = read_segmentation(write_voc(tmp_path / "v", some_masks(2)), "train")
    table = render([tabulate_data(train, val)])
    assert "9 images   evaluated" in table
    assert "train images of 3" in " ".join(table.split()) and "val images of" not in table
    rows = [line.split() for line in table.splitlines()]
    assert [row[1] for row in rows if row[:1] == ["cat"]] == ["3"]
