"""Many short byte strings in one array."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Blobs:
    """Byte strings one behind the other.

    Attributes:
        content: (n,) uint8, all the strings.
        ends: (N,) int64 position behind each string.
    """

    content: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        start = self.ends[index - 1] if index else 0
        return self.content[start : self.ends[index]].tobytes()


def pack_blobs(strings: Iterable[bytes]) -> Blobs:
    """Copy byte strings into one array."""
    content = bytearray()
    ends = []
    for string in strings:
        content += string
        ends.append(len(content))
    return Blobs(np.frombuffer(content, np.uint8), np.array(ends, np.int64))


def join_blobs(parts: Iterable[Blobs]) -> Blobs:
    """Join several arrays of strings to one."""
    parts = list(parts)
    starts = np.cumsum([0, *(len(part.content) for part in parts)], dtype=np.int64)
    ends = [part.ends + start for part, start in zip(parts, starts[:-1], strict=True)]
    empty = np.zeros(0, np.int64)
    return Blobs(
        np.concatenate([empty.astype(np.uint8), *(part.content for part in parts)]),
        np.concatenate([empty, *ends]),
    )
