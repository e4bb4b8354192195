"""Draws the outlines of COCO's objects as masks, after checking that they can be drawn.

Outlines are untrusted: pycocotools' C code walks along every edge of a polygon, and decodes run
lengths that do not fill the mask into memory that was never written. So edges are measured and run
lengths added up before it sees them.

Legend: H x W pixels of the image as shown.
"""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from pycocotools import mask as coco_mask

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.coco.json_values import abbreviate
from densenet_backbones.data.readers.coco.run_lengths import parse_run_lengths
from densenet_backbones.data.samples import Outline, RunLengths
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import (
    MAX_OUTLINE_LENGTH,
    MAX_OUTLINE_WORK,
    MAX_PIXELS,
)

_REACH = 10  # image sides that a polygon may lie outside: the rasterizer walks along every edge
_SHORT = 100_000  # pixels of edges
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
    return decode_mask(encode_outline(outline, size, where))


def encode_outline(outline: Outline, size: tuple[int, int], where: str) -> RunLengths:
    """Return the compressed run lengths of an outline, some hundred bytes.

    Arguments and errors are those of `draw_outline`.
    """
    runs = check_outline(outline, size, where)
    if runs is not None:
        numbers = {"size": list(size), "counts": runs}
        return cast(RunLengths, coco_mask.frPyObjects(numbers, *size))
    # A code a polygon; together they are the object.
    return cast(RunLengths, coco_mask.merge(coco_mask.frPyObjects(outline, *size)))


def decode_mask(code: RunLengths) -> np.ndarray:
    """Decode compressed run lengths that were checked, or made here, as (H, W) bool."""
    return np.asarray(coco_mask.decode(code), bool)


def check_outline(outline: Outline, size: tuple[int, int], where: str) -> list[int] | None:
    """Check that an outline can be drawn; arguments and errors are those of `draw_outline`.

    Returns:
        Its run lengths; None for polygons.
    """
    if isinstance(outline, dict):
        return _read_runs(outline, size, where)
    if math.prod(size) > MAX_PIXELS:
        raise DataError(
            f"{where}: its image has {size[1]}x{size[0]} pixels, more than the {MAX_PIXELS} that "
            "are allowed; cut it into tiles or correct its size"
        )
    length = sum(_measure_polygon(polygon, size, where) for polygon in outline)
    if length > MAX_OUTLINE_LENGTH or length * len(outline) > MAX_OUTLINE_WORK:
        raise DataError(
            f"{where}: the edges of its {len(outline)} polygons are {length:.0f} pixels long, more "
            f"than an outline may have ({MAX_OUTLINE_LENGTH}, fewer where there are more than "
            f"{MAX_OUTLINE_WORK // MAX_OUTLINE_LENGTH} polygons); {_FIX}, or give run lengths"
        )
    return None


def _measure_polygon(polygon: object, size: tuple[int, int], where: str) -> float:
    """Check a polygon; return the pixels that drawing its edges walks over, roughly."""
    numbers = polygon if isinstance(polygon, list) else []
    if len(numbers) < 6 or len(numbers) % 2 or any(type(n) not in (int, float) for n in numbers):
        raise DataError(
            f"{where}: a polygon must be a list of at least 3 points [x1, y1, x2, y2, x3, y3, "
            f"...], got {pluralize(len(numbers), 'entry')}; {_FIX}"
        )
    reach = _REACH * max(size)
    far = [n for n in numbers if not -reach <= n <= reach]  # NaN is far, too
    if far:
        raise DataError(
            f"{where}: a polygon has the coordinate {abbreviate(far[0])}, far outside its image of "
            f"{size[1]}x{size[0]} pixels; {_FIX}"
        )
    # Short polygons, which nearly all are, need no closer look.
    points = len(numbers) // 2
    most = points * (max(numbers) - min(numbers) + 1)
    if most < _SHORT:
        return float(most)
    xy = np.array(numbers, np.float64).reshape(-1, 2)
    return float(np.abs(xy - np.roll(xy, 1, axis=0)).max(axis=1).sum()) + points


def _read_runs(outline: RunLengths, size: tuple[int, int], where: str) -> list[int]:
    """Return run lengths as numbers, column by column, the first of them outside."""
    if tuple(outline.get("size", ())) != size or math.prod(size) > MAX_PIXELS:
        raise DataError(
            f"{where}: its run lengths are for the size {outline.get('size')} (H, W), the image's "
            f"is {list(size)}, and at most {MAX_PIXELS} pixels are read; {_FIX}"
        )
    counts = outline.get("counts")
    runs = parse_run_lengths(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(runs, list) or any(n < 0 for n in runs) or sum(runs) != math.prod(size):
        raise DataError(
            f"{where}: its run lengths do not add up to the {math.prod(size)} pixels of "
            f"{size[1]}x{size[0]}; {_FIX}"
        )
    return runs
