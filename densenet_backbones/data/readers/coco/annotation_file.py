"""Reads a COCO annotation file slice by slice into tables.

Each slice is checked as columns first, which takes a fraction of the time; a slice with anything
unusual in it is read entry by entry (see `coco_json`), which names what is wrong.

Legend: D images, A annotations of the file, n of a slice.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import quote
from densenet_backbones.data.packing.annotations import (
    AnnotationTable,
    join_tables,
    make_table,
    pack_annotations,
    pack_others,
)
from densenet_backbones.data.packing.json_slices import read_members
from densenet_backbones.data.readers.coco.json_values import (
    JsonObject,
    TextIds,
    check_list,
    check_objects,
    check_optional,
    read_annotation,
    read_categories,
    read_images,
    read_keypoints,
    translate_json_errors,
)
from densenet_backbones.data.readers.foreign.content import CocoContent
from densenet_backbones.untrusted.limits import MAX_JSON_FILE, MAX_PATH, MAX_SIDE
from densenet_backbones.untrusted.reading import check_file

# A relative path that needs no look: no "..", no blank or dot to begin with, no control code.
_PLAIN_PATH = re.compile(r"(?:[\w-][\w .()+=,@-]*/)*[\w-][\w .()+=,@-]*").fullmatch
_IMAGE_IDS, _CATEGORY_IDS = {"id": "image"}, {"id": "category"}
_ANNOTATION_IDS = {"id": "annotation", "image_id": "image", "category_id": "category"}
_OPTIONAL = ("segmentation", "keypoints", "num_keypoints")


@dataclass(frozen=True, eq=False)
class ImageColumns:
    """Images of a file, or of a slice of it.

    Attributes:
        ids: (D,) int64.
        names: D file names.
        sizes: (D, 2) int64, W and H as shown; 0 where the file gives none.
    """

    ids: np.ndarray
    names: list[str]
    sizes: np.ndarray


@dataclass(frozen=True, eq=False)
class CocoFile:
    """Checked content of one file, in the file's order.

    Attributes:
        path: The file.
        images: Images.
        categories: Classes in order of their ids.
        table: Annotations; `area` and `iscrowd` are always there.
        owners: (A,) int64 position of each annotation's image.
        remarks: What was left out of the file as a whole.
    """

    path: Path
    images: ImageColumns
    categories: Categories
    table: AnnotationTable
    owners: np.ndarray
    remarks: tuple[Problem, ...] = ()


def read_coco_file(
    path: Path,
    *,
    masks: bool = True,
    keypoints: bool = False,
    content: CocoContent | None = None,
    find_image: Callable[[str], str | None] = lambda name: None,
) -> CocoFile:
    """Read and check an annotation file.

    Annotations without an id are numbered, and so are ids that are texts. A category that nothing
    is of, and that all others name as their `supercategory`, is dropped (Roboflow writes one), and
    said.

    Args:
        path: The file.
        masks: Keep `segmentation`.
        keypoints: Refuse keypoints that cannot be learned together.
        content: Annotations that were read from another format; `path` is where they come from.
        find_image: Called with a name that is not below a folder, or is another machine's; returns
            the image that it means, relative, or None if there is none.

    Raises:
        DataError: If the file is not JSON (line and column), not a COCO instances file, an id is
            given twice or unknown, a value is not what it should be (entry and field), or classes
            whose objects have keypoints name different ones.
    """
    kept, texts = _OPTIONAL if masks else _OPTIONAL[1:], TextIds()

    def pack(entries: list[JsonObject], first: int) -> AnnotationTable:
        return _pack_annotations(entries, path, first, kept, texts)

    packers: dict[str, Callable[[list[JsonObject], int], Any]] = {
        "images": lambda entries, first: _pack_images(entries, path, first, find_image, texts),
        "annotations": pack,
        "categories": lambda entries, first: texts.number(entries, _CATEGORY_IDS),
    }
    lists, has_constants = _read_slices(path, packers, content)
    listed = list(itertools.chain(*check_list(lists, "categories", path)))
    images = _join_images(check_list(lists, "images", path))
    _refuse_repeated(images.ids, lambda n: f"{path}: images[{n}]: image id {images.ids[n]}")
    table = _number_annotations(join_tables(check_list(lists, "annotations", path)))
    listed, remarks = _drop_supercategory(listed, table, path)
    categories = read_categories(listed, path)
    owners = _find_owners(table, images, categories, path)
    if has_constants:  # in a field that nothing here reads; those that are read have been checked
        raise DataError(f"{path}: has NaN or Infinity, which JSON has not; write null instead")
    if keypoints and not categories.keypoints:
        categories = _choose_keypoints(categories, listed, table, path)
    return CocoFile(path, images, categories, table, owners, remarks)


def _number_annotations(table: AnnotationTable) -> AnnotationTable:
    """Give annotations without an id the next ones above those of the others."""
    bare = table.numbers["has"] & 1 == 0
    if bare.any():
        first = int(table.numbers["id"].max(initial=0, where=~bare)) + 1
        table.numbers["id"][bare] = np.arange(first, first + int(bare.sum()))
        table.numbers["has"][bare] |= 1
    return table


def _drop_supercategory(
    entries: list[JsonObject], table: AnnotationTable, path: Path
) -> tuple[list[JsonObject], tuple[Problem, ...]]:
    """Drop the category that stands for all others and has no objects, and report it."""
    used = set(table.numbers["category_id"].tolist())
    parents = Counter(str(entry.get("supercategory")) for entry in entries)
    for n, entry in enumerate(entries):
        name = entry.get("name")
        if not isinstance(name, str) or len(entries) < 2 or _to_id(entry) in used:
            continue
        if parents[name] - (entry.get("supercategory") == name) == len(entries) - 1:
            what = f"{name!r} has no object, and is the supercategory of all others"
            others = entries[:n] + entries[n + 1 :]
            return others, (Problem(str(path), "categories", what, "left out"),)
    return entries, ()


def _to_id(entry: JsonObject) -> int:
    value = entry.get("id")
    return value if type(value) is int and abs(value) < 2**63 else -1


def _choose_keypoints(
    categories: Categories, entries: list[JsonObject], table: AnnotationTable, path: Path
) -> Categories:
    """Name the keypoints as the classes do whose objects have some, where classes differ."""
    having = [entry for entry in entries if entry.get("keypoints")]
    if len(having) > 1:
        parts = (table.read(rows) for rows in np.array_split(np.arange(len(table)), 100))
        used = {a["category_id"] for part in parts for a in part if a.get("keypoints")}
        having = [entry for entry in having if entry["id"] in used]
    for entry in having[1:]:
        if entry["keypoints"] != having[0]["keypoints"]:
            raise DataError(_describe_other_keypoints(path, having[0], entry))
    names, skeleton = read_keypoints(having)
    return replace(categories, keypoints=names, skeleton=skeleton)


def _describe_other_keypoints(path: Path, first: JsonObject, other: JsonObject) -> str:
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


def _read_slices(
    path: Path,
    packers: dict[str, Callable[[list[JsonObject], int], Any]],
    annotated: CocoContent | None = None,
) -> tuple[dict[str, Any], bool]:
    """Return the packed slices of each list that is known, and True if NaN or Infinity was seen."""
    content: dict[str, Any] = {}
    constants: list[str] = []

    def note_constant(name: str) -> float:
        constants.append(name)
        return float("nan")

    members: Iterator[tuple[str | None, int | None, Any]]
    if annotated is None:
        check_file(path, MAX_JSON_FILE, DataError)
        members = read_members(path, note_constant)
    else:
        members = ((name, 0, getattr(annotated, name)) for name in packers)
    with translate_json_errors(path):
        for name, first, value in members:
            if name is None:
                _refuse_outermost(value, path)
            elif name in packers:
                if first is None:
                    content[name] = value
                    continue
                check_objects(value, name, path, first)
                if first == 0:
                    content[name] = []
                content[name].append(packers[name](value, first))
    if not {"images", "categories"} & content.keys():
        _refuse_outermost(content, path)
    return content, bool(constants)


def _refuse_outermost(content: object, path: Path) -> None:
    if isinstance(content, list):
        raise DataError(
            f"{path}: is a list, as files of results are; the annotation file is an object with "
            "images, annotations and categories"
        )
    raise DataError(
        f"{path}: not a COCO annotation file; it must be a JSON object with the lists "
        "images, annotations and categories"
    )


def _pack_images(
    entries: list[JsonObject],
    path: Path,
    first: int,
    find_image: Callable[[str], str | None],
    texts: TextIds,
) -> ImageColumns:
    ids, names, widths, heights = (
        [entry.get(key) for entry in entries] for key in ("id", "file_name", "width", "height")
    )
    kinds = [set(map(type, values)) for values in (ids, widths, heights, names)]
    if kinds == [{int}, {int}, {int}, {str}] and all(map(_PLAIN_PATH, names)):  # type: ignore[arg-type]
        try:
            sizes = np.array([widths, heights], np.int64).T
            longest = max(map(len, names))  # type: ignore[arg-type]
            if sizes.min() >= 1 and sizes.max() <= MAX_SIDE and longest <= MAX_PATH:
                return ImageColumns(np.array(ids, np.int64), names, sizes)  # type: ignore[arg-type]
        except OverflowError:  # more than 64 bits
            pass
    images = read_images(texts.number(entries, _IMAGE_IDS), path, first, find_image)
    return ImageColumns(
        np.array([image.image_id for image in images], np.int64),
        [image.file_name for image in images],
        np.array([image.size or (0, 0) for image in images], np.int64).reshape(-1, 2),
    )


def _join_images(parts: Sequence[ImageColumns]) -> ImageColumns:
    return ImageColumns(
        np.concatenate([part.ids for part in parts]),
        [name for part in parts for name in part.names],
        np.concatenate([part.sizes for part in parts]),
    )


def _pack_annotations(
    entries: list[JsonObject], path: Path, first: int, kept: Sequence[str], texts: TextIds
) -> AnnotationTable:
    columns = _read_columns(entries)
    if columns is None:
        entries = texts.number(entries, _ANNOTATION_IDS)
        where = f"{path}: annotations"
        return pack_annotations(
            read_annotation(entry, f"{where}[{n}]", kept) for n, entry in enumerate(entries, first)
        )
    numbers, boxes = columns
    # What only masks and keypoints need is kept as it is, if it has the right type.
    others = [{k: e[k] for k in kept if e.get(k) is not None} for e in entries]
    for n, other in enumerate(others):
        if other:
            check_optional(other, f"{path}: annotations[{first + n}] (id {entries[n]['id']})")
    return make_table(numbers, boxes, pack_others(others))


def _read_columns(entries: list[JsonObject]) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Return the numbers and boxes of a slice's annotations; None if one is not of plain type."""
    keys = ("id", "image_id", "category_id")
    ids: Any = {key: [entry.get(key) for entry in entries] for key in keys}
    boxes: Any = [entry.get("bbox") for entry in entries]
    areas: Any = [entry.get("area") for entry in entries]
    crowds: Any = [entry.get("iscrowd", 0) for entry in entries]
    if any(set(map(type, values)) - {int} for values in ids.values()):
        return None
    if set(map(type, boxes)) - {list} or set(map(len, boxes)) - {4}:
        return None
    flat = list(itertools.chain.from_iterable(boxes))
    if set(map(type, flat)) - {int, float} or set(map(type, areas)) - {int, float, type(None)}:
        return None
    try:
        if set(crowds) - {0, 1}:
            return None
        numbers = {key: np.array(values, np.int64) for key, values in ids.items()}
        box = np.array(flat, np.float64).reshape(-1, 4)
        area = np.array(areas, np.float64)  # None becomes NaN
    except (OverflowError, TypeError):  # more than 64 bits; a list for a number
        return None
    # COCO's area is that of the mask; where it is missing, the box's stands in.
    missing = np.array([value is None for value in areas], bool)
    with np.errstate(over="ignore", invalid="ignore"):
        numbers["area"] = np.where(missing, box[:, 2] * box[:, 3], area)
    numbers["iscrowd"] = np.array(crowds, np.int64)
    finite = np.isfinite(box).all() and np.isfinite(numbers["area"]).all()
    return (numbers, box) if finite else None


