"""Masks and keypoints of an image's objects, made from its record when a sample is.

Legend: B objects, H x W pixels of the image as shown, Kp keypoints of an object.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from densenet_backbones.data.boxes import LEFT_OUT
from densenet_backbones.data.files import refuse_faults, refuse_if_strict
from densenet_backbones.data.readers.coco_json import abbreviate
from densenet_backbones.data.readers.coco_masks import check_outline, draw_outline
from densenet_backbones.data.samples import (
    Categories,
    DataError,
    DetectionSet,
    ImageRecord,
    Problem,
)

TargetType = Literal["boxes", "masks", "keypoints"]
FARTHEST = 1e9  # pixels that the coordinates of a keypoint may have; NaN is farther, too
MAX_MASKS = 2**32  # bytes of one image's masks: 1000 objects of a picture of 4 megapixels


@dataclass(eq=False)
class Instances:
    """The objects of one image, one a row.

    Attributes:
        boxes: (B, 4) float32 xyxy in absolute pixels.
        labels: (B,) int64.
        masks: (B, H, W) uint8 of 0 and 1, or None.
        keypoints: (B, Kp, 3) float32: x, y in absolute pixels and COCO's visibility, or None.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def rows(self, kept: np.ndarray) -> "Instances":
        """Some of the objects: (B,) bool, or positions."""
        return Instances(
            self.boxes[kept],
            self.labels[kept],
            None if self.masks is None else self.masks[kept],
            None if self.keypoints is None else self.keypoints[kept],
        )


def read_instances(
    record: ImageRecord, target_types: Sequence[str] = ("boxes",), keypoints: int = 0
) -> Instances:
    """The objects of an image that training may use.

    Args:
        record: Its image; masks and keypoints come from `annotations`.
        target_types: What is made besides boxes and labels.
        keypoints: Kp; objects that have none get Kp zeros.

    Raises:
        DataError: If an outline is faulty (names the annotation), or the masks need more than
            `MAX_MASKS` bytes.
    """
    found = Instances(record.boxes, record.labels)
    if "masks" in target_types:
        found.masks = _masks(record)
    if "keypoints" in target_types:
        found.keypoints = _keypoints(record, keypoints)
    return found


def keep_learnable_objects(
    detection_set: DetectionSet, target_types: Sequence[str], strict: bool
) -> DetectionSet:
    """The set with the objects of which training can learn what it is asked to.

    Args:
        detection_set: As read, with outlines and keypoints.
        target_types: Such as ``("boxes", "masks")``.
        strict: Raise for what is otherwise reported in `DetectionSet.problems`.

    Returns:
        The set without the boxes of objects that have no outline, where masks are learnt.
        Objects without keypoints stay: their keypoints are not labelled.

    Raises:
        DataError: If no object has what is learnt, or masks or keypoints are not as COCO has them.
    """
    if "keypoints" in target_types:
        _check_keypoints(detection_set)
    return _outlined(detection_set, strict) if "masks" in target_types else detection_set


def keep_images_with_keypoints(detection_set: DetectionSet) -> DetectionSet:
    """The images on which some object has a labelled keypoint: others would teach none.

    (Half of COCO's images show nobody; detectron2 and torchvision's training leave them out, too.)

    Raises:
        DataError: If there is none.
    """
    kept = [
        record
        for record in detection_set.records
        if any(any(a.get("keypoints", [])[2::3]) for a in _own_annotations(record))
    ]
    if not kept:
        raise DataError(
            f"{detection_set.name}: no keypoint of its {len(detection_set)} images is labelled "
            "(visibility 1 or 2), so none can be learnt from it; choose a detector of boxes"
        )
    return replace(detection_set, records=tuple(kept))


def _own_annotations(record: ImageRecord) -> list[dict[str, Any]]:
    """The annotation of each box."""
    assert record.annotation_of is not None, "readers set it"
    return [record.annotations[n] for n in record.annotation_of]


def _masks(record: ImageRecord) -> np.ndarray:
    size = record.height, record.width
    masks = (len(record.boxes), *size)
    if math.prod(masks) > MAX_MASKS:
        raise DataError(
            f"{record.path}: the masks of its {masks[0]} objects of {size[1]}x{size[0]} pixels "
            f"need more than the {MAX_MASKS} bytes that are allowed; cut the image into tiles"
        )
    drawn = np.zeros(masks, np.uint8)
    for mask, annotation in zip(drawn, _own_annotations(record), strict=True):
        mask[:] = draw_outline(annotation["segmentation"], size, _where(record, annotation))
    return drawn


