"""Confusion matrix of a detector: the classes that it mistakes for each other or for background.

Matching follows cocoapi's ``cocoeval.py`` (greedy by falling score; a crowd's overlap is the share
of the detection that lies on it), except that a detection may take an object of another class, as
in ``utils/metrics.py`` of ultralytics/yolov5.

Legend: C classes without the background; row and column C stand for the background.
"""

from collections.abc import Iterable

import numpy as np

from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.messages import check_interval
from densenet_backbones.metrics.evaluated_images import (
    EvaluatedImage,
    Predictions,
    compute_overlaps,
    pair_predictions,
)
from densenet_backbones.metrics.undefined import divide_counts


def confusion_matrix(
    part: DetectionSet,
    predictions: Predictions,
    score_thresh: float = 0.5,
    iou_threshold: float = 0.5,
    image_ids: Iterable[int] | None = None,
) -> np.ndarray:
    """Count detections by the class of the object they cover.

    In each image the detections choose in the order of their scores, whatever their class: each
    takes the object it overlaps most among those that are left (of its own class where two overlap
    equally), if the IoU reaches the threshold. A detection without an object is counted in the
    background's row, an object without a detection in the background's column. Crowds and
    difficult objects are in no row; a detection that finds nothing else but lies on one of its
    class (with `iou_threshold` of its own area on a crowd, or that IoU with a difficult object)
    is not counted.

    Args:
        part: The data, with its annotations.
        predictions: Detections by image id.
        score_thresh: Lowest score of a detection that counts, in [0, 1].
        iou_threshold: Lowest IoU at which a detection takes an object, in (0, 1].
        image_ids: Images to count; None takes all of `part`.

    Returns:
        (C + 1, C + 1) int64 counts; rows the true class, columns the predicted one, in label order
        with the background last. Entry [C, C] is 0.

    Raises:
        ValueError: If a threshold is out of range, or predictions do not fit the data.
    """
    check_interval("score_thresh", score_thresh, "[0, 1]")
    check_interval("iou_threshold", iou_threshold, "(0, 1]")
    background = len(part.categories.names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    for image in pair_predictions(part, predictions, image_ids):
        detections = np.flatnonzero(image.scores >= score_thresh)
        detections = detections[np.argsort(-image.scores[detections], kind="stable")]
        true, predicted = _match(image, detections, iou_threshold, background)
        # torchmetrics counts pairs likewise, but asks for (pairs, C^2) numbers of memory where
        # deterministic algorithms are on.
        np.add.at(matrix, (true, predicted), 1)
    return matrix


def normalize_rows(matrix: np.ndarray) -> np.ndarray:
    """Divide each row by its sum: the shares of what the objects of a true class were taken for.

    Args:
        matrix: As `confusion_matrix` returns it.

    Returns:
        Float64 of the same shape, in [0, 1]; NaN in rows without any count.
    """
    return divide_counts(matrix, matrix.sum(axis=1, keepdims=True))


def _match(
    image: EvaluatedImage, detections: np.ndarray, iou_threshold: float, background: int
) -> tuple[list[int], list[int]]:
    """Return (true, predicted) pairs of one image as zero-based classes."""
    true: list[int] = []
    predicted: list[int] = []
    iou = compute_overlaps(image, detections)  # (n, B)
    free = ~image.ignored
    for row, detection in enumerate(detections):
        same = image.true_labels == image.labels[detection]
        choice = -1
        if free.any():
            # The largest overlap, among equal ones that of the own class, then the first.
            order = np.lexsort((~same, -np.where(free, iou[row], -1.0)))
            choice = int(order[0])
        if choice >= 0 and iou[row, choice] >= iou_threshold:
            free[choice] = False
            true.append(int(image.true_labels[choice]) - 1)
        # No object is left: a crowd or a difficult object of the class excuses the detection.
        elif (same & image.ignored & (iou[row] >= iou_threshold)).any():
            continue
        else:
            true.append(background)
        predicted.append(int(image.labels[detection]) - 1)
    # Objects that no detection took.
    missed = image.true_labels[free] - 1
    return true + missed.tolist(), predicted + [background] * len(missed)
