"""Summary of a COCO evaluation: numbers by name, a table by class, precision-recall curves.

Read from the arrays that `COCOeval.accumulate` leaves, by the rules of `summarize` in cocoapi's
``PythonAPI/pycocotools/cocoeval.py``.

Legend: T = 10 IoU thresholds .50:.05:.95, R = 101 recall thresholds 0:.01:1, C classes (without
the background) in the order of their category ids, A area ranges, M limits on detections an image,
S = 99 scores .01:.01:.99.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from densenet_backbones.data.samples import GroundTruth
from densenet_backbones.metrics.undefined import divide_counts, mean_of_defined, replace_nan

IouType = Literal["bbox", "segm", "keypoints"]

RECALLS = np.linspace(0.0, 1.0, 101)
CURVE_IOUS = (0.5, 0.75)
SCORES = np.arange(1, 100) / 100

# name: (array, IoU threshold or None for the mean over all, area range, detections an image);
# cocoeval.py, `_summarizeDets` and `_summarizeKps`.
_DETECTION_NUMBERS = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.5, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "APs": ("precision", None, "small", 100),
    "APm": ("precision", None, "medium", 100),
    "APl": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "ARs": ("recall", None, "small", 100),
    "ARm": ("recall", None, "medium", 100),
    "ARl": ("recall", None, "large", 100),
}
_KEYPOINT_NUMBERS = {
    "AP": ("precision", None, "all", 20),
    "AP50": ("precision", 0.5, "all", 20),
    "AP75": ("precision", 0.75, "all", 20),
    "APm": ("precision", None, "medium", 20),
    "APl": ("precision", None, "large", 20),
    "AR": ("recall", None, "all", 20),
    "AR50": ("recall", 0.5, "all", 20),
    "AR75": ("recall", 0.75, "all", 20),
    "ARm": ("recall", None, "medium", 20),
    "ARl": ("recall", None, "large", 20),
}


class EvaluatorParameters(Protocol):
    """Settings of `COCOeval`, by its names (``cocoeval.py``, class `Params`)."""

    catIds: list[int]  # noqa: N815
    iouThrs: np.ndarray  # noqa: N815
    recThrs: np.ndarray  # noqa: N815
    areaRng: list[list[float]]  # noqa: N815
    areaRngLbl: list[str]  # noqa: N815
    maxDets: list[int]  # noqa: N815
    kpt_oks_sigmas: np.ndarray


class Evaluator(Protocol):
    """`COCOeval` of pycocotools, or of faster-coco-eval."""

    params: EvaluatorParameters
    eval: dict[str, np.ndarray]
    ious: dict[tuple[int, int], Any]

    def evaluate(self) -> None:
        """Match detections with objects; fill `ious` by image and category.

        Each is (n, B), of the detections by falling score, or empty without either.
        """

    def accumulate(self) -> None:
        """Fill `eval` with precision (T, R, C, A, M) and recall (T, C, A, M)."""


@dataclass(frozen=True)
class CocoClass:
    """COCO's numbers of one class; NaN where it has no object to be detected.

    Attributes:
        name: The class's name.
        category_id: The data set's own id.
        objects: Number of annotated objects, crowds left out.
        ap: Average precision, mean over the ten IoU thresholds, in [0, 1].
        ap50: Average precision at IoU .50.
        ap75: Average precision at IoU .75.
        ar: Average recall, mean over the IoU thresholds of the recall reached, at the largest
            number of detections an image.
    """

    name: str
    category_id: int
    objects: int
    ap: float
    ap50: float
    ap75: float
    ar: float


@dataclass(frozen=True, eq=False)
class CocoEvaluation:
    """Result of `evaluate_coco`.

    Attributes:
        iou_type: "bbox", "segm" or "keypoints".
        numbers: COCO's summary by name, twelve for boxes and masks (AP, AP50, AP75, APs, APm, APl,
            AR1, AR10, AR100, ARs, ARm, ARl), ten for keypoints (AP, AP50, AP75, APm, APl, AR, AR50,
            AR75, ARm, ARl), each in [0, 1]. NaN where pycocotools says -1: there is no object to
            be detected (of that size), so the number is not defined.
        classes: One row a class, in the order of the category ids.
        precision: (2, C, R) interpolated precision at IoU .50 and .75 (`CURVE_IOUS`) and the
            recalls `RECALLS`; 0 past the highest recall reached, NaN for a class without objects.
        from_scores: (2, C, S) precision and recall at IoU .50 of the detections from each of
            `SCORES` on; NaN for a class without objects.
        images: Number of images evaluated.
    """

    iou_type: IouType
    numbers: dict[str, float]
    classes: tuple[CocoClass, ...]
    precision: np.ndarray
    from_scores: np.ndarray
    images: int

    def find_best_score(self) -> tuple[float, float] | None:
        """Return the score from which detections are best, and how good they are then.

        Good is a high mean over the classes of F1, the harmonic mean of precision and recall at IoU
        .50. It hardly changes around its highest value, so chance would decide between missing
        objects and inventing some: of scores, in steps of .01, whose mean F1 is above 0 and within
        one standard error of it (that of a share of all objects), best is the one where mean
        precision and recall differ least; of equal ones the highest.

        Returns:
            Score and mean F1, each in (0, 1]; None where nothing was detected rightly.
        """
        known = self.from_scores[:, ~np.isnan(self.from_scores).any((0, 2))]  # with objects
        f1 = 2 * known.prod(0) / np.maximum(known.sum(0), 1e-12)  # (classes with objects, S)
        f1, precision, recall = np.stack([f1, *known]).sum(1) / max(1, known.shape[1])
        if not f1.any():
            return None
        number = sum(row.objects for row in self.classes)
        error = (f1.max() * (1 - f1.max()) / number) ** 0.5
        among_best = (f1 > 0) & (f1 >= f1.max() - error)
        unbalanced = np.where(among_best, abs(precision - recall), np.inf)
        best = len(SCORES) - 1 - int(unbalanced[::-1].argmin())
        return float(SCORES[best]), float(f1[best])

    def to_dict(self) -> dict[str, object]:
        """Return numbers and classes in plain JSON types; None where not defined."""
        return {
            "iou_type": self.iou_type,
            "images": self.images,
            "numbers": replace_nan(self.numbers),
            "classes": [replace_nan(asdict(c)) for c in self.classes],
        }


def summarize_coco(
    evaluation: Evaluator,
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    images: int,
) -> CocoEvaluation:
    """Read summary, classes and curves from an evaluator's accumulated arrays.

    Args:
        evaluation: After `accumulate`; without any image, before.
        truth: Ground truth that was evaluated; `iscrowd` is set everywhere, and `num_keypoints`
            where keypoints were evaluated.
        results: Results that were evaluated.
        iou_type: Type of the evaluation.
        images: Number of images evaluated.
    """
    params = evaluation.params
    # Without any image the evaluator has no arrays: every number is undefined, which it writes -1.
    sizes = [len(v) for v in (params.iouThrs, params.recThrs, params.catIds, params.areaRng)]
    nothing = np.full((*sizes, len(params.maxDets)), -1.0)
    arrays = evaluation.eval or {"precision": nothing, "recall": nothing[:, 0]}
    # Curves of the whole area range and the largest number of detections.
    curve_ious = [_position(params.iouThrs, iou) for iou in CURVE_IOUS]
    precision = np.moveaxis(arrays["precision"][curve_ious][:, :, :, 0, -1], 2, 1)  # (2, C, R)
    classes = _classes(arrays, params, iou_type, truth)
    return CocoEvaluation(
        iou_type=iou_type,
        numbers=_numbers(arrays, params, iou_type),
        classes=classes,
        precision=np.where(precision > -1, precision, np.nan),
        from_scores=_measure_from_scores(evaluation, truth, results, iou_type, classes),
        images=images,
    )


def _numbers(
    arrays: Mapping[str, np.ndarray], params: EvaluatorParameters, iou_type: IouType
) -> dict[str, float]:
    """Compute COCO's summary: means over what is defined, as cocoeval.py's `_summarize`."""
    numbers = {}
    rows = _KEYPOINT_NUMBERS if iou_type == "keypoints" else _DETECTION_NUMBERS
    for name, (array, iou, area, detections) in rows.items():
        values = arrays[array]
        if iou is not None:
            values = values[[_position(params.iouThrs, iou)]]
        place = (params.areaRngLbl.index(area), list(params.maxDets).index(detections))
        numbers[name] = _mean_of_set(values[..., place[0], place[1]])
    return numbers


def _classes(
    arrays: Mapping[str, np.ndarray],
    params: EvaluatorParameters,
    iou_type: IouType,
    truth: GroundTruth,
) -> tuple[CocoClass, ...]:
    # Objects that could be detected.
    names = {category["id"]: category["name"] for category in truth["categories"]}
    objects = Counter(
        a["category_id"] for a in truth["annotations"] if _can_be_detected(a, iou_type)
    )
    precision = arrays["precision"][:, :, :, 0, -1]  # (T, R, C)
    recall = arrays["recall"][:, :, 0, -1]  # (T, C)
    return tuple(
        CocoClass(
            name=names[category_id],
            category_id=int(category_id),
            objects=objects[category_id],
            ap=_mean_of_set(precision[:, :, c]),
            ap50=_mean_of_set(precision[_position(params.iouThrs, 0.5), :, c]),
            ap75=_mean_of_set(precision[_position(params.iouThrs, 0.75), :, c]),
            ar=_mean_of_set(recall[:, c]),
        )
        for c, category_id in enumerate(params.catIds)
    )


def _can_be_detected(annotation: Mapping[str, Any], iou_type: IouType) -> bool:
    """Return False for an object whose detections are neither right nor wrong."""
    marked = iou_type != "keypoints" or annotation["num_keypoints"]
    return bool(marked) and not annotation["iscrowd"]


def _measure_from_scores(
    evaluation: Evaluator,
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    classes: Sequence[CocoClass],
) -> np.ndarray:
    """Measure `CocoEvaluation.from_scores`.

    Counted anew, since the evaluator's curves know no false detections between two right ones, nor
    those below the last: their precision is the highest from each recall on. Matched anew, since
    faster_coco_eval keeps its matches where Python cannot read them.
    """
    right, wrong = _sort_out_scores(evaluation, truth, results, iou_type)
    measured = np.full((2, len(classes), len(SCORES)), np.nan)
    for number, known in enumerate(classes):
        if known.objects:
            found, false = (
                len(scores) - np.searchsorted(np.sort(scores), SCORES)
                for scores in (right[known.category_id], wrong[known.category_id])
            )
            precision = np.nan_to_num(divide_counts(found, found + false))
            measured[:, number] = precision, found / known.objects
    return measured


def _sort_out_scores(
    evaluation: Evaluator,
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Return the scores of the right and of the wrong detections of each category, at IoU .50."""
    objects, detections = _group_by_place(truth["annotations"]), _group_by_place(results)
    right, wrong = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    for place, found in detections.items():
        # In the order of the evaluator's overlaps.
        scores = sorted((row["score"] for row in found), reverse=True)
        scores = scores[: evaluation.params.maxDets[-1]]
        counted = np.array([_can_be_detected(a, iou_type) for a in objects[place]], bool)
        crowd = np.array([bool(a["iscrowd"]) for a in objects[place]], bool)
        ious = np.reshape(evaluation.ious[place], (len(scores), len(counted)))
        taken = _match(ious, counted, crowd)
        for row, score in enumerate(scores):
            if row not in taken:
                wrong[place[1]].append(score)
            elif counted[taken[row]]:
                right[place[1]].append(score)
    return right, wrong


