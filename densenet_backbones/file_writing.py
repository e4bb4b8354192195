"""Write a file whole or not at all: every result, picture and model file goes through here.

A file is written under another name beside its target, flushed to disk and renamed, so that neither
a reader nor a crash ever sees half of it. A list of results that takes long to compute is a
`GrowingList`, a whole file after each of them.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Give the path of a draft to write, and put it in the place of a file at the end.

    Args:
        path: Replaced if it exists; it stays as it was if the block fails. Its folder is made.

    Yields:
        The draft, in the same folder, which does not exist yet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())  # else a crash may keep the new name and lose the content
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def save_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all; see `replace_file`."""
    with replace_file(path) as draft:
        draft.write_bytes(content)


def save_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8, lines end in a newline alone) whole or not at all."""
    save_bytes(path, text.encode("utf-8"))


def save_json(path: str | Path, content: object, indent: int | None = 1) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: As of `replace_file`.
        content: Plain JSON types.
        indent: Blanks a level; None writes one line.
    """
    save_text(path, json.dumps(content, indent=indent) + "\n")


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
        """Write an entry.

        Args:
            entry: Plain JSON types.

        Raises:
            OSError: The disk is full, for one; the file then holds the entries before.
        """
        if not self._length:
            save_json(self.path, [entry])
            self._length = self.path.stat().st_size
            return
        # As a list of one is written, without its brackets.
        text = json.dumps([entry], indent=1)[1:-2].encode("utf-8")
        with self.path.open("rb+", buffering=0) as file:
            place = self._length - len(self._END)
            file.seek(place)
            content = b"," + text + self._END
            try:
                written = file.write(content)
                if written < len(content):
                    raise OSError(f"{self.path}: no space left on the disk; make some")
            except OSError:
                file.seek(place)
                file.write(self._END)
                file.truncate()
                raise
            self._length = place + written

    def close(self) -> None:
        """Write an empty list if there was no entry."""
        if not self._length:
            save_json(self.path, [])