def _keypoints(record: ImageRecord, count: int) -> np.ndarray:
    found = np.zeros((len(record.boxes), count, 3), np.float32)
    for row, annotation in zip(found, _own_annotations(record), strict=True):
        if annotation.get("keypoints"):
            row[:] = np.array(annotation["keypoints"], np.float64).reshape(count, 3)
    return unlabel_outside(found, (record.height, record.width))


def unlabel_outside(keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(B, Kp, 3) keypoints, those outside of an image of `size` (H, W) not labelled: all zeros."""
    x, y, seen = np.moveaxis(keypoints, -1, 0)
    inside = (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0]) & (seen > 0)
    return np.where(inside[..., None], keypoints, np.float32(0))


def _where(record: ImageRecord, annotation: dict[str, Any]) -> str:
    return f"{record.path}: annotation {annotation.get('id', '')}".rstrip()


def _outlined(detection_set: DetectionSet, strict: bool) -> DetectionSet:
    _refuse_where(detection_set, _fault_of_outline, "masks")
    records, problems = [], []
    for record in detection_set.records:
        own = _own_annotations(record)
        kept = np.array([bool(a.get("segmentation")) for a in own], dtype=bool)
        problems += [
            Problem(detection_set.name, _where(record, a), "has no 'segmentation'", LEFT_OUT)
            for a, stays in zip(own, kept, strict=True)
            if not stays
        ]
        records.append(record if kept.all() else _with_boxes(record, kept))
    if problems and not any(len(record.boxes) for record in records):
        raise DataError(
            f"{detection_set.name}: none of its {len(problems)} objects has a 'segmentation', so "
            "no masks can be learnt from it; export it in COCO's layout with masks, or choose a "
            "detector of boxes"
        )
    refuse_if_strict(problems, strict)
    return replace(
        detection_set, records=tuple(records), problems=(*detection_set.problems, *problems)
    )


def _with_boxes(record: ImageRecord, kept: np.ndarray) -> ImageRecord:
    assert record.annotation_of is not None
    return replace(
        record,
        boxes=record.boxes[kept],
        labels=record.labels[kept],
        difficult=record.difficult[kept],
        annotation_of=record.annotation_of[kept],
    )


def _check_keypoints(detection_set: DetectionSet) -> None:
    categories, name = detection_set.categories, detection_set.name
    annotations = [a for record in detection_set.records for a in record.annotations]
    if annotations and not any(a.get("keypoints") for a in annotations):
        raise DataError(
            f"{name}: none of its {len(annotations)} objects has 'keypoints', so none can be "
            "learnt from it; give COCO's file of keypoints, or choose a detector of boxes"
        )
    if not categories.keypoints:
        raise DataError(
            f"{name}: its categories do not name the keypoints, or name different ones; give "
            "every category that has some the same list 'keypoints' of names"
        )
    _refuse_where(detection_set, _fault_of_keypoints, "keypoints")


def _refuse_where(
    detection_set: DetectionSet,
    fault_of: Callable[[ImageRecord, dict[str, Any], Categories], str | None],
    what: str,
) -> None:
    """Raise one error for all faults; evaluation relies on every annotation, crowds included."""

    def found() -> Iterator[str]:
        for record in detection_set.records:
            for annotation in record.annotations:
                fault = fault_of(record, annotation, detection_set.categories)
                if fault:
                    yield fault

    faults = list(found())
    refuse_faults(faults, f"{detection_set.name}: {len(faults)} annotations have faulty {what}")


def _fault_of_outline(
    record: ImageRecord, annotation: dict[str, Any], categories: Categories
) -> str | None:
    outline, size = annotation.get("segmentation"), (record.height, record.width)
    try:
        if outline:
            check_outline(outline, size, _where(record, annotation))
    except DataError as error:
        return str(error)
    return None


def _fault_of_keypoints(
    record: ImageRecord, annotation: dict[str, Any], categories: Categories
) -> str | None:
    values, count = annotation.get("keypoints"), len(categories.keypoints)
    if not values:
        return None
    numbers = [v for v in values if type(v) in (int, float) and abs(v) <= FARTHEST]
    if len(numbers) == len(values) == 3 * count and set(numbers[2::3]) <= {0, 1, 2}:
        return None
    return (
        f"{_where(record, annotation)}: 'keypoints' must be x, y and visibility (0, 1 or 2) of "
        f"each of the {count} keypoints of its category, not {abbreviate(values)}"
    )
