"""Cells of tables (CSV), as programs of many countries write them."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.recognition.sniffing import read_ends
from densenet_backbones.untrusted.limits import MAX_TABLE_FILE
from densenet_backbones.untrusted.reading import check_file, describe_encoding, name_encoding

DELIMITERS = (",", ";", "\t")
"""What stands between cells: semicolons where decimals have commas."""
IMAGE_COLUMNS = (
    *("filename", "file_name", "image", "image_path", "image_name", "path", "file", "img"),
    "image_id",
)
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "fold_name")
"""Names of the columns that every table may have."""

T = TypeVar("T")


def read_first_cells(path: Path, find: Callable[[list[str]], T | None]) -> tuple[T, str] | None:
    """Look at a table's first line, cut at each delimiter in turn.

    Args:
        path: The file.
        find: Returns what is wanted of the cells; None if it is not in them.

    Returns:
        What was found first, and the delimiter; None if there is nothing.
    """
    line = read_ends(path).decode("utf-8-sig", "replace").partition("\n")[0].strip("\r\0")
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            continue
        if (found := find(cells)) is not None:
            return found, delimiter
    return None


def place_columns(first: Sequence[str], known: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Find columns by their names in the first line, in any case.

    Args:
        first: Cells of the line.
        known: Names that each column may have, the best first.

    Returns:
        The place of each column that is there.
    """
    names = [cell.strip().lower() for cell in first]
    return {
        key: next(names.index(name) for name in own if name in names)
        for key, own in known.items()
        if any(name in names for name in own)
    }


def read_cells(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Yield the cells of each row of a table.

    Raises:
        DataError: The file is too large, no text, or no table.
    """
    check_file(path, MAX_TABLE_FILE, DataError)
    try:
        with open(path, encoding=name_encoding(path), newline="") as file:
            yield from csv.reader(file, delimiter=delimiter)
    except UnicodeError as error:
        raise DataError(describe_encoding(path)) from error
    except csv.Error as error:
        raise DataError(f"{path}: is no table ({error}); export it again") from error
