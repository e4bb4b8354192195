"""What the readers share: names from annotation files, listings, sentences and progress.

Names inside annotation files are untrusted: `inside` is the one way from such a name to a path.
"""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from densenet_backbones.data.samples import DataError, Problem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # no file system takes them all
T = TypeVar("T")


def inside(name: str, where: str) -> PurePosixPath:
    """Check a file name from an annotation file: relative, and staying below its folder.

    Windows separators count as separators. Links that a user placed in the folder are followed.

    Args:
        name: The name as the annotation file gives it.
        where: File and item, for the message.

    Returns:
        The relative path.

    Raises:
        DataError: If the name is empty, absolute, has a drive letter, ``..`` or control codes.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise DataError(
            f"{where}: file name {name!r} must be relative and stay inside the image folder; "
            "write it relative to that folder"
        )
    if _UNPRINTABLE.search(name):
        raise DataError(f"{where}: file name {name!r} has control codes; rename the file")
    return path


def files_in(folder: Path) -> frozenset[str]:
    """Names of the files of one folder, by one listing; empty where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def folders_in(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder; empty where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def some(names: Collection[object], limit: int = 3) -> str:
    """The first names and how many more there are: ``'a', 'b', 'c' and 9 more``."""
    first = ", ".join(repr(name) for _, name in zip(range(limit), names, strict=False))
    more = len(names) - limit
    return f"{first} and {more} more" if more > 0 else first


def nearest(name: str, known: Iterable[str]) -> str:
    """A question for the end of an error, ``"; did you mean 'dog'?"``, or nothing."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def refuse_if_strict(problems: Sequence[Problem], strict: bool) -> None:
    """Raise one `DataError` that lists the problems when the user asked for none."""
    if strict and problems:
        lines = [f"  {p.file}: {p.item}: {p.what}" for _, p in zip(range(20), problems)]  # noqa: B905
        more = [f"  and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise DataError(
            "\n".join(
                [f"strict reading found {len(problems)} faults; correct them:", *lines, *more]
            )
        )


def with_progress(
    items: Collection[T], text: str, *, show: bool = True, from_count: int = 2000
) -> Iterable[T]:
    """The items, under a progress bar that vanishes at the end when they are many."""
    console = Console(stderr=True)  # standard output is for results
    if not show or len(items) < from_count or not console.is_terminal:
        return items
    return track(items, description=text, console=console, transient=True)
