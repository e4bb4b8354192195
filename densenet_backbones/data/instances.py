"""Makes masks and keypoints of an image's objects from its record, when a sample is made.

Legend: B objects, H x W pixels of the image as shown, Kp keypoints of an object.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from densenet_backbones.data.boxes import LEFT_OUT
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import quote, refuse_faults, refuse_if_strict
from densenet_backbones.data.readers.coco.json_values import abbreviate
from densenet_backbones.data.readers.coco.outlines import check_outline, draw_outline
from densenet_backbones.data.samples import Annotation, DetectionSet, ImageRecord
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_COORDINATE, MAX_MASK_PIXELS

TargetType = Literal["boxes", "masks", "keypoints"]


@dataclass(eq=False)
class Instances:
    """Objects of one image, one a row.

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

    def select(self, rows: np.ndarray) -> "Instances":
        """Select some of the objects by (B,) bool, or by positions."""
        return Instances(
            self.boxes[rows],
            self.labels[rows],
            None if self.masks is None else self.masks[rows],
            None if self.keypoints is None else self.keypoints[rows],
        )


def read_instances(
    record: ImageRecord,
    target_types: Sequence[str] = ("boxes",),
    keypoints: int = 0,
    positions: Sequence[int] = (),
) -> Instances:
    """Read the objects of an image that training may use.

    Args:
        record: Record of the image; masks and keypoints come from its `annotations`.
        target_types: Annotations to make; boxes and labels are always made.
        keypoints: Number of keypoints of an object, Kp; objects that have none get Kp zeros.
        positions: Position of each keypoint in the annotations (`Categories.keypoint_positions`);
            empty for the order of the annotations.

    Raises:
        DataError: If an outline is faulty (names the annotation), or the masks need more than
            `MAX_MASK_PIXELS` bytes.
    """
    objects = Instances(record.boxes, record.labels)
    if "masks" in target_types:
        objects.masks = _draw_masks(record)
    if "keypoints" in target_types:
        objects.keypoints = _read_keypoints(record, keypoints)
        if positions:
            objects.keypoints = objects.keypoints[:, list(positions)]
    return objects


def keep_learnable_objects(
    detection_set: DetectionSet, target_types: Sequence[str], strict: bool
) -> DetectionSet:
    """Keep the objects that have what training is to learn from.

    Args:
        detection_set: As read, with outlines and keypoints.
        target_types: Annotations to learn from, such as ``("boxes", "masks")``.
        strict: Raise for what is otherwise reported in `DetectionSet.problems`.

    Returns:
        The set without the boxes of objects that have no outline, if masks are learned.
        Objects without keypoints stay: their keypoints are not labeled.

    Raises:
        DataError: If no object has what is to be learned from, or masks or keypoints are not as
        COCO has them.
    """
    if "keypoints" in target_types:
        _check_keypoints(detection_set)
    return _keep_outlined(detection_set, strict) if "masks" in target_types else detection_set


def keep_images_with_keypoints(detection_set: DetectionSet) -> DetectionSet:
    """Keep the images on which some object has a labeled keypoint: others would teach none.

    (Half of COCO's images show nobody; detectron2 and torchvision's training leave them out, too.)

    Raises:
        DataError: If there is none.
    """
    records = detection_set.records
    teaching = [
        n
        for n, record in enumerate(records)
        if any(any(a.get("keypoints", [])[2::3]) for a in _list_own_annotations(record))
    ]
    if not teaching:
        raise DataError(
            f"{detection_set.name}: no keypoint of its {pluralize(len(detection_set), 'image')} "
            "is labeled (visibility 1 or 2), so none can be learned from it; choose a detector "
            "of boxes"
        )
    return replace(detection_set, records=[records[n] for n in teaching])


def order_keypoints(detection_set: DetectionSet, model: Categories) -> DetectionSet:
    """Put the keypoints of a set in a model's order, matched by name; annotations stay as they are.

    Args:
        detection_set: Set whose `categories` name its keypoints.
        model: Classes of the model, or of another set that is taken as one with this.

    Returns:
        The set, whose categories have the model's keypoints and skeleton.

    Raises:
        DataError: If the names differ, or one is given twice so that the order is not clear.
    """
    own, where = detection_set.categories, detection_set.file or detection_set.name
    if not model.keypoints or own.keypoints == model.keypoints:
        return detection_set
    differing = sorted(set(own.keypoints) ^ set(model.keypoints))
    if differing or len(own.keypoints) != len(model.keypoints):
        raise DataError(
            f"{where}: its {pluralize(len(own.keypoints), 'keypoint')} "
            f"({quote(own.keypoints, 20)}) are not the {len(model.keypoints)} that are known "
            f"({quote(model.keypoints, 20)}); give both the same names, in any order"
        )
    # One more permutation after that of the set, if it has one.
    table = np.array([own.keypoints.index(name) for name in model.keypoints])
    if len(set(table.tolist())) < len(table):
        raise DataError(
            f"{where}: keypoints are named twice ({quote(own.keypoints, 20)}), so "
            "they cannot be put in another order; give each a name of its own"
        )
    before = np.array(own.keypoint_positions or range(len(table)))
    categories = replace(
        own,
        keypoints=model.keypoints,
        skeleton=model.skeleton,
        keypoint_positions=tuple(before[table].tolist()),
    )
    return replace(detection_set, categories=categories)


