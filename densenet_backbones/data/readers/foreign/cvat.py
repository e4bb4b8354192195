"""Reads CVAT's XML 1.1 for images: one file of many images, element by element.

The format: docs.cvat.ai, "CVAT for images" and `cvat/apps/dataset_manager/formats/cvat.py`. An
image has its `subset`, which is its split. Boxes, polygons and masks (run lengths, row by row, in
their box) are objects, and so are skeletons: their points are keypoints. Polygons of one label and
one `group_id` are one object. Other shapes are left out, and said.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError  # types only; defusedxml parses

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from densenet_backbones.data.faults import DataError
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
    list_kinds,
    make_content,
    place_mask,
    turn_points,
)
from densenet_backbones.data.recognition.sniffing import choose_some, sniff_xml
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.untrusted.limits import (
    MAX_SIDE,
    MAX_TABLE_FILE,
    MAX_VALUES,
)
from densenet_backbones.untrusted.reading import check_file


@dataclass(frozen=True)
class CvatImage:
    """Image of a file, with its objects and what is left out (item and reason)."""

    name: str
    subset: str
    size: tuple[int, int]
    objects: list[DrawnObject]
    left_out: list[tuple[str, str]]


def find_cvat(tree: Tree) -> Finding | None:
    """Look for CVAT's files."""
    names = tree.list_with(".xml")
    sniffed = {name: sniff_xml(tree.root / name) for name in choose_some(names)}
    files = [name for name, kind in sniffed.items() if kind == "cvat"]
    if not files:
        return None
    items, words = [], []
    kinds: set[str] = set()
    for file in files:
        path = tree.root / file
        for image in _read_images(path):
            items.append(Item(find_image(tree, image.name, file, str(path)), file))
            words.append(image.subset)
            kinds |= list_kinds(image.objects)
    return Finding(
        layout="cvat",
        title="CVAT's XML",
        evidence=", ".join(files[:3]),
        serves=frozenset(kinds | {"boxes"}),
        parts=assign_splits(items, words, in_tables=True),
    )


def read_cvat(tree: Tree, finding: Finding, split: str) -> CocoContent:
    """Read the images of one split.

    Raises:
        DataError: Names the file, the image and the shape that is wrong.
    """
    wanted = {(item.labels, item.image) for item in finding.parts[split]}
    files = dict.fromkeys(item.labels for items in finding.parts.values() for item in items)

    def read_all() -> Iterator[tuple[DrawnImage, bool]]:
        for file in files:
            path = tree.root / file
            for image in _read_images(path):
                place = find_image(tree, image.name, file, str(path))
                left_out = [
                    (f"image {image.name!r}: {item}", what) for item, what in image.left_out
                ]
                drawn = DrawnImage(place, path, image.size, image.objects, left_out)
                yield drawn, (file, place) in wanted

    return make_content(tree.root, "CVAT", read_all())


def _read_images(path: Path) -> Iterator[CvatImage]:
    """Yield the images of a file; an element is forgotten when it was read."""
    check_file(path, MAX_TABLE_FILE, DataError)
    try:
        outermost: Element | None = None
        since = 0
        for event, element in iterparse(str(path), events=("start", "end")):
            outermost = element if outermost is None else outermost
            since += 1
            if since > 10 * MAX_VALUES:
                raise DataError(f"{path}: an image has more than {5 * MAX_VALUES} elements")
            if event == "end" and element.tag in ("image", "meta"):
                if element.tag == "image":
                    yield _read_image(element, path)
                outermost.clear()
                since = 0
    except ParseError as error:
        line, column = error.position
        raise DataError(
            f"{path}: not valid XML at line {line}, column {column + 1} ({error}); save it as "
            "UTF-8, or export it again"
        ) from error
    except DefusedXmlException as error:
        raise DataError(
            f"{path}: declares XML entities ({type(error).__name__}), which annotation files do "
            "not need and attacks use; remove the DOCTYPE"
        ) from error
    except DataError:
        raise
    except (ValueError, LookupError) as error:  # encodings that the parser does not know
        raise DataError(f"{path}: not valid XML ({error}); save it as UTF-8") from error


