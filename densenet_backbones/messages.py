"""What is said about wrong usage: one sentence, with the nearest right key."""

import difflib
import re
from collections.abc import Callable, Iterable

# What jsonargparse says of an option that does not exist, in a file and on the command line.
_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: -*|(?<!\w)option '|Key ')([\w.-]+)", re.IGNORECASE
)
_WRONG_VALUE = re.compile(
    r"Parser key \"(?P<key>[\w.]+)\": (?P<why>.*?)\.? (?:Got|Given) value: (?P<value>.*)"
)
_WANTED = re.compile(r"Expected an? (<class '[\w.]+'>|[\w.]+\[.*?\](?=\.? |\.?$))")


def one_sentence(message: str, known_keys: Callable[[], Iterable[str]] = tuple) -> str:
    """A message of argparse or jsonargparse without its dump of types and usage.

    Args:
        message: Any number of lines.
        known_keys: Gives the right keys, asked where one is unknown.
    """
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if wrong := _WRONG_VALUE.search(text):
        wanted = [_readable(kind) for kind in _WANTED.findall(wrong["why"])]
        if wanted:
            return f"{wrong['key']} must be {' or '.join(wanted)}, got {wrong['value']}"
    if unknown := _UNKNOWN.search(text):
        text += nearest(unknown[1], known_keys())
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """A question for the end of an error, ``"; did you mean 'dog'?"``, or nothing."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _readable(kind: str) -> str:
    """``<class 'int'>`` as ``int``, ``typing.Literal['a', 'b']`` as ``'a', 'b'``."""
    if name := re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>", kind):
        return "null" if name[1] == "NoneType" else name[1]
    if choices := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind):
        return f"one of {choices[1]}"
    return kind
