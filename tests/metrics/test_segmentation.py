"""Segmentation's numbers against torchmetrics, numpy and borders drawn by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex, MultilabelJaccardIndex

from densenet_backbones.metrics import boundary
from densenet_backbones.metrics.boundary import boundary_scores, tolerance_in_pixels
from densenet_backbones.metrics.segmentation import SegmentationMetric


def random_masks(seed, shape, classes, ignored=0.1):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, shape)
    prediction = np.where(rng.random(shape) < 0.5, target, rng.integers(0, classes, shape))
    target[rng.random(shape) < ignored] = 255
    return torch.from_numpy(prediction.astype(np.uint8)), torch.from_numpy(target.astype(np.uint8))


def found(metric, *pairs):
    for prediction, target in pairs:
        metric.update(prediction, target)
    metric.compute()
    return metric.evaluation


def names(number):
    return [f"c{i}" for i in range(number)]


def by_hand(prediction, target, classes):
    """IoU and recall of each class by counting pixels."""
    p, t = prediction[target != 255], target[target != 255]
    iou, recall = [], []
    for c in range(classes):
        hits, union = ((p == c) & (t == c)).sum(), ((p == c) | (t == c)).sum()
        iou.append(float(hits / union) if union else math.nan)
        recall.append(float(hits / (t == c).sum()) if (t == c).any() else math.nan)
    return iou, recall, float((p == t).float().mean())


@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 3))
@settings(max_examples=40)
def test_equals_torchmetrics_and_numpy(seed, classes, images):
    shape = (images, 9, 7)
    pairs = [random_masks(seed + i, shape, classes) for i in range(2)]
    pairs = [(p % max(2, classes - 1), t) for p, t in pairs]  # one class is never predicted
    evaluation = found(SegmentationMetric(names(classes)), *pairs)
    prediction, target = (torch.cat(both) for both in zip(*pairs, strict=True))
    iou, recall, right = by_hand(prediction, target, classes)
    assert [c.iou for c in evaluation.classes] == pytest.approx(iou, abs=1e-6, nan_ok=True)
    assert [c.accuracy for c in evaluation.classes] == pytest.approx(recall, abs=1e-6, nan_ok=True)
    assert evaluation.numbers["pixel_accuracy"] == pytest.approx(right, abs=1e-6)
    assert evaluation.numbers["mIoU"] == pytest.approx(np.nanmean(iou), abs=1e-6)
    assert evaluation.numbers["class_accuracy"] == pytest.approx(np.nanmean(recall), abs=1e-6)
    assert evaluation.images == 2 * images
    for average, ours in (("none", iou), ("macro", evaluation.numbers["mIoU"])):
        theirs = MulticlassJaccardIndex(classes, average=average, ignore_index=255)
        expected = theirs(prediction.long(), target.long())
        assert np.nan_to_num(ours) == pytest.approx(expected.numpy(), abs=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=20)
def test_multilabel_equals_torchmetrics(seed, labels):
    prediction, target = random_masks(seed, (2, labels, 8, 8), 2)
    evaluation = found(SegmentationMetric(names(labels), "multilabel"), (prediction, target))
    if labels > 1:
        theirs = MultilabelJaccardIndex(labels, average="none", ignore_index=255)
        expected = theirs(prediction.long(), target.long()).numpy()
        assert np.nan_to_num([c.iou for c in evaluation.classes]) == pytest.approx(expected)
    for label, score in enumerate(evaluation.classes):
        iou, recall, _ = by_hand(prediction[:, label], target[:, label], 2)
        assert (score.iou, score.accuracy) == pytest.approx((iou[1], recall[1]), nan_ok=True)
    valid = target != 255
    right = float((prediction == target)[valid].float().mean())
    assert evaluation.numbers["pixel_accuracy"] == pytest.approx(right)
    assert evaluation.matrix.shape == (labels, 2, 2) and evaluation.matrix.sum() == valid.sum()


def test_binary_counts_both_sides():
    prediction, target = random_masks(3, (2, 8, 8), 2)
    evaluation = found(SegmentationMetric(["other", "road"], "binary"), (prediction, target))
    assert [c.iou for c in evaluation.classes] == pytest.approx(by_hand(prediction, target, 2)[0])


def test_the_matrix_has_a_row_a_true_class():
    target = torch.tensor([[[0, 0, 1], [2, 255, 255]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 1, 1], [0, 2, 2]]], dtype=torch.uint8)
    evaluation = found(SegmentationMetric(names(3)), (prediction, target))
    assert evaluation.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert [c.pixels for c in evaluation.classes] == [2, 1, 1]
    assert math.isnan(evaluation.classes[2].precision)  # never given to a pixel that counts
    assert evaluation.to_dict()["classes"][2]["precision"] is None


def test_the_order_and_the_sharing_of_images_change_nothing():
    pairs = [random_masks(i, (1, 12, 9 + i), 4) for i in range(6)]
    whole = found(SegmentationMetric(names(4)), *pairs)
    parts = [SegmentationMetric(names(4)) for _ in range(2)]
    for number, pair in enumerate(reversed(pairs)):
        parts[number % 2].update(*pair)
    for state in parts[0].metric_state:  # what torchmetrics does over processes
        setattr(parts[0], state, getattr(parts[0], state) + getattr(parts[1], state))
    assert found(parts[0]).to_dict() == whole.to_dict()
    assert whole.numbers["boundary_F"] > 0


def test_nothing_known_gives_no_number():
    target = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    evaluation = found(SegmentationMetric(names(2)), (torch.zeros_like(target), target))
    assert all(math.isnan(value) for value in evaluation.numbers.values())
    assert set(evaluation.to_dict()["numbers"].values()) == {None}


def test_boundary_scores_can_be_left_out():
    metric = SegmentationMetric(names(3), tolerance=None)
    assert "boundary_F" not in found(metric, random_masks(0, (1, 8, 8), 3)).numbers


@pytest.mark.parametrize(
    ("task", "prediction", "target", "message"),
    [
        ("multiclass", (1, 4, 4), (1, 4, 5), "must have one shape of 3 dimensions"),
        ("multilabel", (1, 4, 4), (1, 4, 4), "must have one shape of 4 dimensions"),
    ],
)
def test_wrong_shapes_are_refused(task, prediction, target, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMetric(names(2), task).update(torch.zeros(prediction), torch.zeros(target))


def test_unknown_labels_are_refused():
    good, bad = torch.zeros(1, 2, 2), torch.full((1, 2, 2), 3)
    with pytest.raises(ValueError, match=r"predictions must lie in \[0, 2\], got 3 to 3"):
        SegmentationMetric(names(3)).update(bad, good)
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 2\], got 3 to 3"):
        SegmentationMetric(names(3)).update(good, bad)
    with pytest.raises(ValueError, match="two for a binary task"):
        SegmentationMetric(["road"], "binary")


# -- borders ---------------------------------------------------------------------------------------


def half(column, shape=(40, 60)):
    """Class 1 from a column on, class 0 before."""
    mask = np.zeros(shape, np.uint8)
    mask[:, column:] = 1
    return mask


def test_tolerance_is_a_share_of_the_diagonal_rounded_up():
    assert tolerance_in_pixels(480, 640) == math.ceil(0.008 * 800) == 7
    assert tolerance_in_pixels(3, 4) == 1
    assert tolerance_in_pixels(30, 40, 0.1) == 5


@pytest.mark.parametrize(("moved", "expected"), [(0, 1.0), (3, 1.0), (4, 0.0), (-3, 1.0)])
def test_a_border_within_the_tolerance_is_right(moved, expected):
    scores = boundary_scores(half(30 + moved), half(30), 2, tolerance=3 / math.hypot(40, 60))
    assert scores.tolist() == [expected, expected]


def test_borders_have_a_neighbor_outside():
    """One of four: not those at a corner, nor beyond the image's edge."""
    mask = np.random.default_rng(0).random((12, 9)) < 0.7
    padded = np.pad(mask, 1, constant_values=True)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    np.testing.assert_array_equal(boundary._find_border(mask), mask & ~inner)


