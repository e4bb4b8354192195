"""The types that detection data passes in: what a reader returns and what a model is given.

Legend: B boxes, H x W pixels of the image as shown (EXIF orientation applied), K classes
including the background, Kp keypoints of an object.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # of "left_eye", "LeftEye", "eye L"
_MIRROR = {"left": "right", "right": "left", "l": "r", "r": "l"}


S = TypeVar("S")


class DataError(ValueError):
    """A fault in the user's data: the message names the file, the item and the fix."""


@dataclass(frozen=True)
class Categories:
    """The classes of a data set, in label order.

    Label 0 is the background; label ``l`` in ``1 .. len(names)`` is ``names[l - 1]``, known to
    the data set itself as ``ids[l - 1]`` (sparse for COCO, ``1 .. len(names)`` for VOC).

    Attributes:
        names: Unique.
        ids: Unique.
        keypoints: Names of an object's keypoints, in the order of their coordinates; empty where
            the data has none, or where its classes have different ones.
        skeleton: Pairs of positions in `keypoints`, from 0, that pictures join by lines.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise DataError(f"{len(self.names)} class names but {len(self.ids)} class ids")
        for what, values in (("name", self.names), ("id", self.ids)):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise DataError(f"class {what}s must be unique; given twice: {sorted(twice)}")
        count = len(self.keypoints)
        if any(not 0 <= end < count for pair in self.skeleton for end in pair):
            raise DataError(
                f"skeleton must join keypoints 0 .. {count - 1}, got {list(self.skeleton)}"
            )

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "Categories":
        """Classes of a data set that has names only; their ids are ``1 .. len(names)``."""
        if isinstance(names, str) or not all(isinstance(n, str) and n.strip() for n in names):
            raise DataError(f"classes must be a list of names, got {names!r}")
        return cls(tuple(names), tuple(range(1, len(names) + 1)))

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Categories":
        """Inverse of `to_dict`."""
        return cls(
            tuple(state["names"]),
            tuple(int(i) for i in state["ids"]),
            tuple(state.get("keypoints", ())),
            tuple((int(a), int(b)) for a, b in state.get("skeleton", ())),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for checkpoints and JSON; keypoints only where there are some."""
        state: dict[str, Any] = {"names": list(self.names), "ids": list(self.ids)}
        if self.keypoints:
            state["keypoints"] = list(self.keypoints)
            state["skeleton"] = [list(pair) for pair in self.skeleton]
        return state

    @property
    def num_classes(self) -> int:
        """Number of classes including the background, as torchvision's detectors count them."""
        return len(self.names) + 1

    @property
    def mirrored_keypoints(self) -> tuple[int, ...]:
        """Position of the keypoint that each one becomes in a mirror: left and right swapped.

        Told from the names: "left_eye" and "right_eye", "L Hip" and "R Hip", "wrist-l" and
        "wrist-r". A keypoint whose other side has no name stays itself.
        """
        words = [tuple(_WORDS.findall(name)) for name in self.keypoints]
        sides = [tuple(_other_side(word.lower()) for word in name) for name in words]
        plain = [tuple(word.lower() for word in name) for name in words]
        # Names that are alike but for case or signs have no clear other side: they stay.
        found = [
            plain.index(side) if side != own and plain.count(side) == plain.count(own) == 1 else n
            for n, (own, side) in enumerate(zip(plain, sides, strict=True))
        ]
        return tuple(found)

    def label_of_name(self, name: str) -> int:
        """Label of a class name; ``KeyError`` where there is none."""
        try:
            return self.names.index(name) + 1
        except ValueError:
            raise KeyError(name) from None

    def label_of_id(self, category_id: int) -> int:
        """Label of the data set's own id; ``KeyError`` where there is none."""
        try:
            return self.ids.index(category_id) + 1
        except ValueError:
            raise KeyError(category_id) from None

    def id_of_label(self, label: int) -> int:
        """The data set's own id of a label in ``1 .. len(names)``."""
        if not 1 <= label <= len(self.ids):
            raise KeyError(label)
        return self.ids[label - 1]

    def name_of_label(self, label: int) -> str:
        """Name of a label; label 0 is "background"."""
        return self.names[label - 1] if label else "background"


def _other_side(word: str) -> str:
    return _MIRROR.get(word, word)


@dataclass(frozen=True)
class Problem:
    """One fault found while reading that did not stop it, and what was done about it."""

    file: str
    item: str
    what: str
    action: str

    def __str__(self) -> str:
        return f"{self.file}: {self.item}: {self.what}; {self.action}"


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and its annotations, before any pixel is read.

    Attributes:
        image_id: Unique within its data set.
        path: The image file.
        width: Pixels, of the image as shown.
        height: Pixels, of the image as shown.
        boxes: (B, 4) float32 xyxy in absolute pixels, ``0 <= x1 < x2 <= width``: the objects
            that training may use (no crowds, no faulty boxes).
        labels: (B,) int64 in ``1 .. K - 1``.
        difficult: (B,) bool, VOC's flag (False everywhere in COCO).
        annotations: COCO-format dicts of every annotation that evaluation uses, crowds and
            difficult objects included; `bbox` is xywh, `category_id` the data set's own.
        annotation_of: (B,) int64, the position in `annotations` that each box is of: masks and
            keypoints are made from there when a sample is. None where a record has boxes only.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    annotations: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    annotation_of: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """A part of a detection data set: its images, its classes and what was wrong with it."""

    name: str
    records: tuple[ImageRecord, ...]
    categories: Categories
    problems: tuple[Problem, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.records)

    def ground_truth(self) -> dict[str, Any]:
        """COCO's JSON form of the set, for evaluation.

        VOC's difficult objects become crowds there: detections on them count neither as right
        nor as wrong, which is what VOC asks (pycocotools ignores an `ignore` key of its own).
        """
        images = [
            {"id": r.image_id, "file_name": r.path.name, "width": r.width, "height": r.height}
            for r in self.records
        ]
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            for annotation in record.annotations:
                crowd = annotation.get("iscrowd", 0) or annotation.get("difficult", 0)
                annotations.append(
                    {
                        **annotation,
                        "id": len(annotations) + 1,
                        "image_id": record.image_id,
                        "iscrowd": int(bool(crowd)),
                    }
                )
        categories = [
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
    """A copy of a sample with its tensors in pinned memory."""
    copied = copy.copy(sample)
    for name, value in vars(sample).items():
        if isinstance(value, Tensor):
            setattr(copied, name, value.pin_memory())
    return copied


@dataclass(eq=False)
class Sample:
    """One image as a model is given it.

    Attributes:
        image: (3, H, W) uint8 RGB.
        boxes: (B, 4) float32 xyxy in pixels of `image`.
        labels: (B,) int64 in ``1 .. K - 1``.
        image_id: The record's id.
        index: Position of the record in its `DetectionSet`.
        masks: (B, H, W) uint8, 1 where an object is; None where nobody asked for masks.
        keypoints: (B, Kp, 3) float32: x and y in pixels of `image`, and COCO's visibility (0 not
            labelled, x and y are 0 then; 1 hidden; 2 visible); None where nobody asked for them.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    index: int
    masks: Tensor | None = None
    keypoints: Tensor | None = None

    def pin_memory(self) -> "Sample":
        """The sample in memory that a GPU reads while the processor works; loaders call it."""
        return pin_tensors(self)
