"""Write a file whole or not at all: results, pictures, checkpoints and models go through here.

A file is written under another name beside its target, flushed to disk and renamed, so that neither
a reader nor a crash ever sees half of it. What a killed writer leaves is told by its name.
A list of results that take long to compute is a `GrowingList`, a whole file after each of them.
"""

import csv
import errno
import hashlib
import io
import itertools
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_HOST = hashlib.blake2s(platform.node().encode(), digest_size=4).hexdigest()
_DRAFT = re.compile(r"\..*\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-\d+\.draft", re.DOTALL)
_NUMBERS = itertools.count()
_LONGEST_START = 100
"""Bytes of a target's name in its draft's: file systems allow 255."""
_ABANDONED = 24 * 3600
"""Seconds without a write after which a draft is taken for one of a machine that is gone."""


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Give the path of a draft to write, and put it in the place of a file at the end.

    Args:
        path: Replaced if it exists; it stays as it was if the block fails. Its folder is made. A
            link is followed: what it leads to is replaced.

    Yields:
        The draft, an empty file in the same folder.

    Raises:
        OSError: The folder or file cannot be written, or the disk is full; names the file.
    """
    path = Path(path)
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    draft = _name_draft(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        mode = draft.stat().st_mode  # as the umask says; some writers give their own
        yield draft
        draft.chmod(mode)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())  # else a crash may keep the new name and lose the content
        draft.replace(target)
        _flush_names(target.parent)
    except OSError as error:
        # A write to a full disk names no file, and the draft is none of the user's.
        if error.errno is not None and error.filename in (None, str(draft)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):  # the reason is raised already
            draft.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> list[Path]:
    """Remove the drafts of writers that were killed, in a folder and those in it.

    Args:
        folder: May be missing. This process must not be writing there.

    Returns:
        Removed files: drafts of dead processes of this machine, and all that nobody has written to
        for a day.
    """
    removed = []
    for file in folder.rglob(".*.draft"):
        named = _DRAFT.fullmatch(file.name)
        with suppress(OSError):  # its writer may be about to rename it
            if named and (
                (named["host"] == _HOST and is_dead(int(named["process"])))
                or time.time() - file.stat().st_mtime > _ABANDONED
            ):
                file.unlink()
                removed.append(file)
    return removed


def _name_draft(path: Path) -> Path:
    """Return a name that no other writer takes, on this machine or another, in any thread."""
    start = os.fsencode(path.name)[:_LONGEST_START].decode(errors="ignore")
    return path.with_name(f".{start}.{_HOST}-{os.getpid()}-{next(_NUMBERS)}.draft")


def is_dead(process: int) -> bool:
    """Return True if no process of this machine has a number but, perhaps, this one.

    One that has ended is dead, too, though nobody has asked how: in containers nobody may ever.
    """
    if process == os.getpid():
        return True  # a former one with our number, as in restarted containers
    if os.name != "posix":  # where signal 0 is not a question
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # none; a number that no process has
        return True
    except OSError:  # alive, and another user's
        return False
    return _has_ended(process)


def _has_ended(process: int) -> bool:
    """Return True if all threads of a process have ended, as far as the system tells."""
    threads = list(Path(f"/proc/{process}/task").glob("*/stat"))
    try:
        states = [stat.read_bytes().rpartition(b")")[2].split()[0] for stat in threads]
    except OSError:  # one has ended on the way
        return False
    return bool(states) and set(states) <= {b"Z", b"X"}


def _flush_names(folder: Path) -> None:
    """Make a renaming last over a crash, where a system lets folders be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all; see `replace_file`."""
    with replace_file(path) as draft:
        draft.write_bytes(content)


def save_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8, lines end in a newline alone) whole or not at all.

    Names of files that are no text are spelled with backslashes, for people to read.
    """
    save_bytes(path, _encode(text))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def save_json(path: str | Path, content: object, indent: int | None = 1) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: As of `replace_file`.
        content: Plain JSON types.
        indent: Blanks a level; None writes one line.
    """
    save_text(path, json.dumps(content, indent=indent) + "\n")


def save_csv(path: str | Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows of a table, the head among them, as a CSV file, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    save_text(path, text.getvalue())


def check_output(folder: str | Path, option: str) -> None:
    """Refuse a folder for results that cannot be made or written to, before they are computed.

    Args:
        folder: Folder, which may be missing; nothing is left behind in its place.
        option: Option that names it, for the message.

    Raises:
        OSError: Says the option, the folder and why.
    """
    folder = Path(folder).absolute()
    made: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")  # a full disk takes names and no bytes
    except OSError as error:
        raise OSError(
            f"{option} {folder}: nothing can be written there ({error.strerror}); name another "
            "folder"
        ) from error
    finally:
        for path in reversed(made):
            path.rmdir()


def find_unused_folder(folder: str | Path) -> Path:
    """Return a folder that is missing or empty: the given one, or ``NAME-2``, ``NAME-3``, ….

    Nothing is made.
    """
    return next(f for f in _number_folders(Path(folder)) if _is_unused(f))


def find_last_folder(folder: str | Path) -> Path:
    """Return the last folder that `find_unused_folder` gave and that was written to.

    It is the given one where none was.
    """
    used = itertools.takewhile(lambda f: not _is_unused(f), _number_folders(Path(folder)))
    return [Path(folder), *used][-1]


def _number_folders(folder: Path) -> Iterator[Path]:
    """Yield ``NAME``, ``NAME-2``, ``NAME-3``, …."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))


