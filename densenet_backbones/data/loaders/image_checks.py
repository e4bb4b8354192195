"""Check a set's image files before training: all of them quickly, and some or all by decoding.

A file is looked at where damage shows at once: a copy or a download that was interrupted lacks the
end that its format has. What looks damaged is decoded, so that only a decoder's word counts.
"""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import map_in_threads, refuse_faults, spread
from densenet_backbones.data.images import (
    ImageSizeError,
    collect_unreadable,
    read_image,
    read_image_size,
)
from densenet_backbones.data.mask_samples import MaskRecord, SegmentationSet
from densenet_backbones.data.packing.records import select_records
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.messages import pluralize

HEADERS_READ = 2000  # a fraction of a second on a local disk
DECODED = 16  # images of any set: a decoder that lacks a format shows in the first of them
SUSPECTS_DECODED = 200  # images of an unusual end: a second or two
_AT_ONCE = 500  # files that a thread looks at
_EDGE = 32  # bytes of a file's beginning and end that are looked at

# First bytes -> last bytes: JPEG (ISO 10918-1, B.2.1), PNG (its 11.2.5), GIF (its 27).
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82", b"GIF8": b";"}

Record = ImageRecord | MaskRecord
Fault = tuple[Record, DataError]
SetT = TypeVar("SetT", DetectionSet, SegmentationSet)


def check_images(
    data_set: DetectionSet | SegmentationSet,
    *,
    decode: bool = True,
    skip: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> tuple[Problem, ...]:
    """Look for images that cannot be used, or are not of the size that annotations say.

    Args:
        data_set: Set of detection or of segmentation.
        decode: Decode every image. Otherwise every file's ends are looked at, headers of
            `HEADERS_READ` images at most, spread evenly, are read, and few images decoded: those
            that look damaged, and `DECODED` others.
        skip: Return images that cannot be decoded instead of raising; sizes raise all the same.
        progress: Show a progress bar (it vanishes at the end).
        workers: Number of threads; None takes one a core, at most 8.

    Raises:
        DataError: One for all the images that cannot be decoded or have another size.
    """
    records: Sequence[Record] = data_set.records
    total, looked_at = len(records), list(records)
    if not decode:
        _compare_sizes(data_set.name, spread(records, HEADERS_READ))
        parts = [records[i : i + _AT_ONCE] for i in range(0, total, _AT_ONCE)]
        found = map_in_threads(
            _list_suspects, parts, "Looking at images", progress=progress, workers=workers
        )
        suspects = spread(list(chain.from_iterable(found)), SUSPECTS_DECODED)
        looked_at = list({r.image_id: r for r in (*suspects, *spread(records, DECODED))}.values())
    results = map_in_threads(
        _find_fault, looked_at, "Checking images", progress=progress, workers=workers
    )
    faults = [fault for fault in results if fault]
    if skip and not any(isinstance(error, ImageSizeError) for _, error in faults):
        action = "training takes another, evaluation leaves it out"
        return tuple(_describe(str(record.path), error, action) for record, error in faults)
    if faults and not decode:
        others = f" ({len(faults)} of {pluralize(len(looked_at), 'image')} decoded cannot be)"
        raise DataError(
            f"{data_set.name}: {faults[0][1]}{others * (len(faults) > 1)}; data.bad_images skip "
            "goes on without such images"
        )
    reasons = [str(error) for _, error in faults]
    refuse_faults(
        reasons, f"{data_set.name}: {len(faults)} of {pluralize(total, 'image')} cannot be used"
    )
    return ()


def check_present_sizes(data_set: DetectionSet) -> None:
    """Compare the sizes of annotations with those of the image files that are there.

    Raises:
        DataError: One for all that differ, of `HEADERS_READ` images at most, spread evenly.
    """
    present = [record for record in data_set.records if record.path.is_file()]
    _compare_sizes(data_set.name, spread(present, HEADERS_READ))


def leave_out_unreadable(read: Callable[[], SetT]) -> SetT:
    """Read a set without the images that have no size, as their file or their mask's is damaged.

    Args:
        read: Reads the set.

    Raises:
        DataError: If no image stays.
    """
    with collect_unreadable() as unreadable:
        data_set = read()
    if not unreadable:
        return data_set
    records: Sequence[Any] = data_set.records  # of either kind
    stays = [n for n, record in enumerate(records) if not _list_files(record) & unreadable.keys()]
    if not stays:
        raise DataError(
            f"no image can be used, the first of them: {next(iter(unreadable.values()))}"
        )
    problems = tuple(_describe(path, error, "left out") for path, error in unreadable.items())
    return replace(
        data_set,
        records=select_records(records, np.array(stays)),
        problems=data_set.problems + problems,
    )


def _list_files(record: Record) -> set[str]:
    masks = record.mask.files if isinstance(record, MaskRecord) else ()
    return {str(path) for path in (record.path, *masks)}


def looks_whole(path: Path) -> bool:
    """Return False if a file has not the end that its format has, or is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False  # opening a pipe would wait
        with path.open("rb", buffering=0) as file:
            head = file.read(_EDGE)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _EDGE))
            tail = file.read(_EDGE)
    except OSError:
        return False
    if head[:4] == b"RIFF":  # WebP: bytes that follow
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if head[:2] == b"BM":  # BMP: bytes in all
        return int.from_bytes(head[2:6], "little") <= size
    tail = tail.rstrip(b"\0")  # some cameras fill a block up
    ends = (end for start, end in _ENDS.items() if head.startswith(start))
    return size >= _EDGE and tail.endswith(next(ends, b""))


def _list_suspects(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if not looks_whole(record.path)]


def _find_fault(record: Record) -> Fault | None:
    try:
        read_image(record.path, (record.width, record.height))
    except DataError as error:
        return record, error
    return None


def _describe(path: str, error: DataError, action: str) -> Problem:
    return Problem(path, "image", str(error).removeprefix(f"{path}: "), action)


def _compare_sizes(name: str, records: Sequence[Record]) -> None:
    """Refuse images of other sizes than promised in one line, with the first as the example."""
    faults = []
    for record in records:
        try:
            read_image_size(record.path, (record.width, record.height))
        except ImageSizeError as error:
            faults.append(str(error))
        except DataError:  # it looks damaged, too
            continue
    if faults:
        others = f" ({len(faults)} of {pluralize(len(records), 'image')} looked at differ)"
        raise DataError(f"{name}: {faults[0]}{others * (len(faults) > 1)}")
