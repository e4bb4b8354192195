"""Mask files as records, and classes in another order."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from mask_sets import COLORS, NAMES, write_image, write_mask

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import MaskClasses, MaskRecord, SegmentationSet
from densenet_backbones.data.masks.code import MaskCode
from densenet_backbones.data.readers.masks.files import (
    MaskFile,
    has_unknown_classes,
    list_masks,
    read_file_records,
    refuse_missing,
    reorder_classes,
)

CLASSES = MaskClasses.from_names(NAMES, colors=COLORS)
IDS = MaskCode.from_classes(CLASSES)


class Fixed:
    files, rule = (Path("m.png"),), "fixed"

    def __init__(self, mask):
        self.mask = mask

    def read(self):
        return self.mask


def fixed_set(tmp_path, mask, task="multiclass"):
    record = MaskRecord(1, tmp_path, mask.shape[-1], mask.shape[-2], Fixed(mask), "x")
    return SegmentationSet("data/train", (record,), CLASSES, task)


def test_labels_follow_their_names(tmp_path):
    found = fixed_set(tmp_path, np.array([[0, 1, 2, 255]], np.uint8))
    other = reorder_classes(found, ["dog", "fox", "background", "cat"])
    assert other.records[0].read_mask().tolist() == [[2, 3, 0, 255]]
    assert other.classes.names == ("dog", "fox", "background", "cat")
    assert other.classes.ids == (2, 3, 0, 1)
    assert other.classes.colors[0] == COLORS[2]
    assert reorder_classes(found, NAMES) is found
    assert other.records[0].mask.rule != found.records[0].mask.rule
    back = reorder_classes(other, ["background", "cat", "dog", "fox"])
    assert back.records[0].read_mask().tolist() == [[0, 1, 2, 255]]


def test_channels_follow_their_names(tmp_path):
    planes = np.array([[[0, 1]], [[1, 255]], [[0, 0]]], np.uint8)
    other = reorder_classes(
        fixed_set(tmp_path, planes, "multilabel"), ["dog", "cat", "ant", *NAMES[:1]]
    )
    assert other.records[0].read_mask().tolist() == [[[0, 0]], [[1, 255]], [[0, 0]], [[0, 1]]]


def test_a_class_that_is_used_cannot_be_lost(tmp_path):
    names = ["background", "cat", "Dog"]
    for mask in ([[0, 1, 255]], [[0, 2, 2]]):
        found = fixed_set(tmp_path, np.array(mask, np.uint8))
        used = {*mask[0]}
        if 2 not in used:
            known = reorder_classes(found, names, used=used)
            assert known.records[0].read_mask().tolist() == mask and not has_unknown_classes(known)
            continue
        with pytest.raises(DataError, match=r"data/train: has 1 class \('dog'\) .*mean 'Dog'"):
            reorder_classes(found, names, used=used)


def test_pixels_of_a_lost_class_are_refused(tmp_path):
    """Where nothing but the pixels tells which classes a set uses."""
    names = ["cat", "background", "Dog"]
    bare = reorder_classes(fixed_set(tmp_path, np.array([[0, 1, 255]], np.uint8)), names)
    assert bare.records[0].read_mask().tolist() == [[1, 0, 255]] and has_unknown_classes(bare)
    found = reorder_classes(fixed_set(tmp_path, np.array([[0, 2, 2]], np.uint8)), names)
    message = r"m.png: has 2 pixels of the class 'dog', which is not among the 3 .*mean 'Dog'"
    with pytest.raises(DataError, match=message):
        found.records[0].read_mask()
    assert found.records[0].mask.rule != bare.records[0].mask.reader.rule


def test_readers_are_small(tmp_path):
    write_mask(tmp_path / "m.png", np.array([[0, 2]], np.uint8))
    reader = MaskFile(tmp_path / "m.png", IDS)
    reader.read()
    assert pickle.loads(pickle.dumps([reader] * 100))[5].read().tolist() == [[0, 2]]
    assert len(pickle.dumps([reader] * 100)) - len(pickle.dumps([reader])) < 300


def test_records_are_images_with_their_masks(tmp_path):
    mask = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    write_image(tmp_path / "a.jpg", mask)
    write_mask(tmp_path / "a.png", mask)
    (record,) = read_file_records([tmp_path / "a.jpg"], [tmp_path / "a.png"], IDS, "x")
    assert (record.image_id, record.width, record.height, record.name) == (1, 3, 2, "a")
    np.testing.assert_array_equal(record.read_mask(), mask)
    write_mask(tmp_path / "a.png", mask[:1])
    with pytest.raises(DataError, match=r"x: 1 of 1 mask with the wrong size: .*is 3x1 pixels"):
        read_file_records([tmp_path / "a.jpg"], [tmp_path / "a.png"], IDS, "x")


def test_masks_are_found_by_name_lossless_ones_only(tmp_path):
    for name in ("a.PNG", "b.tif", "c.jpg", "d.gif", "e"):
        (tmp_path / name).touch()
    assert list_masks(tmp_path) == {"a": tmp_path / "a.PNG", "b": tmp_path / "b.tif"}
    assert list_masks(tmp_path / "none") == {}
    refuse_missing(tmp_path, [], "val")
    with pytest.raises(DataError, match=r"lacks 2 masks of the split 'val' \('x', 'y', with"):
        refuse_missing(tmp_path, ["x", "y"], "val")


def test_two_masks_of_one_name_are_refused(tmp_path):
    for name in ("a.PNG", "a.bmp", "a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"a\.PNG and a\.bmp are masks of one name; remove one"):
        list_masks(tmp_path)
