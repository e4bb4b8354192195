"""COCO's evaluation of a finished list of results, by the reference implementation.

The numbers are those of pycocotools (https://github.com/cocodataset/cocoapi, PythonAPI), whose
`COCOeval` does the matching and the accumulation; this module brings ground truth and results into
the form it needs, keeps its printing quiet and reads its arrays.

Legend: T = 10 IoU thresholds .50:.05:.95, R = 101 recall thresholds 0:.01:1, C classes (without
the background) in the order of their category ids, A area ranges, M limits on detections an image.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from densenet_backbones.messages import check_choice

IouType = Literal["bbox", "segm", "keypoints"]
Backend = Literal["pycocotools", "faster_coco_eval"]

RECALLS = np.linspace(0.0, 1.0, 101)
CURVE_IOUS = (0.5, 0.75)

# What a result of each type must carry, besides image_id, category_id and score.
_RESULT_KEY = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}

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


@dataclass(frozen=True)
class CocoClass:
    """What COCO's evaluation says of one class; NaN where it has no object to be found.

    Attributes:
        name: The class's name.
        category_id: The data set's own id.
        objects: Number of annotated objects, crowds left out.
        ap: Mean over the ten IoU thresholds, in [0, 1].
        ap50: At IoU .50.
        ap75: At IoU .75.
        ar: Mean over the IoU thresholds of the recall reached, at the largest number of
            detections an image.
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
    """The outcome of `evaluate_coco`.

    Attributes:
        iou_type: "bbox", "segm" or "keypoints".
        numbers: COCO's summary by name, twelve for boxes and masks (AP, AP50, AP75, APs, APm, APl,
            AR1, AR10, AR100, ARs, ARm, ARl), ten for keypoints (AP, AP50, AP75, APm, APl, AR, AR50,
            AR75, ARm, ARl), each in [0, 1]. NaN where pycocotools says -1: there is no object to
            be found (of that size), so the number is not defined.
        classes: One row a class, in the order of the category ids.
        precision: (2, C, R) interpolated precision at IoU .50 and .75 (`CURVE_IOUS`) and the
            recalls `RECALLS`; 0 past the highest recall reached, NaN for a class without objects.
        scores: (2, C, R) the score at which that recall is reached, in the same way.
        images: Number of images evaluated.
    """

    iou_type: IouType
    numbers: dict[str, float]
    classes: tuple[CocoClass, ...]
    precision: np.ndarray
    scores: np.ndarray
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Numbers and classes for JSON, which knows no NaN: None in its place."""
        return {
            "iou_type": self.iou_type,
            "images": self.images,
            "numbers": {name: _or_none(value) for name, value in self.numbers.items()},
            "classes": [{k: _or_none(v) for k, v in asdict(c).items()} for c in self.classes],
        }


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType = "bbox",
    image_ids: Iterable[int] | None = None,
    backend: Backend = "pycocotools",
    keypoint_sigmas: Sequence[float] | None = None,
) -> CocoEvaluation:
    """Evaluate results as COCO does.

    Nothing that is passed in is changed. Annotations get new ids from 1 on, because pycocotools
    takes a match with annotation 0 for no match. Masks and keypoints are sized by their own area
    and extent even where a result carries a box besides (pycocotools would take the box's area).

    Args:
        ground_truth: COCO's JSON form: images, annotations (`bbox` xywh in pixels), categories.
            A missing `iscrowd` is 0, a missing `area` that of the box. A `segmentation` of None is
            a mask that nobody drew: masks found at its box count neither as right nor as wrong.
        results: COCO's results form: dicts of image_id, category_id, score and, by `iou_type`, bbox
            (xywh in pixels), segmentation (compressed RLE) or keypoints (x, y, v, ...).
        iou_type: What is compared.
        image_ids: Only these images count, with their annotations and results; None: all images
            of the ground truth.
        backend: "pycocotools", or "faster_coco_eval" (same numbers, in about a sixth of the time).
        keypoint_sigmas: One constant a keypoint (OKS); None: COCO's 17 for persons.

    Returns:
        The summary, a table by class and the precision-recall curves.

    Raises:
        ValueError: If a result names an image or category that the ground truth does not have, or
            lacks what `iou_type` needs, or the number of keypoints and sigmas differ.
        ModuleNotFoundError: If the backend is not installed.
    """
    check_choice("iou_type", iou_type, _RESULT_KEY)
    coco_class, eval_class = _backend(backend)
    if not ground_truth.get("categories"):
        raise ValueError("the ground truth has no categories, so there is no class to evaluate")
    known = {int(image["id"]) for image in ground_truth["images"]}
    wanted = known if image_ids is None else {int(i) for i in image_ids}
    if wanted - known:
        raise ValueError(
            f"image_ids holds {min(wanted - known)}, which is no image of the ground truth"
        )
    truth = _prepared_truth(ground_truth, iou_type, wanted)
    rows = _prepared_results(ground_truth, results, iou_type, known, wanted)
    with contextlib.redirect_stdout(io.StringIO()):  # both print their progress
        coco = _indexed(coco_class, truth)
        found = coco.loadRes(rows) if rows else _indexed(coco_class, {**truth, "annotations": []})
        evaluation = eval_class(coco, found, iouType=iou_type)
        evaluation.params.catIds = sorted(category["id"] for category in truth["categories"])
        if iou_type == "keypoints":
            _set_sigmas(evaluation.params, ground_truth["annotations"], keypoint_sigmas)
        if wanted:  # an empty list of images means "all" to pycocotools
            evaluation.evaluate()
            evaluation.accumulate()
    return _read(evaluation, truth, iou_type, len(wanted))


def _backend(name: Backend) -> tuple[Any, Any]:
    """The (COCO, COCOeval) classes of a backend."""
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    check_choice("backend", name, get_args(Backend))
    try:
        from faster_coco_eval.core import COCO as FasterCOCO  # noqa: N811 - a class, not a constant
        from faster_coco_eval.core import COCOeval_faster
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "backend 'faster_coco_eval' is not installed: pip install "
            "'densenet-backbones[fast-eval]', or use backend 'pycocotools'"
        ) from error
    return FasterCOCO, COCOeval_faster


def _indexed(coco_class: Any, dataset: Mapping[str, Any]) -> Any:
    coco = coco_class()
    coco.dataset = dict(dataset)
    coco.createIndex()
    return coco


def _prepared_truth(
    ground_truth: Mapping[str, Any], iou_type: IouType, wanted: set[int]
) -> dict[str, Any]:
    """A copy with the wanted images only and every key that the evaluators read."""
    annotations: list[dict[str, Any]] = []
    key = _RESULT_KEY[iou_type]
    for given in ground_truth["annotations"]:
        if key not in given:
            raise ValueError(
                f"annotation {given.get('id')} of image {given['image_id']} has no {key!r}, which "
                f"iou_type {iou_type!r} needs; evaluate 'bbox', or complete the annotations"
            )
        if given["image_id"] not in wanted:
            continue
        annotation = {**given, "id": len(annotations) + 1, "iscrowd": int(given.get("iscrowd", 0))}
        if annotation.get("segmentation", ()) is None:
            x, y, w, h = given["bbox"]
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotation["iscrowd"] |= iou_type == "segm"
        if "area" not in annotation:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        if iou_type == "keypoints" and "num_keypoints" not in annotation:
            annotation["num_keypoints"] = int(np.count_nonzero(given["keypoints"][2::3]))
        annotations.append(annotation)
    return {
        "info": {},
        "images": [dict(i) for i in ground_truth["images"] if int(i["id"]) in wanted],
        "annotations": annotations,
        "categories": [dict(c) for c in ground_truth["categories"]],
    }


def _prepared_results(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    known: set[int],
    wanted: set[int],
) -> list[dict[str, Any]]:
    """Checked copies of the wanted images' results, with the keys that matter and no others."""
    keys = ("image_id", "category_id", "score", _RESULT_KEY[iou_type])
    categories = {category["id"] for category in ground_truth["categories"]}
    rows = []
    for number, result in enumerate(results):
        for key in keys:
            if key not in result:
                raise ValueError(f"result {number} has no {key!r}; iou_type {iou_type!r} needs it")
        if result["image_id"] not in known:
            raise ValueError(
                f"result {number} is of image {result['image_id']!r}, which is not among the "
                f"{len(known)} images of the ground truth; are these the results of this set?"
            )
        if result["category_id"] not in categories:
            raise ValueError(
                f"result {number} has category_id {result['category_id']!r}, the ground truth "
                f"knows {sorted(categories)}; results carry the data set's own ids, not labels"
            )
        if result["image_id"] in wanted:
            rows.append({key: result[key] for key in keys})
    return rows


def _set_sigmas(
    params: Any, annotations: Sequence[Mapping[str, Any]], sigmas: Sequence[float] | None
) -> None:
    if sigmas is not None:
        params.kpt_oks_sigmas = np.asarray(sigmas, float)
    number = len(params.kpt_oks_sigmas)
    for annotation in annotations:
        if len(annotation["keypoints"]) != 3 * number:
            raise ValueError(
                f"annotation of image {annotation['image_id']} has "
                f"{len(annotation['keypoints']) / 3:g} keypoints but there are {number} "
                "keypoint_sigmas; pass one sigma a keypoint"
            )


def _read(
    evaluation: Any, truth: Mapping[str, Any], iou_type: IouType, images: int
) -> CocoEvaluation:
    """Summary, classes and curves from an evaluator's accumulated arrays."""
    params = evaluation.params
    sizes = [len(v) for v in (params.iouThrs, params.recThrs, params.catIds, params.areaRng)]
    nothing = np.full((*sizes, len(params.maxDets)), -1.0)  # what no image at all comes to
    arrays = evaluation.eval or {"precision": nothing, "scores": nothing, "recall": nothing[:, 0]}
    curve_ious = [_position(params.iouThrs, iou) for iou in CURVE_IOUS]
    precision, scores = (
        np.moveaxis(arrays[name][curve_ious][:, :, :, 0, -1], 2, 1)
        for name in ("precision", "scores")
    )  # (2, C, R)
    return CocoEvaluation(
        iou_type=iou_type,
        numbers=_numbers(arrays, params, iou_type),
        classes=_classes(arrays, params, iou_type, truth),
        precision=np.where(precision > -1, precision, np.nan),
        scores=np.where(precision > -1, scores, np.nan),
        images=images,
    )


def _numbers(arrays: Mapping[str, np.ndarray], params: Any, iou_type: IouType) -> dict[str, float]:
    """COCO's summary: means over what is defined, as cocoeval.py's `_summarize` takes them."""
    numbers = {}
    wanted = _KEYPOINT_NUMBERS if iou_type == "keypoints" else _DETECTION_NUMBERS
    for name, (array, iou, area, detections) in wanted.items():
        chosen = arrays[array]
        if iou is not None:
            chosen = chosen[[_position(params.iouThrs, iou)]]
        place = (params.areaRngLbl.index(area), list(params.maxDets).index(detections))
        numbers[name] = _mean(chosen[..., place[0], place[1]])
    return numbers


def _classes(
    arrays: Mapping[str, np.ndarray], params: Any, iou_type: IouType, truth: Mapping[str, Any]
) -> tuple[CocoClass, ...]:
    names = {category["id"]: category["name"] for category in truth["categories"]}
    objects = Counter(
        a["category_id"]
        for a in truth["annotations"]
        if not a["iscrowd"] and (iou_type != "keypoints" or a["num_keypoints"])
    )
    precision = arrays["precision"][:, :, :, 0, -1]  # (T, R, C)
    recall = arrays["recall"][:, :, 0, -1]  # (T, C)
    return tuple(
        CocoClass(
            name=names[category_id],
            category_id=int(category_id),
            objects=objects[category_id],
            ap=_mean(precision[:, :, c]),
            ap50=_mean(precision[_position(params.iouThrs, 0.5), :, c]),
            ap75=_mean(precision[_position(params.iouThrs, 0.75), :, c]),
            ar=_mean(recall[:, c]),
        )
        for c, category_id in enumerate(params.catIds)
    )


def _mean(values: np.ndarray) -> float:
    """Mean of the entries that are defined (not -1); NaN where none is."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else float("nan")


def _position(thresholds: np.ndarray, iou: float) -> int:
    return int(np.argmin(np.abs(thresholds - iou)))


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
