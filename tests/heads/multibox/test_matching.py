"""Matching of priors to objects, against a slow and literal version."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from densenet_backbones.heads.multibox.box_coding import encode
from densenet_backbones.heads.multibox.matching import (
    UNMATCHED,
    assign_targets,
    match_best_priors,
    match_priors,
    out_of_reach,
)

corner = st.integers(0, 24)
side = st.integers(1, 16)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


def _tensor(boxes: list[list[int]]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _greedy(iou: Tensor) -> list[int]:
    """The highest overlap between a free box and a free prior, again and again."""
    left, result = iou.numpy().copy(), [UNMATCHED] * len(iou)
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        result[row] = int(column)
        left[row, :] = left[:, column] = 0
    return result


def _slow_match(boxes: Tensor, priors: Tensor, threshold: float) -> list[int]:
    iou = box_iou(boxes, priors)
    matches = []
    for prior in range(len(priors)):
        best = max(range(len(boxes)), key=lambda b: iou[b, prior].item(), default=UNMATCHED)
        good = best != UNMATCHED and iou[best, prior] >= threshold
        matches.append(best if good else UNMATCHED)
    for index, prior in enumerate(_greedy(iou)):
        if prior != UNMATCHED:
            matches[prior] = index
    return matches


@given(st.data())
def test_bipartite_step_is_the_greedy_one(data: st.DataObject) -> None:
    # Few different values, so that ties are common; 0 is no overlap.
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    values = st.lists(st.integers(0, 6), min_size=columns, max_size=columns)
    iou = torch.tensor(data.draw(st.lists(values, min_size=rows, max_size=rows))) / 6
    assert match_best_priors(iou).tolist() == _greedy(iou)


@given(st.lists(box, max_size=6), st.lists(box, min_size=1, max_size=12))
def test_matching_equals_the_slow_version(boxes: list[list[int]], priors: list[list[int]]) -> None:
    for threshold in (0.3, 0.5):
        matches = match_priors(_tensor(boxes), _tensor(priors), threshold)
        assert matches.tolist() == _slow_match(_tensor(boxes), _tensor(priors), threshold)


def test_two_objects_with_the_same_best_prior_both_get_one() -> None:
    priors = _tensor([[0, 0, 10, 10], [0, 0, 20, 20], [50, 50, 60, 60]])
    boxes = _tensor([[0, 0, 9, 10], [0, 0, 10, 10]])  # both overlap the first prior most
    assert match_priors(boxes, priors, 0.9).tolist() == [1, 0, UNMATCHED]


def test_identical_objects_get_different_priors() -> None:
    priors = _tensor([[i, 0, i + 10, 10] for i in range(8)])
    boxes = _tensor([[0, 0, 10, 10]] * 4)
    assert match_best_priors(box_iou(boxes, priors)).tolist() == [0, 1, 2, 3]


def test_threshold_is_inclusive() -> None:
    priors = _tensor([[0, 0, 10, 10], [0, 0, 10, 20]])
    matches = match_priors(_tensor([[0, 0, 10, 10]]), priors, 0.5)  # IoU 1 and exactly 0.5
    assert matches.tolist() == [0, 0]
    # SSD's threshold is the default, of both.
    assert match_priors(_tensor([[0, 0, 10, 10]]), priors).tolist() == [0, 0]
    assert out_of_reach(_tensor([[0, 0, 10, 10]]), priors[1:]).tolist() == [False]
    assert out_of_reach(_tensor([[0, 0, 10, 9]]), priors[1:]).tolist() == [True]


def test_images_without_objects_and_objects_without_overlap() -> None:
    priors = _tensor([[0, 0, 10, 10]])
    assert match_priors(_tensor([]), priors).tolist() == [UNMATCHED]
    assert match_priors(_tensor([[20, 20, 30, 30]]), priors).tolist() == [UNMATCHED]
    assert out_of_reach(_tensor([]), priors).tolist() == []


def test_out_of_reach_is_the_best_overlap_below_the_threshold() -> None:
    priors = _tensor([[0, 0, 10, 10], [0, 0, 40, 40]])
    boxes = _tensor([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [0, 0, 20, 20]])
    assert out_of_reach(boxes, priors, 0.5).tolist() == [False, False, True, True]
    # The bipartite step gives such an object a prior all the same.
    assert match_priors(boxes[2:3], priors).tolist() == [0, UNMATCHED]


def test_targets_of_a_batch() -> None:
    priors = _tensor([[0, 0, 10, 10], [20, 20, 30, 30], [60, 60, 70, 70]])
    targets = [
        {"boxes": _tensor([[20, 20, 30, 29], [0, 0, 10, 10]]), "labels": torch.tensor([7, 3])},
        {"boxes": _tensor([]), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    assigned = assign_targets(targets, priors)
    assert assigned.labels.tolist() == [[3, 7, 0], [0, 0, 0]]
    assert assigned.labels.dtype == torch.int64
    assert assigned.codes.shape == (2, 3, 4)
    expected = encode(targets[0]["boxes"].flip(0), priors[:2])
    torch.testing.assert_close(assigned.codes[0, :2], expected)
