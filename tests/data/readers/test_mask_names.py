"""Classes of masks are matched by name, whatever ids and order a file gives them."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_sets import (
    NAMES,
    some_masks,
    write_coco,
    write_image,
    write_mask,
    write_panoptic,
    write_sbd,
    write_voc,
)

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.data.readers.masks.files import has_unknown_classes
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.segmentation import SegmentationData

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
    with pytest.raises(DataError, match=rf"{file.name}: has 1 class \('yak'\)"):
        read_segmentation(tmp_path, "val", classes=names, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_class_without_objects_may_be_unknown(layout, tmp_path):
    file, options = write_splits(tmp_path, layout)
    content = json.loads(file.read_text())
    content["categories"].insert(0, {"id": 1, "name": "yak"})
    file.write_text(json.dumps(content))
    train = read_segmentation(tmp_path, "train", **options)
    val = read_segmentation(tmp_path, "val", classes=train.classes.names, **options)
    np.testing.assert_array_equal(train.records[0].read_mask(), val.records[0].read_mask())
    assert not has_unknown_classes(val)  # the file says it: no mask is read for that


def write_ids(root, found, split):
    """Masks of ids and a classes.yaml with a class more than the images of cats show."""
    for name, mask in found.items():
        write_image(root / f"images/{split}/{name}.jpg", mask)
        write_mask(root / f"masks/{split}/{name}.png", mask)
    (root / "classes.yaml").write_text(json.dumps({"classes": NAMES}))
    return root


# Of each layout whose pixels alone tell which classes it uses: writer, and a class that is lost.
BY_PIXELS = {
    "folders": (write_ids, "dog"),
    "voc": (write_voc, "dog"),
    "sbd": (write_sbd, "bicycle"),
}


@pytest.mark.parametrize("layout", BY_PIXELS)
def test_a_class_without_pixels_may_be_unknown(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write, lost = BY_PIXELS[layout]
    found = {n: np.minimum(mask, 1) for n, mask in some_masks().items()}
    root = write(tmp_path / "data", found, "val")
    own = read_segmentation(root, "val").classes.names
    known = MaskClasses.from_names([name for name in own[::-1] if name != lost])
    data = SegmentationData(str(root), num_workers=0)
    data.use_classes(known)
    for record, mask in zip(data.val_set.records, found.values(), strict=True):
        labels = np.array([known.names.index(own[0]), known.names.index(own[1])])
        np.testing.assert_array_equal(record.read_mask(), labels[mask])
    # With a pixel of it the set is refused before its first use, however large it is.
    monkeypatch.setattr("densenet_backbones.data.masks.statistics.CHECKED_UP_TO", 1)
    found["im2"][3, 4] = 2
    write(root, found, "val")
    message = rf"1 of 3 masks cannot be used: .*im2\.\w+: has 1 pixel of the class '{lost}'"
    with pytest.raises(DataError, match=message):
        SegmentationData(str(root), num_workers=0).use_classes(known)
