"""Renames, merges, leaves out and chooses the classes of a set, by name.

Legend: A annotations and B boxes of a set, K its labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote
from densenet_backbones.data.mask_samples import (
    BACKGROUND,
    IGNORED,
    MaskClasses,
    SegmentationSet,
)
from densenet_backbones.data.packing.records import PackedRecords
from densenet_backbones.data.readers.masks.files import RelabeledMask, reorder_classes
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.messages import nearest, pluralize

S = TypeVar("S", DetectionSet, SegmentationSet)
ALL_OTHERS = "*"
"""Name among those that are left out which stands for all classes that are not chosen."""


@dataclass(frozen=True)
class ClassChanges:
    """Changes of the classes of a set.

    Attributes:
        rename: New name of some classes; those of one name are merged.
        drop: Names, after the renaming, of classes that are left out. Their objects are no longer
            there; their pixels are background, or ignored where there is no background. "*" stands
            for all that are not chosen.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.rename or self.drop)


def change_classes(data: S, changes: ClassChanges, classes: Sequence[str] | None = None) -> S:
    """Rename, merge and leave out classes, then put the chosen ones in order.

    Args:
        data: Set with all its classes.
        changes: What is renamed and left out.
        classes: Names in label order, after the renaming; classes that the set does not have get
            labels too. None keeps the order of the set.

    Raises:
        DataError: If a name is none of the set's classes, no class is left, or a class that has
            objects or pixels is neither chosen nor left out.
    """
    old = _name_classes(data)
    renamed = [changes.rename.get(name, name) for name in old]
    if not classes:  # those of another set are matched below, where unknown ones are refused
        refuse_unknown_changes(data, changes)
    dropped = set(changes.drop)
    chosen: list[str] = list(classes or ())
    if ALL_OTHERS in dropped:
        if not chosen:
            raise DataError(
                f"{data.name}: '{ALL_OTHERS}' leaves out all classes that are not chosen, but none "
                "are; name them in `classes`"
            )
        if _has_background(data) and BACKGROUND in renamed and BACKGROUND not in chosen:
            chosen = [BACKGROUND, *chosen]  # pixels of no object are of no other class
        dropped |= set(renamed) - set(chosen)
    left = [name for name in dict.fromkeys(renamed) if name not in dropped]
    if not left:
        raise DataError(f"{data.name}: none of its classes is left ({quote(old)}); drop fewer")
    if isinstance(data, SegmentationSet):
        data = _relabel_masks(data, renamed, left)
        return reorder_classes(data, chosen) if chosen else data
    if chosen:
        _refuse_lost(data, left, renamed, chosen)
    return _relabel_objects(data, renamed, chosen or left)


def refuse_unknown_changes(data: DetectionSet | SegmentationSet, changes: ClassChanges) -> None:
    """Refuse to rename or leave out classes that a set does not have.

    Raises:
        DataError: Names the class, the nearest one and the set.
    """
    old = _name_classes(data)
    for name in changes.rename:
        _refuse_unknown(data, name, old)
    renamed = [changes.rename.get(name, name) for name in old]
    for name in changes.drop:
        if name != ALL_OTHERS:
            _refuse_unknown(data, name, renamed)


def refuse_new_classes(
    sets: Sequence[DetectionSet | SegmentationSet],
    changes: ClassChanges,
    classes: Sequence[str] | None,
) -> None:
    """Refuse chosen classes that none of the sets has, where all others are left out.

    A slip in a name would leave out the objects of the class that is meant, without a word.

    Args:
        sets: Sets with all their classes.
        changes: As `change_classes`, which the sets go through next.
        classes: Names that a person chose, not those that a model knows.

    Raises:
        DataError: Names the class, the nearest one and the set.
    """
    if not sets or not classes or ALL_OTHERS not in changes.drop:
        return
    names = [name for data in sets for name in _name_classes(data)]
    known = list(dict.fromkeys(changes.rename.get(name, name) for name in names))
    for name in classes:
        _refuse_unknown(sets[0], name, known)


def _name_classes(data: DetectionSet | SegmentationSet) -> tuple[str, ...]:
    return data.categories.names if isinstance(data, DetectionSet) else data.classes.names


def _has_background(data: DetectionSet | SegmentationSet) -> bool:
    return isinstance(data, SegmentationSet) and data.task != "multilabel"


def keep_classes(data: DetectionSet, names: Sequence[str]) -> DetectionSet:
    """Keep some of a set's classes only, in the given order; all images stay.

    Raises:
        DataError: If a name is not one of the set's classes, or is given twice.
    """
    for name in names:
        _refuse_unknown(data, name, data.categories.names)
    return _relabel_objects(data, data.categories.names, names)


