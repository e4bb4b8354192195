"""Reads the objects of VIA's files (`via_files`).

Rectangles, polygons, circles and ellipses are objects. Points, lines and polylines are none, and
are said; so are regions without a class. The class is a region's attribute: that of a name such as
"class" or "label", or the only one there is. Where no region has any, all are of one class,
"object": Matterport's balloons are such data.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote
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
    draw_ellipse,
    list_kinds,
    make_content,
)
from densenet_backbones.data.readers.foreign.via_files import (
    ViaImage,
    ViaRegion,
    is_via_table,
    read_via_file,
)
from densenet_backbones.data.recognition.sniffing import choose_some, sniff_json
from densenet_backbones.data.recognition.tree import Tree

_CLASS_WORDS = ("class", "label", "classes", "labels", "category", "class_name", "name", "type")
_ONLY_CLASS = "object"


def find_via(tree: Tree) -> Finding | None:
    """Look for files of VIA; its tables are taken where there is no JSON, which says the same."""
    names = choose_some(tree.list_with(".json"))
    files = [name for name in names if sniff_json(tree.root / name) == "via"]
    if not files:
        names = choose_some(tree.list_with(".csv"))
        files = [name for name in names if is_via_table(tree.root / name)]
    if not files:
        return None
    kinds = {"boxes"}
    items: dict[str, Item] = {}
    for image in _read_images(tree, files):
        file = image.file.relative_to(tree.root).as_posix()
        if image.image in items:
            other = items[image.image].labels
            raise DataError(
                f"{tree.root}: {image.image!r} is in {file} and in {other}; give one of them with "
                "--annotation-file, or remove it from one"
            )
        items[image.image] = Item(image.image, file)
        kinds |= list_kinds(image.objects)
    return Finding(
        layout="via",
        title="VIA's " + ("JSON" if files[0].lower().endswith(".json") else "table (CSV)"),
        evidence=", ".join(files[:3]),
        serves=frozenset(kinds),
        parts=assign_splits(list(items.values()), in_tables=True),
    )


def read_via(tree: Tree, finding: Finding, split: str) -> CocoContent:
    """Read the images of one split.

    Raises:
        DataError: Names the file, the image and the region that is wrong.
    """
    files = dict.fromkeys(item.labels for items in finding.parts.values() for item in items)
    wanted = {item.image for item in finding.parts[split]}
    images = _read_images(tree, list(files))
    return make_content(tree.root, "VIA", ((image, image.image in wanted) for image in images))


def _read_images(tree: Tree, files: Sequence[str]) -> Iterator[DrawnImage]:
    content = [(name, read_via_file(tree.root / name)) for name in files]
    key = _find_class_attribute(tree, [image for _, images in content for image in images])
    for name, images in content:
        path = tree.root / name
        for image in images:
            objects, left_out = [], []
            for region in image.regions:
                where = f"{path}: {image.name[:100]!r}: {region.item}"
                thing = _make_object(region, key, where)
                if isinstance(thing, DrawnObject):
                    objects.append(thing)
                else:
                    left_out.append((f"{image.name[:100]!r}: {region.item}", thing))
            place = find_image(tree, image.name, name, str(path))
            yield DrawnImage(place, path, None, objects, left_out)


def _find_class_attribute(tree: Tree, images: Sequence[ViaImage]) -> str | None:
    """Return the name of the attribute that is the class; None where regions have no attribute."""
    counts = Counter(
        name
        for image in images
        for region in image.regions
        for name, value in region.attributes.items()
        if value not in ("", None, {})
    )
    named = [name for word in _CLASS_WORDS for name in counts if name.lower().strip() == word]
    if named or len(counts) < 2:
        return next(iter([*named, *counts]), None)
    raise DataError(
        f"{tree.root}: regions have {len(counts)} attributes ({quote(sorted(counts), 5)}); name "
        'the one that is the class "class", in VIA or in its file'
    )


def _make_object(region: ViaRegion, key: str | None, where: str) -> DrawnObject | str:
    """Make the object of a region, or return a clause that says why it is none."""
    label: object = _ONLY_CLASS if key is None else region.attributes.get(key)
    if isinstance(label, dict):  # one of several choices
        chosen = [name for name, is_chosen in label.items() if is_chosen]
        if len(chosen) > 1:
            return f"{key!r:.40} is {quote(chosen)}, and an object has one class"
        label = chosen[0] if chosen else None
    if label in (None, ""):
        return f"has no {key!r:.40}, which is the class"
    shape, name = region.shape, region.shape.get("name")

    def take(*keys: str) -> Iterator[float]:
        return (check_number(shape.get(k, 0 if k == "theta" else None), k, where) for k in keys)

    if name == "rect":
        x, y, width, height = take("x", "y", "width", "height")
        return DrawnObject(check_name(label, where), (x, y, x + width, y + height))
    if name == "circle":
        x, y, radius = take("cx", "cy", "r")
        outline = draw_ellipse((x, y), (radius, radius))
    elif name == "ellipse":
        x, y, a, b, turn = take("cx", "cy", "rx", "ry", "theta")
        outline = draw_ellipse((x, y), (a, b), turn)
    elif name == "polygon":
        outline = _read_points(shape, where)
    else:
        return f"a {name!s:.20} is no object"
    return DrawnObject(check_name(label, where), outline=[outline])


def _read_points(shape: Mapping[str, Any], where: str) -> list[float]:
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys) or len(xs) < 3:
        raise DataError(f"{where}: a polygon needs lists of 3 x and y or more; correct it")
    pairs = zip(xs, ys, strict=True)
    return [check_number(value, "a coordinate", where) for pair in pairs for value in pair]


VIA = ForeignFormat(find_via, read_via)
