"""Splits sets into images to train on and images that are held out, and takes parts of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.packing.records import select_records
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.sets.grouping import describe_groups, group_images
from densenet_backbones.data.sets.split_file import StoredSplit, read_split, write_split
from densenet_backbones.data.sets.stratification import OPEN, TRAIN, VAL, assign_sides
from densenet_backbones.messages import pluralize

S = TypeVar("S", DetectionSet, SegmentationSet)
FRACTION = 0.2
"""Share of the images that are held out by default."""


@dataclass(frozen=True)
class SplitOptions:
    """Options of a split; what is None is the stored split's, or the default.

    Attributes:
        fraction: Share of the images that are held out.
        group_pattern: Pattern of file names that stay together; see `group_images`.
        seed: Seed of the first choice; a stored split keeps its own.
    """

    fraction: float | None = None
    group_pattern: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Split(Generic[S]):
    """The two parts of a set.

    Attributes:
        train: Images to train on.
        val: Images that are held out.
        record: The split as it is stored.
        before: The split as it was stored, if it was.
        file: Where it was stored.
    """

    train: S
    val: S
    record: StoredSplit
    before: StoredSplit | None
    file: Path | None

    def store(self, files: Sequence[Path]) -> "Split[S]":
        """Write the split where it was, or into the first of the files that can be written."""
        if self.record == self.before:
            return self
        file = write_split([self.file] if self.file else files, self.record)
        return replace(self, file=file or self.file)

    def describe(self) -> str:
        """Describe in one line what the split is and where it is stored."""
        counts = f"{pluralize(len(self.train), 'image')} to train on and {len(self.val)} held out"
        record, before = self.record, self.before
        if before is None:
            together = f", groups by {record.group_pattern!r}" if record.group_pattern else ""
            kept = f"; {self.file} keeps this split for all that follows" if self.file else ""
            return f"No split given: {counts}, by class (seed {record.seed}{together}){kept}"
        new = [name for name in record.sides if name not in before.sides]
        held_out = sum(record.sides[name] == VAL for name in new)
        gone = len(before.sides) + len(new) - len(self.train) - len(self.val)
        arrived = (
            f"; {pluralize(len(new), 'new image')} assigned ({held_out} of them held out)"
            * bool(new)
        )
        missing = f"; {gone} that it names are not there" * bool(gone)
        return f"Split of {self.file}: {counts}{arrived}{missing}"


def split_set(data: S, root: Path, options: SplitOptions, files: Sequence[Path] = ()) -> Split[S]:
    """Split a set by class, and keep copies and groups of images together.

    A stored split is used again: images that have come since are assigned, and none is moved. The
    same images, seed and options give the same split.

    Args:
        data: All the images.
        root: Folder of the data set, below which images are named.
        options: Of the split.
        files: Files where it may be stored, of which the first that exists is read.

    Raises:
        DataError: If there are not two images, or groups of them, a stored file is faulty or was
            made with other options, or the pattern matches nothing.
    """
    fraction = options.fraction
    if fraction is not None and not 0 < fraction < 1:
        raise DataError(f"data.val_fraction must lie in (0, 1), got {fraction}")
    names = [name_image(record.path, root) for record in data.records]
    file = next((file for file in files if file.is_file()), None)
    before = read_split(file) if file else None
    if file and before:
        _refuse_other_options(file, before, options)
    split = before or StoredSplit(options.seed, fraction or FRACTION, options.group_pattern, {})
    known = np.array([split.sides.get(name, OPEN) for name in names])
    sides = known if OPEN not in known else _choose_sides(data, names, split, known)
    train, val = (
        replace(select_images(data, np.flatnonzero(sides == side)), name=f"{root.name}/{part}")
        for side, part in ((TRAIN, "train"), (VAL, "val"))
    )
    if not len(train) or not len(val):
        raise DataError(
            f"{root}: its {pluralize(len(data), 'image')} cannot be split into two "
            f"parts{_explain(data, file)}"
        )
    record = replace(split, sides=split.sides | dict(zip(names, sides.tolist(), strict=True)))
    return Split(train, val, record, before, file)


def name_image(path: Path, root: Path) -> str:
    """Return an image's path relative to the data set's folder, with forward slashes."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def _choose_sides(
    data: DetectionSet | SegmentationSet,
    names: Sequence[str],
    split: StoredSplit,
    known: np.ndarray,
) -> np.ndarray:
    """Return the (D,) part of each image; that of those that have one stays."""
    groups = group_images(data, names, split.group_pattern)
    # A group with images on both sides, which only a new copy can join, gets its new ones to train.
    fixed = np.array([min((s for s in known[own] if s != OPEN), default=OPEN) for own in groups])
    of_groups = assign_sides(describe_groups(data, groups), split.fraction, split.seed, fixed)
    sides = known.copy()
    for own, side in zip(groups, of_groups.tolist(), strict=True):
        for n in own:
            sides[n] = side if known[n] == OPEN else known[n]
    return sides


def _refuse_other_options(file: Path, stored: StoredSplit, options: SplitOptions) -> None:
    for option, asked, before in (
        ("data.val_fraction", options.fraction, stored.fraction),
        ("data.group_pattern", options.group_pattern, stored.group_pattern),
    ):
        if asked is not None and asked != before:
            raise DataError(
                f"{file}: the images were split with {option} {before!r}, not {asked!r}; leave "
                "the option out to use that split, or remove the file to split anew"
            )


def _explain(data: DetectionSet | SegmentationSet, file: Path | None) -> str:
    if file:
        return f" by {file}; remove it to split anew"
    if len(data) < 2:
        return "; add images, or try the set-up on them with data.overfit_images"
    return ": all are copies of each other, or of one group of data.group_pattern; add others"


def select_images(data: S, indices: np.ndarray) -> S:
    """Return a set of some of the images, in the order of (n,) indices."""
    records: Sequence[Any] = data.records  # of either kind
    return replace(data, records=select_records(records, indices))


def sample_subset(
    data_set: S,
    fraction: float | None = None,
    *,
    number: int | None = None,
    seed: int = 0,
) -> S:
    """Take a random part of the images, in their old order.

    The same seed gives nested parts: a smaller one is inside a larger one.

    Args:
        data_set: Set of detection or of segmentation.
        fraction: Share of the images, above 0 and at most 1; at least one image is kept.
        number: Number of images instead, from 1 to all.
        seed: Seed of the choice.

    Raises:
        DataError: If neither or both are given, or out of range.
    """
    total = len(data_set)
    if (fraction is None) == (number is None):
        raise DataError("give either the fraction or the number of images")
    # A share becomes a number, of at least one image.
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise DataError(f"fraction must lie in (0, 1], got {fraction}")
        number = max(1, round(total * fraction))
    assert number is not None
    if not 1 <= number <= total:
        raise DataError(f"number must lie in 1 .. {total}, the images there are; got {number}")
    if number == total:
        return data_set
    # A permutation's first entries: smaller parts are inside larger ones.
    selected = np.sort(np.random.default_rng(seed).permutation(total)[:number])
    return select_images(data_set, selected)
