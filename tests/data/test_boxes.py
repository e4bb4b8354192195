"""Clipping of annotated boxes, by hand and for any numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from densenet_backbones.data.boxes import MAX_SIDE, clip_boxes, describe_box_fault, measure_overhang

SIZE = (40, 30)


def test_clipping_by_hand():
    boxes = np.array(
        [[1, 2, 3, 4], [-5, -5, 5, 5], [35, 25, 45, 35], [40, 0, 50, 9], [5, 5, 5, 9]], float
    )
    clipped, usable = clip_boxes(boxes, np.array(SIZE))
    expected = [[1, 2, 3, 4], [0, 0, 5, 5], [35, 25, 40, 30], [40, 0, 40, 9], [5, 5, 5, 9]]
    assert clipped.tolist() == expected and clipped.dtype == np.float32
    assert usable.tolist() == [True, True, True, False, False]
    assert measure_overhang(boxes, np.array(SIZE)).tolist() == [-1, 5, 5, 10, -5]


def test_each_box_has_the_size_of_its_own_image():
    boxes = np.array([[0, 0, 50, 50], [0, 0, 50, 50]], float)
    clipped, _ = clip_boxes(boxes, np.array([[10, 20], [30, 60]]))
    assert clipped.tolist() == [[0, 0, 10, 20], [0, 0, 30, 50]]


def test_no_boxes():
    clipped, usable = clip_boxes(np.zeros((0, 4)), np.array(SIZE))
    assert clipped.shape == (0, 4) and usable.shape == (0,)


NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-60, 60)


@given(
    box=st.tuples(NUMBER, NUMBER, NUMBER, NUMBER),
    size=st.tuples(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE)) | st.just(SIZE),
)
def test_usable_boxes_lie_inside_and_have_an_area(box, size):
    boxes = np.array([box])
    (clipped,), (usable,) = clip_boxes(boxes, np.array(size))
    assert clipped.min() >= 0 and clipped[[0, 2]].max() <= size[0]
    assert clipped[[1, 3]].max() <= size[1]
    assert usable == (clipped[0] < clipped[2] and clipped[1] < clipped[3])
    what, action = describe_box_fault(boxes[0], size)
    assert ("left out" in action) == (not usable), what


@given(box=st.tuples(*[st.integers(0, 30)] * 4))
def test_boxes_inside_stay_as_they_are(box):
    x1, y1, x2, y2 = box
    boxes = np.array([[min(x1, x2), min(y1, y2), max(x1, x2) + 1, max(y1, y2) + 1]], float)
    clipped, usable = clip_boxes(boxes, np.array([31, 31]))
    np.testing.assert_array_equal(clipped, boxes)
    assert usable.all() and measure_overhang(boxes, np.array([31, 31]))[0] <= 0
