"""Counts the pixels of each class, which checks every mask, and weighs classes by the counts.

Reading all masks takes minutes for large data sets, so that what was counted is stored in
``$XDG_CACHE_HOME/densenet_backbones`` (``~/.cache/densenet_backbones``), outside the data set: one
JSON file for each list of files with their sizes and times of change.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import map_in_threads, refuse_faults, spread
from densenet_backbones.data.images import ImageSizeError, read_image_size
from densenet_backbones.data.mask_samples import IGNORED, MaskRecord, SegmentationSet
from densenet_backbones.data.packing.records import select_records
from densenet_backbones.file_writing import save_json
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_YAML_FILE
from densenet_backbones.untrusted.reading import parse_json, read_text

CHECKED_UP_TO = 2000
"""Most masks of which all are read before training by default (ten seconds or so)."""
LOOKED_AT = 200
"""Number of masks of a larger set that are counted in the place of all."""
_VERSION = 3  # of what is counted


@dataclass(frozen=True)
class PixelCounts:
    """Numbers of pixels of the classes; one entry a class, in label order.

    Attributes:
        pixels: Number of pixels of each class.
        in_images: Number of labeled pixels (of any class) of the images that have the class.
        images: Number of images that have the class.
        ignored: Number of ignored pixels of all images (of a multilabel mask: of all channels).
        labeled: Number of labeled pixels, likewise.
        with_ignored: Number of images with ignored pixels.
        beside_ignored: Number of those that have each class.
    """

    pixels: tuple[int, ...]
    in_images: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int
    labeled: int = 0
    with_ignored: int = 0
    beside_ignored: tuple[int, ...] = ()

    @property
    def ignored_share(self) -> float:
        """Share of the ignored pixels in all."""
        return self.ignored / max(1, self.labeled + self.ignored)

    def frequencies(self) -> np.ndarray:
        """Return the (K,) share of each class in the images that have it; NaN where none has."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.divide(self.pixels, self.in_images, dtype=np.float64))


def count_class_pixels(
    data: SegmentationSet,
    *,
    skip: bool = False,
    progress: bool = True,
    workers: int | None = None,
    cache: Path | None = None,
) -> PixelCounts:
    """Count the pixels of every class, and check every mask on the way.

    Args:
        data: Set to count.
        skip: Leave out masks that cannot be used instead of raising.
        progress: Show a progress bar (it vanishes at the end).
        workers: Number of threads; None takes one a core, at most 8.
        cache: Folder of stored results; None takes the user's (see above).

    Raises:
        DataError: One for all the masks that cannot be read, have unknown values, or are not of
            their image's size as shown.
    """
    file = _name_file(data, cache)
    # A result for these very files is used again.
    stored = _read_stored(file, data.classes.num_classes)
    if stored is not None:
        return stored
    rows, faults = _count_all(data, progress, workers)
    if not skip or not len(rows):
        _refuse(data, faults)
    counts = _add_up(data, rows)
    if not faults:
        _store(file, counts)
    return counts


def _count_all(
    data: SegmentationSet, progress: bool, workers: int | None
) -> tuple[np.ndarray, dict[int, DataError]]:
    """Read all masks; return (n, 3, K) counts of those that can be used, and the others' faults."""
    count = partial(_count, count=data.classes.num_classes)
    results = list(
        map_in_threads(count, data.records, "Reading masks", progress=progress, workers=workers)
    )
    faults = {n: fault for n, fault in enumerate(results) if isinstance(fault, DataError)}
    rows = [row for row in results if not isinstance(row, DataError)]
    return np.array(rows, np.int64).reshape(-1, 3, data.classes.num_classes), faults


def _refuse(data: SegmentationSet, faults: Mapping[int, DataError]) -> None:
    """Raise one error for all the faults."""
    reasons = [str(fault) for fault in faults.values()]
    refuse_faults(
        reasons, f"{data.name}: {len(faults)} of {pluralize(len(data), 'mask')} cannot be used"
    )


def _add_up(data: SegmentationSet, rows: np.ndarray) -> PixelCounts:
    """Add up the counts of the images."""
    pixels, labeled = rows[:, 0], rows[:, 1]
    has_class, has_ignored = pixels > 0, rows[:, 2].any(1)
    # Labels share their pixels, channels have pixels of their own.
    channels = slice(None) if data.task == "multilabel" else slice(1)
    return PixelCounts(
        pixels=tuple(pixels.sum(0).tolist()),
        in_images=tuple(np.where(has_class, labeled, 0).sum(0).tolist()),
        images=tuple(has_class.sum(0).tolist()),
        ignored=int(rows[:, 2, channels].sum()),
        labeled=int(labeled[:, channels].sum()),
        with_ignored=int(has_ignored.sum()),
        beside_ignored=tuple(has_class[has_ignored].sum(0).tolist()),
    )