def _refuse_repeated(ids: np.ndarray, describe: Callable[[int], str]) -> None:
    """Raise for the first id that was there before."""
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order][1:] == ids[order][:-1]]
    if len(again):
        raise DataError(f"{describe(int(again.min()))} is given twice; ids are unique")


def _find_owners(
    table: AnnotationTable, images: ImageColumns, categories: Categories, path: Path
) -> np.ndarray:
    """Return the (A,) positions of the annotations' images, and check all ids."""
    numbers = table.numbers

    def locate(n: int) -> str:
        return f"{path}: annotations[{n}] (id {numbers['id'][n]})"

    _refuse_repeated(numbers["id"], lambda n: f"{locate(n)}: the annotation id")
    order = np.argsort(images.ids)
    places = np.searchsorted(images.ids, numbers["image_id"], sorter=order)
    owners = order[np.minimum(places, len(order) - 1)]
    unknown = np.flatnonzero(images.ids[owners] != numbers["image_id"])
    if len(unknown):
        n = int(unknown[0])
        raise DataError(
            f"{locate(n)}: image_id {numbers['image_id'][n]} is not among the images; add it to "
            "them, or remove the annotation"
        )
    unknown = np.flatnonzero(~np.isin(numbers["category_id"], categories.ids))
    if len(unknown):
        n = int(unknown[0])
        raise DataError(
            f"{locate(n)}: category_id {numbers['category_id'][n]} is not among the categories "
            f"({quote(sorted(categories.ids), 6)}); add it to them, or remove the annotation"
        )
    return owners
