"""The types of segmentation data."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import (
    MaskClasses,
    MaskRecord,
    SegmentationSet,
    voc_color,
)

names = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=20, unique=True)


@given(names, st.randoms())
def test_classes_travel_through_json(given_names, random):
    ids = random.sample(range(1000), len(given_names))
    classes = MaskClasses.from_names(given_names, ids)
    assert MaskClasses.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes
    assert classes.num_classes == len(given_names)


def test_colors_are_vocs_unless_given():
    assert MaskClasses.from_names(["a", "b"]).colors == ((0, 0, 0), (128, 0, 0))
    assert MaskClasses.from_names(["a"], colors=[(1, 2, 3)]).colors == ((1, 2, 3),)
    assert [voc_color(i) for i in (15, 255)] == [(192, 128, 128), (224, 224, 192)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "b"), ((0, 0, 0),), (0, 1)), "2 names, 1 colors and 2 ids"),
        (((), (), ()), "must be 1 to 255, got 0"),
        ((tuple(map(str, range(256))), ((0, 0, 0),) * 256, tuple(range(256))), "255, got 256"),
        ((("a", "a"), ((0, 0, 0),) * 2, (0, 1)), r"names must be unique; given twice: \['a'\]"),
        ((("a", "b"), ((0, 0, 0),) * 2, (4, 4)), r"ids must be unique; given twice: \[4\]"),
        ((("a",), ((0, 0, 256),), (0,)), r"'a': color must be RGB in 0..255, got \(0, 0, 256\)"),
    ],
)
def test_impossible_classes_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        MaskClasses(*arguments)


def test_a_text_is_no_list_of_names():
    with pytest.raises(DataError, match="classes must be a list of names, got 'road'"):
        MaskClasses.from_names("road")


def test_a_binary_task_has_two_classes_and_one_logit():
    two, three = MaskClasses.from_names(["a", "b"]), ["a", "b", "c"]
    assert SegmentationSet("s", (), two, "binary").num_logits == 1
    assert SegmentationSet("s", (), two).num_logits == 2
    with pytest.raises(DataError, match=r"s: a binary task needs 2 classes, .*; got 3 \(a, b, c\)"):
        SegmentationSet("s", (), MaskClasses.from_names(three), "binary")


class Constant:
    files, rule = ("mask.png",), ""

    def __init__(self, shape):
        self.shape = shape

    def read(self):
        return np.zeros(self.shape, np.uint8)


def test_a_mask_must_have_its_images_size(tmp_path):
    def record(shape):
        return MaskRecord(1, tmp_path / "a.jpg", 5, 3, Constant(shape), "a")

    assert record((3, 5)).read_mask().shape == (3, 5)
    assert record((2, 3, 5)).read_mask().shape == (2, 3, 5)
    with pytest.raises(DataError, match=r"mask\.png: the mask is 4x3 pixels, its image a\.jpg 5x3"):
        record((3, 4)).read_mask()
    with pytest.raises(DataError, match="so it was drawn before the image was turned upright"):
        record((5, 3)).read_mask()