def _is_unused(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


class GrowingList:
    """JSON file of a list that grows by its end, so that what is in it outlives a kill.

    The file appears with the first entry. Each further one is written over the closing bracket,
    with a bracket behind it, in one call: `save_json` of the list gives the same bytes.

    Args:
        path: Replaced with the first entry, or by `close`; its folder is made.
    """

    _END = b"\n]\n"

    def __init__(self, path: str | Path) -> None:
        self.path, self._length = Path(path), 0

    def append(self, entry: object) -> None:
        """Write an entry; see `extend`."""
        self.extend([entry])

    def extend(self, entries: Sequence[object]) -> None:
        """Write entries.

        Args:
            entries: Each of plain JSON types.

        Raises:
            OSError: The disk is full, for one; the file then holds the entries before.
        """
        if not entries:
            return
        if not self._length:
            save_json(self.path, list(entries))
            self._length = self.path.stat().st_size
            return
        # As they are written in a list of their own, without its brackets.
        text = json.dumps(list(entries), indent=1)[1:-2].encode("utf-8")
        place = self._length - len(self._END)
        self._length = _write_end(self.path, place, b"," + text + self._END, self._END)

    def close(self) -> None:
        """Write an empty list if there was no entry."""
        if not self._length:
            save_json(self.path, [])


class GrowingText:
    """Text file that grows by whole pieces, so that what is in it outlives a kill.

    Args:
        path: Replaced with the first piece; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._length = Path(path), 0

    @property
    def is_empty(self) -> bool:
        """True before the first piece."""
        return not self._length

    def append(self, text: str) -> None:
        """Write a piece, as `save_text` does.

        Raises:
            OSError: The disk is full, for one; the file then holds the pieces before.
        """
        if self.is_empty:
            save_text(self.path, text)
            self._length = self.path.stat().st_size
        else:
            self._length = _write_end(self.path, self._length, _encode(text), b"")


def _write_end(path: Path, place: int, content: bytes, end: bytes) -> int:
    """Write the end of a file from a place on, in one call, and return the file's length.

    Args:
        path: The file.
        place: Where `content` goes.
        content: New end of the file.
        end: What goes there instead if `content` cannot be written.
    """
    with path.open("rb+", buffering=0) as file:
        file.seek(place)
        try:
            written = file.write(content)
            if written < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.seek(place)
            file.write(end)
            file.truncate()
            raise
    return place + written
