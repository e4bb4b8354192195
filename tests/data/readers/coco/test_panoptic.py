"""COCO's panoptic pictures as masks."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from mask_sets import COLORS, NAMES, masks, some_masks, write_mask, write_panoptic

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.coco.panoptic import has_panoptic_layout, read_coco_panoptic


@pytest.fixture
def root(tmp_path):
    return write_panoptic(tmp_path, some_masks())


@settings(max_examples=30)
@given(masks())
def test_masks_come_back(tmp_path_factory, mask):
    root = write_panoptic(tmp_path_factory.mktemp("panoptic"), {"a": mask})
    (record,) = read_coco_panoptic(root, "train").records
    np.testing.assert_array_equal(record.read_mask(), mask)


def test_classes_are_things_and_stuff_in_order_of_their_ids(root):
    data = read_coco_panoptic(root, "train")
    assert (data.classes.names, data.classes.ids) == (NAMES, (3, 4, 5))
    assert data.classes.colors == COLORS and data.name.endswith("/train2017")
    assert [r.image_id for r in data.records] == [0, 7, 14]
    other = read_coco_panoptic(root, "train2017", classes=["dog", "background", "cat"])
    np.testing.assert_array_equal(
        other.records[0].read_mask() == 0, data.records[0].read_mask() == 2
    )


def change(root, edit):
    path = root / "annotations/panoptic_train2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def segment(content, number=1):
    return content["annotations"][0]["segments_info"][number]


def test_crowds_are_ignored_and_colors_optional(root):
    def edit(content):
        segment(content)["iscrowd"] = 1
        content["categories"][2]["color"] = "red"

    change(root, edit)
    data = read_coco_panoptic(root, "train")
    found = some_masks()["im0"]
    np.testing.assert_array_equal(data.records[0].read_mask(), np.where(found == 1, 255, found))
    assert data.classes.colors[:2] == COLORS[:2] and data.classes.colors[2] == (0, 128, 0)


def test_ids_that_the_file_does_not_list_are_named_with_their_counts(root):
    change(root, lambda c: c["annotations"][0]["segments_info"].pop(1))
    count = (some_masks()["im0"] == 1).sum()
    with pytest.raises(DataError, match=rf"im0\.png: has 1 id .*: 71000 \({count} pixels\); known"):
        read_coco_panoptic(root, "train").records[0].read_mask()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["annotations"].pop(), r"1 image has no annotation \('im2\.jpg'\)"),
        (lambda c: c["annotations"][0].update(image_id=5), "image_id 5 is not among the images"),
        (lambda c: c["annotations"][1].update(image_id=0), "image_id 0 has an annotation already"),
        (lambda c: c["annotations"][0].update(file_name=4), "'file_name' must be a text, not 4"),
        (
            lambda c: c["annotations"][0].update(file_name="../../x.png"),
            r"file name '\.\./\.\./x\.png' must be relative",
        ),
        (
            lambda c: c["annotations"][0].update(file_name="x.png"),
            r"lacks 1 of its 3 pictures",
        ),
        (lambda c: c["annotations"][0].update(segments_info=7), "'segments_info' must be a list"),
        (lambda c: segment(c).update(id=1 << 24), "'id' must be a number of 24 bits, not 16777216"),
        (lambda c: segment(c).update(id=0), "id 0 is void or given twice"),
        (lambda c: segment(c).update(id=1000), "id 1000 is void or given twice"),
        (lambda c: segment(c).update(category_id=77), "category_id 77 is not among the categories"),
        (lambda c: segment(c).update(iscrowd=2), "'iscrowd' must be 0 or 1, not 2"),
        (lambda c: c.pop("images"), "has no 'images'"),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), "must be relative and stay"),
        (lambda c: c["images"][0].update(width=10), "1 picture has the wrong size"),
    ],
)
def test_faults_of_the_file_are_named(root, edit, message):
    change(root, edit)
    with pytest.raises(DataError, match=message) as caught:
        read_coco_panoptic(root, "train")
    assert str(root / "annotations/panoptic_train2017.json") in str(caught.value)


def test_other_json_is_refused(root):
    path = root / "annotations/panoptic_train2017.json"
    path.write_text("[]")
    with pytest.raises(DataError, match="not a panoptic file; it must be a JSON object"):
        read_coco_panoptic(root, "train")
    path.write_text('{"a": NaN}')
    with pytest.raises(DataError, match="has NaN or Infinity"):
        read_coco_panoptic(root, "train")
    path.write_text('{"a": ')
    with pytest.raises(DataError, match="not valid JSON at line 1"):
        read_coco_panoptic(root, "train")


def test_gray_pictures_are_refused(root):
    picture = root / "annotations/panoptic_train2017/im1.png"
    write_mask(picture, some_masks()["im1"], "L")
    with pytest.raises(DataError, match=r"im1\.png: has one channel of numbers, but colors are"):
        read_coco_panoptic(root, "train").records[1].read_mask()


def test_files_may_have_other_names(root):
    (root / "annotations/panoptic_train2017.json").rename(root / "my.json")
    (root / "annotations/panoptic_train2017").rename(root / "ids")
    (root / "train2017").rename(root / "pictures")
    names = {"annotation_file": "my.json", "image_folder": "pictures", "mask_folder": "ids"}
    data = read_coco_panoptic(root, "any", **names)
    np.testing.assert_array_equal(data.records[2].read_mask(), some_masks()["im2"])


def test_splits_are_looked_up(root):
    assert has_panoptic_layout(root) and has_panoptic_layout(root, "train")
    assert not has_panoptic_layout(root, "val")
    with pytest.raises(DataError, match=r"panoptic_tran2017\.json .*did you mean 'train2017'"):
        read_coco_panoptic(root, "tran2017")


def test_drawn_scenes_agree_with_their_semantic_masks(tiny_scenes):
    from densenet_backbones.data.readers.coco.masks import read_coco_masks

    panoptic = read_coco_panoptic(tiny_scenes, "val")
    assert panoptic.classes.names[-3:] == ("sky", "ground", "wall")
    semantic = read_coco_masks(tiny_scenes, "val")
    for one, other in zip(panoptic.records, semantic.records, strict=True):
        labels = one.read_mask()
        things = np.where(labels < 6, labels + 1, np.where(labels == 255, 255, 0))
        np.testing.assert_array_equal(things, other.read_mask())
