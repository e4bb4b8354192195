"""Write a file whole or not at all: every result, picture and model file goes through here.

A file is written under another name beside its target, flushed to disk and renamed, so that neither
a reader nor a crash ever sees half of it.
"""

import json
import os
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
