"""Tables of labels (CSV): an image and its class a row, and perhaps its split."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.foreign.content import check_name, find_image
from densenet_backbones.data.recognition.cells import (
    IMAGE_COLUMNS,
    SPLIT_COLUMNS,
    place_columns,
    read_cells,
    read_first_cells,
)
from densenet_backbones.data.recognition.splits import WHOLE, find_split_word
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import pluralize

COLUMNS = {
    "image": (*IMAGE_COLUMNS, "id", "id_code"),
    "class": ("class", "label", "class_name", "category", "target", "diagnosis", "species", "name"),
    "split": SPLIT_COLUMNS,
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
    columns = _find_columns(path)
    if columns is None:
        raise DataError(
            f"{path}: its columns are not known; name them in the first line: image, class and, "
            "if there are splits, split"
        )
    places, delimiter = columns
    own_split = find_split_word(name)
    for number, cells in enumerate(read_cells(path, delimiter), start=1):
        if number == 1 or not cells:
            continue
        where = f"{path}: line {number}"
        if len(cells) <= max(places.values()):
            raise DataError(f"{where}: has {pluralize(len(cells), 'cell')}, too few; correct it")
        image = find_image(tree, cells[places["image"]].strip(), name, where)
        label = check_name(cells[places["class"]], where)
        word = cells[places["split"]].strip() if "split" in places else ""
        yield LabelledImage(image, label, word or own_split or find_split_word(image) or WHOLE)


def _find_columns(path: Path) -> tuple[dict[str, int], str] | None:
    """Return the place of each column that is known, and the delimiter."""
    return read_first_cells(path, _place_columns)


def _place_columns(first: list[str]) -> dict[str, int] | None:
    if _OF_BOXES & {cell.strip().lower() for cell in first}:
        return None
    places = place_columns(first, COLUMNS)
    return places if {"image", "class"} <= places.keys() else None
