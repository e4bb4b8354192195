"""Reads COCO's run lengths as numbers: runs of pixels, column by column, outside first."""

import math
from collections.abc import Sequence

import numpy as np


def parse_run_lengths(counts: str | bytes) -> list[int] | None:
    """Decode COCO's compressed run lengths to numbers (`rleFrString` in cocoapi's maskApi.c).

    Own code, because pycocotools gives no numbers, and checks nothing when it decodes.

    Each number has 5 bits a character, the lowest first, from the character 48 on; bit 6 says that
    more follow. From the fourth on a number is the difference to the last but one before.

    Returns:
        None where the text is no such form.
    """
    codes = counts if isinstance(counts, bytes) else counts.encode("utf-8")
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        if not 48 <= code < 48 + 64 or shift > 40:
            return None
        # Five bits of the number, the lowest first.
        value |= (code - 48 & 31) << shift
        shift += 5
        if code - 48 & 32:
            continue
        # The last group carries the sign.
        if code - 48 & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 else None


def enclose_runs(size: Sequence[int], counts: str | Sequence[int]) -> list[float] | None:
    """Return the box around the pixels of a mask, xywh, as pycocotools' `toBbox` does.

    Args:
        size: (H, W), both whole numbers.
        counts: Run lengths, compressed or as whole numbers.

    Returns:
        Zeros for a mask without pixels; None where the run lengths do not fill it.
    """
    runs = parse_run_lengths(counts) if isinstance(counts, str) else counts
    if runs is None or any(n < 0 for n in runs) or sum(runs) != math.prod(size):
        return None
    ends = np.cumsum(np.array(runs, np.int64))[1::2]
    lengths = np.array(runs[1::2], np.int64)
    first, last = (ends - lengths)[lengths > 0], ends[lengths > 0] - 1
    if not len(first):
        return [0.0, 0.0, 0.0, 0.0]
    height = size[0]
    left, right = first.min() // height, last.max() // height
    # A run that goes on in the next column has that one's top and its own bottom.
    goes_on = (first // height < last // height).any()
    top = 0 if goes_on else (first % height).min()
    bottom = height - 1 if goes_on else (last % height).max()
    return [float(n) for n in (left, top, right - left + 1, bottom - top + 1)]