def _list_own_annotations(record: ImageRecord) -> list[Annotation]:
    """List the annotation of each box."""
    assert record.annotation_of is not None, "readers set it"
    annotations = list(record.annotations)
    return [annotations[n] for n in record.annotation_of]


def _draw_masks(record: ImageRecord) -> np.ndarray:
    size = record.height, record.width
    masks = (len(record.boxes), *size)
    # Refused before any memory is taken.
    if math.prod(masks) > MAX_MASK_PIXELS:
        raise DataError(
            f"{record.path}: the masks of its {pluralize(masks[0], 'object')} of "
            f"{size[1]}x{size[0]} pixels need more than the {MAX_MASK_PIXELS} bytes that are "
            "allowed; cut the image into tiles"
        )
    pixels = np.zeros(masks, np.uint8)
    for mask, annotation in zip(pixels, _list_own_annotations(record), strict=True):
        outline = annotation["segmentation"]
        assert outline is not None, "`keep_learnable_objects` leaves such objects out"
        mask[:] = draw_outline(outline, size, _locate(record, annotation))
    return pixels


def _read_keypoints(record: ImageRecord, count: int) -> np.ndarray:
    keypoints = np.zeros((len(record.boxes), count, 3), np.float32)
    for row, annotation in zip(keypoints, _list_own_annotations(record), strict=True):
        if annotation.get("keypoints"):
            row[:] = np.array(annotation["keypoints"], np.float64).reshape(count, 3)
    return unlabel_outside(keypoints, (record.height, record.width))


def unlabel_outside(keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Set (B, Kp, 3) keypoints outside of an image of `size` (H, W) to zeros: not labeled."""
    x, y, seen = np.moveaxis(keypoints, -1, 0)
    inside = (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0]) & (seen > 0)
    return np.where(inside[..., None], keypoints, np.float32(0))


def _locate(record: ImageRecord, annotation: Annotation) -> str:
    return f"{record.path}: annotation {annotation.get('id', '')}".rstrip()


def _keep_outlined(detection_set: DetectionSet, strict: bool) -> DetectionSet:
    _refuse_where(detection_set, _describe_outline_fault, "masks")
    outlined, problems = [], []
    for record in detection_set.records:
        for annotation in _list_own_annotations(record):
            outlined.append(bool(annotation.get("segmentation")))
            if not outlined[-1]:
                where = _locate(record, annotation)
                problems.append(
                    Problem(detection_set.name, where, "has no 'segmentation'", LEFT_OUT)
                )
    if not problems:
        return detection_set
    if not any(outlined):
        raise DataError(
            f"{detection_set.name}: its {pluralize(len(problems), 'object has', 'objects have')} "
            "no 'segmentation', so no masks can be learned from it; export it in COCO's layout "
            "with masks, or choose a detector of boxes"
        )
    refuse_if_strict(problems, strict)
    # Boxes whose objects have a mask stay; evaluation counts all.
    records = detection_set.packed.keep_boxes(np.array(outlined))
    return replace(detection_set, records=records, problems=(*detection_set.problems, *problems))


def _check_keypoints(detection_set: DetectionSet) -> None:
    categories, name = detection_set.categories, detection_set.name
    # All objects, those of evaluation included.
    annotations = [a for record in detection_set.records for a in record.annotations]
    if annotations and not any(a.get("keypoints") for a in annotations):
        raise DataError(
            f"{name}: its {pluralize(len(annotations), 'object has', 'objects have')} no "
            "'keypoints', so none can be learned from it; give COCO's file of keypoints, or choose "
            "a detector of boxes"
        )
    if not categories.keypoints:
        raise DataError(
            f"{name}: its categories do not name the keypoints, or name different ones; give "
            "every category that has some the same list 'keypoints' of names"
        )
    _refuse_where(detection_set, _describe_keypoint_fault, "keypoints")


def _refuse_where(
    detection_set: DetectionSet,
    describe_fault: Callable[[ImageRecord, Annotation, Categories], str | None],
    what: str,
) -> None:
    """Raise one error for all faults; evaluation relies on every annotation, crowds included."""

    def list_faults() -> Iterator[str]:
        for record in detection_set.records:
            for annotation in record.annotations:
                fault = describe_fault(record, annotation, detection_set.categories)
                if fault:
                    yield fault

    faults = list(list_faults())
    count = pluralize(len(faults), "annotation has", "annotations have")
    refuse_faults(faults, f"{detection_set.name}: {count} faulty {what}")


def _describe_outline_fault(
    record: ImageRecord, annotation: Annotation, categories: Categories
) -> str | None:
    outline, size = annotation.get("segmentation"), (record.height, record.width)
    try:
        if outline:
            check_outline(outline, size, _locate(record, annotation))
    except DataError as error:
        return str(error)
    return None


def _describe_keypoint_fault(
    record: ImageRecord, annotation: Annotation, categories: Categories
) -> str | None:
    values, count = annotation.get("keypoints"), len(categories.keypoints)
    if not values:
        return None
    # Three finite numbers a keypoint, of which the third is the visibility.
    numbers = [v for v in values if type(v) in (int, float) and abs(v) <= MAX_COORDINATE]
    if len(numbers) == len(values) == 3 * count and set(numbers[2::3]) <= {0, 1, 2}:
        return None
    return (
        f"{_locate(record, annotation)}: 'keypoints' must be x, y and visibility (0, 1 or 2) of "
        f"each of the {pluralize(count, 'keypoint')} of its category, not {abbreviate(values)}"
    )
