"""Average precision as Pascal VOC defines it, by both of its rules.

M. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2,
and the development kits' `VOCevaldet.m`: up to VOC2007 the mean of the interpolated precision at
eleven recalls, from VOC2010 on the area under the interpolated curve. Detections are taken in the
order of their scores; each belongs to the object of its class and image that it overlaps most. It
is right if the overlap reaches the threshold and no detection before it had that object (the next
ones are wrong: duplicates), and it does not count if that object is difficult.

Legend: N detections and G objects of one class in all images, C classes without the background.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.metrics.evaluated_images import (
    EvaluatedImage,
    Predictions,
    pair_predictions,
)


@dataclass(frozen=True, eq=False)
class VocClass:
    """One class's result.

    Attributes:
        name: The class.
        objects: Number of objects to be found (ignored ones are not).
        ap: All-point average precision (VOC2010 and later), in [0, 1]; NaN without objects.
        ap11: Eleven-point average precision (up to VOC2007), in [0, 1]; NaN without objects.
        recall: (N,) after each detection that counts, by falling score; NaN without objects.
        precision: (N,) at the same places.
        scores: (N,) of these detections.
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
    """The outcome of `evaluate_voc`.

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
        return _mean([c.ap for c in self.classes])

    @property
    def mean_ap11(self) -> float:
        """Mean of the classes' eleven-point APs; classes without objects are left out."""
        return _mean([c.ap11 for c in self.classes])

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON, which knows no NaN: None in its place."""
        return {
            "iou_threshold": self.iou_threshold,
            "images": self.images,
            "mean_ap": _or_none(self.mean_ap),
            "mean_ap11": _or_none(self.mean_ap11),
            "classes": [
                {
                    "name": c.name,
                    "objects": c.objects,
                    "ap": _or_none(c.ap),
                    "ap11": _or_none(c.ap11),
                }
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
    """Average precision of each class.

    VOC counts pixels from 1 and includes the last one, so that a box is ``xmax - xmin + 1`` wide.
    The boxes of a `DetectionSet` are ``[xmin - 1, ymin - 1, xmax, ymax]`` and have that width as
    they are: for them, and for a model trained on them, the plain IoU is VOC's.

    Args:
        part: The data; crowds of a COCO set are treated as difficult objects.
        predictions: By image id. Equal scores keep the order of the images in `part`, and of the
            detections within an image.
        iou_threshold: A detection is right from this overlap on, in (0, 1].
        inclusive: Add 1 to every width and height: for boxes, on both sides, that name the first
            and the last pixel.
        count_difficult: Evaluate difficult objects like any other.
        image_ids: Only these images; None: all of `part`, so that an image without an entry in
            `predictions` is one in which nothing was found.

    Returns:
        The classes' numbers and curves.

    Raises:
        ValueError: If the threshold is out of range, or predictions do not fit the data.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold}")
    images = pair_predictions(part, predictions, image_ids, count_difficult)
    flat = _Flat.of(images)
    classes = tuple(
        _evaluate_class(flat, label, name, iou_threshold, 1.0 if inclusive else 0.0)
        for label, name in enumerate(part.categories.names, start=1)
    )
    return VocEvaluation(classes, iou_threshold, len(images))


def voc_average_precision(
    recall: np.ndarray, precision: np.ndarray, points: Literal["all", 11] = "all"
) -> float:
    """Average precision of a curve.

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
    """The objects and detections of all images in one array each, in the order of the images."""

    true_images: np.ndarray
    true_boxes: np.ndarray
    true_labels: np.ndarray
    ignored: np.ndarray
    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, images: Sequence[EvaluatedImage]) -> "_Flat":
        def joined(name: str) -> np.ndarray:
            empty = np.zeros((0, 4)) if name.endswith("boxes") else np.zeros(0)
            return np.concatenate([getattr(i, name) for i in images] or [empty])

        def positions(name: str) -> np.ndarray:
            return np.repeat(np.arange(len(images)), [len(getattr(i, name)) for i in images])

        return cls(
            true_images=positions("true_labels"),
            true_boxes=joined("true_boxes"),
            true_labels=joined("true_labels"),
            ignored=joined("ignored").astype(bool),
            images=positions("labels"),
            boxes=joined("boxes"),
            labels=joined("labels"),
            scores=joined("scores"),
        )


def _evaluate_class(
    flat: _Flat, label: int, name: str, iou_threshold: float, pixel: float
) -> VocClass:
    true = flat.true_labels == label
    ignored = flat.ignored[true]
    found = np.flatnonzero(flat.labels == label)
    found = found[np.argsort(-flat.scores[found], kind="stable")]
    overlap, belongs = _best_overlaps(
        *(flat.boxes[found], flat.images[found]),
        *(flat.true_boxes[true], flat.true_images[true]),
        pixel,
    )
    hit = overlap >= iou_threshold
    counts = np.ones(len(found), bool)
    counts[hit] = ~ignored[belongs[hit]]
    first = np.zeros(len(found), bool)
    # Detections are in the order of their scores: the first one of each object has it.
    hits = np.flatnonzero(hit)
    first[hits[np.unique(belongs[hits], return_index=True)[1]]] = True
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
        scores=flat.scores[found][counts],
    )


def _best_overlaps(
    boxes: np.ndarray,
    images: np.ndarray,
    true_boxes: np.ndarray,
    true_images: np.ndarray,
    pixel: float,
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection its largest IoU with an object of its image, and that object.

    Args:
        boxes: (N, 4).
        images: (N,) position of the image.
        true_boxes: (G, 4).
        true_images: (G,) rising.
        pixel: Added to widths and heights: 1 for inclusive pixel coordinates, else 0.

    Returns:
        (N,) IoU, and (N,) index into the objects, the first one of equals; IoU -1 and index 0
        where the image has no object.
    """
    starts = np.searchsorted(true_images, images, "left")
    numbers = np.searchsorted(true_images, images, "right") - starts  # objects in the same image
    pairs_before = np.cumsum(numbers) - numbers
    rows = np.repeat(np.arange(len(boxes)), numbers)  # (pairs,) detection of each pair
    columns = np.arange(len(rows)) - np.repeat(pairs_before - starts, numbers)  # and its object
    iou = _iou(boxes[rows], true_boxes[columns], pixel)
    best, belongs = np.full(len(boxes), -1.0), np.zeros(len(boxes), np.int64)
    some = numbers > 0
    if some.any():
        best[some] = np.maximum.reduceat(iou, pairs_before[some])
        tops = np.flatnonzero(iou == best[rows])
        detections, place = np.unique(rows[tops], return_index=True)
        belongs[detections] = columns[tops[place]]
    return best, belongs


def _iou(a: np.ndarray, b: np.ndarray, pixel: float) -> np.ndarray:
    """(pairs,) IoU of boxes (pairs, 4) with boxes (pairs, 4); 0 where both are empty."""
    overlap = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + pixel
    intersection = np.where((overlap > 0).all(axis=1), overlap.prod(axis=1), 0.0)
    union = (a[:, 2:] - a[:, :2] + pixel).prod(1) + (b[:, 2:] - b[:, :2] + pixel).prod(1)
    union = union - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
