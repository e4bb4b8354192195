"""Soft-NMS against the paper's pseudo-code written out, and its limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from densenet_backbones.inference.merging.soft_nms import SoftNMS, batched_soft_nms


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(w, 0.0) * max(h, 0.0)
    area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return inner / (sum(area) - inner) if inner else 0.0


def by_hand(boxes, scores, labels, soft):
    """Figure 2 of the paper, class by class; positions and new scores by falling score."""
    found = []
    for label in set(labels):
        left = {i: s for i, s in enumerate(scores) if labels[i] == label}
        while left:
            best = max(left, key=lambda i: (left[i], -i))
            score = left.pop(best)
            if score >= soft.min_score:
                found.append((best, score))
            for i in left:
                iou = overlap(boxes[best], boxes[i])
                if soft.method == "gaussian":
                    left[i] *= math.exp(-(iou**2) / soft.sigma)
                elif iou >= soft.iou_threshold:
                    left[i] *= 1 - iou
    return sorted(found, key=lambda pair: -pair[1])


row = st.tuples(
    *(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30)),
    *(st.floats(1 / 64, 1, width=32), st.integers(1, 3)),
)


@settings(max_examples=60)
@given(
    rows=st.lists(row, max_size=12),
    soft=st.builds(
        SoftNMS,
        st.sampled_from(["linear", "gaussian"]),
        st.sampled_from([0.0, 0.3, 0.7]),
        st.sampled_from([0.1, 0.5]),
        st.sampled_from([0.001, 0.2]),
    ),
)
def test_it_is_the_papers(rows, soft):
    boxes = [(x, y, x + w, y + h) for x, y, w, h, _, _ in rows]
    scores, labels = [r[4] for r in rows], [r[5] for r in rows]
    kept, new = batched_soft_nms(
        torch.tensor(boxes).reshape(-1, 4).float(),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
        soft,
    )
    expected = by_hand(boxes, scores, labels, soft)
    near = [s for _, s in expected if abs(s - soft.min_score) < 1e-6]
    if not near:
        np.testing.assert_allclose(new.numpy(), [s for _, s in expected], rtol=1e-4)
    decided = len(set(np.round([s for _, s in expected], 6))) == len(expected)
    if decided and not near:
        assert kept.tolist() == [i for i, _ in expected]


def some(number, seed=0):
    rng = np.random.default_rng(seed)
    corner = torch.from_numpy(rng.uniform(0, 60, (number, 2))).float()
    boxes = torch.cat([corner, corner + torch.from_numpy(rng.uniform(5, 40, (number, 2)))], 1)
    return boxes.float(), torch.rand(number), torch.from_numpy(rng.integers(1, 4, number))


def test_the_first_detections_are_the_same_for_any_number():
    given_boxes = some(80)
    kept, new = batched_soft_nms(*given_boxes, SoftNMS("gaussian"))
    first, scores = batched_soft_nms(*given_boxes, SoftNMS("gaussian"), max_detections=7)
    assert first.tolist() == kept[:7].tolist() and scores.tolist() == new[:7].tolist()


def test_boxes_that_a_prefix_kept_lose_the_same_again():
    """What is kept may be weighed again among itself, from the scores before."""
    boxes, scores, labels = some(80, seed=3)
    kept, new = batched_soft_nms(boxes, scores, labels, max_detections=20)
    again, weighed = batched_soft_nms(boxes[kept], scores[kept], labels[kept])
    assert again.tolist() == list(range(20)) and torch.equal(weighed, new)


def test_hard_suppression_is_the_limit_of_a_narrow_gaussian():
    boxes, scores, labels = some(60, seed=1)
    soft = SoftNMS("gaussian", sigma=1e-9)
    kept, new = batched_soft_nms(boxes, scores, labels, soft)
    assert torch.equal(kept, batched_nms(boxes, scores, labels, 1e-4))
    assert torch.equal(new, scores[kept])


def test_classes_do_not_touch_and_nothing_given_is_changed():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    scores, labels = torch.tensor([0.5, 0.9, 0.8]), torch.tensor([1, 2, 1])
    kept, new = batched_soft_nms(boxes, scores, labels)
    assert kept.tolist() == [1, 2] and new.tolist() == pytest.approx([0.9, 0.8])  # 0.5 * (1 - 1)
    assert scores.tolist() == pytest.approx([0.5, 0.9, 0.8])


def test_no_boxes():
    kept, new = batched_soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert kept.shape == new.shape == (0,) and kept.dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cubic"}, "method must be one of 'linear', 'gaussian', got 'cubic'"),
        ({"iou_threshold": 1.5}, r"iou_threshold must lie in \[0, 1\], got 1.5"),
        ({"min_score": math.nan}, r"min_score must lie in \[0, 1\], got nan"),
        ({"sigma": 0.0}, "sigma must be above 0 and finite, got 0.0"),
    ],
)
def test_rules_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SoftNMS(**options)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"scores and labels \(D,\), got \(2, 4\), \(3,\)"):
        batched_soft_nms(torch.zeros(2, 4), torch.zeros(3), torch.zeros(2))
