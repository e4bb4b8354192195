"""Reads labelme's JSON files, one an image.

The format: github.com/wkentaro/labelme, `labelme/_label_file.py`: ``shapes`` with `label`,
`points`, `shape_type` and `group_id`; coordinates are pixels of the image as shown.

Rectangles, masks, polygons and circles (as polygons) are objects; polygons of one label and one
`group_id` are one object, and so are masks. The `points` of a mask are the first and the last pixel
of its box, its `mask` is a picture in base64 (`labelme/utils/shape.py`). A point is a keypoint,
named by its label, of the object with its `group_id`. Lines and other shapes are left out, and
said.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import track_progress
from densenet_backbones.data.images import open_image
from densenet_backbones.data.readers.foreign.content import (
    CocoContent,
    Finding,
    ForeignFormat,
    Item,
    assign_splits,
    check_name,
    check_number,
    find_image,
)
from densenet_backbones.data.readers.foreign.shapes import (
    DrawnImage,
    DrawnObject,
    check_mask_box,
    draw_ellipse,
    list_kinds,
    make_content,
    place_mask,
)
from densenet_backbones.data.recognition.sniffing import choose_some, sniff_json
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_SHAPES_FILE
from densenet_backbones.untrusted.reading import parse_json, read_text


def find_labelme(tree: Tree) -> Finding | None:
    """Look for labelme's files beside images, or with images of their names elsewhere."""
    files = tree.list_with(".json")
    sniffed = {name: sniff_json(tree.root / name) for name in choose_some(files)}
    if "labelme" not in sniffed.values():
        return None
    known = {kind for kind in sniffed.values() if kind in ("coco", "panoptic", "via")}
    # Among many files, those that were not looked at are labelme's, too.
    labels = [n for n in files if sniffed.get(n, "labelme" if not known else "") == "labelme"]
    items = [Item(_find_image(tree, name), name) for name in labels]
    unlabelled = len(set(tree.images) - {item.image for item in items})
    return Finding(
        layout="labelme",
        title="labelme's JSON",
        evidence=labels[0] + f" and {len(labels) - 1} more" * bool(labels[1:]),
        serves=_find_kinds(tree, labels),
        parts=assign_splits(items),
        remarks=(f"{pluralize(unlabelled, 'image has', 'images have')} no JSON file: left out",)
        * bool(unlabelled),
    )


def _find_image(tree: Tree, labels: str) -> str:
    """Find the image of a file: by the file's own name, else by its `imagePath`."""
    folder, _, name = labels.rpartition("/")
    images = tree.list_stem(name.rpartition(".")[0])
    beside = [image for image in images if image.rpartition("/")[0] == folder]
    for candidates in (beside, images):
        if len(candidates) == 1:
            return candidates[0]
    path = tree.root / labels
    promised = _load(path).get("imagePath")
    return find_image(tree, promised if isinstance(promised, str) else name, labels, str(path))


def _find_kinds(tree: Tree, labels: Sequence[str]) -> frozenset[str]:
    files = (read_labelme_file(tree.root / name) for name in choose_some(labels)[:20])
    return frozenset(list_kinds(thing for file in files for thing in file.objects))


def read_labelme(tree: Tree, finding: Finding, split: str) -> CocoContent:
    """Read the files of one split.

    Raises:
        DataError: Names the file and the shape that is wrong.
    """

    def read_all() -> Iterator[tuple[DrawnImage, bool]]:
        for part, items in finding.parts.items():
            for item in track_progress(items, "Reading labelme's files"):
                yield read_labelme_file(tree.root / item.labels, item.image), part == split

    return make_content(tree.root, "labelme", read_all())


def _load(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path, MAX_SHAPES_FILE, DataError))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not valid JSON ({error}); export it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError(f"{path}: is no labelme file (no list of shapes); take it away")
    return content


