"""The confusion matrix of detections."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.metrics.confusion import confusion_matrix, normalize_rows

CATEGORIES = Categories(("ant", "bee"), (4, 9))
A, B = (0, 0, 10, 10), (50, 50, 60, 60)


def part_of(*images, **flags):
    """A set of images, each a list of (box, label); `flags` go to every annotation."""
    nothing = np.zeros(0)
    records = tuple(
        ImageRecord(
            i, Path("x"), 99, 99, nothing, nothing, nothing,
            tuple(
                {
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "category_id": CATEGORIES.id_of_label(label),
                    **flags,
                }
                for (x1, y1, x2, y2), label in objects
            ),
        )
        for i, objects in enumerate(images, start=1)
    )  # fmt: skip
    return DetectionSet("test", records, CATEGORIES)


def found(*rows):
    """Detections (box, label, score)."""
    return {
        "boxes": np.array([box for box, _, _ in rows], float).reshape(-1, 4),
        "labels": np.array([label for _, label, _ in rows], int),
        "scores": np.array([score for _, _, score in rows], float),
    }


def test_right_wrong_missed_and_invented():
    part = part_of([(A, 1), (B, 2)], [(A, 2)])
    predictions = {1: found((A, 1, 0.9), (B, 1, 0.8), ((80, 80, 90, 90), 2, 0.7))}
    assert confusion_matrix(part, predictions).tolist() == [
        [1, 0, 0],  # ant
        [1, 0, 1],  # bee: one taken for an ant, one missed
        [0, 1, 0],  # background: one invented bee
    ]


def test_boxes_beside_each_other_do_not_overlap():
    """However small: a side of no overlap makes an area of none."""
    part = part_of([((0, 0, 1, 1), 1), ((0, 5, 1, 6), 2)])
    beside = found(((2, 0, 3, 1), 2, 0.9), ((1, 5, 2, 6), 1, 0.8))
    matrix = confusion_matrix(part, {1: beside}, iou_threshold=0.01)
    assert matrix.tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


def test_a_higher_score_chooses_first():
    part = part_of([(A, 1)])
    predictions = {1: found((A, 2, 0.6), ((0, 0, 10, 9), 1, 0.9))}
    matrix = confusion_matrix(part, predictions)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    swapped = {1: found((A, 2, 0.95), ((0, 0, 10, 9), 1, 0.9))}
    assert confusion_matrix(part, swapped).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_the_next_best_object_is_taken_when_the_best_is_gone():
    part = part_of([(A, 1), ((0, 0, 10, 12), 1)])
    predictions = {1: found((A, 1, 0.9), (A, 1, 0.8))}
    assert confusion_matrix(part, predictions)[0].tolist() == [2, 0, 0]


def test_equal_overlap_goes_to_the_same_class():
    part = part_of([(A, 1), (A, 2)])
    predictions = {1: found((A, 2, 0.9), (A, 1, 0.8))}
    assert confusion_matrix(part, predictions).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_thresholds():
    part = part_of([(A, 1)])
    predictions = {1: found(((0, 0, 10, 5), 1, 0.5))}  # IoU 0.5
    assert confusion_matrix(part, predictions)[0, 0] == 1
    assert confusion_matrix(part, predictions, score_thresh=0.51)[0].tolist() == [0, 0, 1]
    assert confusion_matrix(part, predictions, iou_threshold=0.51)[:, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("flag", ["iscrowd", "difficult"])
def test_ignored_objects_neither_help_nor_harm(flag):
    part = part_of([(A, 1)], **{flag: 1})
    assert confusion_matrix(part, {}).sum() == 0
    assert confusion_matrix(part, {1: found((A, 1, 0.9), (A, 1, 0.8))}).sum() == 0
    exactly = {1: found(((0, 0, 10, 5), 1, 0.9))}  # IoU 0.5, the threshold, which is inclusive
    assert confusion_matrix(part, exactly).sum() == 0
    assert confusion_matrix(part, {1: found((A, 2, 0.9))})[2, 1] == 1
    small = {1: found(((0, 0, 3, 3), 1, 0.9))}  # inside, but far smaller
    assert confusion_matrix(part, small).sum() == (0 if flag == "iscrowd" else 1)


boxes = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)
rows = st.lists(st.tuples(boxes, st.integers(1, 2), st.integers(0, 10)), max_size=6)
truths = st.lists(st.tuples(boxes, st.integers(1, 2)), max_size=5)


@settings(max_examples=80)
@given(st.lists(st.tuples(truths, rows), min_size=1, max_size=3), st.sampled_from([0.3, 0.5, 0.8]))
def test_every_object_and_every_detection_is_counted_once(images, threshold):
    part = part_of(*[truth for truth, _ in images])
    predictions = {
        i: found(*[(box, label, score / 10) for box, label, score in rows])
        for i, (_, rows) in enumerate(images, start=1)
    }
    matrix = confusion_matrix(part, predictions, 0.5, threshold)
    assert matrix[2, 2] == 0
    for label in (1, 2):
        objects = sum(c == label for truth, _ in images for _, c in truth)
        assert matrix[label - 1].sum() == objects
        kept = sum(c == label and s >= 5 for _, found_there in images for _, c, s in found_there)
        assert matrix[:, label - 1].sum() == kept
    shares = normalize_rows(matrix)
    sums = shares.sum(axis=1)
    assert np.allclose(sums[matrix.sum(axis=1) > 0], 1)
    assert np.isnan(sums[matrix.sum(axis=1) == 0]).all()


def test_images_can_be_chosen_and_errors_name_the_range():
    part = part_of([(A, 1)], [(A, 1)])
    assert confusion_matrix(part, {}, image_ids=[2])[0, 2] == 1
    with pytest.raises(ValueError, match=r"iou_threshold must lie in \(0, 1\], got 0"):
        confusion_matrix(part, {}, iou_threshold=0)
    with pytest.raises(ValueError, match="image id 9 is not among the 2 images"):
        confusion_matrix(part, {9: found((A, 1, 1.0))})
