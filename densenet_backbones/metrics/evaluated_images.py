"""Pairs of ground truth and detections, image by image, for the VOC metric and confusion matrices.

Arrays are named after the columns of cocoapi's ``PythonAPI/pycocotools/cocoeval.py``: `crowd` is
its `iscrowd`, `ignored` its `ignore`.

Legend: B objects and n detections of one image; boxes are xyxy in pixels of the image as shown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from pycocotools import mask as coco_mask

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.readers.coco.outlines import encode_outline
from densenet_backbones.data.samples import DetectionSet, ImageRecord, RunLengths
from densenet_backbones.messages import pluralize

Prediction = Mapping[str, ArrayLike]
Predictions = Mapping[int, Prediction]
"""Image id -> `boxes` (n, 4) xyxy, `labels` (n,), `scores` (n,); arrays or CPU tensors; and, where
masks are compared, `masks`, n run-length codes."""


@dataclass(frozen=True, eq=False)
class EvaluatedImage:
    """Objects and detections of one image of an evaluation.

    Attributes:
        image_id: The data set's own id.
        true_boxes: (B, 4) float64 of every annotated object, crowds and difficult ones included.
        true_labels: (B,) int64 in ``1 .. K - 1``.
        ignored: (B,) bool: a detection of this object is neither right nor wrong.
        crowd: (B,) bool: the object is one of COCO's crowd regions, which are all ignored.
        boxes: (n, 4) float64 of the detections.
        labels: (n,) int64 of the detections, in ``1 .. K - 1``.
        scores: (n,) float64 of the detections.
        true_masks: Run lengths of the objects, where masks are compared; those without an outline
            have no pixel, and are ignored.
        masks: Run lengths of the detections, where masks are compared.
    """

    image_id: int
    true_boxes: np.ndarray
    true_labels: np.ndarray
    ignored: np.ndarray
    crowd: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    true_masks: Sequence[RunLengths] | None = None
    masks: Sequence[RunLengths] | None = None


def pair_predictions(
    part: DetectionSet,
    predictions: Predictions,
    image_ids: Iterable[int] | None = None,
    count_difficult: bool = False,
    *,
    masks: bool = False,
) -> list[EvaluatedImage]:
    """Pair the images of a set with their predictions.

    Args:
        part: The data, with its annotations.
        predictions: Detections by image id; an image that is not in it has no detections.
        image_ids: Images to pair; None takes all of `part`, predicted or not.
        count_difficult: Treat VOC's difficult objects like any other, instead of ignoring them.
        masks: Compare the masks of objects, which predictions have as run lengths, not the boxes.

    Returns:
        The images in the order of `part`.

    Raises:
        ValueError: If an image id or label is unknown, or an image's arrays do not fit together.
    """
    known = {record.image_id for record in part.records}
    selected = known if image_ids is None else {int(i) for i in image_ids}
    # Ids of another set show up here.
    unknown = (selected | set(predictions)) - known
    if unknown:
        raise ValueError(
            f"image id {min(unknown)} is not among the {pluralize(len(known), 'image')} of "
            f"{part.name!r}; are these the predictions of this set?"
        )
    pairs = (
        (record, predictions.get(record.image_id, {}))
        for record in part.records
        if record.image_id in selected
    )
    images = []
    for record, prediction in pairs:
        image = _pair_image(record, part.categories, prediction, count_difficult)
        images.append(_add_masks(image, record, prediction) if masks else image)
    return images


def _pair_image(
    record: ImageRecord,
    categories: Categories,
    prediction: Prediction,
    count_difficult: bool,
) -> EvaluatedImage:
    # Objects, with the crowds and difficult ones that nothing is to be counted for.
    annotations = record.annotations
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    difficult = np.array([bool(a.get("difficult", 0)) for a in annotations], bool)
    true_boxes = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
    true_boxes[:, 2:] += true_boxes[:, :2]  # xywh to xyxy
    true_labels = [categories.label_of_id(a["category_id"]) for a in annotations]
    # Detections, checked against each other and against the classes.
    boxes = np.asarray(prediction.get("boxes", ()), float).reshape(-1, 4)
    labels = np.asarray(prediction.get("labels", ()), np.int64).reshape(-1)
    scores = np.asarray(prediction.get("scores", ()), float).reshape(-1)
    if not len(boxes) == len(labels) == len(scores):
        raise ValueError(
            f"predictions of image {record.image_id}: {pluralize(len(boxes), 'box')}, "
            f"{pluralize(len(labels), 'label')} and {len(scores)} scores; give one of each a "
            "detection"
        )
    if len(labels) and not 1 <= labels.min() <= labels.max() < categories.num_classes:
        raise ValueError(
            f"predictions of image {record.image_id}: labels must lie in "
            f"[1, {categories.num_classes - 1}] (0 is the background), got {labels.min()} to "
            f"{labels.max()}"
        )
    return EvaluatedImage(
        image_id=record.image_id,
        true_boxes=true_boxes,
        true_labels=np.array(true_labels, np.int64),
        ignored=crowd if count_difficult else crowd | difficult,
        crowd=crowd,
        boxes=boxes,
        labels=labels,
        scores=scores,
    )


def _add_masks(
    image: EvaluatedImage, record: ImageRecord, prediction: Prediction
) -> EvaluatedImage:
    size = record.height, record.width
    outlines = [annotation.get("segmentation") for annotation in record.annotations]
    none = np.array([not outline for outline in outlines], bool)
    where = f"{record.path}: an annotation"
    codes = [encode_outline(outline or [[0.0] * 6], size, where) for outline in outlines]
    own = cast(Sequence[RunLengths], prediction.get("masks", ()))
    if len(own) != len(image.boxes):
        raise ValueError(
            f"predictions of image {record.image_id}: {pluralize(len(image.boxes), 'box')} and "
            f"{pluralize(len(own), 'mask')}; give one of each a detection"
        )
    return replace(image, true_masks=codes, masks=own, ignored=image.ignored | none)


def compute_overlaps(image: EvaluatedImage, detections: np.ndarray) -> np.ndarray:
    """Return (n, B) IoUs, or for crowds the shares of the detections that lie on them.

    Args:
        image: Objects and detections.
        detections: (n,) places of the detections to compare.

    (`pycocotools.mask.iou` computes the same from xywh; converting to it would round.)
    """
    if image.masks is not None and image.true_masks is not None:
        codes, crowd = [image.masks[n] for n in detections], image.crowd.tolist()
        shape = len(codes), len(crowd)
        overlaps = coco_mask.iou(codes, list(image.true_masks), crowd) if min(shape) else []
        return np.reshape(np.asarray(overlaps, float), shape)
    a, b = image.boxes[detections][:, None], image.true_boxes[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = sides.clip(min=0).prod(axis=-1)
    own = (a[..., 2:] - a[..., :2]).prod(axis=-1)  # (n, 1)
    union = own + (b[..., 2:] - b[..., :2]).prod(axis=-1) - intersection
    divisor = np.where(image.crowd, own, union)
    overlaps = np.divide(intersection, divisor, out=np.zeros_like(union), where=divisor > 0)
    return np.asarray(overlaps)
