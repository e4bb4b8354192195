"""Boundary F-score: agreement of the borders of a predicted mask with those of the annotation.

The boundary F-score of Csurka et al., "What is a good evaluation measure for semantic
segmentation?" (BMVC 2013), section 3.3, with the tolerance of the DAVIS benchmark (Perazzi et al.,
CVPR 2016; ``f_boundary.py`` of davisvideochallenge/davis): 0.8 % of the image's diagonal, rounded
up to whole pixels. Written here because no library of the stack has it: torchmetrics and
scikit-image offer Hausdorff distances only.

Legend: H x W pixels, K classes.
"""

import math

import cv2
import numpy as np

from densenet_backbones.data.mask_samples import IGNORED

TOLERANCE = 0.008
"""Distance by which a border may be off, as a share of the image's diagonal."""


def tolerance_in_pixels(height: int, width: int, tolerance: float = TOLERANCE) -> int:
    """Return the largest distance at which two border pixels match, at least 1."""
    return max(1, math.ceil(tolerance * math.hypot(height, width)))


def boundary_scores(
    prediction: np.ndarray, target: np.ndarray, classes: int, tolerance: float = TOLERANCE
) -> np.ndarray:
    """Compute the F-score of each class's border in one image of labels.

    The border of a class is made of its pixels beside (left, right, above, below) one of another
    class. Precision is the share of the predicted border within the tolerance of the annotated one,
    recall the share of the annotated border within the tolerance of the predicted one.

    Ignored pixels take the label of the nearest other one first: borders in a band of them, as VOC
    draws it around its objects, are its middle line. What lies deeper in an ignored region than the
    tolerance counts neither as right nor as wrong.

    Args:
        prediction: (H, W) labels in ``0 .. classes - 1``.
        target: (H, W) labels likewise, with `IGNORED` where nothing is known.
        classes: Number of classes, K.
        tolerance: Largest distance of matching borders, as a share of the diagonal.

    Returns:
        (K,) float64 in [0, 1]; NaN for classes without a border in either image.
    """
    known = target != IGNORED
    counted = np.ones(target.shape, bool)
    limit = tolerance_in_pixels(target.shape[0], target.shape[1], tolerance)
    # Pixels that nobody labeled.
    if not known.all():
        target, counted = _fill_ignored(target, known, limit)
    scores = np.full(classes, np.nan)
    if not counted.any():
        return scores
    for label in np.union1d(prediction, target).tolist():
        scores[label] = _f_score(prediction == label, target == label, counted, limit)
    return scores


def _fill_ignored(
    target: np.ndarray, known: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the target with the nearest known label in ignored pixels, and which pixels count."""
    if not known.any():
        return target, np.zeros(target.shape, bool)
    unknown = (~known).astype(np.uint8)  # OpenCV looks for the nearest zero
    distance, nearest = cv2.distanceTransformWithLabels(
        unknown, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # OpenCV numbers the known pixels; each unknown one gets the number of its nearest.
    labels = np.zeros(int(nearest.max()) + 1, target.dtype)
    labels[nearest[known]] = target[known]
    return labels[nearest], distance <= limit


def _f_score(prediction: np.ndarray, target: np.ndarray, counted: np.ndarray, limit: int) -> float:
    """Return the F-score of one class from its two masks; NaN without a border in either."""
    predicted, true = _find_border(prediction), _find_border(target)
    counted_predicted, counted_true = predicted & counted, true & counted
    if not counted_predicted.any() and not counted_true.any():
        return float("nan")
    if not counted_predicted.any() or not counted_true.any():
        return 0.0
    # Border pixels within the tolerance of the other border.
    precision = (_distance_to(true)[counted_predicted] <= limit).mean()
    recall = (_distance_to(predicted)[counted_true] <= limit).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _find_border(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask that have a neighbor in the image outside of it."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(
        mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=1
    ).astype(bool)
    border: np.ndarray = mask & ~inner
    return border


def _distance_to(pixels: np.ndarray) -> np.ndarray:
    """(H, W) Euclidean distance of every pixel to the nearest of these."""
    away = (~pixels).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