def _read_image(element: Element, path: Path) -> CvatImage:
    name = element.get("name") or ""
    where = f"{path}: image {name[:200]!r}"
    width, height = (_read_side(element, key, where) for key in ("width", "height"))
    objects: list[DrawnObject] = []
    left_out: list[tuple[str, str]] = []
    groups: dict[tuple[str, str], DrawnObject] = {}
    for number, shape in enumerate(element):
        if shape.tag == "tag":  # a label of the whole image
            continue
        item = f"shape {number + 1} ({shape.tag[:20]})"
        thing = _read_shape(shape, (width, height), f"{where}: {item}")
        if thing is None:
            left_out.append((item, f"a {shape.tag[:20]} is no object"))
            continue
        key = (thing.label, shape.get("group_id") or "0")
        own = groups.get(key)
        if own and isinstance(own.outline, list) and isinstance(thing.outline, list):
            own.outline += thing.outline
            continue
        objects.append(thing)
        if key[1] != "0" and shape.tag == "polygon":
            groups[key] = thing
    return CvatImage(name, element.get("subset") or "", (width, height), objects, left_out)


def _read_side(element: Element, key: str, where: str) -> int:
    side = check_number(element.get(key), key, where)
    if not side.is_integer() or not 1 <= side <= MAX_SIDE:
        raise DataError(f"{where}: {key} must be 1 to {MAX_SIDE} pixels, not {side:g}; correct it")
    return int(side)


def _read_shape(shape: Element, size: tuple[int, int], where: str) -> DrawnObject | None:
    """Read a shape; None for kinds that are no objects."""
    if shape.tag not in ("box", "polygon", "mask", "skeleton"):
        return None
    label = check_name(shape.get("label"), where)
    if shape.tag == "skeleton":
        return _read_skeleton(shape, label, where)
    if shape.tag == "polygon":
        polygon = _read_points(shape, where)
        if len(polygon) < 6:
            raise DataError(f"{where}: a polygon needs 3 points, not {len(polygon) // 2}")
        return DrawnObject(label, outline=[polygon])
    if shape.tag == "mask":
        return _read_mask(shape, label, size, where)
    corners = tuple(check_number(shape.get(k), k, where) for k in ("xtl", "ytl", "xbr", "ybr"))
    x1, y1, x2, y2 = corners
    turn = math.radians(check_number(shape.get("rotation") or 0, "rotation", where))
    if not turn:
        return DrawnObject(label, (x1, y1, x2, y2))
    # A turned box is an outline, whose box is the upright one around it.
    points = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    polygon = turn_points(points, ((x1 + x2) / 2, (y1 + y2) / 2), turn)
    return DrawnObject(label, outline=[polygon])


def _read_points(shape: Element, where: str) -> list[float]:
    """Read ``x,y;x,y;...`` as x, y, x, y, ...."""
    values: list[float] = []
    for number, point in enumerate((shape.get("points") or "").split(";")):
        pair = point.split(",")
        if len(pair) != 2:
            raise DataError(f"{where}: point {number + 1} must be x,y, not {point[:40]!r}")
        values += [check_number(text, "a coordinate", where) for text in pair]
    return values


def _read_skeleton(shape: Element, label: str, where: str) -> DrawnObject:
    keypoints: dict[str, tuple[float, float, int]] = {}
    for number, point in enumerate(shape.findall("points"), start=1):
        place = f"{where}: point {number}"
        name = check_name(point.get("label"), place)
        x, y, *_ = _read_points(point, place)
        seen = 0 if point.get("outside") == "1" else 1 if point.get("occluded") == "1" else 2
        keypoints[name] = (x, y, seen) if seen else (0, 0, 0)
    places = [(x, y) for x, y, seen in keypoints.values() if seen]
    if not places:
        raise DataError(f"{where}: has no point inside the image; remove it")
    xs, ys = zip(*places, strict=True)
    return DrawnObject(label, (min(xs), min(ys), max(xs), max(ys)), keypoints=keypoints)


def _read_mask(shape: Element, label: str, size: tuple[int, int], where: str) -> DrawnObject:
    """Read a mask: runs of a box's pixels, row by row, the first of them outside."""
    left, top, width, height = (
        int(check_number(shape.get(key), key, where)) for key in ("left", "top", "width", "height")
    )
    runs = [int(check_number(text, "a run", where)) for text in (shape.get("rle") or "").split(",")]
    check_mask_box((left, top), (width, height), size, where)
    if min(runs) < 0 or sum(runs) != width * height:
        raise DataError(
            f"{where}: its runs do not add up to the {width * height} pixels of its box; correct it"
        )
    values = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(height, width)
    return place_mask(label, values, (left, top), size)


CVAT = ForeignFormat(find_cvat, read_cvat)
