"""Classes of masks are matched by name, whatever ids and order a file gives them."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_sets import NAMES, some_masks, write_coco, write_panoptic

from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.samples import DataError

LAYOUTS = {
    "coco_instances": (write_coco, "instances", "multiclass"),
    "multilabel": (write_coco, "instances", "multilabel"),
    "coco_panoptic": (write_panoptic, "panoptic", "multiclass"),
}


def renumber(file, ids):
    """Give each category of a file, by name, another id; the file lists them in that order."""
    content = json.loads(file.read_text())
    new = {c["id"]: ids[c["name"]] for c in content["categories"]}
    by_name = {c["name"]: {**c, "id": new[c["id"]]} for c in content["categories"]}
    content["categories"] = [by_name[name] for name in ids if name in by_name]
    for annotation in content["annotations"]:
        for entry in annotation.get("segments_info", [annotation]):
            entry["category_id"] = new[entry["category_id"]]
    file.write_text(json.dumps(content))


def write_splits(root, layout):
    """The same masks as training and evaluated part."""
    write, kind, task = LAYOUTS[layout]
    for split in ("train", "val"):
        write(root, some_masks(), split)
    options = {"task": task, "layout": "auto" if task == "multilabel" else layout}
    return root / f"annotations/{kind}_val.json", options


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(drawn=st.data())
def test_masks_have_the_labels_of_the_names(layout, drawn, tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    file, options = write_splits(root, layout)
    numbers = st.lists(st.integers(1, 200), min_size=len(NAMES), max_size=len(NAMES), unique=True)
    order = drawn.draw(st.permutations(NAMES))
    renumber(file, dict(zip(order, drawn.draw(numbers), strict=True)))
    train = read_segmentation(root, "train", **options)
    val = read_segmentation(root, "val", classes=train.classes.names, **options)
    assert val.classes.names == train.classes.names
    for one, other in zip(train.records, val.records, strict=True):
        np.testing.assert_array_equal(one.read_mask(), other.read_mask())
    both = read_segmentation([(root, "train"), (root, "val")], **options)
    for one, other in zip(both.records[:3], both.records[3:], strict=True):
        np.testing.assert_array_equal(one.read_mask(), other.read_mask())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_class_that_is_not_known_is_named_with_its_file(layout, tmp_path):
    file, options = write_splits(tmp_path, layout)
    file.write_text(file.read_text().replace(f'"{NAMES[2]}"', '"yak"'))
    names = read_segmentation(tmp_path, "train", **options).classes.names
    with pytest.raises(DataError, match=rf"{file.name}: has 1 classes \('yak'\)"):
        read_segmentation(tmp_path, "val", classes=names, **options)


@pytest.mark.parametrize("layout", ["coco_instances", "multilabel"])
def test_a_class_without_objects_may_be_unknown(layout, tmp_path):
    file, options = write_splits(tmp_path, layout)
    content = json.loads(file.read_text())
    content["categories"].insert(0, {"id": 1, "name": "yak"})
    file.write_text(json.dumps(content))
    train = read_segmentation(tmp_path, "train", **options)
    val = read_segmentation(tmp_path, "val", classes=train.classes.names, **options)
    np.testing.assert_array_equal(train.records[0].read_mask(), val.records[0].read_mask())
