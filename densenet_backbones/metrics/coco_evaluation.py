"""COCO evaluation of a finished list of results, by the reference implementation.

The numbers are those of pycocotools (https://github.com/cocodataset/cocoapi, PythonAPI), whose
`COCOeval` (``cocoeval.py``) does the matching and the accumulation; this module brings ground truth
and results into the form it needs and keeps its printing quiet.
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol, get_args

import numpy as np

from densenet_backbones.data.readers.coco.outlines import make_box_outline
from densenet_backbones.data.samples import Annotation, GroundTruth
from densenet_backbones.messages import check_choice, pluralize
from densenet_backbones.metrics.coco_summary import (
    CocoEvaluation,
    Evaluator,
    EvaluatorParameters,
    IouType,
    summarize_coco,
)

Backend = Literal["pycocotools", "faster_coco_eval"]


class CocoIndex(Protocol):
    """`COCO` of pycocotools, or of faster-coco-eval: a data set with look-up tables."""

    dataset: GroundTruth

    def createIndex(self) -> None:  # noqa: N802 - their name
        """Build the tables from `dataset`."""

    def loadRes(self, rows: list[dict[str, object]]) -> "CocoIndex":  # noqa: N802 - their name
        """Return the results as a data set of the same images."""


# Key that a result of each type must carry, besides image_id, category_id and score.
_RESULT_KEY: dict[IouType, Literal["bbox", "segmentation", "keypoints"]] = {
    "bbox": "bbox",
    "segm": "segmentation",
    "keypoints": "keypoints",
}


def evaluate_coco(
    ground_truth: GroundTruth,
    results: Sequence[Mapping[str, object]],
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
            a mask that nobody drew: masks predicted at its box count neither as right nor as wrong.
        results: COCO's results form: dicts of image_id, category_id, score and, by `iou_type`, bbox
            (xywh in pixels), segmentation (compressed RLE) or keypoints (x, y, v, ...).
        iou_type: Type of the evaluation.
        image_ids: Images to evaluate, with their annotations and results; None takes all images of
            the ground truth.
        backend: "pycocotools", or "faster_coco_eval" (same numbers, in about a sixth of the time).
        keypoint_sigmas: One constant a keypoint (OKS); None takes COCO's 17 for persons.

    Returns:
        The summary, a table by class and the precision-recall curves.

    Raises:
        ValueError: If a result names an image or category that the ground truth does not have, or
            lacks what `iou_type` needs, or the number of keypoints and sigmas differ.
        ModuleNotFoundError: If the backend is not installed.
    """
    check_choice("iou_type", iou_type, _RESULT_KEY)
    make_index, make_evaluator = _load_backend(backend)
    if not ground_truth.get("categories"):
        raise ValueError("the ground truth has no categories, so there is no class to evaluate")
    known = {int(image["id"]) for image in ground_truth["images"]}
    selected = known if image_ids is None else {int(i) for i in image_ids}
    if selected - known:
        raise ValueError(
            f"image_ids holds {min(selected - known)}, which is no image of the ground truth"
        )
    # Copies with every key that pycocotools reads, of the selected images alone.
    truth = _prepare_truth(ground_truth, iou_type, selected)
    rows = _prepare_results(ground_truth, results, iou_type, known, selected)
    with contextlib.redirect_stdout(io.StringIO()):  # both print their progress
        truth_index = _make_index(make_index, truth)
        if rows:
            result_index = truth_index.loadRes(rows)
        else:  # loadRes refuses an empty list
            result_index = _make_index(make_index, {**truth, "annotations": []})
        evaluation = make_evaluator(truth_index, result_index, iouType=iou_type)
        evaluation.params.catIds = sorted(category["id"] for category in truth["categories"])
        if iou_type == "keypoints":
            _set_sigmas(evaluation.params, ground_truth["annotations"], keypoint_sigmas)
        if selected:  # an empty list of images means "all" to pycocotools
            evaluation.evaluate()
            evaluation.accumulate()
    return summarize_coco(evaluation, truth, rows, iou_type, len(selected))


def _load_backend(name: Backend) -> tuple[Callable[[], CocoIndex], Callable[..., Evaluator]]:
    """Import the (COCO, COCOeval) classes of a backend."""
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


def _make_index(make: Callable[[], CocoIndex], dataset: GroundTruth) -> CocoIndex:
    index = make()
    index.dataset = dataset
    index.createIndex()
    return index


def _prepare_truth(ground_truth: GroundTruth, iou_type: IouType, selected: set[int]) -> GroundTruth:
    """Copy the selected images and their annotations, with every key that the evaluators read."""
    annotations: list[Annotation] = []
    key = _RESULT_KEY[iou_type]
    for original in ground_truth["annotations"]:
        image_id = original["image_id"]
        if key not in original:
            raise ValueError(
                f"annotation {original.get('id')} of image {image_id} has no {key!r}, which "
                f"iou_type {iou_type!r} needs; evaluate 'bbox', or complete the annotations"
            )
        if image_id not in selected:
            continue
        annotation: Annotation = {**original, "id": len(annotations) + 1}
        annotation["iscrowd"] = int(original.get("iscrowd", 0))
        # A mask that nobody drew becomes a crowd of the size of its box.
        if annotation.get("segmentation", ()) is None:
            annotation["segmentation"] = make_box_outline(original["bbox"])
            annotation["iscrowd"] |= iou_type == "segm"
        if "area" not in annotation:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        if iou_type == "keypoints" and "num_keypoints" not in annotation:
            annotation["num_keypoints"] = int(np.count_nonzero(original["keypoints"][2::3]))
        annotations.append(annotation)
    return {
        "info": {},
        "images": [{**image} for image in ground_truth["images"] if int(image["id"]) in selected],
        "annotations": annotations,
        "categories": [{**category} for category in ground_truth["categories"]],
    }


def _prepare_results(
    ground_truth: GroundTruth,
    results: Sequence[Mapping[str, object]],
    iou_type: IouType,
    known: set[int],
    selected: set[int],
) -> list[dict[str, object]]:
    """Check results, and copy those of the selected images with the keys that matter only."""
    keys = ("image_id", "category_id", "score", _RESULT_KEY[iou_type])
    categories = {category["id"] for category in ground_truth["categories"]}
    rows = []
    for number, result in enumerate(results):
        # Checked here: pycocotools fails without saying which row, or ignores it.
        for key in keys:
            if key not in result:
                raise ValueError(f"result {number} has no {key!r}; iou_type {iou_type!r} needs it")
        if result["image_id"] not in known:
            raise ValueError(
                f"result {number} is of image {result['image_id']!r}, which is not among the "
                f"{pluralize(len(known), 'image')} of the ground truth; are these the results of "
                "this set?"
            )
        if result["category_id"] not in categories:
            raise ValueError(
                f"result {number} has category_id {result['category_id']!r}, the ground truth "
                f"knows {sorted(categories)}; results carry the data set's own ids, not labels"
            )
        if result["image_id"] in selected:
            rows.append({key: result[key] for key in keys})
    return rows


def _set_sigmas(
    params: EvaluatorParameters, annotations: Sequence[Annotation], sigmas: Sequence[float] | None
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
