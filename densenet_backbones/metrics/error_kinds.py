"""Kinds of a detector's errors, and the average precision that each of them costs.

D. Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020
(arXiv 2008.08115), section 2; matching, ties and cures are those of its ``tidecv/quantify.py`` and
``tidecv/errors/main_errors.py`` (version 1.0.1), whose numbers these are. That package is not used:
it is no longer kept, and brings other builds of OpenCV. Two things differ, both as in COCO's
evaluation: a detection of an ignored object (a crowd, VOC's difficult ones) is no error, and
classes without objects are in no mean.

Legend: n detections and B objects of one image, N detections of all images, C classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.messages import check_interval
from densenet_backbones.metrics.evaluated_images import (
    EvaluatedImage,
    Predictions,
    compute_overlaps,
    pair_predictions,
)
from densenet_backbones.metrics.undefined import replace_nan

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
"""Kinds of errors: the wrong class; the right one too far off; both of it; an object that another
detection has; nothing there; and an object that no detection comes near."""

RIGHT, IGNORED = -1, -2
"""Kinds of detections that are no errors."""

MOST_DETECTIONS = 100
"""Detections of an image that count, the best ones; as in COCO's evaluation."""

_CLASS, _PLACE, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(KINDS))
_RECALLS = np.arange(101) / 100


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """Detections of one image, by falling score, with their kinds, and the objects they take.

    Attributes:
        image_id: The data set's own id.
        boxes: (n, 4) xyxy of the detections.
        labels: (n,) int64 of the detections.
        scores: (n,) of the detections.
        kinds: (n,) int64: places in `KINDS`, `RIGHT` or `IGNORED`.
        cured: (n,) int64: label with which a detection becomes right if its kind is cured; 0 where
            the cure drops it.
        true_boxes: (B, 4) xyxy of all objects.
        true_labels: (B,) int64 of all objects.
        counted: (B,) bool: False for objects that are ignored.
        taken: (B,) score of the detection that has the object; minus infinity where there is none.
        missed: (B,) bool: objects that no detection has, nor would have after another cure.
    """

    image_id: int
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    cured: np.ndarray
    true_boxes: np.ndarray
    true_labels: np.ndarray
    counted: np.ndarray
    taken: np.ndarray
    missed: np.ndarray

    def count(self, score_thresh: float) -> tuple[int, int, int]:
        """Return the numbers of right and wrong detections from a score on, and of missed objects.

        The better detections choose first, so that those below the score change none above it.
        """
        shown = self.kinds[self.scores >= score_thresh]
        missed = self.counted & (self.taken < score_thresh)
        return int((shown == RIGHT).sum()), int((shown >= 0).sum()), int(missed.sum())

    def measure_f1(self, score_thresh: float) -> float:
        """Return the F1 of the detections from a score on; 1 where there is nothing and none."""
        right, wrong, missed = self.count(score_thresh)
        return 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 1.0


@dataclass(frozen=True)
class ErrorKind:
    """Errors of one kind.

    Attributes:
        name: One of `KINDS`.
        count: Number of detections, or of objects for "missed", whatever their score.
        lost_ap: Average precision that would be gained if all of them were cured, in [0, 1].
    """

    name: str
    count: int
    lost_ap: float


