"""Collects the objects of a set that can be written, and makes objects of the masks of classes.

Legend: H x W pixels of the image as shown.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.files import track_progress
from densenet_backbones.data.mask_samples import BACKGROUND, IGNORED, SegmentationSet
from densenet_backbones.data.readers.coco.outlines import make_box_outline
from densenet_backbones.data.samples import Annotation, DetectionSet, ImageRecord, Outline
from densenet_backbones.data.scenes.annotations import (
    compute_mask_box,
    encode_run_lengths,
    trace_outline,
)


@dataclass(frozen=True, eq=False)
class WritableObject:
    """Object of an image.

    Attributes:
        label: Label of its class, from 1.
        box: x1, y1, x2, y2 in pixels of the image as shown.
        is_crowd: True for a region of several objects, which none of them is learned from.
        annotation: Everything else about it, in COCO's form.
    """

    label: int
    box: tuple[float, float, float, float]
    is_crowd: bool
    annotation: Annotation

    @property
    def outline(self) -> Outline | None:
        """Its outline, if any."""
        return self.annotation.get("segmentation")


def list_writable(
    data: DetectionSet, record: ImageRecord, left_out: Counter[str]
) -> Iterator[WritableObject]:
    """Yield the objects of an image: those that training may use, and crowds.

    Args:
        data: The set.
        record: Its record of the image.
        left_out: Counts the others, which have no usable box.
    """
    if record.annotation_of is None:
        for label, box, difficult in zip(
            record.labels.tolist(), record.boxes.tolist(), record.difficult.tolist(), strict=True
        ):
            plain: Annotation = {"category_id": 0, "bbox": [], "difficult": int(difficult)}
            yield WritableObject(label, tuple(box), False, plain)
        return
    box_of = {int(n): position for position, n in enumerate(record.annotation_of)}
    for n, annotation in enumerate(record.annotations):
        label = data.categories.label_of_id(annotation["category_id"])
        if n in box_of:
            box = tuple(record.boxes[box_of[n]].tolist())
            yield WritableObject(label, box, False, annotation)
        elif annotation.get("iscrowd"):
            x, y, w, h = annotation["bbox"]
            yield WritableObject(label, (x, y, x + w, y + h), True, annotation)
        else:
            left_out["objects with a faulty box"] += 1


def list_visible_keypoints(annotation: Annotation) -> bool:
    """Return True if an object has a labeled keypoint."""
    return any(annotation.get("keypoints", [])[2::3])


def make_objects(data: SegmentationSet, left_out: Counter[str]) -> DetectionSet:
    """Make an object of each connected region of a class, and a crowd of all ignored pixels.

    The background is no object. The regions of a class may touch at corners.

    Args:
        data: Set of masks, whose labels are of one class a pixel or of several.
        left_out: Counts what cannot be kept.
    """
    many = data.task == "multilabel"
    labels = [n for n, name in enumerate(data.classes.names) if many or name != BACKGROUND]
    names = tuple(data.classes.names[n] for n in labels)
    categories = Categories(names, tuple(range(1, len(names) + 1)))
    records, next_id = [], 1
    for record in track_progress(data.records, f"Outlining {data.name}", from_count=100):
        annotations: list[Annotation] = []
        mask = record.read_mask()
        for category, label in enumerate(labels, start=1):
            inside = mask[label] == 1 if many else mask == label
            annotations += _outline_regions(inside.astype(np.uint8), category)
            if many and (mask[label] == IGNORED).any():
                hidden = mask[label] == IGNORED
                annotations.append(_make_crowd(hidden, category))
        if not many and (mask == IGNORED).any():
            annotations.append(_make_crowd(mask == IGNORED, 1))
        for annotation in annotations:
            annotation["id"], next_id = next_id, next_id + 1
            annotation["image_id"] = record.image_id
        single = [n for n, a in enumerate(annotations) if not a["iscrowd"]]
        boxes = np.array([annotations[n]["bbox"] for n in single], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        own = np.array([annotations[n]["category_id"] for n in single], np.int64)
        records.append(
            ImageRecord(
                record.image_id,
                record.path,
                record.width,
                record.height,
                boxes,
                own,
                np.zeros(len(single), bool),
                tuple(annotations),
                np.array(single, np.int64),
            )
        )
    return DetectionSet(data.name, records, categories, data.problems)


def _outline_regions(inside: np.ndarray, category: int) -> Iterator[Annotation]:
    """Yield an annotation of each connected region of a mask, traced in its own box."""
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    for number in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[number])
        part = (numbers[y : y + h, x : x + w] == number).astype(np.uint8)
        outline = trace_outline(part)
        if isinstance(outline, list):
            shift = (x, y)
            outline = [[v + shift[k % 2] for k, v in enumerate(points)] for points in outline]
        else:  # it has holes
            outline = encode_run_lengths(numbers == number)
        yield {
            "category_id": category,
            "bbox": [x, y, w, h],
            "area": area,
            "iscrowd": 0,
            "segmentation": outline,
        }


def _make_crowd(hidden: np.ndarray, category: int) -> Annotation:
    pixels = hidden.astype(np.uint8)
    return {
        "category_id": category,
        "bbox": compute_mask_box(pixels),
        "area": int(pixels.sum()),
        "iscrowd": 1,
        "segmentation": encode_run_lengths(pixels),
    }


def has_outlines(data: DetectionSet) -> bool:
    """Return True if an object of the set has an outline that is not its box's."""
    return any(
        (outline := a.get("segmentation")) and outline != make_box_outline(a["bbox"])
        for record in data.records
        for a in record.annotations
        if not a.get("iscrowd")
    )
