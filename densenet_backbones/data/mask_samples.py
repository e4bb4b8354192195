"""Types of segmentation data: what a reader returns, and what a model is given.

Legend: H x W pixels of the image as shown (EXIF orientation applied), K classes. A mask is uint8:
(H, W) with labels ``0 .. K - 1`` and `IGNORED`; for multilabel data (K, H, W) with 0, 1 and
`IGNORED`. Background is a class like others where the data has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypedDict

import numpy as np
from torch import Tensor

from densenet_backbones.data.categories import check_class_names, refuse_repeated
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.images import ImageSizeError
from densenet_backbones.data.samples import pin_tensors

IGNORED = 255  # counts neither in losses nor in metrics
MAX_CLASSES = IGNORED  # labels of 8 bits
BACKGROUND = "background"
Color = tuple[int, int, int]  # RGB, each 0..255
MaskTask = Literal["multiclass", "binary", "multilabel"]


def voc_color(index: int) -> Color:
    """Return the color of a class in VOC's map: the bits of its number spread over the channels.

    (``VOClabelcolormap.m`` of the development kit.)
    """

    def channel(shift: int) -> int:
        return sum((index >> (3 * bit + shift) & 1) << (7 - bit) for bit in range(8))

    return channel(0), channel(1), channel(2)


def is_color(values: Sequence[object]) -> bool:
    """Return True for three whole numbers in 0..255."""
    return len(values) == 3 and all(type(c) is int and 0 <= c <= 255 for c in values)


class MaskClassesState(TypedDict):
    """Plain form of `MaskClasses`."""

    names: list[str]
    colors: list[list[int]]
    ids: list[int]


@dataclass(frozen=True)
class MaskClasses:
    """Classes of a data set, in label order: label ``i`` is ``names[i]``.

    Attributes:
        names: Names of the classes, unique.
        colors: Colors of the classes in pictures, RGB in 0..255.
        ids: Ids of the classes in the data set's own files, unique: the value in a mask, or the
            category id of a JSON file.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        # Three lists of one length, within the labels of 8 bits.
        counts = len(self.names), len(self.colors), len(self.ids)
        if len(set(counts)) > 1:
            raise DataError("classes: {} names, {} colors and {} ids".format(*counts))
        check_class_names(self.names, MAX_CLASSES)
        for what, values in (("name", self.names), ("id", self.ids)):
            refuse_repeated(what, values)
        for name, color in zip(self.names, self.colors, strict=True):
            if len(color) != 3 or not all(0 <= c <= 255 for c in color):
                raise DataError(f"class {name!r}: color must be RGB in 0..255, got {color}")

    @classmethod
    def from_names(
        cls,
        names: Sequence[str],
        ids: Sequence[int] | None = None,
        colors: Sequence[Color] | None = None,
    ) -> "MaskClasses":
        """Make classes, with the ids ``0 .. K - 1`` and VOC's colors where none are given."""
        if isinstance(names, str) or not all(isinstance(n, str) and n.strip() for n in names):
            raise DataError(f"classes must be a list of names, got {names!r}")
        if colors is None:
            colors = [voc_color(i) for i in range(len(names))]
        return cls(tuple(names), tuple(colors), tuple(range(len(names)) if ids is None else ids))

    @classmethod
    def from_dict(cls, state: MaskClassesState) -> "MaskClasses":
        """Invert `to_dict`."""
        colors = tuple((int(r), int(g), int(b)) for r, g, b in state["colors"])
        return cls(tuple(state["names"]), colors, tuple(int(i) for i in state["ids"]))

    def to_dict(self) -> MaskClassesState:
        """Return plain lists, for checkpoints and JSON."""
        colors = [list(color) for color in self.colors]
        return {"names": list(self.names), "colors": colors, "ids": list(self.ids)}

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.names)


class MaskReader(Protocol):
    """Source of a mask; small and picklable, as worker processes get all of them."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the mask is read from, the one that errors name first."""

    @property
    def rule(self) -> str:
        """Rule by which values become labels, as a text that changes when the rule does."""

    def read(self) -> np.ndarray:
        """Read the mask, in the form that this file's legend gives, as a new array.

        Raises:
            DataError: Names the file, what is wrong in it and the fix.
        """


@dataclass(frozen=True, eq=False)
class MaskRecord:
    """Image and the reader of its mask, before any pixel is read.

    Attributes:
        image_id: Id of the image, unique within its data set.
        path: The image file.
        width: Width of the image as shown, pixels.
        height: Height of the image as shown, pixels.
        mask: Reader of the mask.
        name: Name for people, the image's without its ending.
    """

    image_id: int
    path: Path
    width: int
    height: int
    mask: MaskReader
    name: str

    def read_mask(self) -> np.ndarray:
        """Read the mask, uint8 (H, W), or (K, H, W) where it is multilabel.

        Raises:
            DataError: If it cannot be read, has unknown values, or not the image's size
                (`ImageSizeError`).
        """
        mask = self.mask.read()
        if mask.shape[-2:] != (self.height, self.width):
            size = (mask.shape[-1], mask.shape[-2])
            raise ImageSizeError(describe_size_fault(self.mask.files[0], size, self))
        return mask


def describe_size_fault(file: Path, size: tuple[int, int], record: MaskRecord) -> str:
    """Describe the fault of a mask that has another size (W, H) than its image."""
    turned = size == (record.height, record.width)
    hint = ", so it was drawn before the image was turned upright" * turned
    return (
        f"{file}: the mask is {size[0]}x{size[1]} pixels, its image {record.path.name} "
        f"{record.width}x{record.height} as shown{hint}; draw it in the image's own size"
    )


@dataclass(frozen=True, eq=False)
class SegmentationSet:
    """Part of a segmentation data set: its images, its classes and what was wrong with it."""

    name: str
    records: Sequence[MaskRecord]
    classes: MaskClasses
    task: MaskTask = "multiclass"
    problems: tuple[Problem, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.task == "binary" and self.classes.num_classes != 2:
            raise DataError(
                f"{self.name}: a binary task needs 2 classes, the negative one first; got "
                f"{self.classes.num_classes} ({', '.join(self.classes.names[:6])})"
            )

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_logits(self) -> int:
        """Channels of a model for it: K, and 1 for a binary task (label 1 against label 0)."""
        return 1 if self.task == "binary" else self.classes.num_classes


@dataclass(eq=False)
class MaskSample:
    """Image and its mask as a model is given them.

    Attributes:
        image: (3, H, W) uint8 RGB.
        mask: (H, W) or (K, H, W) uint8; see the legend.
        image_id: Id of the record.
        index: Position of the record in its `SegmentationSet`.
        size: (H, W) of the image as shown, before augmentation.
    """

    image: Tensor
    mask: Tensor
    image_id: int
    index: int
    size: tuple[int, int]

    def pin_memory(self) -> "MaskSample":
        """Copy the sample to memory that a GPU reads while the CPU works; loaders call it."""
        return pin_tensors(self)