@dataclass(frozen=True, eq=False)
class ErrorAnalysis:
    """Result of `find_errors`.

    Attributes:
        ap: Mean average precision at the IoU; NaN without objects.
        kinds: One entry for each of `KINDS`.
        wrong_ap: Average precision that all wrong detections together cost.
        missed_ap: The same of all objects that no detection has.
        images: The images' detections by kind, in the order of the data.
    """

    ap: float
    kinds: tuple[ErrorKind, ...]
    wrong_ap: float
    missed_ap: float
    images: tuple[ImageErrors, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the numbers in plain JSON types; those that are not defined are None."""
        numbers = {name: getattr(self, name) for name in ("ap", "wrong_ap", "missed_ap")}
        return {
            **replace_nan(numbers),
            "kinds": [replace_nan(vars(kind)) for kind in self.kinds],
        }


def find_errors(
    part: DetectionSet,
    predictions: Predictions,
    iou_threshold: float = 0.5,
    background: float = 0.1,
    image_ids: Iterable[int] | None = None,
    *,
    masks: bool = False,
) -> ErrorAnalysis:
    """Sort the errors of a detector by kind, and measure what each kind costs.

    Args:
        part: The data, with its annotations.
        predictions: Detections by image id.
        iou_threshold: Lowest IoU at which a detection is right, in (0, 1].
        background: IoU up to which there is nothing where a detection is, in [0, 1].
        image_ids: Images to look at; None takes all of `part`.
        masks: Overlaps are those of masks, not of boxes.

    Raises:
        ValueError: If a threshold is out of range, or predictions do not fit the data.
    """
    check_interval("iou_threshold", iou_threshold, "(0, 1]")
    check_interval("background", background, "[0, 1]")
    images = tuple(
        _match(image, iou_threshold, background)
        for image in pair_predictions(part, predictions, image_ids, masks=masks)
    )
    classes = part.categories.num_classes
    labels, scores, kinds, cured = _join(images, "labels", "scores", "kinds", "cured")
    true_labels, counted, taken, missed = _join(images, "true_labels", "counted", "taken", "missed")
    objects = np.bincount(true_labels[counted], minlength=classes)
    judged = kinds != IGNORED

    def measure(labels: np.ndarray, right: np.ndarray, keep: np.ndarray, n: np.ndarray) -> float:
        return _mean_ap(labels[keep], scores[keep], right[keep], n, objects > 0)

    ap = measure(labels, kinds == RIGHT, judged, objects)
    result = []
    for number, name in enumerate(KINDS[:_MISSED]):
        of_kind = kinds == number
        repaired = of_kind & (cured > 0)
        new_labels = np.where(repaired, cured, labels)
        gained = measure(
            new_labels, (kinds == RIGHT) | repaired, judged & (~of_kind | repaired), objects
        )
        result.append(ErrorKind(name, int(of_kind.sum()), _gain(gained, ap)))
    without = [
        measure(
            labels,
            kinds == RIGHT,
            judged,
            objects - np.bincount(true_labels[gone], minlength=classes),
        )
        for gone in (missed, counted & np.isneginf(taken))
    ]
    result.append(ErrorKind(KINDS[_MISSED], int(missed.sum()), _gain(without[0], ap)))
    return ErrorAnalysis(
        ap=ap,
        kinds=tuple(result),
        wrong_ap=measure(labels, kinds == RIGHT, kinds == RIGHT, objects) - ap,
        missed_ap=without[1] - ap,
        images=images,
    )


def _join(images: Sequence[ImageErrors], *names: str) -> list[np.ndarray]:
    nothing = {"scores": float, "taken": float, "counted": bool, "missed": bool}
    return [
        np.concatenate(
            [np.zeros(0, nothing.get(name, np.int64)), *(getattr(i, name) for i in images)]
        )
        for name in names
    ]


def _gain(cured: float, ap: float) -> float:
    """Return the gain of a cure; the rounding of recalls can make it a little less than nothing."""
    return float(max(cured - ap, 0.0)) if not np.isnan(ap) else ap


def _match(image: EvaluatedImage, iou_threshold: float, background: float) -> ImageErrors:
    """Find the object or the kind of error of each detection of an image."""
    rows = np.argsort(-image.scores, kind="stable")[:MOST_DETECTIONS]
    labels, scores = image.labels[rows], image.scores[rows]
    counted = ~image.ignored
    overlaps = compute_overlaps(image, rows)  # (n, B)
    same = labels[:, None] == image.true_labels[None]
    excused = (overlaps * (same & image.ignored) >= iou_threshold).any(axis=1)
    overlaps = np.where(counted, overlaps, 0.0)
    own = overlaps * same

    # In the order of their scores, each takes the object of its class that it overlaps most.
    taken = np.full(len(counted), -np.inf)
    kinds = np.full(len(rows), _BOTH)
    free = own.copy()
    for row in np.flatnonzero((own >= iou_threshold).any(axis=1)):
        best = int(free[row].argmax())
        if free[row, best] >= iou_threshold:
            taken[best], kinds[row] = scores[row], RIGHT
            free[:, best] = 0.0
    kinds[(kinds != RIGHT) & excused] = IGNORED
    wrong = kinds == _BOTH
    targets = np.full(len(rows), -1)
    if len(counted) and counted.any():
        _tell_kinds(
            kinds, targets, wrong, overlaps, same, taken > -np.inf, iou_threshold, background
        )
    else:
        kinds[wrong] = _BACKGROUND

    # Of several detections that a cure would bring to one object, the best has it.
    cured = np.zeros(len(rows), np.int64)
    for row in np.flatnonzero(targets >= 0):
        if np.isneginf(taken[targets[row]]) and row == np.flatnonzero(targets == targets[row])[0]:
            cured[row] = image.true_labels[targets[row]]
    missed = counted & np.isneginf(taken)
    missed[targets[targets >= 0]] = False
    return ImageErrors(
        image.image_id,
        *(image.boxes[rows], labels, scores, kinds, cured),
        *(image.true_boxes, image.true_labels, counted, taken, missed),
    )


def _tell_kinds(
    kinds: np.ndarray,
    targets: np.ndarray,
    wrong: np.ndarray,
    overlaps: np.ndarray,
    same: np.ndarray,
    used: np.ndarray,
    iou_threshold: float,
    background: float,
) -> None:
    """Fill in the kinds of wrong detections, and the objects that they should have had.

    Args:
        kinds: (n,) to fill in.
        targets: (n,) likewise, places of objects.
        wrong: (n,) bool.
        overlaps: (n, B), 0 for ignored objects.
        same: (n, B) bool: of one class.
        used: (B,) bool: some detection has the object.
        iou_threshold: As of `find_errors`.
        background: As of `find_errors`.
    """
    own, others = overlaps * same, overlaps * ~same
    largest = own.max(axis=1)
    duplicate = (own * used).max(axis=1) >= iou_threshold
    # From the weakest claim to the strongest, which are tried first.
    kinds[wrong & (overlaps.max(axis=1) <= background)] = _BACKGROUND
    kinds[wrong & duplicate] = _DUPLICATE
    for kind, claim, near in (
        (_CLASS, others.max(axis=1) >= iou_threshold, others),
        (_PLACE, (background <= largest) & (largest <= iou_threshold), own),
    ):
        kinds[wrong & claim] = kind
        targets[wrong & claim] = near[wrong & claim].argmax(axis=1)


def _mean_ap(
    labels: np.ndarray,
    scores: np.ndarray,
    right: np.ndarray,
    objects: np.ndarray,
    evaluated: np.ndarray,
) -> float:
    """Return the mean of the classes' APs by COCO's 101 recalls.

    Args:
        labels: (N,) of the detections that count.
        scores: (N,).
        right: (N,) bool.
        objects: (C + 1,) number of each class's objects, perhaps after a cure.
        evaluated: (C + 1,) bool: classes with objects before it.

    Returns:
        The mean; a class that has neither objects nor detections any more is not in it.
    """
    order = np.argsort(-scores, kind="stable")
    labels, right = labels[order], right[order]
    found = np.bincount(labels, minlength=len(objects)) > 0
    aps = []
    for label in np.flatnonzero(evaluated & (found | (objects > 0))):
        hits = right[labels == label]
        true = np.cumsum(hits)
        if not objects[label] or not len(true):
            aps.append(0.0)
            continue
        precision = true / np.arange(1, len(true) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        places = np.searchsorted(true / objects[label], _RECALLS, side="left")
        aps.append(float(precision[places].mean()))
    return float(np.mean(aps)) if aps else float("nan")
