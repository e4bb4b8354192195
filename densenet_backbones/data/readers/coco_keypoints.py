"""Reads the names of keypoints from the categories of a COCO annotation file.

The format: https://cocodataset.org/#format-data, section "Keypoint Detection".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from densenet_backbones.data.files import quote
from densenet_backbones.data.samples import Annotation, Categories, DataError
from densenet_backbones.untrusted.limits import MAX_KEYPOINTS, MAX_NAME


def read_keypoints(
    entries: Sequence[Mapping[str, object]],
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Read the keypoints' names and skeleton (from 0; in files from 1) that all classes share.

    Empty where they differ, or are not in COCO's form: boxes can be learned all the same.
    """
    having = [entry for entry in entries if entry.get("keypoints")]
    if not having or any(e["keypoints"] != having[0]["keypoints"] for e in having):
        return (), ()
    names, pairs = having[0]["keypoints"], having[0].get("skeleton")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return (), ()
    if len(names) > MAX_KEYPOINTS or max(map(len, names)) > MAX_NAME:
        return (), ()
    pairs = pairs if isinstance(pairs, list) else []
    valid = all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(end) is int and 1 <= end <= len(names) for end in pair)
        for pair in pairs
    )
    return tuple(names), tuple((a - 1, b - 1) for a, b in pairs) if valid else ()


def choose_keypoints(
    categories: Categories,
    entries: Sequence[Mapping[str, object]],
    annotations: Mapping[int, Sequence[Annotation]],
    path: Path,
) -> Categories:
    """Name the keypoints as the classes do whose objects have some, where classes differ.

    Args:
        categories: Classes of the file.
        entries: Their entries in the file.
        annotations: Objects of each image.
        path: The file.

    Raises:
        DataError: If these classes differ too.
    """
    used = {a["category_id"] for own in annotations.values() for a in own if a.get("keypoints")}
    having = [entry for entry in entries if entry.get("keypoints") and entry["id"] in used]
    for entry in having[1:]:
        if entry["keypoints"] != having[0]["keypoints"]:
            raise DataError(_describe_difference(path, having[0], entry))
    names, skeleton = read_keypoints(having)
    return replace(categories, keypoints=names, skeleton=skeleton)


def _describe_difference(
    path: Path, first: Mapping[str, object], other: Mapping[str, object]
) -> str:
    """Describe that two categories name different keypoints, and the fix."""
    lists = [entry["keypoints"] for entry in (first, other)]
    names = [{str(name) for name in own} if isinstance(own, list) else set() for own in lists]
    alone = sorted(names[0] ^ names[1])
    difference = f"{quote(alone, 6)} in one of them only" if alone else "in another order"
    return (
        f"{path}: categories {quote([first['name'], other['name']])} differ in 'keypoints' "
        f"({difference}), but a detector learns one list: give both the same one (0, 0, 0 in an "
        "object for points that it does not have), or leave the keypoints of one out"
    )
