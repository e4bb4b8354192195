"""Checks of arguments: each raises a ``ValueError`` that says what is legal, and what it got.

::

    check_choice("tap", "nrom", ("raw", "norm"))
    # tap must be one of 'raw', 'norm', got 'nrom'; did you mean 'norm'?
    check_interval("drop_rate", 1.5, "[0, 1)")  # drop_rate must lie in [0, 1), got 1.5
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from densenet_backbones.messages.sentences import nearest

__all__ = ["check_choice", "check_interval", "check_whole", "to_plain"]


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
        hint = ""
        if isinstance(value, float) and value.is_integer():
            hint = f"; write {value:.0f}"
        raise ValueError(f"{name} must be a whole number, got {value!r}{hint}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def to_plain(value: object) -> Any:
    """Return an argument in Python's own types, as configs of other libraries hold numbers.

    NumPy's numbers and arrays become numbers and lists; so do, with what is in them, sequences and
    mappings such as ranges and OmegaConf's ``ListConfig`` and ``DictConfig``. Numbers keep their
    kind: 2.0 stays a float, which counts refuse, as in torch and timm.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(map(to_plain, value)) if type(value) is tuple else value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_plain(entry) for entry in value]
    return value
