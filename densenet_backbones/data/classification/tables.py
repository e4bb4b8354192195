"""Tables of labels (CSV): an image and its class a row, and perhaps its split."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.foreign.content import check_name, find_image
from densenet_backbones.data.recognition.splits import WHOLE, find_split_word
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.untrusted.limits import MAX_TABLE_FILE
from densenet_backbones.untrusted.reading import check_file

COLUMNS = {
    "image": (
        *("filename", "file_name", "image", "image_path", "image_name", "path", "file", "img"),
        *("image_id", "id", "id_code"),
    ),
    "class": ("class", "label", "class_name", "category", "target", "diagnosis", "species", "name"),
    "split": ("split", "subset", "set", "partition", "fold_name"),
}
_OF_BOXES = {"xmin", "x1", "x_min", "left", "bbox"}


@dataclass(frozen=True)
class LabelledImage:
    """Image of a folder or a table.

    Attributes:
        name: Its file, relative to the root of the data.
        label: Name of its class.
        split: Name of its split; "all" where nothing names one.
    """

    name: str
    label: str
    split: str


def find_label_tables(tree: Tree) -> list[str]:
    """Return the tables below a folder that name images and their classes, and no boxes."""
    return [name for name in tree.list_with(".csv") if _find_columns(tree.root / name)]


def read_label_table(tree: Tree, name: str) -> Iterator[LabelledImage]:
    """Yield the rows of a table.

    Names of images may lack their ending, and folders in front of them.

    Raises:
        DataError: Names the line that is wrong.
    """
    path = tree.root / name
    places = _find_columns(path)
    if places is None:
        raise DataError(
            f"{path}: its columns are not known; name them in the first line: image, class and, "
            "if there are splits, split"
        )
    own_split = find_split_word(name)
    for number, cells in enumerate(_read_cells(path), start=1):
        if number == 1 or not cells:
            continue
        where = f"{path}: line {number}"
        if len(cells) <= max(places.values()):
            raise DataError(f"{where}: has {len(cells)} cells, too few; correct it")
        image = _find_file(tree, cells[places["image"]].strip(), name, where)
        label = check_name(cells[places["class"]], where)
        word = cells[places["split"]].strip() if "split" in places else ""
        yield LabelledImage(image, label, word or own_split or find_split_word(image) or WHOLE)


def _find_file(tree: Tree, promised: str, table: str, where: str) -> str:
    """Return the image that a row names, perhaps without its ending."""
    stem = promised.replace("\\", "/").rpartition("/")[2]
    candidates = tree.by_stem.get(stem, [])
    if len(candidates) == 1:
        return candidates[0]
    return find_image(tree, promised, table, where)


def _find_columns(path: Path) -> dict[str, int] | None:
    try:
        first = next(_read_cells(path), [])
    except DataError:
        return None
    names = [cell.strip().lower() for cell in first]
    if _OF_BOXES & set(names):
        return None
    places = {
        key: next(names.index(name) for name in known if name in names)
        for key, known in COLUMNS.items()
        if any(name in names for name in known)
    }
    return places if {"image", "class"} <= places.keys() else None


def _read_cells(path: Path) -> Iterator[list[str]]:
    check_file(path, MAX_TABLE_FILE, DataError)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error.reason}); save it so") from (
            error
        )
    except csv.Error as error:
        raise DataError(f"{path}: is no table ({error}); export it again") from error
