"""Cells of tables (CSV), as programs of many countries write them."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.recognition.sniffing import read_ends
from densenet_backbones.untrusted.limits import MAX_TABLE_FILE
from densenet_backbones.untrusted.reading import check_file, name_encoding

DELIMITERS = (",", ";", "\t")
"""What stands between cells: semicolons where decimals have commas."""

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
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); save it so") from error
    except csv.Error as error:
        raise DataError(f"{path}: is no table ({error}); export it again") from error