def parse_renaming(text: str) -> dict[str, str]:
    """Parse ``kitty=cat,puppy=dog``.

    Raises:
        DataError: If a part is not two names.
    """
    pairs = [part.rpartition("=") for part in text.split(",") if part.strip()]
    wrong = [old for old, _, new in pairs if not old.strip() or not new.strip()]
    if wrong or not pairs:
        raise DataError(f"new names are given as 'old=new,older=new', got {text!r:.80}")
    return {old.strip(): new.strip() for old, _, new in pairs}


def parse_names(text: str) -> list[str]:
    """Parse ``cat,dog``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _refuse_unknown(data: DetectionSet | SegmentationSet, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise DataError(
            f"{data.name}: has no class {name!r}{nearest(name, known) or f' ({quote(known, 6)})'}"
        )


def _refuse_lost(
    data: DetectionSet, left: Sequence[str], renamed: Sequence[str], classes: Sequence[str]
) -> None:
    """Raise a `DataError` if a class that has objects is neither chosen nor left out."""
    columns = data.packed.columns
    ids = np.unique(columns.table.numbers["category_id"][columns.rows])
    used = {renamed[label - 1] for label in data.categories.labels_of_ids(ids).tolist()}
    lost = [name for name in left if name in used and name not in classes]
    if lost:
        raise DataError(
            f"{data.name}: has objects of {pluralize(len(lost), 'class')} ({quote(lost)}) that "
            f"are not among the {len(classes)} known ({quote(classes)}); rename them, leave them "
            f"out, or name them in `classes` too{nearest(lost[0], classes)}"
        )


def _relabel_objects(
    data: DetectionSet, renamed: Sequence[str], names: Sequence[str]
) -> DetectionSet:
    """Give the objects of each class the label of its new name; those without one go."""
    old, columns = data.categories, data.packed.columns
    # A merged class has the id of the first that it was made of; new ones get free ids.
    own = dict(zip(reversed(renamed), reversed(old.ids), strict=True))
    free = max(0, *old.ids) + 1
    ids = tuple(own.get(name, free + n) for n, name in enumerate(names))
    new = replace(old, names=tuple(names), ids=ids)
    label_of = np.zeros(old.num_classes, np.int64)  # 0 for classes that are left out
    for label, name in enumerate(renamed, start=1):
        label_of[label] = new.label_of_name(name) if name in names else 0
    # Annotations: new ids, and the rows of those that stay.
    table, rows = columns.table, columns.rows
    labels = label_of[old.labels_of_ids(table.numbers["category_id"])]  # (A,)
    numbers = table.numbers.copy()
    numbers["category_id"] = np.array([0, *ids])[labels]
    stays = labels[rows] > 0
    places = np.concatenate(([0], np.cumsum(stays)))
    row_ends = places[columns.row_ends]
    # The place of each box's annotation among those of its image that stay.
    counts = np.diff(columns.box_ends, prepend=0)
    before, after = (np.repeat(_to_starts(e), counts) for e in (columns.row_ends, row_ends))
    annotated = columns.annotation_of >= 0
    moved = places[np.where(annotated, before + columns.annotation_of, 0)] - after
    changed = replace(
        columns,
        labels=label_of[columns.labels],
        annotation_of=np.where(annotated, moved, -1),
        rows=rows[stays],
        row_ends=row_ends,
        table=replace(table, numbers=numbers),
    )
    records = PackedRecords(ImageRecord, changed).keep_boxes(changed.labels > 0)
    return replace(data, records=records, categories=new)


def _to_starts(ends: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], ends[:-1])) if len(ends) else ends


def _relabel_masks(
    data: SegmentationSet, renamed: Sequence[str], names: Sequence[str]
) -> SegmentationSet:
    """Give the pixels of each class the label of its new name, or that of the background."""
    old = data.classes
    first = [renamed.index(name) for name in names]
    classes = MaskClasses.from_names(
        names, [old.ids[n] for n in first], [old.colors[n] for n in first]
    )
    many = data.task == "multilabel"
    rest = names.index(BACKGROUND) if BACKGROUND in names and not many else IGNORED
    table = tuple(names.index(name) if name in names else rest for name in renamed)
    if table == tuple(range(len(names))):
        return replace(data, classes=classes)
    count = len(names) if many else None
    records = tuple(
        replace(record, mask=RelabeledMask(record.mask, table, count)) for record in data.records
    )
    return replace(data, classes=classes, records=records)
