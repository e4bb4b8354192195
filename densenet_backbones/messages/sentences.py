"""Sentences about errors and what is printed: text, in which nothing acts on a terminal.

Names of classes, files and folders may hold anything. `print_lines` prints them for the commands
that need no rich tables; ``reporting.console.say`` prints for the others.
"""

import difflib
import errno
import os
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

__all__ = [
    "advise",
    "describe_error",
    "describe_missing",
    "nearest",
    "pluralize",
    "print_lines",
    "quote_word",
    "read_version",
    "show_controls",
]

# Control codes (C0 and C1), other ends of lines, codes that reverse text, and lone surrogates.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
# What helps against an error of the system, by its number.
_ADVICE = {
    errno.EACCES: "change its permissions, or give another path",
    errno.EDQUOT: "remove other files, or choose another disk",
    errno.EEXIST: "remove it, or give another path",
    errno.EISDIR: "it is a folder, give a file",
    errno.ELOOP: "its links lead in a circle, correct one of them",
    errno.EMFILE: "raise the limit with `ulimit -n`",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "remove other files, or choose another disk",
    errno.ENOTDIR: "a part of the path is a file, check the path",
    errno.EPERM: "change its permissions, or give another path",
    errno.EROFS: "give a path on a disk that can be written to",
}
_LONGEST_NAME, _MOST_NAMES = 100, 2000  # that `nearest` compares


def describe_error(error: BaseException) -> str:
    """Describe an error in one sentence; those of the system with the file and what helps.

    Args:
        error: Any error. One without words is described by its type.
    """
    if isinstance(error, UnicodeEncodeError):  # nearly always the name of a file
        line = error.object[: error.start].rpartition("\n")[2] + error.object[error.start :]
        return f"{line.partition(chr(10))[0][:300]!r} has characters that are no text; rename it"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    reason = (error.strerror or os.strerror(error.errno)).rstrip(".")
    file = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{file}{reason[:1].lower()}{reason[1:]}{advise(error)}"


def advise(error: OSError) -> str:
    """Return ``"; check the path"`` or what else helps against an error of the system, if known."""
    advice = _ADVICE.get(error.errno or 0)
    return f"; {advice}" if advice else ""


def describe_missing(path: Path, what: str = "file") -> str:
    """Describe in one sentence a path where nothing is, with the nearest name beside it.

    Args:
        path: What was named.
        what: What was wanted there, such as ``"file or folder"``.
    """
    if path.is_symlink():
        return (
            f"{path}: is a link to {os.readlink(path)}, which is not there or leads in a circle; "
            "correct the link"
        )
    try:
        with os.scandir(path.parent) as entries:
            beside = [entry.name for entry, _ in zip(entries, range(_MOST_NAMES), strict=False)]
    except OSError:
        beside = []
    return f"{path}: there is no such {what}{nearest(path.name, beside) or '; check the path'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'dog'?"`` for the end of an error, or nothing.

    Args:
        name: Name that does not exist.
        known: Names that exist; compared without regard to case.
    """
    if len(name) > _LONGEST_NAME:
        return ""
    # Some names, and short ones: comparing takes the product of the lengths, and a hostile file
    # may hold hundreds of thousands.
    some = (other for _, other in zip(range(_MOST_NAMES), known, strict=False))
    by_lower = {other.lower(): other for other in some if len(other) <= _LONGEST_NAME}
    begun = [other for other in by_lower if len(name) > 3 and other.startswith(name.lower())]
    # densenet40 begins densenet40_k12_features, though densenet201 has fewer other letters.
    close = sorted(begun, key=len) or difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def pluralize(count: int, noun: str, plural: str | None = None, *, grouped: bool = False) -> str:
    """Return a count and its noun: ``1 image``, ``2 images``, ``3 more classes``.

    Args:
        count: Number of them.
        noun: What is counted, one of them: a word, or words of which the last changes.
        plural: Several of them, where more than the last word's end changes: ``images are``.
        grouped: Separate thousands.
    """
    if plural is None:
        ending = "es" if noun.endswith(("s", "x", "tch")) else "s"
        plural = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}{ending}"
    return f"{count:{',' * grouped}} {noun if count == 1 else plural}"


def quote_word(text: object) -> str:
    """Quote a path for a command that people copy: a shell takes it as one word."""
    shown = show_controls(str(text))
    if shown == str(text):
        return shlex.quote(shown)
    escaped = str(text).replace("\\", "\\\\").replace("'", "\\'")
    spelled = _CONTROLS.sub(
        lambda found: "".join(f"\\x{byte:02x}" for byte in os.fsencode(found[0])), escaped
    )
    return f"$'{spelled}'"


def show_controls(text: str) -> str:
    """Return a text for one line of a terminal: control codes are spelled, line feeds too.

    Args:
        text: Text with names of files, folders or classes in it, which may hold anything.
    """
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def print_lines(*lines: str, file: TextIO | None = None) -> None:
    """Print one line for each text; control codes in it are spelled.

    Args:
        lines: Texts of a line each.
        file: Standard output by default.

    Raises:
        SystemExit: Who reads them, such as `head`, has gone.
    """
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    for line in lines:  # letters that the terminal has not are spelled as well
        text = show_controls(line).encode(encoding, "backslashreplace").decode(encoding)
        try:
            print(text, file=file, flush=True)
        except BrokenPipeError:  # as rich does; Python would try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
            raise SystemExit(1) from None


def read_version() -> str:
    """Return the version of this package, which a bare checkout has too."""
    return str(getattr(sys.modules.get("densenet_backbones"), "__version__", "unknown"))
