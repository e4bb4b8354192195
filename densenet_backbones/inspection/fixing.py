"""Makes clean sets of a data set, and lists what was changed; its files stay as they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densenet_backbones.data.boxes import LEFT_OUT
from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import map_in_threads
from densenet_backbones.data.images import ImageSizeError, is_turned, read_image, read_image_size
from densenet_backbones.data.mask_samples import MaskRecord
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.sets.splitting import select_images
from densenet_backbones.inspection.looking import find_copied_places
from densenet_backbones.inspection.measuring import find_doubled


@dataclass(frozen=True)
class CleanData:
    """Sets without their faults.

    Attributes:
        parts: Set of each split.
        upright: Images that are to be written as they are shown.
        changes: A line for each thing that was changed.
    """

    parts: dict[str, AnySet]
    upright: frozenset[Path]
    changes: tuple[str, ...]


def clean_data(parts: Mapping[str, AnySet]) -> CleanData:
    """Leave out what cannot be used, and what is there twice.

    Faulty boxes are those of the readers' problems: clipped ones are written as clipped, others
    are left out. Of equal images the one in the last split stays, so that held-out images do.

    Raises:
        DataError: No image of a split is left.
    """
    changes: list[str] = []
    copied = find_copied_places(dict(parts))
    order = {split: n for n, split in enumerate(parts)}
    doubles: dict[str, set[int]] = {split: set() for split in parts}
    for same in copied:
        *others, kept = sorted(same, key=lambda place: (order[place[0]], -place[1]))
        for split, position in others:
            doubles[split].add(position)
            path, twin = (parts[s].records[n].path for s, n in ((split, position), kept))
            changes.append(f"{split}: {path}: left out: it is a copy of {twin} ({kept[0]})")
    upright: set[Path] = set()
    clean: dict[str, AnySet] = {}
    for split, data in parts.items():
        changes += [f"{split}: {_describe(problem)}" for problem in data.problems]
        records: Sequence[ImageRecord | MaskRecord] = data.records
        states = map_in_threads(_look, records, f"Decoding {split}")
        stays = []
        for position, (record, state) in enumerate(zip(records, states, strict=True)):
            if position in doubles[split]:
                continue
            if isinstance(state, str):
                changes.append(f"{split}: {state}; left out")
                continue
            stays.append(position)
            if state:
                upright.add(record.path)
                changes.append(f"{split}: {record.path}: turned upright, without its EXIF tag")
        if not stays:
            raise DataError(f"{data.name}: no image is left of {len(data)}; correct them")
        indices = np.array(stays, np.int64)
        if isinstance(data, DetectionSet):
            single, lines = _drop_doubled(select_images(data, indices))
            changes += [f"{split}: {line}" for line in lines]
            clean[split] = replace(single, problems=())
        else:
            clean[split] = replace(select_images(data, indices), problems=())
    return CleanData(clean, frozenset(upright), tuple(changes))


def _describe(problem: object) -> str:
    """Say of a problem what is done about it in the copy."""
    return str(problem).replace(LEFT_OUT, "left out").replace("clipped for training", "clipped")


def _look(record: ImageRecord | MaskRecord) -> bool | str:
    """Return True if an image is to be turned, False if not, or why it cannot be used."""
    promised = record.width, record.height
    try:
        read_image(record.path, promised)
        if isinstance(record, MaskRecord):
            record.read_mask()
        return is_turned(record.path)
    except ImageSizeError as error:
        if read_image_size(record.path) == promised:
            return False
        return str(error)
    except DataError as error:
        return str(error)


def _drop_doubled(data: DetectionSet) -> tuple[DetectionSet, list[str]]:
    """Leave out objects that are annotated twice, to the pixel."""
    lines = []
    records = []
    for record in data.records:
        drop = dict(_list_doubled(record))
        for second, first in drop.items():
            name = data.categories.names[record.labels[second] - 1]
            lines.append(
                f"{record.path}: object {second + 1} ({name!r}): left out: it is object {first + 1}"
            )
        records.append(_without(record, set(drop)) if drop else record)
    return (replace(data, records=records) if lines else data), lines


def _list_doubled(record: ImageRecord) -> Iterator[tuple[int, int]]:
    """Yield the boxes that another one before them equals, with that one."""
    for first, second in find_doubled(record.boxes, record.labels, 1.0):
        if np.array_equal(record.boxes[first], record.boxes[second]):
            yield second, first


def _without(record: ImageRecord, dropped: set[int]) -> ImageRecord:
    """Return a record without some of its boxes and their annotations."""
    stays = np.array([n not in dropped for n in range(len(record.boxes))])
    own = record.annotation_of
    annotations = list(record.annotations)
    if own is not None:
        gone = {int(n) for n in own[~stays]}
        kept = np.array([n not in gone for n in range(len(annotations))])
        annotations = [a for n, a in enumerate(annotations) if n not in gone]
        own = (np.cumsum(kept) - 1)[own[stays]]
    return replace(
        record,
        boxes=record.boxes[stays],
        labels=record.labels[stays],
        difficult=record.difficult[stays],
        annotations=annotations,
        annotation_of=own,
    )
