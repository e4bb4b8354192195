"""Types of detection data: what a reader returns, what a model is given, and COCO's JSON form.

The COCO types follow https://cocodataset.org/#format-data and cocoapi's ``pycocotools/coco.py``.

Legend: B boxes, H x W pixels of the image as shown (EXIF orientation applied), K classes
including the background, Kp keypoints of an object.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar

import numpy as np
from torch import Tensor

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import Problem
from densenet_backbones.data.packing.records import PackedRecords, pack_records

S = TypeVar("S")


class RunLengths(TypedDict):
    """COCO's run-length code of a mask, column by column, the first run outside.

    `size` is [H, W]; `counts` is compressed text (ASCII, for JSON), the same as bytes, or numbers.
    """

    size: list[int]
    counts: str | bytes | list[int]


Outline = list[list[float]] | RunLengths
"""COCO's `segmentation`: polygons [x1, y1, x2, y2, ...] in pixels, or run lengths."""


class Annotation(TypedDict):
    """Object of an image in COCO's form; `bbox` is xywh in pixels.

    `difficult` and `truncated` are VOC's flags. Readers always set `area` and `iscrowd`.
    """

    category_id: int
    bbox: list[float]
    id: NotRequired[int]
    image_id: NotRequired[int]
    area: NotRequired[float]
    iscrowd: NotRequired[int]
    segmentation: NotRequired[Outline | None]
    keypoints: NotRequired[list[float]]  # x, y and visibility of each
    num_keypoints: NotRequired[int]
    difficult: NotRequired[int]
    truncated: NotRequired[int]


class ImageEntry(TypedDict):
    """Image in COCO's form; sides in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class CategoryEntry(TypedDict):
    """Class in COCO's form; `skeleton` joins keypoints counted from 1."""

    id: int
    name: str
    supercategory: NotRequired[str]
    keypoints: NotRequired[list[str]]
    skeleton: NotRequired[list[list[int]]]
    isthing: NotRequired[int]


class GroundTruth(TypedDict):
    """Annotated data set in COCO's JSON form."""

    info: NotRequired[dict[str, str]]
    images: list[ImageEntry]
    annotations: list[Annotation]
    categories: list[CategoryEntry]


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """Image and its annotations, before any pixel is read.

    Attributes:
        image_id: Id of the image, unique within its data set.
        path: The image file.
        width: Width of the image as shown, pixels.
        height: Height of the image as shown, pixels.
        boxes: (B, 4) float32 xyxy in absolute pixels, ``0 <= x1 < x2 <= width``: the objects
            that training may use (no crowds, no faulty boxes).
        labels: (B,) int64 in ``1 .. K - 1``.
        difficult: (B,) bool, VOC's flag (False everywhere in COCO).
        annotations: COCO-format entries of every object that evaluation uses, crowds and
            difficult objects included; `bbox` is xywh, `category_id` and the order of `keypoints`
            are the data set's own.
        annotation_of: (B,) int64 position in `annotations` of each box, from where masks and
            keypoints are made when a sample is. None where a record has boxes only.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    annotations: Sequence[Annotation] = field(default=(), repr=False)
    annotation_of: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """Part of a detection data set: its images, its classes and what was wrong with it.

    Its `file` is the annotation file that all of it was read from, where there is one. Records are
    kept as columns, which worker processes share, and made when they are looked at.
    """

    name: str
    records: Sequence[ImageRecord]
    categories: Categories
    problems: tuple[Problem, ...] = field(default=())
    file: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.records, PackedRecords):
            object.__setattr__(self, "records", pack_records(ImageRecord, self.records))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def packed(self) -> PackedRecords[ImageRecord]:
        """The records, for what is counted over their columns."""
        assert isinstance(self.records, PackedRecords)
        return self.records

    def ground_truth(self) -> GroundTruth:
        """Return COCO's JSON form of the set, for evaluation.

        VOC's difficult objects become crowds there: detections on them count neither as right
        nor as wrong, which is what VOC asks (pycocotools ignores an `ignore` key of its own).
        """
        images: list[ImageEntry] = [
            {"id": r.image_id, "file_name": r.path.name, "width": r.width, "height": r.height}
            for r in self.records
        ]
        annotations: list[Annotation] = []
        for record in self.records:
            for annotation in record.annotations:
                # Crowds and difficult objects are ignored in the same way.
                crowd = annotation.get("iscrowd", 0) or annotation.get("difficult", 0)
                annotations.append(
                    {
                        **annotation,
                        "id": len(annotations) + 1,
                        "image_id": record.image_id,
                        "iscrowd": int(bool(crowd)),
                    }
                )
        categories: list[CategoryEntry] = [
            {"id": i, "name": name}
            for i, name in zip(self.categories.ids, self.categories.names, strict=True)
        ]
        return {
            "info": {"description": self.name},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }


def pin_tensors(sample: S) -> S:
    """Copy a sample, with its tensors in pinned memory."""
    copied = copy.copy(sample)
    for name, value in vars(sample).items():
        if isinstance(value, Tensor):
            setattr(copied, name, value.pin_memory())
    return copied


@dataclass(eq=False)
class Sample:
    """Image and its objects as a model is given them.

    Attributes:
        image: (3, H, W) uint8 RGB.
        boxes: (B, 4) float32 xyxy in pixels of `image`.
        labels: (B,) int64 in ``1 .. K - 1``.
        image_id: Id of the record.
        index: Position of the record in its `DetectionSet`.
        masks: (B, H, W) uint8, 1 where an object is; None where nobody asked for masks.
        keypoints: (B, Kp, 3) float32: x and y in pixels of `image`, and COCO's visibility (0 not
            labeled, x and y are 0 then; 1 hidden; 2 visible); None where nobody asked for them.
        factor: Pixels of the full image's sides that one of `image` stands for.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    index: int
    masks: Tensor | None = None
    keypoints: Tensor | None = None
    factor: int = 1

    def pin_memory(self) -> "Sample":
        """Copy the sample to memory that a GPU reads while the CPU works; loaders call it."""
        return pin_tensors(self)