def check_masks(
    data: SegmentationSet, *, skip: bool = False, progress: bool = True, cache: Path | None = None
) -> SegmentationSet:
    """Read every mask, unless these very files were read before.

    Args:
        data: Set to check.
        skip: Leave out images whose masks cannot be used, and report them among the problems;
            masks of another size than their image's raise all the same.
        progress: As `count_class_pixels` has it.
        cache: As `count_class_pixels` has it.

    Returns:
        The set, or that without such images.

    Raises:
        DataError: As `count_class_pixels`; and if no image stays.
    """
    if not skip:
        count_class_pixels(data, progress=progress, cache=cache)
        return data
    file = _name_file(data, cache)
    if _read_stored(file, data.classes.num_classes) is not None:
        return data
    rows, faults = _count_all(data, progress, None)
    if not len(rows) or any(isinstance(fault, ImageSizeError) for fault in faults.values()):
        _refuse(data, faults)
    problems = [
        Problem(str(data.records[n].mask.files[0]), "mask", str(fault), "its image is left out")
        for n, fault in faults.items()
    ]
    stays = np.array([n for n in range(len(data)) if n not in faults])
    records = select_records(data.records, stays) if faults else data.records
    data = replace(data, records=records, problems=(*data.problems, *problems))
    _store(_name_file(data, cache), _add_up(data, rows))
    return data


def thin_out(data: SegmentationSet) -> SegmentationSet:
    """Return a set of which all masks can be read in a moment: itself, or a part of a large one.

    The part has at most `LOOKED_AT` images, spread evenly.
    """
    if len(data) <= CHECKED_UP_TO:
        return data
    return replace(data, records=tuple(spread(data.records, LOOKED_AT)))


def compute_median_frequency_weights(
    counts: PixelCounts, *, root: bool = False
) -> tuple[float, ...]:
    """Weigh the classes for a loss: the median of their frequencies over each one's own.

    A class's frequency is its share of the labeled pixels of the images that have it (Eigen and
    Fergus, arXiv 1411.4734, section 6.3.2). A class that no mask has gets 1.

    Args:
        counts: Pixels of each class.
        root: Take the square roots of these weights, between them and none: rare classes are
            learned sooner than without weights, and found where they are not less often than with
            the weights as they are.
    """
    frequencies = counts.frequencies()
    occurs = frequencies > 0
    if not occurs.any():
        return (1.0,) * len(frequencies)
    median = float(np.median(frequencies[occurs]))
    power = 0.5 if root else 1.0
    return tuple((median / f) ** power if f > 0 else 1.0 for f in frequencies.tolist())


def _count(record: MaskRecord, count: int) -> list[list[int]] | DataError:
    """Count (3, K) of an image: pixels of each class, labeled and ignored ones; or its fault."""
    try:
        mask = record.read_mask()
    except DataError as error:
        return error
    try:
        read_image_size(record.path, (record.width, record.height))
    except ImageSizeError as error:
        return error
    except DataError:
        pass  # who checks the images says so
    # Labels: one count of all values.
    if mask.ndim == 2:
        counts = np.bincount(mask.ravel(), minlength=256)
        ignored = int(counts[IGNORED])
        labeled = mask.size - ignored
        return [counts[:count].tolist(), [labeled] * count, [ignored] * count]
    # Multilabel: each channel has its own ignored pixels.
    ignored_each = (mask == IGNORED).sum((1, 2))
    area = mask.shape[1] * mask.shape[2]
    return [(mask == 1).sum((1, 2)).tolist(), (area - ignored_each).tolist(), ignored_each.tolist()]


def find_cache_folder() -> Path:
    """Return the user's folder for what can be computed again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "densenet_backbones"


def fingerprint_files(data: SegmentationSet) -> str:
    """Make a text that changes when a file of the set, the list of them or their meaning does."""
    digest = hashlib.sha256(
        json.dumps([_VERSION, data.task, data.classes.to_dict()]).encode("utf-8")
    )
    states: dict[Path, str] = {}
    for record in data.records:
        for part in _list_states(record, states):
            digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def _list_states(record: MaskRecord, states: dict[Path, str]) -> Iterator[str]:
    yield f"{record.image_id} {record.width}x{record.height}"
    yield record.mask.rule
    for path in (record.path, *record.mask.files):
        if path not in states:
            try:
                state = path.stat()
                states[path] = f"{path.absolute()} {state.st_size} {state.st_mtime_ns}"
            except OSError:
                states[path] = f"{path.absolute()} missing"
        yield states[path]


def _name_file(data: SegmentationSet, cache: Path | None) -> Path:
    return (cache or find_cache_folder()) / f"pixels-{fingerprint_files(data)}.json"


def _read_stored(file: Path, count: int) -> PixelCounts | None:
    """Read a stored result; None where there is none that is whole."""
    try:
        content: Any = parse_json(read_text(file, MAX_YAML_FILE, ValueError))
        names = ("pixels", "in_images", "images", "beside_ignored")
        lists = {name: tuple(map(int, content[name])) for name in names}
        ignored, labeled, beside = (int(content[n]) for n in ("ignored", "labeled", "with_ignored"))
        counts = PixelCounts(**lists, ignored=ignored, labeled=labeled, with_ignored=beside)
    except (ValueError, TypeError, KeyError):
        return None
    return counts if {len(values) for values in lists.values()} == {count} else None


def _store(file: Path, counts: PixelCounts) -> None:
    """Write a result in one step; where that is not possible, it is counted again next time."""
    try:
        save_json(file, asdict(counts), indent=None)
    except OSError:
        return
