"""Selection of detections, against a naive non-maximum suppression of each class."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from densenet_backbones.heads.multibox.selection import Selection, select_detections

SIZE = (100, 120)


def _random_case(seed: int, priors: int = 60, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(priors, classes, generator=generator) * 2).softmax(dim=1)
    corner = torch.rand(priors, 2, generator=generator) * 100 - 10
    boxes = torch.cat((corner, corner + torch.rand(priors, 2, generator=generator) * 60), dim=1)
    return scores, boxes


def _iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (areas - shared)


def _mean(box: list[float], votes: list[tuple[float, int, list]], threshold: float) -> list[float]:
    """The mean of the boxes that overlap one, weighted by their scores."""
    heard = [(score, other) for score, _, other in votes if _iou(box, other) >= threshold]
    total = sum(score for score, _ in heard)
    return [sum(score * other[side] for score, other in heard) / total for side in range(4)]


def _naive(scores: Tensor, boxes: Tensor, selection: Selection) -> list[tuple[float, int, list]]:
    limits = (SIZE[1], SIZE[0], SIZE[1], SIZE[0])
    clipped = [
        [min(max(v, 0.0), limit) for v, limit in zip(box, limits, strict=True)]
        for box in boxes.tolist()
    ]
    kept: list[tuple[float, int, list]] = []
    for label in range(1, scores.shape[1]):
        found = [
            (score, label, box)
            for score, box in zip(scores[:, label].tolist(), clipped, strict=True)
            if score > selection.score_thresh and box[2] > box[0] and box[3] > box[1]
        ]
        best: list[tuple[float, int, list]] = []
        found = sorted(found, reverse=True)[: selection.topk_candidates]
        for candidate in found:
            if all(_iou(candidate[2], other[2]) <= selection.nms_thresh for other in best):
                best.append(candidate)
        kept += [
            (score, label, _mean(box, found, selection.vote_thresh)) for score, label, box in best
        ]
    return sorted(kept, reverse=True)[: selection.detections_per_img]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "selection",
    [
        Selection(),
        Selection(0.2, 0.3, 10, 15),
        Selection(0.05, 0.6, 5, 200),
        Selection(vote_thresh=0.3),
        Selection(0.1, 0.2, 20, 15, vote_thresh=0.6),
    ],
)
def test_equals_the_naive_version(seed: int, selection: Selection) -> None:
    scores, boxes = _random_case(seed)
    found = select_detections(scores, boxes, SIZE, selection)
    expected = _naive(scores, boxes, selection)
    assert found["scores"].tolist() == pytest.approx([item[0] for item in expected])
    assert found["labels"].tolist() == [item[1] for item in expected]
    torch.testing.assert_close(
        found["boxes"], torch.tensor([item[2] for item in expected]).reshape(-1, 4)
    )


def test_boxes_lie_inside_the_image_and_scores_fall() -> None:
    found = select_detections(*_random_case(1), SIZE, Selection())
    boxes, scores = found["boxes"], found["scores"]
    assert len(boxes) > 10
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= SIZE[1] and boxes[:, 3].max() <= SIZE[0]
    assert (scores[1:] <= scores[:-1]).all()


def test_votes_move_boxes_and_leave_the_rest() -> None:
    scores, boxes = _random_case(2)
    published = Selection(0.05, 0.3)
    plain = select_detections(scores, boxes, SIZE, published)
    voted = select_detections(scores, boxes, SIZE, replace(published, vote_thresh=0.5))
    for name in ("scores", "labels"):
        assert torch.equal(plain[name], voted[name])
    moved = (plain["boxes"] != voted["boxes"]).any(dim=1)
    assert 3 < moved.sum() < len(moved)


def test_votes_keep_their_precision_under_autocast() -> None:
    """A product of matrices would be one of bfloat16, and boxes be off by half a pixel."""
    scores, boxes = _random_case(2)
    selection = Selection(0.05, 0.3, vote_thresh=0.5)
    plain = select_detections(scores, boxes, SIZE, selection)
    with torch.autocast("cpu", torch.bfloat16):
        found = select_detections(scores, boxes, SIZE, selection)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)


def test_background_and_boxes_outside_the_image_are_no_detections() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [200.0, 0, 220, 10], [30.0, 30, 40, 40]])
    scores = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    found = select_detections(scores, boxes, SIZE, Selection())
    assert found["labels"].tolist() == [2]
    assert found["boxes"].tolist() == [[30, 30, 40, 40]]


def test_classes_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10]])
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.2, 0.7]])
    found = select_detections(scores, boxes, SIZE, Selection())
    assert sorted(found["labels"].tolist()) == [1, 2]


def test_no_detection_keeps_the_shapes() -> None:
    scores = torch.tensor([[1.0, 0.0]])
    found = select_detections(scores, torch.tensor([[0.0, 0, 9, 9]]), SIZE, Selection())
    assert found["boxes"].shape == (0, 4)
    assert found["scores"].shape == found["labels"].shape == (0,)
    assert found["labels"].dtype == torch.int64


def test_limits_are_those_of_ssds_caffe_scripts() -> None:
    """`ssd_pascal.py`: confidence 0.01, NMS 0.45 of the best 400, at most 200 detections."""
    assert Selection() == Selection(0.01, 0.45, 400, 200)


def test_the_threshold_is_exclusive() -> None:
    scores = torch.tensor([[0.5, 0.5]])
    found = select_detections(scores, torch.tensor([[0.0, 0, 9, 9]]), SIZE, Selection(0.5))
    assert len(found["boxes"]) == 0


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"nms_thresh must lie in \[0, 1\], got 45"):
        Selection(nms_thresh=45)
    with pytest.raises(ValueError, match=r"vote_thresh must lie in \[0, 1\], got -0.1"):
        Selection(vote_thresh=-0.1)
    with pytest.raises(ValueError, match="detections_per_img must be at least 1, got 0"):
        Selection(detections_per_img=0)
