"""Packed records are the records: every value, selected or not, and small."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.packing.records import pack_records
from densenet_backbones.data.samples import DetectionSet, ImageRecord

NUMBERS = st.floats(allow_nan=False, width=64)
IDS = st.integers(-(2**63), 2**63 - 1)
OUTLINES = st.none() | st.lists(st.lists(NUMBERS | st.integers(0, 9), max_size=6), max_size=2)
RUNS = st.fixed_dictionaries({"size": st.lists(IDS, max_size=2), "counts": st.text() | st.binary()})
ANNOTATIONS = st.fixed_dictionaries(
    {"category_id": IDS, "bbox": st.lists(NUMBERS, min_size=4, max_size=4)},
    optional={
        "id": IDS,
        "image_id": IDS,
        "area": NUMBERS,
        "iscrowd": st.integers(0, 1),
        "segmentation": OUTLINES | RUNS,
        "keypoints": st.lists(NUMBERS),
        "num_keypoints": st.integers(),
        "difficult": st.integers(0, 1),
    },
)


def make_record(image_id, annotations, with_positions=True):
    count = len(annotations)
    rng = np.random.default_rng(image_id)
    return ImageRecord(
        image_id=image_id,
        path=Path(f"/a/ü {image_id}.jpg"),
        width=100 + image_id,
        height=50,
        boxes=rng.random((count, 4), np.float32),
        labels=rng.integers(1, 9, count),
        difficult=rng.random(count) > 0.5,
        annotations=tuple(annotations),
        annotation_of=rng.permutation(count) if with_positions else None,
    )


def assert_same(one, other):
    for name in ("image_id", "path", "width", "height"):
        assert getattr(one, name) == getattr(other, name)
        assert type(getattr(one, name)) is type(getattr(other, name))
    for name in ("boxes", "labels", "difficult", "annotation_of"):
        if getattr(other, name) is None:
            assert getattr(one, name) is None
        else:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype
    assert list(one.annotations) == list(other.annotations) == [*one.annotations[:]]
    assert [one.annotations[n] for n in range(len(one.annotations))] == list(other.annotations)
    assert one.annotations == other.annotations and repr(list(other.annotations)) != ""


@settings(max_examples=60)
@given(
    content=st.lists(st.lists(ANNOTATIONS, max_size=3), max_size=5),
    with_positions=st.booleans(),
    data=st.data(),
)
def test_records_come_back(content, with_positions, data):
    records = [
        make_record(n, annotations, with_positions or not annotations)
        for n, annotations in enumerate(content)
    ]
    packed = pickle.loads(pickle.dumps(pack_records(ImageRecord, records)))
    assert len(packed) == len(records)
    for one, other in zip(packed, records, strict=True):
        assert_same(one, other)
    # Any of them in any order, and slices.
    indices = data.draw(st.lists(st.integers(0, max(0, len(records) - 1)), max_size=6))
    if records:
        chosen = packed.select(np.array(indices, np.int64))
        for one, index in zip(chosen, indices, strict=True):
            assert_same(one, records[index])
        assert_same(packed[-1], records[-1])
    for one, other in zip(packed[1::2], records[1::2], strict=True):
        assert_same(one, other)


def test_boxes_are_left_out_and_annotations_stay():
    records = [
        make_record(n, [{"category_id": k, "bbox": [0.0] * 4} for k in range(n)]) for n in range(4)
    ]
    stays = np.array([False, True, True, True, False, True])
    kept = pack_records(ImageRecord, records).keep_boxes(stays)
    assert [len(r.boxes) for r in kept] == [0, 0, 2, 2]
    np.testing.assert_array_equal(kept[3].boxes, records[3].boxes[[0, 2]])
    np.testing.assert_array_equal(kept[3].annotation_of, records[3].annotation_of[[0, 2]])
    assert [len(r.annotations) for r in kept] == [0, 1, 2, 3]


def test_sets_pack_their_records():
    records = (make_record(1, []), make_record(2, []))
    found = DetectionSet("a", records, Categories.from_names(["x"]))
    assert [r.image_id for r in found.records] == [1, 2]
    with pytest.raises(IndexError):
        found.records[2]
    assert found.packed is found.records


def test_annotations_take_few_bytes():
    """A dict of this kind takes about 600 bytes, in each worker process."""
    entries = [
        {"id": n, "image_id": 1, "category_id": 3, "bbox": [0.5] * 4, "area": 2.5, "iscrowd": 0}
        for n in range(1000)
    ]
    packed = pack_records(ImageRecord, [make_record(1, entries)])
    assert len(pickle.dumps(packed)) < 150 * len(entries)
