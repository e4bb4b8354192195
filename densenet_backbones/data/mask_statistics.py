"""Pixels of each class, which also checks every mask; class weights; the cache of both.

Reading all masks takes minutes for large data sets, so that what was counted is kept in
``$XDG_CACHE_HOME/densenet_backbones`` (``~/.cache/densenet_backbones``), outside the data set: one
JSON file for each list of files with their sizes and times of change.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from densenet_backbones.data.files import map_in_threads, refuse_faults
from densenet_backbones.data.images import read_image_size
from densenet_backbones.data.mask_samples import IGNORED, MaskRecord, SegmentationSet
from densenet_backbones.data.samples import DataError

CHECKED_UP_TO = 2000
"""Masks that are all read before training where nothing else is asked for (ten seconds or so)."""
_VERSION = 1  # of what is counted


@dataclass(frozen=True)
class PixelCounts:
    """How many pixels the classes have; one entry a class, in label order.

    Attributes:
        pixels: Of each class.
        in_images: Labelled pixels (of any class) of the images that have the class.
        images: Images that have the class.
        ignored: Ignored pixels of all images (of a multilabel mask: of all channels).
    """

    pixels: tuple[int, ...]
    in_images: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int

    def frequencies(self) -> np.ndarray:
        """(K,) share of each class in the images that have it; NaN where none has."""
        with np.errstate(invalid="ignore"):
            return np.divide(self.pixels, self.in_images, dtype=np.float64)


def count_class_pixels(
    data: SegmentationSet,
    *,
    progress: bool = True,
    workers: int | None = None,
    cache: Path | None = None,
) -> PixelCounts:
    """Count the pixels of every class, and check every mask on the way.

    Args:
        data: The set.
        progress: Show a progress bar (it vanishes at the end).
        workers: Threads; None takes one a core, at most 8.
        cache: Folder of kept results; None takes the user's (see above).

    Raises:
        DataError: One for all the masks that cannot be read, have unknown values, or are not of
            their image's size as shown.
    """
    file = (cache or find_cache_folder()) / f"pixels-{fingerprint_files(data)}.json"
    kept = _kept(file, data.classes.num_classes)
    if kept is not None:
        return kept
    count = partial(_count, count=data.classes.num_classes)
    found = list(
        map_in_threads(count, data.records, "Reading masks", progress=progress, workers=workers)
    )
    faults = [fault for fault in found if isinstance(fault, str)]
    refuse_faults(faults, f"{data.name}: {len(faults)} of {len(data)} masks cannot be used")
    rows = np.array([row for row in found if not isinstance(row, str)], np.int64)
    pixels, labeled = rows[:, 0], rows[:, 1]
    there = pixels > 0
    counts = PixelCounts(
        pixels=tuple(pixels.sum(0).tolist()),
        in_images=tuple(np.where(there, labeled, 0).sum(0).tolist()),
        images=tuple(there.sum(0).tolist()),
        ignored=int(rows[:, 2].sum(0).sum() if data.task == "multilabel" else rows[:, 2, 0].sum()),
    )
    _keep(file, counts)
    return counts


def check_masks(data: SegmentationSet, *, progress: bool = True, cache: Path | None = None) -> None:
    """Read every mask, unless these very files were read before.

    Raises:
        DataError: As `count_class_pixels`.
    """
    count_class_pixels(data, progress=progress, cache=cache)


def compute_median_frequency_weights(counts: PixelCounts) -> tuple[float, ...]:
    """Weights of the classes in a loss: the median of their frequencies over each one's own.

    A class's frequency is its share of the labeled pixels of the images that have it (Eigen and
    Fergus, arXiv 1411.4734, section 6.3.2). A class that no mask has gets 1.
    """
    frequencies = counts.frequencies()
    there = frequencies > 0
    if not there.any():
        return (1.0,) * len(frequencies)
    median = float(np.median(frequencies[there]))
    return tuple(median / f if f > 0 else 1.0 for f in frequencies.tolist())


def _count(record: MaskRecord, count: int) -> list[list[int]] | str:
    """(3, K) of an image: pixels of each class, labeled pixels, ignored pixels; or the fault."""
    try:
        mask = record.read_mask()
        size = read_image_size(record.path)
    except DataError as error:
        return str(error)
    if size != (record.width, record.height):
        return (
            f"{record.path}: is {size[0]}x{size[1]} pixels as shown, its annotations say "
            f"{record.width}x{record.height}; annotate the image as it is shown"
        )
    if mask.ndim == 2:
        found = np.bincount(mask.ravel(), minlength=256)
        ignored = int(found[IGNORED])
        labeled = mask.size - ignored
        return [found[:count].tolist(), [labeled] * count, [ignored] * count]
    ignored_each = (mask == IGNORED).sum((1, 2))
    area = mask.shape[1] * mask.shape[2]
    return [(mask == 1).sum((1, 2)).tolist(), (area - ignored_each).tolist(), ignored_each.tolist()]


def find_cache_folder() -> Path:
    """The user's folder for what can be computed again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "densenet_backbones"


def fingerprint_files(data: SegmentationSet) -> str:
    """A text that changes when a file of the set, the list of them or their meaning does."""
    digest = hashlib.sha256(
        json.dumps([_VERSION, data.task, data.classes.to_dict()]).encode("utf-8")
    )
    states: dict[Path, str] = {}
    for record in data.records:
        for part in _identity(record, states):
            digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def _identity(record: MaskRecord, states: dict[Path, str]) -> Iterator[str]:
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


def _kept(file: Path, count: int) -> PixelCounts | None:
    """A kept result; None where there is none that is whole."""
    try:
        content: Any = json.loads(file.read_text())
        lists = {name: tuple(map(int, content[name])) for name in ("pixels", "in_images", "images")}
        found = PixelCounts(**lists, ignored=int(content["ignored"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if {len(values) for values in lists.values()} == {count} else None


def _keep(file: Path, counts: PixelCounts) -> None:
    """Write a result in one step; where that is not possible, it is counted again next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, delete=False) as draft:
            json.dump(asdict(counts), draft)
        os.replace(draft.name, file)
    except OSError:
        return