def read_labelme_file(path: Path, image: str = "") -> DrawnImage:
    """Read one file, of an image that is named relative to the root.

    Raises:
        DataError: Names the shape that is wrong.
    """
    content = _load(path)
    size: Any = content.get("imageWidth"), content.get("imageHeight")
    whole = all(type(side) is int and 0 < side < 2**31 for side in size)
    objects: list[DrawnObject] = []
    groups: dict[tuple[str, Any], DrawnObject] = {}
    points: list[tuple[Any, str, tuple[float, float], str]] = []
    left_out: list[tuple[str, str]] = []
    for n, shape in enumerate(content["shapes"]):
        where = f"{path}: shapes[{n}]"
        if not isinstance(shape, dict):
            raise DataError(f"{where} must be an object; export it again")
        label = check_name(shape.get("label"), where)
        kind, group = shape.get("shape_type") or "polygon", shape.get("group_id")
        corners = list(_read_points(shape.get("points"), where))
        item = f"shapes[{n}] ({label!r})"
        if kind == "point" and len(corners) == 1:
            points.append((group, label, corners[0], item))
            continue
        thing: DrawnObject | None
        if kind == "mask" and len(corners) == 2:
            thing = _read_mask(label, corners, shape.get("mask"), size if whole else None, where)
        else:
            thing = _make_object(label, str(kind), corners)
        if thing is None:
            left_out.append(
                (item, f"a {kind!s:.20} of {pluralize(len(corners), 'point')} is no object")
            )
            continue
        key = (label, group) if isinstance(group, int | str) else None
        if key in groups and groups[key].join(thing):
            continue
        objects.append(thing)
        if key is not None:
            groups[key] = thing
    for group, label, place, item in points:
        owners = [thing for (_, own), thing in groups.items() if own == group]
        if len(owners) == 1 and label not in owners[0].keypoints:
            owners[0].keypoints[label] = (*place, 2)
        else:
            left_out.append((item, "a point that shares its group_id with no one object"))
    known = size if whole else None
    return DrawnImage(image, path, known, objects, left_out)


def _make_object(
    label: str, kind: str, points: Sequence[tuple[float, float]]
) -> DrawnObject | None:
    """Make the object of a shape; None where it has no area by its kind."""
    if kind == "rectangle" and len(points) in (2, 4):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return DrawnObject(label, (min(xs), min(ys), max(xs), max(ys)))
    if kind == "circle" and len(points) == 2:
        radius = math.dist(*points)
        return DrawnObject(label, outline=[draw_ellipse(points[0], (radius, radius))])
    if kind == "polygon" and len(points) >= 3:
        return DrawnObject(label, outline=[[v for point in points for v in point]])
    return None


def _read_mask(
    label: str,
    points: Sequence[tuple[float, float]],
    picture: object,
    size: tuple[int, int] | None,
    where: str,
) -> DrawnObject:
    """Read a mask: a picture of the pixels from one corner to the other."""
    left, top, right, bottom = (int(value) for point in points for value in point)
    if not isinstance(picture, str) or size is None:
        raise DataError(
            f"{where}: a mask needs its picture (mask) and the image's sides (imageWidth, "
            "imageHeight); export the file again"
        )
    width, height = right - left + 1, bottom - top + 1
    check_mask_box((left, top), (width, height), size, where)
    try:
        content = base64.b64decode(picture, validate=True)
    except ValueError as error:
        raise DataError(f"{where}: mask is no base64 ({error}); export the file again") from error
    with open_image(f"{where}: mask", content=content) as image:
        if image.size != (width, height):
            raise DataError(
                f"{where}: mask has {image.width}x{image.height} pixels, its box {width}x{height}; "
                "export the file again"
            )
        return place_mask(label, np.asarray(image.convert("L")), (left, top), size)


def _read_points(points: object, where: str) -> Iterator[tuple[float, float]]:
    if not isinstance(points, list):
        raise DataError(f"{where}: points must be a list, not {str(points)[:40]!r}; correct it")
    for n, point in enumerate(points):
        if not isinstance(point, list) or len(point) != 2:
            raise DataError(f"{where}: points[{n}] must be [x, y], not {str(point)[:40]!r}")
        x, y = (check_number(value, f"points[{n}]", where) for value in point)
        yield x, y


LABELME = ForeignFormat(find_labelme, read_labelme)
