"""One voice for errors: checks of arguments, the nearest right name, sentences for argparse.

A check raises a ``ValueError`` that says the argument, what is legal and what it got::

    check_choice("tap", "nrom", ("raw", "norm"))
    # tap must be one of 'raw', 'norm', got 'nrom'; did you mean 'norm'?
    check_interval("drop_rate", 1.5, "[0, 1)")  # drop_rate must lie in [0, 1), got 1.5
"""

import difflib
import re
from collections.abc import Callable, Iterable
from numbers import Integral

__all__ = [
    "check_choice",
    "check_interval",
    "check_whole",
    "nearest",
    "one_sentence",
    "show_controls",
]

# Errors of jsonargparse about an option that does not exist, in a file and on the command line.
_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: -*|(?<!\w)option '|Key ')([\w.-]+)", re.IGNORECASE
)
# Control codes (C0 but the line feed, and C1), lone surrogates, and codes that reverse text.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_WRONG_VALUE = re.compile(
    r"Parser key \"(?P<key>[\w.]+)\": (?P<why>.*?)\.? (?:Got|Given) value: (?P<value>.*)"
)
_LONGEST_NAME, _MOST_NAMES = 100, 2000  # that `nearest` compares
_WANTED = re.compile(r"Expected an? (<class '[\w.]+'>|[\w.]+\[.*?\](?=\.? |\.?$))")


# ------------------------------------------------------------------------------ checks


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is none of the choices, naming the nearest one.

    Args:
        name: Argument or option, as the user writes it.
        value: Value to check.
        choices: Legal values, in the order to list them.

    Raises:
        ValueError: If ``value`` is not among ``choices``.
    """
    choices = list(choices)
    if value in choices:
        return
    texts = [choice for choice in choices if isinstance(choice, str)]
    close = nearest(value, texts) if isinstance(value, str) else ""
    legal = ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices))
    raise ValueError(f"{name} must be {legal}, got {value!r}{close}")


def check_interval(name: str, value: float, interval: str) -> None:
    """Refuse a number outside an interval; NaN lies in none.

    Args:
        name: Argument or option, as the user writes it.
        value: Number to check.
        interval: Interval in mathematical notation, such as ``[0, 1)`` or ``(0, inf)``.

    Raises:
        ValueError: If ``value`` lies outside ``interval``.
    """
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if above and below:
        return
    legal = f"lie in {interval}"
    if high == float("inf"):
        legal = f"be {'at least' if interval[0] == '[' else 'above'} {low:g} and finite"
    raise ValueError(f"{name} must {legal}, got {value}")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Refuse anything but an integer of at least ``least``.

    Args:
        name: Argument or option, as the user writes it.
        value: Value to check; booleans are no integers.
        least: Smallest legal integer.

    Raises:
        ValueError: If ``value`` is not an integer, or is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


# ------------------------------------------------------------------------------ sentences


def one_sentence(message: str, known_keys: Callable[[], Iterable[str]] = tuple) -> str:
    """Shorten a message of argparse or jsonargparse to one sentence without types and usage.

    Args:
        message: Text of any number of lines.
        known_keys: Function that returns the right keys; called only if one is unknown.
    """
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if wrong := _WRONG_VALUE.search(text):
        wanted = [_readable(kind) for kind in _WANTED.findall(wrong["why"])]
        if wanted:
            return f"{wrong['key']} must be {' or '.join(wanted)}, got {wrong['value']}"
    if unknown := _UNKNOWN.search(text):
        text += nearest(unknown[1], known_keys())
    return text


def show_controls(text: str) -> str:
    """Return a text for a terminal: control codes but line feeds are spelled in hexadecimal.

    Args:
        text: Text with names of files, folders or classes in it, which may hold anything.
    """
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


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
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _readable(kind: str) -> str:
    """``<class 'int'>`` as ``int``, ``typing.Literal['a', 'b']`` as ``'a', 'b'``."""
    if name := re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>", kind):
        return "null" if name[1] == "NoneType" else name[1]
    if choices := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind):
        return f"one of {choices[1]}"
    return kind
