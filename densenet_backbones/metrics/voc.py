"""Average precision as Pascal VOC defines it, by the rule of VOC2007 and by that of VOC2010.

M. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2,
and the development kits' `VOCevaldet.m`: up to VOC2007 the mean of the interpolated precision at
eleven recalls, from VOC2010 on the area under the interpolated curve. Detections are taken in the
order of their scores; each belongs to the object of its class and image that it overlaps most. It
is right if the overlap reaches the threshold and no detection before it had that object (the next
ones are wrong: duplicates), and it does not count if that object is difficult.

Written here because no library of the stack has both rules, difficult objects and inclusive pixels;
its numbers are those of the devkit and of rafaelpadilla/Object-Detection-Metrics
(``lib/Evaluator.py``).

Legend: N detections and G objects of one class in all images, C classes without the background.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.messages import check_interval
from densenet_backbones.metrics.evaluated_images import (
    EvaluatedImage,
    Predictions,
    pair_predictions,
)
from densenet_backbones.metrics.undefined import mean_of_defined, replace_nan


@dataclass(frozen=True, eq=False)
class VocClass:
    """Average precisions and curve of one class.

    Attributes:
        name: Name of the class.
        objects: Number of objects to be detected; ignored ones are not counted.
        ap: All-point average precision (VOC2010 and later), in [0, 1]; NaN without objects.
        ap11: Eleven-point average precision (up to VOC2007), in [0, 1]; NaN without objects.
        recall: (N,) recall after each detection that counts, by falling score; NaN without objects.
        precision: (N,) precision at the same places.
        scores: (N,) scores of these detections.
    """

    name: str
    objects: int
    ap: float
    ap11: float
    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class VocEvaluation:
    """Result of `evaluate_voc`.

    Attributes:
        classes: One entry a class, in label order.
        iou_threshold: The overlap from which a detection is right.
        images: Number of images evaluated.
    """

    classes: tuple[VocClass, ...]
    iou_threshold: float
    images: int

    @property
    def mean_ap(self) -> float:
        """Mean of the classes' all-point APs; classes without objects are left out."""
        return mean_of_defined([c.ap for c in self.classes])

    @property
    def mean_ap11(self) -> float:
        """Mean of the classes' eleven-point APs; classes without objects are left out."""
        return mean_of_defined([c.ap11 for c in self.classes])

    def measure_from(self, least_score: float) -> tuple[float, float]:
        """Return precision and recall of the detections from a score on, all classes together.

        NaN where there is no detection, or no object.
        """
        right = counted = 0
        for result in self.classes:
            number = int(np.count_nonzero(result.scores >= least_score))
            counted += number
            if number:  # precision times detections so far
                right += round(float(result.precision[number - 1]) * number)
        objects = sum(c.objects for c in self.classes)
        nan = float("nan")
        return right / counted if counted else nan, right / objects if objects else nan

    def to_dict(self) -> dict[str, object]:
        """Return the numbers in plain JSON types; numbers that are not defined are None."""
        return {
            "iou_threshold": self.iou_threshold,
            "images": self.images,
            **replace_nan({"mean_ap": self.mean_ap, "mean_ap11": self.mean_ap11}),
            "classes": [
                replace_nan({"name": c.name, "objects": c.objects, "ap": c.ap, "ap11": c.ap11})
                for c in self.classes
            ],
        }


def evaluate_voc(
    part: DetectionSet,
    predictions: Predictions,
    iou_threshold: float = 0.5,
    *,
    inclusive: bool = False,
    count_difficult: bool = False,
    image_ids: Iterable[int] | None = None,
) -> VocEvaluation:
    """Compute the average precision of each class.

    VOC counts pixels from 1 and includes the last one, so that a box is ``xmax - xmin + 1`` wide.
    The boxes of a `DetectionSet` are ``[xmin - 1, ymin - 1, xmax, ymax]`` and have that width as
    they are: for them, and for a model trained on them, the plain IoU is VOC's.

    Args:
        part: The data, with its annotations; crowds of a COCO set are treated as difficult objects.
        predictions: Detections by image id. Equal scores keep the order of the images in `part`,
            and of the detections within an image.
        iou_threshold: Lowest IoU at which a detection is right, in (0, 1].
        inclusive: Add 1 to every width and height: for boxes, on both sides, that name the first
            and the last pixel.
        count_difficult: Evaluate difficult objects like any other.
        image_ids: Images to evaluate; None takes all of `part`, so that an image without an entry
            in `predictions` is one without detections.

    Returns:
        The classes' numbers and curves.

    Raises:
        ValueError: If the threshold is out of range, or predictions do not fit the data.
    """
    check_interval("iou_threshold", iou_threshold, "(0, 1]")
    images = pair_predictions(part, predictions, image_ids, count_difficult)
    flat = _Flat.from_images(images)
    classes = tuple(
        _evaluate_class(flat, label, name, iou_threshold, 1.0 if inclusive else 0.0)
        for label, name in enumerate(part.categories.names, start=1)
    )
    return VocEvaluation(classes, iou_threshold, len(images))


