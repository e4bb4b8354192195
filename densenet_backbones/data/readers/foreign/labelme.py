"""Reads labelme's JSON files, one an image.

The format: github.com/wkentaro/labelme, `labelme/_label_file.py`: ``shapes`` with `label`,
`points`, `shape_type` and `group_id`; coordinates are pixels of the image as shown.

Rectangles, polygons and circles (as polygons) are objects; polygons of one label and one `group_id`
are one object. A point is a keypoint, named by its label, of the object with its `group_id`. Lines
and other shapes are left out, and said.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import track_progress
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
from densenet_backbones.data.recognition.sniffing import choose_some, sniff_json
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.untrusted.limits import MAX_KEYPOINTS, MAX_SHAPES_FILE
from densenet_backbones.untrusted.reading import parse_json, read_text

_CIRCLE_POINTS = 32


@dataclass
class LabelmeObject:
    """Object of an image: its box or its polygons, and its keypoints by name."""

    label: str
    corners: tuple[float, float, float, float] | None = None
    polygons: list[list[float]] = field(default_factory=list)
    keypoints: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelmeFile:
    """Checked content of one file: (W, H) as it says, objects, and what is left out."""

    path: Path
    size: tuple[int, int] | None
    objects: tuple[LabelmeObject, ...]
    left_out: tuple[tuple[str, str], ...]


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
        remarks=(f"{unlabelled} images have no JSON file: left out",) * bool(unlabelled),
    )


def _find_image(tree: Tree, labels: str) -> str:
    """Find the image of a file: by the file's own name, else by its `imagePath`."""
    folder, _, name = labels.rpartition("/")
    images = tree.by_stem.get(name.rpartition(".")[0], [])
    beside = [image for image in images if image.rpartition("/")[0] == folder]
    for candidates in (beside, images):
        if len(candidates) == 1:
            return candidates[0]
    path = tree.root / labels
    promised = _load(path).get("imagePath")
    return find_image(tree, promised if isinstance(promised, str) else name, labels, str(path))


def _find_kinds(tree: Tree, labels: Sequence[str]) -> frozenset[str]:
    kinds = {"boxes"}
    for name in choose_some(labels)[:20]:
        shapes = read_labelme_file(tree.root / name).objects
        kinds |= {"masks"} if any(thing.polygons for thing in shapes) else set()
        kinds |= {"keypoints"} if any(thing.keypoints for thing in shapes) else set()
    return frozenset(kinds)


def read_labelme(tree: Tree, finding: Finding, split: str) -> CocoContent:
    """Read the files of one split.

    Raises:
        DataError: Names the file and the shape that is wrong.
    """
    names: set[str] = set()
    points: set[str] = set()
    having: set[str] = set()
    files: list[tuple[Item, LabelmeFile]] = []
    # The classes are those of all splits, whichever is read.
    for part, items in finding.parts.items():
        for item in track_progress(items, "Reading labelme's files"):
            file = read_labelme_file(tree.root / item.labels)
            names |= {thing.label for thing in file.objects}
            points |= {p for thing in file.objects for p in thing.keypoints}
            having |= {thing.label for thing in file.objects if thing.keypoints}
            if part == split:
                files.append((item, file))
    if not names:
        raise DataError(f"{tree.root}: labelme's files have no box and no polygon; draw some")
    if len(points) > MAX_KEYPOINTS:
        raise DataError(
            f"{tree.root}: points have {len(points)} labels, and an object at most "
            f"{MAX_KEYPOINTS} keypoints; correct their labels"
        )
    content, keypoints = CocoContent(), sorted(points)
    ids = content.name_classes(sorted(names), keypoints, having)
    for item, file in files:
        image_id = content.add_image(item.image, file.size, file.path)
        for thing in file.objects:
            flat = None
            if thing.keypoints:
                own = thing.keypoints
                flat = [v for p in keypoints for v in ((*own[p], 2) if p in own else (0, 0, 0))]
            content.add_object(
                image_id, ids[thing.label], thing.corners, thing.polygons or None, flat
            )
        for shape, what in file.left_out:
            content.leave_out(file.path, shape, what)
    return content


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


def read_labelme_file(path: Path) -> LabelmeFile:
    """Read one file.

    Raises:
        DataError: Names the shape that is wrong.
    """
    content = _load(path)
    size = content.get("imageWidth"), content.get("imageHeight")
    whole = all(type(side) is int and 0 < side < 2**31 for side in size)
    objects: list[LabelmeObject] = []
    groups: dict[tuple[str, Any], LabelmeObject] = {}
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
        thing = _make_object(label, str(kind), corners)
        if thing is None:
            left_out.append((item, f"a {kind!s:.20} of {len(corners)} points is no object"))
            continue
        key = (label, group) if isinstance(group, int | str) else None
        if key in groups and thing.polygons and groups[key].polygons:
            groups[key].polygons += thing.polygons
            continue
        objects.append(thing)
        if key is not None:
            groups[key] = thing
    for group, label, place, item in points:
        owners = [thing for (_, own), thing in groups.items() if own == group]
        if len(owners) == 1 and label not in owners[0].keypoints:
            owners[0].keypoints[label] = place
        else:
            left_out.append((item, "a point that shares its group_id with no one object"))
    known = (size[0], size[1]) if whole else None
    return LabelmeFile(path, known, tuple(objects), tuple(left_out))  # type: ignore[arg-type]


def _make_object(
    label: str, kind: str, points: Sequence[tuple[float, float]]
) -> LabelmeObject | None:
    """Make the object of a shape; None where it has no area by its kind."""
    if kind == "rectangle" and len(points) in (2, 4):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return LabelmeObject(label, (min(xs), min(ys), max(xs), max(ys)))
    if kind == "circle" and len(points) == 2:
        (x, y), (x2, y2) = points
        radius = math.hypot(x2 - x, y2 - y)
        turns = [2 * math.pi * n / _CIRCLE_POINTS for n in range(_CIRCLE_POINTS)]
        polygon = [v for t in turns for v in (x + radius * math.cos(t), y + radius * math.sin(t))]
        return LabelmeObject(label, polygons=[polygon])
    if kind == "polygon" and len(points) >= 3:
        return LabelmeObject(label, polygons=[[v for point in points for v in point]])
    return None


def _read_points(points: object, where: str) -> Iterator[tuple[float, float]]:
    if not isinstance(points, list):
        raise DataError(f"{where}: points must be a list, not {str(points)[:40]!r}; correct it")
    for n, point in enumerate(points):
        if not isinstance(point, list) or len(point) != 2:
            raise DataError(f"{where}: points[{n}] must be [x, y], not {str(point)[:40]!r}")
        x, y = (check_number(value, f"points[{n}]", where) for value in point)
        yield x, y


LABELME = ForeignFormat(find_labelme, read_labelme)
