"""Annotations of a data set as one table.

As dicts, 700 thousand annotations take 600 MB, and each worker process comes to own a copy of
them: Python counts the references to an object inside it, so that looking at one writes to its
page. (detectron2's `data/common.py` keeps pickled dicts in one array for the same reason; columns
are filled without making the dicts, and counted without making them either.)

Legend: A annotations of the table, n of one image.
"""

import marshal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from densenet_backbones.data.packing.blobs import Blobs, join_blobs, pack_blobs

NUMBERS = ("id", "image_id", "category_id", "area", "iscrowd")
_TABLE = np.dtype(
    [(key, np.float64 if key == "area" else np.int64) for key in NUMBERS] + [("has", np.uint8)]
)
_ALL = (1 << len(NUMBERS)) - 1


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """Annotations in COCO's form, one a row.

    Attributes:
        numbers: (A,) structured, a field for each of `NUMBERS`, and the bits `has` for those that
            an annotation really has.
        boxes: (A, 4) float64 xywh.
        others: The other keys of each annotation, marshalled; empty where it has none.
    """

    numbers: np.ndarray
    boxes: np.ndarray
    others: Blobs

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Make the annotations of (n,) rows."""
        annotations = []
        numbers, boxes = self.numbers[rows].tolist(), self.boxes[rows].tolist()
        for row, (*values, has), box in zip(rows, numbers, boxes, strict=True):
            annotation: dict[str, Any] = dict(zip(NUMBERS, values, strict=True))
            if has != _ALL:
                annotation = {k: annotation[k] for n, k in enumerate(NUMBERS) if has >> n & 1}
            annotation["bbox"] = box
            other = self.others[row]
            if other:
                annotation |= marshal.loads(other)
            annotations.append(annotation)
        return annotations


class PackedAnnotations(Sequence[Any]):
    """Annotations of one image, made when they are looked at.

    Args:
        table: Annotations of the whole set.
        rows: (n,) int64 rows of the image's own.
    """

    def __init__(self, table: AnnotationTable, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return PackedAnnotations(self.table, self.rows[index])
        return self.table.read(self.rows[index : index + 1 or None])[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.table.read(self.rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"


def pack_annotations(annotations: Iterable[Mapping[str, Any]]) -> AnnotationTable:
    """Copy annotations into a table; each must have `bbox`."""
    rows, boxes, others = [], [], []
    for annotation in annotations:
        values = [annotation.get(key) for key in NUMBERS]
        has = sum(1 << n for n, value in enumerate(values) if value is not None)
        rows.append((*(value or 0 for value in values), has))
        boxes.append(annotation["bbox"])
        others.append({k: v for k, v in annotation.items() if k != "bbox" and k not in NUMBERS})
    return AnnotationTable(
        np.array(rows, _TABLE),
        np.array(boxes, np.float64).reshape(-1, 4),
        pack_others(others),
    )


def make_table(
    columns: Mapping[str, np.ndarray], boxes: np.ndarray, others: Blobs
) -> AnnotationTable:
    """Make a table of (A,) columns, one for each of `NUMBERS`."""
    numbers = np.empty(len(boxes), _TABLE)
    for key in NUMBERS:
        numbers[key] = columns[key]
    numbers["has"] = _ALL
    return AnnotationTable(numbers, boxes, others)


def pack_others(others: Iterable[dict[str, Any]]) -> Blobs:
    """Marshal dicts of numbers, texts and lists; it keeps every bit of a number."""
    return pack_blobs(marshal.dumps(other) if other else b"" for other in others)


def join_tables(parts: Sequence[AnnotationTable]) -> AnnotationTable:
    """Join tables to one."""
    return AnnotationTable(
        np.concatenate([np.zeros(0, _TABLE), *(part.numbers for part in parts)]),
        np.concatenate([np.zeros((0, 4)), *(part.boxes for part in parts)]),
        join_blobs(part.others for part in parts),
    )
