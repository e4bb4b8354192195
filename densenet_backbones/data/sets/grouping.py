"""Groups images that must not be parted by a split: copies, and pictures of one scene or person."""

import re
from collections.abc import Sequence

import numpy as np

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.checks.image_files import find_copies, list_image_files
from densenet_backbones.data.checks.likeness import find_same_pictures
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import map_in_threads, quote
from densenet_backbones.data.mask_samples import IGNORED, MaskRecord
from densenet_backbones.data.readers.coco.masks import InstanceMask
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.sets.stratification import Group
from densenet_backbones.messages import pluralize

MASKS_READ = 2000
"""Most masks that are read for their classes; images of larger sets are held out by chance."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile the pattern of names that tells which images belong together.

    Raises:
        DataError: It is no regular expression, or has no group.
    """
    example = r"such as '(.+)_frame\d+'"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"data.group_pattern {pattern!r} is no regular expression ({error}); write one, "
            f"{example}"
        ) from None
    if not compiled.groups:
        raise DataError(
            f"data.group_pattern {pattern!r} has no group in parentheses, whose text names the "
            f"images that stay together; write one, {example}"
        )
    return compiled


def group_images(data: AnySet, names: Sequence[str], pattern: str | None) -> list[list[int]]:
    """Group the positions of images that stay together, in the order of their first images.

    Args:
        data: Set of detection or of segmentation.
        names: Path of each image below the data set's folder.
        pattern: Regular expression; images of whose names its first group matches the same text
            stay together. It is searched in the file's name, or in the whole of `names` if it has
            a slash in it. None keeps only copies together.

    Raises:
        DataError: If the pattern is none, or matches no name.
    """
    group_of = list(range(len(data)))

    def find(n: int) -> int:
        while group_of[n] != n:
            group_of[n] = group_of[group_of[n]]
            n = group_of[n]
        return n

    def join(positions: Sequence[int]) -> None:
        first = min(map(find, positions))
        for n in positions:
            group_of[find(n)] = first

    files = list_image_files(data)
    position_of = {image_id: n for n, image_id in enumerate(_list_ids(data))}
    copies = find_copies(files)
    others = {file.image_id for same in copies for file in same[1:]}
    singles = [file for file in files if file.image_id not in others]
    for same in (*copies, *find_same_pictures(data, singles)):
        join([position_of[file.image_id] for file in same])
    if pattern is not None:
        compiled, by_text = compile_pattern(pattern), dict[str, list[int]]()
        for n, name in enumerate(names):
            match = compiled.search(name if "/" in pattern else name.rpartition("/")[2])
            if match and match[1] is not None:
                by_text.setdefault(match[1], []).append(n)
        if not by_text:
            raise DataError(
                f"data.group_pattern {pattern!r} matches none of the "
                f"{pluralize(len(names), 'name')} of images ({quote(names)}); correct it, or "
                "leave it out"
            )
        for positions in by_text.values():
            join(positions)
    groups: dict[int, list[int]] = {}
    for n in range(len(data)):
        groups.setdefault(find(n), []).append(n)
    return list(groups.values())


def describe_groups(data: AnySet, groups: Sequence[Sequence[int]]) -> list[Group]:
    """Count the labels that the images of each group have."""
    labels = list_labels(data)
    described = []
    for positions in groups:
        own = np.concatenate([np.zeros(0, np.int64), *(labels[n] for n in positions)])
        described.append(Group(len(positions), *np.unique(own, return_counts=True)))
    return described


def list_labels(data: AnySet) -> list[np.ndarray]:
    """List the labels that each image has, each label once.

    Masks that are pictures are read where there are few; those of large sets give no labels.
    """
    if isinstance(data, DetectionSet):
        columns = data.packed.columns
        parts = np.split(columns.labels, columns.box_ends[:-1])
        return [np.unique(part) for part in parts][: len(data)]
    is_large = len(data) > MASKS_READ
    drawn = [is_large and not isinstance(record.mask, InstanceMask) for record in data.records]
    if any(drawn):
        return [np.zeros(0, np.int64) for _ in data.records]
    return list(map_in_threads(_list_mask_labels, data.records, "Looking for classes"))


def _list_mask_labels(record: MaskRecord) -> np.ndarray:
    if isinstance(record.mask, InstanceMask):  # without drawing it
        drawn = {item.label for item in record.mask.objects}
        return np.array(sorted(drawn - {IGNORED}), np.int64)
    try:
        mask = record.read_mask()
    except DataError:  # who checks the masks says so
        return np.zeros(0, np.int64)
    if mask.ndim == 3:
        return np.flatnonzero((mask == 1).any(axis=(1, 2)))
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    return np.asarray(values[values != IGNORED])


def _list_ids(data: AnySet) -> list[int]:
    if isinstance(data, DetectionSet):
        return list(map(int, data.packed.columns.image_ids))
    return [record.image_id for record in data.records]
