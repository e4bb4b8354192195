"""Reads tables of boxes (CSV), an object a row, coordinates in pixels.

Two forms: with a header that names the columns, such as TensorFlow's tutorials export
(``filename,width,height,class,xmin,ymin,xmax,ymax``, in any order), and without one
``path,x1,y1,x2,y2,class`` (github.com/fizyr/keras-retinanet, README, "CSV datasets") or
``path,class,x1,y1,x2,y2``, where an image without objects has a row ``path,,,,,``.
Semicolons and tabs separate cells, too. A header may name the split of each image, as that of a
table of labels does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from densenet_backbones.data.recognition.cells import (
    IMAGE_COLUMNS,
    SPLIT_COLUMNS,
    place_columns,
    read_cells,
    read_first_cells,
)
from densenet_backbones.data.recognition.sniffing import choose_some
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_CLASSES, MAX_SIDE

_COLUMNS = {
    "image": IMAGE_COLUMNS,
    "class": ("class", "label", "class_name", "name", "category"),
    "x1": ("xmin", "x1", "x_min", "left"),
    "y1": ("ymin", "y1", "y_min", "top"),
    "x2": ("xmax", "x2", "x_max", "right"),
    "y2": ("ymax", "y2", "y_max", "bottom"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "split": SPLIT_COLUMNS,
}
_NEEDED = ("image", "class", "x1", "y1", "x2", "y2")
_NUMBERS = ("x1", "y1", "x2", "y2", "width", "height")
_HEADER = "filename, class, xmin, ymin, xmax, ymax"
# Places of the columns in tables without a header.
_BARE = (
    {"image": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5},
    {"image": 0, "class": 1, "x1": 2, "y1": 3, "x2": 4, "y2": 5},
)


@dataclass(frozen=True)
class Row:
    """Row of a table.

    `corners` and `label` are None for an image without objects, `split` where the row names none.
    """

    where: str
    image: str
    size: tuple[int, int] | None
    corners: tuple[float, float, float, float] | None
    label: str | None
    split: str | None


def find_tables(tree: Tree) -> Finding | None:
    """Look for tables whose columns are known."""
    files = [n for n in choose_some(tree.list_with(".csv")) if _find_columns(tree.root / n)]
    if not files:
        return None
    items, words = [], []
    for file in files:
        for row in _list_images(tree.root / file):
            items.append(Item(find_image(tree, row.image, file, row.where), file))
            words.append(row.split)
    return Finding(
        layout="csv",
        title="a table of boxes (CSV)",
        evidence=", ".join(files[:3]),
        serves=frozenset({"boxes"}),
        parts=assign_splits(items, words, in_tables=True),
    )


def _list_images(path: Path) -> Iterable[Row]:
    """Return one row of each image of a table."""
    rows: dict[str, Row] = {}
    for row in _read_rows(path):
        first = rows.setdefault(row.image, row)
        if row.split != first.split:
            raise DataError(
                f"{row.where}: its image {row.image[:200]!r} is in the split {row.split!r}, but in "
                f"{first.split!r} in an earlier line; correct one of them"
            )
    return rows.values()


def _find_columns(path: Path) -> tuple[dict[str, int], str] | None:
    """Return the place of each column that a header names, none without one; the delimiter."""
    return read_first_cells(path, _place_columns)


def _place_columns(first: list[str]) -> dict[str, int] | None:
    places = place_columns(first, _COLUMNS)
    if set(_NEEDED) <= places.keys():
        return places
    is_row = len(first) == 6 and Path(first[0].strip()).suffix[1:2].isalpha()
    return {} if is_row and (_list_forms(first) or not any(first[1:])) else None


def _place_bare(path: Path, delimiter: str) -> Mapping[str, int]:
    """Return the places of the columns of a table without a header, by its first object."""
    for number, cells in enumerate(read_cells(path, delimiter), start=1):
        if any(cells[1:]):
            forms = _list_forms(cells)
            if len(forms) == 1:
                return forms[0]
            raise DataError(
                f"{path}: line {number}: its class may be the second cell or the last, and no line "
                f"names the columns; write a first line such as {_HEADER}, in the file's own order"
            )
    return _BARE[0]


def _list_forms(cells: Sequence[str]) -> Sequence[Mapping[str, int]]:
    """List the forms without a header that a row may have."""
    fitting, ordered = [], []
    for form in _BARE if len(cells) == 6 else ():
        texts = [cells[form[key]].strip().replace(",", ".") for key in ("x1", "y1", "x2", "y2")]
        if all(map(_is_number, texts)):
            x1, y1, x2, y2 = map(float, texts)
            fitting.append(form)
            ordered += [form] * (x1 < x2 and y1 < y2)
    # A class that is a number seldom is a corner as well: the box would end before it begins.
    return fitting if len(fitting) < 2 else ordered or fitting


def _is_number(text: str) -> bool:
    return text.removeprefix("-").replace(".", "", 1).isdecimal()


def _read_rows(path: Path) -> Iterator[Row]:
    columns = _find_columns(path)
    if columns is None:
        raise DataError(f"{path}: its columns are not known; write {_HEADER} into the first line")
    named, delimiter = columns
    places = named or _place_bare(path, delimiter)
    for number, cells in enumerate(read_cells(path, delimiter), start=1):
        if cells and not (named and number == 1):
            if delimiter == ";":  # of countries whose decimals have commas
                own = {places[key] for key in _NUMBERS if key in places}
                cells = [c.replace(",", ".") if n in own else c for n, c in enumerate(cells)]
            yield _read_row(cells, places, number, path)


def _read_row(cells: Sequence[str], places: Mapping[str, int], number: int, path: Path) -> Row:
    where = f"{path}: line {number}"
    if len(cells) <= max(places.values()):
        raise DataError(f"{where}: has {pluralize(len(cells), 'cell')}, too few; correct it")
    texts = {key: cells[place].strip() for key, place in places.items()}
    if not texts["image"]:
        raise DataError(f"{where}: names no image; correct it")
    size, split = None, texts.get("split") or None
    if texts.get("width") and texts.get("height"):
        sides = [check_number(texts[key], key, where) for key in ("width", "height")]
        if not all(1 <= side <= MAX_SIDE and side.is_integer() for side in sides):
            raise DataError(f"{where}: sides must be 1 to {MAX_SIDE} pixels; correct them")
        size = int(sides[0]), int(sides[1])
    if not any(texts[key] for key in _NEEDED[1:]):
        return Row(where, texts["image"], size, None, None, split)
    x1, y1, x2, y2 = (check_number(texts[key], key, where) for key in ("x1", "y1", "x2", "y2"))
    label = check_name(texts["class"], where)
    return Row(where, texts["image"], size, (x1, y1, x2, y2), label, split)


def read_tables(tree: Tree, finding: Finding, split: str) -> CocoContent:
    """Read the tables of one split.

    Raises:
        DataError: Names the file and the line that is wrong.
    """
    files = dict.fromkeys(item.labels for items in finding.parts.values() for item in items)
    names = {row.label for name in files for row in _read_rows(tree.root / name) if row.label}
    if not 1 <= len(names) <= MAX_CLASSES:
        raise DataError(
            f"{tree.root}: its tables name {pluralize(len(names), 'class')}; there must be 1 to "
            f"{MAX_CLASSES}"
        )
    content = CocoContent()
    labels = content.name_classes(sorted(names))
    wanted = {(item.labels, item.image) for item in finding.parts[split]}
    ids: dict[str, int] = {}
    for file in files:
        found: dict[str, str] = {}
        for row in _read_rows(tree.root / file):
            if row.image not in found:
                found[row.image] = find_image(tree, row.image, file, row.where)
            image = found[row.image]
            if (file, image) not in wanted:
                continue
            if image not in ids:
                ids[image] = content.add_image(image, row.size, tree.root / file)
            if row.corners is not None and row.label is not None:
                content.add_object(ids[image], labels[row.label], row.corners)
    return content


TABLES = ForeignFormat(find_tables, read_tables)