def voc_average_precision(
    recall: np.ndarray, precision: np.ndarray, points: Literal["all", 11] = "all"
) -> float:
    """Compute the average precision of a precision-recall curve.

    Args:
        recall: (N,) not falling, in [0, 1].
        precision: (N,) in [0, 1].
        points: "all" for the area under the interpolated curve, 11 for the mean of the highest
            precision at a recall of at least 0, 0.1, ..., 1. A recall that is to equal one of
            these but is smaller by a rounding error does not count there (VOC uses no tolerance).

    Returns:
        A number in [0, 1]; 0 for an empty curve.
    """
    # The highest precision at this recall or a higher one; 0 where no recall is high enough.
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if points == 11:
        # First place with recall >= t.
        return float(envelope[np.searchsorted(recall, np.linspace(0, 1, 11))].mean())
    steps = np.diff(recall, prepend=0.0)
    return float(np.sum(steps * envelope[:-1]))


@dataclass(frozen=True, eq=False)
class _Flat:
    """Objects and detections of all images in one array each, in the order of the images."""

    true_images: np.ndarray
    true_boxes: np.ndarray
    true_labels: np.ndarray
    ignored: np.ndarray
    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def from_images(cls, images: Sequence[EvaluatedImage]) -> "_Flat":
        """Concatenate the arrays of all images."""

        def join(name: str) -> np.ndarray:
            empty = np.zeros((0, 4)) if name.endswith("boxes") else np.zeros(0)
            return np.concatenate([getattr(i, name) for i in images] or [empty])

        def positions(name: str) -> np.ndarray:
            return np.repeat(np.arange(len(images)), [len(getattr(i, name)) for i in images])

        return cls(
            true_images=positions("true_labels"),
            true_boxes=join("true_boxes"),
            true_labels=join("true_labels"),
            ignored=join("ignored").astype(bool),
            images=positions("labels"),
            boxes=join("boxes"),
            labels=join("labels"),
            scores=join("scores"),
        )


def _evaluate_class(
    flat: _Flat, label: int, name: str, iou_threshold: float, pixel: float
) -> VocClass:
    true = flat.true_labels == label
    ignored = flat.ignored[true]
    # Detections by falling score, each with the object of its image that it overlaps most.
    detections = np.flatnonzero(flat.labels == label)
    detections = detections[np.argsort(-flat.scores[detections], kind="stable")]
    overlap, belongs = _find_best_overlaps(
        *(flat.boxes[detections], flat.images[detections]),
        *(flat.true_boxes[true], flat.true_images[true]),
        pixel,
    )
    # Those on a difficult object do not count, neither as right nor as wrong.
    hit = overlap >= iou_threshold
    counts = np.ones(len(detections), bool)
    counts[hit] = ~ignored[belongs[hit]]
    # The first detection of each object takes it; the next ones are duplicates, and wrong.
    first = np.zeros(len(detections), bool)
    hits = np.flatnonzero(hit)
    first[hits[np.unique(belongs[hits], return_index=True)[1]]] = True
    # Precision and recall after each detection that counts.
    right = np.cumsum(first[counts])
    objects = int(np.count_nonzero(~ignored))
    precision = right / np.arange(1, len(right) + 1)
    recall = right / objects if objects else np.full(len(right), np.nan)
    return VocClass(
        name=name,
        objects=objects,
        ap=voc_average_precision(recall, precision) if objects else float("nan"),
        ap11=voc_average_precision(recall, precision, 11) if objects else float("nan"),
        recall=recall,
        precision=precision,
        scores=flat.scores[detections][counts],
    )


def _find_best_overlaps(
    boxes: np.ndarray,
    images: np.ndarray,
    true_boxes: np.ndarray,
    true_images: np.ndarray,
    pixel: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each detection the object of its image that it overlaps most.

    Args:
        boxes: (N, 4) detections.
        images: (N,) position of each detection's image.
        true_boxes: (G, 4) objects.
        true_images: (G,) position of each object's image, rising.
        pixel: Added to widths and heights: 1 for inclusive pixel coordinates, else 0.

    Returns:
        (N,) largest IoU, and (N,) index of that object, the first one of equals; IoU -1 and index
        0 where the image has no object.
    """
    # All (detection, object) pairs within an image, one after the other.
    starts = np.searchsorted(true_images, images, "left")
    numbers = np.searchsorted(true_images, images, "right") - starts  # objects in the same image
    pairs_before = np.cumsum(numbers) - numbers
    rows = np.repeat(np.arange(len(boxes)), numbers)  # (pairs,) detection of each pair
    columns = np.arange(len(rows)) - np.repeat(pairs_before - starts, numbers)  # and its object
    iou = _iou(boxes[rows], true_boxes[columns], pixel)
    # The best pair of each detection.
    best, belongs = np.full(len(boxes), -1.0), np.zeros(len(boxes), np.int64)
    some = numbers > 0
    if some.any():
        best[some] = np.maximum.reduceat(iou, pairs_before[some])
        tops = np.flatnonzero(iou == best[rows])
        detections, place = np.unique(rows[tops], return_index=True)
        belongs[detections] = columns[tops[place]]
    return best, belongs


def _iou(a: np.ndarray, b: np.ndarray, pixel: float) -> np.ndarray:
    """(pairs,) IoU of boxes (pairs, 4) with boxes (pairs, 4); 0 where both are empty.

    (torchvision's `box_iou` compares all with all, and knows no inclusive pixels.)
    """
    overlap = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + pixel
    intersection = np.where((overlap > 0).all(axis=1), overlap.prod(axis=1), 0.0)
    union = (a[:, 2:] - a[:, :2] + pixel).prod(1) + (b[:, 2:] - b[:, :2] + pixel).prod(1)
    union = union - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(union), where=union > 0))