def test_half_a_border_is_a_recall_of_a_half():
    """A line of 40 pixels of which the prediction has the upper 20, and no other."""
    target, prediction = half(30), np.zeros((40, 60), np.uint8)
    prediction[:20, 30:] = 1
    found = boundary_scores(prediction, target, 2, tolerance=1e-9)[1]
    # annotated: column 30; found: its upper half and the 29 further pixels of row 19
    recall, precision = 21 / 40, 21 / 49  # what is one pixel further is right too
    assert found == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_class_without_a_border_does_not_count():
    mask = np.zeros((10, 10), np.uint8)
    assert np.isnan(boundary_scores(mask, mask, 3)).all()
    scores = boundary_scores(half(5, (10, 10)), mask, 3)
    assert scores[:2].tolist() == [0, 0] and np.isnan(scores[2])


def test_a_band_of_ignored_pixels_is_a_border_in_its_middle():
    target = half(30)
    target[:, 28:33] = 255  # five pixels, as VOC draws them
    three_pixels = 3 / math.hypot(40, 60)
    for column, expected in ((28, 1), (30, 1), (33, 1), (24, 0), (37, 0)):
        scores = boundary_scores(half(column), target, 2, three_pixels)
        assert scores.tolist() == [expected, expected], column


def test_deep_in_an_ignored_region_nothing_counts():
    target = half(30)
    target[:, 10:50] = 255
    assert np.isnan(boundary_scores(half(30), target, 2, 1e-9)).all()
    assert np.isnan(boundary_scores(half(25), target, 2, 1e-9)).all()
    assert boundary_scores(half(5), target, 2, 1e-9).tolist() == [0, 0]  # where all is known


def test_every_image_has_its_own_score():
    torch.manual_seed(0)
    targets = torch.randint(0, 3, (4, 6, 5))
    targets[1, :2] = 255
    targets[2] = 255
    predictions = torch.randint(0, 3, targets.shape)
    metric = SegmentationMetric(("a", "b", "c"), tolerance=None, records=6)
    metric.update(predictions, targets, [5, 0, 1, 2])
    metric.compute()
    alone = []
    for prediction, target in zip(predictions, targets, strict=True):
        single = SegmentationMetric(("a", "b", "c"), tolerance=None)
        single.update(prediction[None], target[None])
        alone.append(single.compute()["mIoU"])
    undefined = float("nan")  # nothing is annotated, or it was not evaluated
    expected = [alone[1], undefined, alone[3], undefined, undefined, alone[0]]
    np.testing.assert_allclose(metric.evaluation.image_scores, expected, atol=1e-9)
