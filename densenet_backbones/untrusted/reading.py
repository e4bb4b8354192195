"""Read text and JSON of untrusted files within bounds.

Every failure becomes the error that the caller names, in one sentence with the file and the fix.
"""

import codecs
import json
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from densenet_backbones.messages import advise, describe_missing
from densenet_backbones.untrusted.limits import MAX_VALUES


def check_file(path: Path, most: int, error: type[Exception]) -> None:
    """Refuse a file that is none, or has more bytes than its reader should take.

    Args:
        path: The file; pipes and devices, which may never end, are refused.
        most: Bytes that it may have.
        error: Type of what is raised.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise error(f"{path}: cannot be read (it is no regular file); give a file")
        if state.st_size > most:
            raise error(
                f"{path}: has more than {most} bytes, the most that is read of such files, to "
                "protect the memory; split it, or check that it is the right file"
            )
    except FileNotFoundError as fault:
        raise error(describe_missing(path)) from fault
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror or fault}){advise(fault)}") from fault


def read_bytes(path: Path, most: int, error: type[Exception]) -> bytes:
    """Read a file of bounded size; arguments are those of `check_file`."""
    check_file(path, most, error)
    try:
        return path.read_bytes()
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror or fault}){advise(fault)}") from fault


def read_text(path: Path, most: int, error: type[Exception]) -> str:
    """Read UTF-8 text, with or without a byte-order mark; arguments are those of `read_bytes`.

    UTF-16 with its mark is read too: Windows calls it Unicode, and its shell writes lists so.
    """
    content = read_bytes(path, most, error)
    try:
        return content.decode(_choose_encoding(content))
    except UnicodeError as fault:
        raise error(describe_encoding(path, content.splitlines(keepends=True))) from fault


def describe_encoding(path: Path, lines: Iterable[bytes] | None = None) -> str:
    """Say which line of a file is no UTF-8, and what to do.

    Args:
        path: The file.
        lines: Its lines; None reads them.
    """
    if lines is None:
        with open(path, "rb") as file:
            return describe_encoding(path, file)
    for number, line in enumerate(lines, start=1):
        if number == 1 and _choose_encoding(line) == "utf-16":
            break
        try:
            line.decode()
        except UnicodeDecodeError as fault:
            near = line[max(0, fault.start - 20) : fault.start + 20].decode(errors="replace")
            return (
                f"{path}: line {number}: {near.strip()!r} cannot be read as UTF-8 text (Excel and "
                "Windows often write another encoding); save the file as UTF-8"
            )
    return f"{path}: begins as UTF-16 text and cannot be read so; save it as UTF-8"


def name_encoding(path: Path) -> str:
    """Return the encoding of a text file by its byte-order mark, for `open`."""
    with open(path, "rb") as file:
        return _choose_encoding(file.read(2))


def _choose_encoding(content: bytes) -> str:
    return "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def parse_json(text: str | bytes, **options: Any) -> object:
    """Parse JSON; whatever fails is a `ValueError`, too deep nesting included.

    Numbers may still be infinite, or of hundreds of digits: what converts them catches
    `OverflowError`, too.
    """
    try:
        parsed: object = json.loads(text, **options)
    except RecursionError as fault:
        raise ValueError(str(fault)) from fault
    return parsed


def measure_values(content: object, most: int = MAX_VALUES) -> int:
    """Count plain values in nested lists and mappings, shared ones once for each place.

    A pickle of a kilobyte can hold lists in lists that would print as terabytes: walking, comparing
    or printing it costs that many steps.

    Args:
        content: Lists, tuples, mappings and anything else.
        most: Count after which to stop.

    Returns:
        The number, or a larger one than `most`.
    """
    count, waiting = 1, [content]
    while waiting and count <= most:
        value = waiting.pop()
        inner: Collection[object] = ()
        if isinstance(value, Mapping):
            inner = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            inner = value
        count += len(inner)
        if count <= most:
            waiting.extend(inner)
    return count
