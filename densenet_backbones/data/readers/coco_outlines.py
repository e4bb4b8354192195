"""Draws the outlines of COCO's objects as masks, after checking that they can be drawn.

Outlines are untrusted: pycocotools' C code walks along every edge of a polygon, and decodes run
lengths that do not fill the mask into memory that was never written. Polygons are rasterized by
pycocotools, and run lengths by numpy once they are numbers.

Legend: H x W pixels of the image as shown.
"""

import math
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from densenet_backbones.data.readers.coco_json import abbreviate
from densenet_backbones.data.samples import DataError, Outline, RunLengths

_REACH = 10  # image sides that a polygon may lie outside: the rasterizer walks along every edge
_FIX = "correct the annotation or remove it"


def make_box_outline(bbox: Sequence[float]) -> Outline:
    """Return the polygon around a box, xywh in pixels."""
    x, y, w, h = bbox
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def draw_outline(outline: Outline, size: tuple[int, int], where: str) -> np.ndarray:
    """Draw COCO's `segmentation` as (H, W) bool.

    Args:
        outline: Polygons, or run lengths (compressed or not).
        size: (H, W) of the image.
        where: File and annotation, for the message.

    Raises:
        DataError: If it is neither, or not for an image of this size.
    """
    runs = check_outline(outline, size, where)
    if runs is not None:
        # Runs alternate, the first outside; columns are stored one after the other.
        inside = np.arange(len(runs)) % 2 == 1
        return np.repeat(inside, runs).reshape(size[::-1]).T
    # A code a polygon; together they are the object.
    codes = coco_mask.frPyObjects(outline, *size)
    return np.asarray(coco_mask.decode(coco_mask.merge(codes)), bool)


def check_outline(outline: Outline, size: tuple[int, int], where: str) -> list[int] | None:
    """Check that an outline can be drawn; arguments and errors are those of `draw_outline`.

    Returns:
        Its run lengths; None for polygons.
    """
    if isinstance(outline, dict):
        return _read_runs(outline, size, where)
    for polygon in outline:
        _check_polygon(polygon, size, where)
    return None


def _check_polygon(polygon: object, size: tuple[int, int], where: str) -> None:
    numbers = polygon if isinstance(polygon, list) else []
    if len(numbers) < 6 or len(numbers) % 2 or any(type(n) not in (int, float) for n in numbers):
        raise DataError(
            f"{where}: a polygon must be a list of at least 3 points [x1, y1, x2, y2, x3, y3, "
            f"...], got {len(numbers)} entries; {_FIX}"
        )
    reach = _REACH * max(size)
    far = [n for n in numbers if not -reach <= n <= reach]  # NaN is far, too
    if far:
        raise DataError(
            f"{where}: a polygon has the coordinate {abbreviate(far[0])}, far outside its image of "
            f"{size[1]}x{size[0]} pixels; {_FIX}"
        )


def _read_runs(outline: RunLengths, size: tuple[int, int], where: str) -> list[int]:
    """Return run lengths as numbers, column by column, the first of them outside."""
    if tuple(outline.get("size", ())) != size:
        raise DataError(
            f"{where}: its run lengths are for the size {outline.get('size')} (H, W), the image's "
            f"is {list(size)}; {_FIX}"
        )
    counts = outline.get("counts")
    runs = parse_run_lengths(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(runs, list) or any(n < 0 for n in runs) or sum(runs) != math.prod(size):
        raise DataError(
            f"{where}: its run lengths do not add up to the {math.prod(size)} pixels of "
            f"{size[1]}x{size[0]}; {_FIX}"
        )
    return runs


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
