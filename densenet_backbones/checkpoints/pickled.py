"""Stand-ins for the two kinds of pickled values that harmless training checkpoints hold.

torch's restricted unpickler (``weights_only=True``) knows tensors and plain values. Training
programs also store their options, an `argparse.Namespace` (timm's train.py, DETR's main.py), and
scores that are NumPy numbers. A Namespace is only a bag of attributes: unpickling one runs no
code, so it is allowed, as timm allows it (timm/models/_helpers.py). NumPy's own unpickling is C
code that believes the bytes it is given, so its numbers are read by the functions below instead.
"""

import argparse
import pickle
import struct
from collections.abc import Callable

__all__ = ["ALLOWED"]

# struct's letters of NumPy's kinds of numbers, bool to uint64
_KINDS = ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_FORMATS = dict(zip(_KINDS, "?efdbhiqBHIQ", strict=True))


class _NumberType:
    """Stand-in for a pickled `numpy.dtype`: kind and size of a number, and its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _read_number(kind: _NumberType, data: bytes | str) -> float | int | bool:
    """Return the Python number that a pickled NumPy scalar holds."""
    if not isinstance(kind, _NumberType) or kind.code not in _FORMATS:
        raise pickle.UnpicklingError("a NumPy value that is no number")
    # Python 2 pickled bytes as text.
    raw = data.encode("latin1") if isinstance(data, str) else data
    try:
        value: float | int | bool = struct.unpack(kind.order + _FORMATS[kind.code], raw)[0]
        return value
    except struct.error as error:
        raise pickle.UnpicklingError(f"a damaged NumPy number ({error})") from error


# With their names: without them, leaving torch's context would also take away a user's own entry.
ALLOWED: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    (argparse.Namespace, "argparse.Namespace"),
    (_NumberType, "numpy.dtype"),
    (_read_number, "numpy.core.multiarray.scalar"),
    (_read_number, "numpy._core.multiarray.scalar"),  # its name since NumPy 2
]
