"""Parses a JSON file a slice at a time, so that a large one is never in memory as a whole.

The standard library's scanner reads each value; only the outermost object and the lists in it
are walked here. Errors are the standard library's, with line and column of the file.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

BATCH = 5000  # elements of a list that are handed out at once
_CHUNK = 2**20  # characters that are read at once
_NUMBER = 5000  # a number of more digits is refused; one that ends nearer to the end may go on
_SPACE = re.compile(r"[ \t\n\r]*")


def read_members(
    path: Path, note_constant: Callable[[str], float]
) -> Iterator[tuple[str | None, int | None, Any]]:
    """Parse a file whose outermost value is an object.

    Args:
        path: The file, UTF-8.
        note_constant: Called with NaN, Infinity or -Infinity, returns the value to take.

    Yields:
        Name of a member, and for each list of the object: the position of the first element, and
        some elements (none of an empty list; position 0 begins a list anew where a name is given
        twice). For other members, None and the value. A file whose outermost value is no object:
        None, None and the value.

    Raises:
        OSError: If the file cannot be read.
        json.JSONDecodeError: If it is not JSON.
        ValueError: If a number has thousands of digits, or the text is not UTF-8.
        RecursionError: If it is nested too deeply.
    """
    with open(path, encoding="utf-8-sig") as file:
        text = _SlicedText(file, note_constant)
        if text.peek() != "{":
            yield None, None, text.read_value()
        else:
            text.position += 1
            yield from _read_object(text)
        if text.peek():
            raise text.fault("Extra data")


def _read_object(text: "_SlicedText") -> Iterator[tuple[str, int | None, Any]]:
    """Read from behind the opening brace to behind the closing one."""
    sign = text.peek()
    while sign != "}":
        if sign != '"':
            raise text.fault("Expecting property name enclosed in double quotes")
        name = text.read_value()
        text.take(":")
        if text.peek() == "[":
            text.position += 1
            yield from ((name, first, batch) for first, batch in _read_list(text))
        else:
            yield name, None, text.read_value()
        if text.peek() == "}":
            break
        text.take(",")
        comma = text.get_place(-1)
        sign = text.peek()
        if sign == "}":
            raise _make_fault_of_comma(comma, text.get_place(), '{"":0,}')
    text.position += 1


def _make_fault_of_comma(comma: "_Place", end: "_Place", example: str) -> json.JSONDecodeError:
    """Return the error of a comma before the end of what ``example`` is a short one of.

    Since Python 3.13 it is at the comma, before that at the end, in other words.
    """
    try:
        json.loads(example)
    except json.JSONDecodeError as error:
        return (comma if example[error.pos] == "," else end).make_fault(error.msg)
    raise AssertionError("JSON has no trailing commas")


def _read_list(text: "_SlicedText") -> Iterator[tuple[int, list[Any]]]:
    """Read from behind the opening bracket to behind the closing one; at least one batch."""
    first = 0
    batch: list[Any] = []
    ended = text.peek() == "]"
    while not ended:
        text.read_elements(batch)
        comma = text.get_place(-1)
        if text.peek() == "]":
            raise _make_fault_of_comma(comma, text.get_place(), "[0,]")
        batch.append(text.read_value())
        if len(batch) >= BATCH:
            yield first, batch
            first, batch = first + len(batch), []
        ended = text.peek() == "]"
        if not ended:
            text.take(",")
    text.position += 1
    if batch or not first:
        yield first, batch


class _Place(NamedTuple):
    """A place in a file: a position in a part of its text, and what was in front of that part.

    Attributes:
        text: The part.
        position: The position in it.
        lines: Number of lines before it.
        column: Characters of its first line before it.
    """

    text: str
    position: int
    lines: int
    column: int

    def make_fault(self, message: str) -> json.JSONDecodeError:
        """Return the error of this place, with line and column of the file."""
        error = json.JSONDecodeError(message, self.text, self.position)
        error.colno += self.column if error.lineno == 1 else 0
        error.lineno += self.lines
        return error


class _SlicedText:
    """Window on the text of a file that moves on as values are read.

    Args:
        file: The open file.
        note_constant: See `read_members`.
    """

    def __init__(self, file: TextIO, note_constant: Callable[[str], float]) -> None:
        self._file, self._text, self._ended = file, "", False
        self._lines, self._column = 0, 0  # of the text that was dropped
        decoder: Any = json.JSONDecoder(parse_constant=note_constant)
        self._scan = decoder.scan_once
        self.position = 0

    def peek(self) -> str:
        """Skip white space; return the sign behind it, empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self.position)
            assert match is not None, "it matches nothing, too"
            self.position = match.end()
            if self.position < len(self._text):
                return self._text[self.position]
            if not self._read_on():
                return ""

    def take(self, sign: str) -> None:
        """Skip white space and a sign that must come there."""
        if self.peek() != sign:
            raise self.fault(f"Expecting {sign!r} delimiter")
        self.position += 1

    def read_value(self) -> Any:
        """Read the value that begins behind white space."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self.position)
                # A number goes on, perhaps, in what has not been read yet.
                if self._ended or end < len(self._text) - _NUMBER or self._text[end - 1] in '}]"':
                    self.position = end
                    return value
            except (StopIteration, ValueError) as error:
                if self._ended or self._is_final(error):
                    raise self._place(error) from None
            self._read_on()

    def read_elements(self, batch: list[Any]) -> None:
        """Append elements of a list, each with its comma, as far as the text is there.

        This is `read_value` and `take` without their calls, which took longer than the scanner.
        """
        text, position, scan = self._text, self.position, self._scan
        try:
            while len(batch) < BATCH - 1:
                if text[position] in " \t\n\r":
                    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
                value, position = scan(text, position)
                if text[position] != ",":
                    break
                batch.append(value)
                self.position = position = position + 1
        except (StopIteration, ValueError, IndexError):
            return  # the end of the text, or a fault that `read_value` tells

    def _is_final(self, error: Exception) -> bool:
        """Return True if no text to come can mend a fault, so that it need not be read."""
        place = error.value if isinstance(error, StopIteration) else getattr(error, "pos", None)
        cut = isinstance(error, json.JSONDecodeError) and error.msg.startswith("Unterminated")
        return place is not None and not cut and place < len(self._text) - _NUMBER

    def _place(self, error: Exception) -> Exception:
        """Count lines and columns from the start of the file."""
        if isinstance(error, json.JSONDecodeError):
            return self.fault(error.msg, error.pos)
        if isinstance(error, StopIteration):
            return self.fault("Expecting value", error.value)
        return error

    def fault(self, message: str, position: int | None = None) -> json.JSONDecodeError:
        """Return the error of a position of the text; None for the present one."""
        place = self.get_place()
        if position is not None:
            place = place._replace(position=position)
        return place.make_fault(message)

    def get_place(self, step: int = 0) -> "_Place":
        """Return the present place, or one so far from it, which holds when the window moves on."""
        return _Place(self._text, self.position + step, self._lines, self._column)

    def _read_on(self) -> bool:
        """Read more text, at least as much as there is; drop what is done. False at the end."""
        done, self._text = self._text[: self.position], self._text[self.position :]
        lines = done.count("\n")
        self._column = len(done) - done.rfind("\n") - 1 + (0 if lines else self._column)
        self._lines += lines
        self.position = 0
        more = self._file.read(max(_CHUNK, len(self._text)))
        self._text += more
        self._ended = not more
        return bool(more)
