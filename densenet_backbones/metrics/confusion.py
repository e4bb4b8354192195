"""Which classes a detector takes for which: the confusion matrix of detections.

Legend: C classes without the background; row and column C stand for the background.
"""

from collections.abc import Iterable

import numpy as np

from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.metrics.evaluated_images import (
    EvaluatedImage,
    Predictions,
    pair_predictions,
)


def confusion_matrix(
    part: DetectionSet,
    predictions: Predictions,
    score_threshold: float = 0.5,
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
        part: The data.
        predictions: By image id.
        score_threshold: Detections from this score on count, in [0, 1].
        iou_threshold: In (0, 1].
        image_ids: Only these images; None: all of `part`.

    Returns:
        (C + 1, C + 1) int64; rows the true class, columns the predicted one, in label order with
        the background last. Entry [C, C] is 0.

    Raises:
        ValueError: If a threshold is out of range, or predictions do not fit the data.
    """
    if not 0 <= score_threshold <= 1 or not 0 < iou_threshold <= 1:
        raise ValueError(
            "score_threshold must lie in [0, 1] and iou_threshold in (0, 1], got "
            f"{score_threshold} and {iou_threshold}"
        )
    background = len(part.categories.names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    for image in pair_predictions(part, predictions, image_ids):
        kept = np.flatnonzero(image.scores >= score_threshold)
        kept = kept[np.argsort(-image.scores[kept], kind="stable")]
        true, predicted = _match(image, kept, iou_threshold, background)
        np.add.at(matrix, (true, predicted), 1)
    return matrix


def normalize_rows(matrix: np.ndarray) -> np.ndarray:
    """Each row divided by its sum: what becomes of the objects of each true class.

    Args:
        matrix: As `confusion_matrix` returns it.

    Returns:
        Float64 of the same shape, in [0, 1]; NaN in rows without any count.
    """
    sums = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, sums, out=np.full(matrix.shape, np.nan), where=sums > 0)


def _match(
    image: EvaluatedImage, kept: np.ndarray, iou_threshold: float, background: int
) -> tuple[list[int], list[int]]:
    """(true, predicted) pairs of one image as zero-based classes."""
    true, predicted = [], []
    iou = _overlaps(image, kept)  # (n, B)
    free = ~image.ignored
    for row, detection in enumerate(kept):
        same = image.true_labels == image.labels[detection]
        choice = -1
        if free.any():
            # By overlap, then by the class; the first of what is equal still.
            order = np.lexsort((~same, -np.where(free, iou[row], -1.0)))
            choice = int(order[0])
        if choice >= 0 and iou[row, choice] >= iou_threshold:
            free[choice] = False
            true.append(int(image.true_labels[choice]) - 1)
        elif (same & image.ignored & (iou[row] >= iou_threshold)).any():
            continue
        else:
            true.append(background)
        predicted.append(int(image.labels[detection]) - 1)
    missed = image.true_labels[free] - 1
    return true + missed.tolist(), predicted + [background] * len(missed)


def _overlaps(image: EvaluatedImage, kept: np.ndarray) -> np.ndarray:
    """(n, B) IoU, or for crowds the share of the detection that lies on them."""
    a, b = image.boxes[kept][:, None], image.true_boxes[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = sides.clip(min=0).prod(axis=-1)
    own = (a[..., 2:] - a[..., :2]).prod(axis=-1)  # (n, 1)
    union = own + (b[..., 2:] - b[..., :2]).prod(axis=-1) - intersection
    divisor = np.where(image.crowd, own, union)
    return np.divide(intersection, divisor, out=np.zeros_like(union), where=divisor > 0)
