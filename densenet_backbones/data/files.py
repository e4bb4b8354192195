"""Helpers of the readers: file names from annotations, listings, error sentences and progress.

Names inside annotation files are untrusted: `check_relative_path` is the one way from such a name
to a path.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.messages import pluralize, show_controls
from densenet_backbones.untrusted.limits import MAX_PATH

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # no file system takes them all
T = TypeVar("T")
R = TypeVar("R")


def check_relative_path(name: str, where: str) -> PurePosixPath:
    """Check a file name from an annotation file: relative, and staying below its folder.

    Windows separators count as separators. Links that a user placed in the folder are followed.

    Args:
        name: The name as the annotation file gives it.
        where: File and item, for the message.

    Returns:
        The relative path, with forward slashes.

    Raises:
        DataError: If the name is empty, absolute, has a drive letter, ``..`` or control codes.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if len(name) > MAX_PATH:
        raise DataError(
            f"{where}: file name {name[:60]!r}... has more than {MAX_PATH} characters; shorten it"
        )
    if not path.parts or path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise DataError(
            f"{where}: file name {name!r} must be relative and stay inside the image folder; "
            "write it relative to that folder"
        )
    if _UNPRINTABLE.search(name):
        raise DataError(f"{where}: file name {name!r} has control codes; rename the file")
    return path


def list_files(folder: Path) -> frozenset[str]:
    """List the names of a folder's files, at once; empty where there is no such folder.

    Names that begin with ``._`` are left out: macOS keeps there what other systems cannot store of
    the file of the same name.
    """
    try:
        with os.scandir(folder) as entries:
            return frozenset(
                entry.name
                for entry in entries
                if not entry.name.startswith("._") and _holds(entry.is_file)
            )
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def list_by_stem(folder: Path, suffixes: Collection[str], what: str) -> dict[str, Path]:
    """List a folder's files of some suffixes, in any case, by their names without them.

    Args:
        folder: The folder.
        suffixes: Suffixes in lower case, with their dots.
        what: What the files are, in the plural, for the message.

    Raises:
        DataError: Two files have one name: nothing says which of them is meant.
    """
    files: dict[str, Path] = {}
    for name in sorted(list_files(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        if stem in files:
            raise DataError(
                f"{folder}: {files[stem].name} and {name} are {what} of one name; remove one or "
                "rename it"
            )
        files[stem] = folder / name
    return files


def list_images(folder: Path) -> dict[str, Path]:
    """List a folder's images by their names without suffix; see `list_by_stem`."""
    return list_by_stem(folder, IMAGE_SUFFIXES, "images")


def _holds(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a link that leads in a circle
        return False


def list_folders(folder: Path) -> list[str]:
    """List the sorted names of a folder's folders; empty where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _holds(entry.is_dir))
    except (FileNotFoundError, NotADirectoryError):
        return []


def spread(items: Sequence[T], limit: int) -> Sequence[T]:
    """Return at most `limit` of the items, spread evenly, in their order."""
    return items[:: max(1, math.ceil(len(items) / limit))]


def quote(names: Collection[object], limit: int = 3) -> str:
    """Quote the first names and say how many more there are: ``'a', 'b', 'c' and 9 more``."""
    shown = (name for _, name in zip(range(limit), names, strict=False))
    first = ", ".join(f"{name[:200]!r}" if isinstance(name, str) else repr(name) for name in shown)
    more = len(names) - limit
    return f"{first} and {more} more" if more > 0 else first


def refuse_if_strict(problems: Sequence[Problem], strict: bool) -> None:
    """Raise one `DataError` that lists the problems when the user asked for none."""
    if strict and problems:
        faults = [f"{p.file}: {p.item}: {p.what}" for p in problems]
        refuse_faults(
            faults, f"strict reading found {pluralize(len(problems), 'fault')}; correct them", 20
        )


def track_progress(
    items: Collection[T], text: str, *, show: bool = True, from_count: int = 2000
) -> Iterable[T]:
    """Return the items, under a progress bar that vanishes at the end when they are many."""
    console = Console(stderr=True)  # standard output is for results
    if not show or len(items) < from_count or not console.is_terminal:
        return items
    return _track(items, show_controls(text), console)


def _track(items: Collection[T], text: str, console: Console) -> Iterator[T]:
    """Yield the items under rich's usual bar, whose text is no markup here."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn())
    columns_at_end = (TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, *columns_at_end, console=console, transient=True) as progress:
        yield from progress.track(items, description=text)


def track_unknown(items: Iterable[T], text: str) -> Iterator[T]:
    """Yield items of an unknown number, counted beside a spinner on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed}", markup=False))
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, description=show_controls(text))


def map_in_threads(
    function: Callable[[T], R],
    items: Collection[T],
    text: str,
    *,
    progress: bool = True,
    workers: int | None = None,
) -> Iterator[R]:
    """Call a function that reads files on every item, in threads, under a progress bar.

    Args:
        function: Called with an item; an exception in it ends the work.
        items: Arguments of the function.
        text: Text of the progress bar, which vanishes at the end.
        progress: Show the progress bar.
        workers: Number of threads; None takes one a core, at most 8.

    Yields:
        The results, in the order of the items.

    Raises:
        DataError: If `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise DataError(f"workers must be at least 1, got {workers}")
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in track_progress(futures, text, show=progress, from_count=1):
            yield future.result()
    finally:  # an interruption must not wait for all the items
        pool.shutdown(cancel_futures=True)


def refuse_faults(faults: Sequence[str], what: str, limit: int = 50) -> None:
    """Raise one `DataError` for all the faults there are, the first `limit` in full."""
    if len(faults) == 1:
        raise DataError(f"{what}: {faults[0]}")
    if faults:
        more = [f"and {len(faults) - limit} more"] if len(faults) > limit else []
        raise DataError(f"{what}:", *faults[:limit], *more)