def _group_by_place(
    rows: Iterable[Mapping[str, Any]],
) -> defaultdict[tuple[int, int], list[Mapping[str, Any]]]:
    """Group annotations or results by image and category."""
    groups = defaultdict[tuple[int, int], list[Mapping[str, Any]]](list)
    for row in rows:
        groups[int(row["image_id"]), int(row["category_id"])].append(row)
    return groups


def _match(ious: np.ndarray, counted: np.ndarray, crowd: np.ndarray) -> dict[int, int]:
    """Return the object that each detection takes at IoU .50, as `evaluateImg` of cocoeval.py.

    Args:
        ious: (n, B).
        counted: (B,) bool; those go before the ignored ones.
        crowd: (B,) bool; a crowd may be taken often.
    """
    free, taken = np.ones(len(counted), bool), {}
    for row in np.flatnonzero((ious >= 0.5).any(axis=1)):
        for kind in (counted, ~counted):
            left = np.where(kind & free, ious[row], -1.0)
            best = len(left) - 1 - int(left[::-1].argmax())  # of equal ones the last, as there
            if left[best] >= 0.5:
                taken[int(row)] = best
                free[best] = crowd[best]
                break
    return taken


def _mean_of_set(values: np.ndarray) -> float:
    """Mean of the entries that are set: the evaluator writes -1 for undefined ones."""
    return mean_of_defined(np.where(values > -1, values, np.nan))


def _position(thresholds: np.ndarray, iou: float) -> int:
    return int(np.argmin(np.abs(thresholds - iou)))
