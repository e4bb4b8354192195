"""Records of a data set's images as columns.

Legend: D images, A annotations, B boxes of the whole set.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np

from densenet_backbones.data.packing.annotations import (
    AnnotationTable,
    PackedAnnotations,
    join_tables,
    pack_annotations,
)
from densenet_backbones.data.packing.blobs import Blobs, pack_blobs

_PART = 10_000  # annotations that are packed at once: some megabytes as dicts


class Record(Protocol):
    """Fields of a record that is packed; see `ImageRecord`."""

    @property
    def image_id(self) -> int: ...  # noqa: D102
    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def boxes(self) -> np.ndarray: ...  # noqa: D102
    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102
    @property
    def difficult(self) -> np.ndarray: ...  # noqa: D102
    @property
    def annotations(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def annotation_of(self) -> np.ndarray | None: ...  # noqa: D102


R = TypeVar("R", bound=Record)
OldT = TypeVar("OldT")
NewT = TypeVar("NewT")


@dataclass(frozen=True, eq=False)
class RecordColumns:
    """Records one a row.

    Attributes:
        image_ids: (D,) int64.
        paths: D paths, as the file system encodes them.
        sizes: (D, 2) int64, W and H.
        box_ends: (D,) int64 position behind the boxes of each image in the next four.
        boxes: (B, 4) float32 xyxy.
        labels: (B,) int64.
        difficult: (B,) bool.
        annotation_of: (B,) int64 position of each box's annotation among those of its image; -1
            where a record has boxes only.
        row_ends: (D,) int64 position behind the annotations of each image in `rows`.
        rows: (A,) int64 rows of `table`, image after image.
        table: All annotations.
    """

    image_ids: np.ndarray
    paths: Blobs
    sizes: np.ndarray
    box_ends: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    annotation_of: np.ndarray
    row_ends: np.ndarray
    rows: np.ndarray
    table: AnnotationTable


class PackedRecords(Sequence[R], Generic[R]):
    """Records of a set, each made when it is looked at.

    Args:
        make_record: Called with the fields of `Record`, by keyword.
        columns: Content.
    """

    def __init__(self, make_record: Callable[..., R], columns: RecordColumns) -> None:
        self.make_record, self.columns = make_record, columns

    def __len__(self) -> int:
        return len(self.columns.image_ids)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[R]: ...
    def __getitem__(self, index: int | slice) -> R | Sequence[R]:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")  # ends a loop over indices
        return self._make(index % len(self))

    def __iter__(self) -> Iterator[R]:
        return (self._make(index) for index in range(len(self)))

    def _make(self, index: int) -> R:
        c = self.columns
        width, height = c.sizes[index].tolist()
        own = slice(c.box_ends[index - 1] if index else 0, c.box_ends[index])
        rows = c.rows[c.row_ends[index - 1] if index else 0 : c.row_ends[index]]
        positions = c.annotation_of[own]
        return self.make_record(
            image_id=int(c.image_ids[index]),
            path=Path(os.fsdecode(c.paths[index])),
            width=width,
            height=height,
            boxes=c.boxes[own],
            labels=c.labels[own],
            difficult=c.difficult[own],
            annotations=PackedAnnotations(c.table, rows),
            annotation_of=None if len(positions) and positions[0] < 0 else positions,
        )

    def select(self, indices: np.ndarray) -> "PackedRecords[R]":
        """Return some of the records, in the order of (n,) indices; annotations are shared."""
        c = self.columns
        boxes, box_ends = _select_rows(c.box_ends, indices)
        rows, row_ends = _select_rows(c.row_ends, indices)
        columns = RecordColumns(
            image_ids=c.image_ids[indices],
            paths=pack_blobs(c.paths[index] for index in indices),
            sizes=c.sizes[indices],
            box_ends=box_ends,
            boxes=c.boxes[boxes],
            labels=c.labels[boxes],
            difficult=c.difficult[boxes],
            annotation_of=c.annotation_of[boxes],
            row_ends=row_ends,
            rows=c.rows[rows],
            table=c.table,
        )
        return PackedRecords(self.make_record, columns)

    def keep_boxes(self, stays: np.ndarray) -> "PackedRecords[R]":
        """Return all records with the boxes for which (B,) bool says so; annotations stay."""
        c = self.columns
        columns = replace(
            c,
            box_ends=np.concatenate(([0], np.cumsum(stays)))[c.box_ends],
            boxes=c.boxes[stays],
            labels=c.labels[stays],
            difficult=c.difficult[stays],
            annotation_of=c.annotation_of[stays],
        )
        return PackedRecords(self.make_record, columns)


class MappedRecords(Sequence[NewT], Generic[OldT, NewT]):
    """Records that are made of other ones when they are looked at.

    Args:
        records: The others.
        change: Makes a record; small and picklable, as worker processes get it.
    """

    def __init__(self, records: Sequence[OldT], change: Callable[[OldT], NewT]) -> None:
        self.records, self.change = records, change

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> NewT: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NewT]: ...
    def __getitem__(self, index: int | slice) -> NewT | Sequence[NewT]:
        if isinstance(index, slice):
            return MappedRecords(self.records[index], self.change)
        return self.change(self.records[index])

    def __iter__(self) -> Iterator[NewT]:
        return map(self.change, self.records)

    def select(self, indices: np.ndarray) -> "MappedRecords[OldT, NewT]":
        """Return some of the records, in the order of (n,) indices."""
        return MappedRecords(select_records(self.records, indices), self.change)


def select_records(records: Sequence[NewT], indices: np.ndarray) -> Sequence[NewT]:
    """Return some records, in the order of (n,) indices; packed ones stay so."""
    if isinstance(records, PackedRecords | MappedRecords):
        return records.select(indices)
    return tuple(records[index] for index in indices)


def _select_rows(ends: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of some images' rows, one image after another, and their new ends."""
    starts = np.concatenate(([0], ends[:-1]))[indices] if len(ends) else ends
    counts = ends[indices] - starts
    new_ends = np.cumsum(counts)
    total = int(new_ends[-1]) if len(new_ends) else 0
    # Of each row: its place behind the start of its image.
    return np.arange(total) + np.repeat(starts - (new_ends - counts), counts), new_ends


