"""Facts of a data set that a recipe goes by: kind of annotations, number and sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from lightning.pytorch.cli import LightningArgumentParser

from densenet_backbones.data.classification.data import ClassificationData
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loading import AnyData
from densenet_backbones.data.samples import DetectionSet

Kind = Literal["boxes", "masks", "keypoints", "semantic", "classes"]

LOOKED_AT = 200
"""Images whose annotations are looked at, spread over the set."""
MOST = 0.5
"""Share of the objects that must have an outline, or keypoints, for a recipe to learn them."""


@dataclass(frozen=True)
class DataFacts:
    """Training images of a data set.

    Attributes:
        kind: What can be learned from their annotations.
        images: Their number.
        size: (W, H) in pixels: the medians.
        small_object: Side in pixels that nine of ten objects exceed; None where there are none.
        unused: Sentence about keypoints that are there and cannot be learned; empty without such.
    """

    kind: Kind
    images: int
    size: tuple[int, int]
    small_object: float | None = None
    unused: str = ""


def read_data(arguments: Sequence[str], data_type: type[AnyData]) -> AnyData:
    """Return the data that the arguments of a training name.

    Args:
        arguments: The engine's, those of model and trainer included.
        data_type: Data module of the kind of training.

    Raises:
        ArgumentError: An option of the data is wrong.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(data_type, "data")
    config = parser.parse_args(list(_select_data_options(arguments)))
    data: AnyData = parser.instantiate_classes(config).data
    return data


def _select_data_options(arguments: Sequence[str]) -> Iterator[str]:
    takes_next = False
    for argument in arguments:
        if takes_next or argument.startswith("--data."):
            yield argument
            # The value may stand in a word of its own.
            takes_next = not takes_next and "=" not in argument


def gather_facts(data: AnyData) -> DataFacts:
    """Look at the training images of a data set; no pixel is read.

    Raises:
        DataError: They cannot be read.
    """
    if not isinstance(data, DetectionData):
        sizes = np.array([(record.width, record.height) for record in data.train_set.records])
        kind: Kind = "classes" if isinstance(data, ClassificationData) else "semantic"
        return DataFacts(kind, len(sizes), _take_median(sizes))
    columns = data.train_set.packed.columns
    found, unused = _find_kind(data)
    facts = DataFacts(found, len(columns.sizes), _take_median(columns.sizes), unused=unused)
    if not len(columns.boxes):
        return facts
    sides = np.sqrt(np.prod(columns.boxes[:, 2:] - columns.boxes[:, :2], axis=1))
    return replace(facts, small_object=float(np.quantile(sides, 0.1)))


def _take_median(sizes: np.ndarray) -> tuple[int, int]:
    width, height = np.median(sizes, axis=0) if len(sizes) else (1, 1)
    return int(width), int(height)


def _find_kind(data: DetectionData) -> tuple[Kind, str]:
    """Return what most objects of the training set have, and what is wrong with keypoints."""
    if data.target_types != ("boxes",):
        last: Any = data.target_types[-1]
        return last, ""
    unused = ""
    wanted: tuple[Literal["keypoints", "masks"], ...] = ("keypoints", "masks")
    for kind in wanted:
        if kind == "keypoints" and not data.categories.keypoints:
            continue
        try:
            other = replace(data, target_types=("boxes", kind)).train_set
        except DataError as error:  # there are none, or they are not as they must be
            if kind == "keypoints":  # which the data names
                unused = f"Its keypoints are left aside: {error}"
            continue
        if _count_share(other, kind) >= MOST:
            return kind, unused
    return "boxes", unused


def _count_share(data_set: DetectionSet, kind: Literal["keypoints", "masks"]) -> float:
    """Return the share of objects with labeled keypoints, or an outline that is no mere box."""
    step = max(1, len(data_set) // LOOKED_AT)
    entries = [
        annotation for record in data_set.records[::step] for annotation in record.annotations
    ]
    if kind == "keypoints":
        has = [any(list(entry.get("keypoints") or ())[2::3]) for entry in entries]
    else:
        has = [_is_outline(entry.get("segmentation")) for entry in entries]
    return sum(has) / max(len(has), 1)


def _is_outline(outline: object) -> bool:
    """Return True for run lengths, and polygons of more than the four corners of a box."""
    if not isinstance(outline, list):
        return bool(outline)
    # Some tools write a box as its corners, closed or not.
    return any(len({*zip(part[::2], part[1::2], strict=False)}) > 4 for part in outline)