def pack_records(make_record: Callable[..., R], records: Iterable[R]) -> PackedRecords[R]:
    """Copy records into columns, one by one, so that they are never there all at once."""
    ids, paths, sizes, box_counts, row_counts = [], [], [], [], []
    boxes, labels, difficult, positions = [], [], [], []
    tables: list[AnnotationTable] = []
    waiting: list[Any] = []
    for record in records:
        ids.append(record.image_id)
        paths.append(os.fsencode(record.path))
        sizes.append((record.width, record.height))
        box_counts.append(len(record.boxes))
        row_counts.append(len(record.annotations))
        boxes.append(np.asarray(record.boxes, np.float32).reshape(-1, 4))
        labels.append(np.asarray(record.labels, np.int64))
        difficult.append(np.asarray(record.difficult, bool))
        own = record.annotation_of
        positions.append(np.full(len(record.boxes), -1, np.int64) if own is None else own)
        waiting += record.annotations
        if len(waiting) >= _PART:
            tables.append(pack_annotations(waiting))
            waiting = []
    tables.append(pack_annotations(waiting))
    columns = RecordColumns(
        image_ids=np.array(ids, np.int64),
        paths=pack_blobs(paths),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        box_ends=np.cumsum(box_counts, dtype=np.int64),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
        difficult=np.concatenate([np.zeros(0, bool), *difficult]),
        annotation_of=np.concatenate([np.zeros(0, np.int64), *positions]),
        row_ends=np.cumsum(row_counts, dtype=np.int64),
        rows=np.arange(sum(row_counts)),
        table=join_tables(tables),
    )
    return PackedRecords(make_record, columns)
