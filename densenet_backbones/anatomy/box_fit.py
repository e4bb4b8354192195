"""Fit a detector's priors or anchors to a data set's boxes, as arguments of its builder.

Legend: B boxes, L levels, S shapes (width and height in the frame that the network sees).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densenet_backbones.analysis.reference_boxes import (
    ReferenceBoxes,
    cluster_shapes,
    mean_overlap,
)
from densenet_backbones.data.samples import ImageRecord

__all__ = ["collect_sides", "list_candidates"]

_RISE = 1.05  # least factor from one prior size to the next
_SCALES = [2 ** (step / 4) for step in range(-12, 9)]  # of anchors, an eighth up to four times
_RATIOS = 3


def collect_sides(references: ReferenceBoxes, records: Sequence[ImageRecord]) -> Tensor:
    """Return (B, 2) widths and heights of all boxes, in the frame that the network sees."""
    boxes = [
        references.scale_boxes(torch.from_numpy(r.boxes).float(), (r.height, r.width))
        for r in records
    ]
    joined = torch.cat(boxes) if boxes else torch.zeros(0, 4)
    return (joined[:, 2:] - joined[:, :2]).double().clamp(min=1e-3)


def list_candidates(
    references: ReferenceBoxes, sides: Tensor, args: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """List priors or anchors that k-means under IoU suggests, as arguments of the builder.

    Args:
        references: The detector's.
        sides: (B, 2) of the boxes, see `collect_sides`; B at least 1.
        args: Arguments of its builder.

    Returns:
        Arguments to give in their place: ``prior_sizes`` of DSOD and SSD, of which matching has to
        tell the best, as coarse levels reach few boxes; ``anchor_scale`` and ``aspect_ratios`` of
        RetinaNet and Faster R-CNN, at most one pair, whose mean IoU is better than now.
    """
    if references.has_priors:
        return list(_list_priors(references, sides))
    return _fit_anchors(references, sides, float(args.get("anchor_scale", 1.0)))


def _list_priors(references: ReferenceBoxes, sides: Tensor) -> Iterator[dict[str, Any]]:
    levels = len(
        references.model.prior_spec.aspect_ratios
        if references.is_dsod
        else references.generator.aspect_ratios
    )
    squares = sides.prod(dim=1).sqrt()
    low, high, largest = np.percentile(squares.numpy(), (5, 95, 100)).tolist()
    yield {"prior_sizes": _round_rising(_rise(low, high, levels))}
    for count in range(1, levels + 1):  # the other levels rise from there
        clusters = cluster_shapes(squares[:, None].expand(-1, 2), count)[:, 0].tolist()
        rest = levels + 1 - len(clusters)
        sizes = clusters[:-1] + _rise(clusters[-1], largest, rest)
        yield {"prior_sizes": _round_rising(sizes)}


def _rise(first: float, last: float, steps: int) -> list[float]:
    """List ``steps + 1`` sizes that rise evenly in their logarithm, by half at least."""
    factor = max(last, 1.5 * first) / first
    return [first * factor ** (step / steps) for step in range(steps + 1)]


def _round_rising(sizes: Sequence[float]) -> list[float]:
    """Return sizes to a tenth of a pixel, each above the one before."""
    result = [max(sizes[0], 1.0)]
    for size in sizes[1:]:
        result.append(max(size, result[-1] * _RISE))
    return [round(size, 1) for size in result]


def _fit_anchors(references: ReferenceBoxes, sides: Tensor, scale: float) -> list[dict[str, Any]]:
    generator = references.generator
    sizes = torch.tensor([size for level in generator.sizes for size in level]) / scale
    own = tuple(generator.aspect_ratios[0])
    clusters = cluster_shapes(sides, _RATIOS)
    fitted = sorted({round(float(h / w), 2) for w, h in clusters})
    best, found = mean_overlap(sides, references.shapes()), list[dict[str, Any]]()
    for ratios, factor in product((own, tuple(max(r, 0.01) for r in fitted)), _SCALES):
        shapes = [
            (float(s) * factor / math.sqrt(r), float(s) * factor * math.sqrt(r))
            for s in sizes
            for r in ratios
        ]
        overlap = mean_overlap(sides, shapes)
        if overlap > best:
            arguments = {"anchor_scale": round(factor, 3), "aspect_ratios": list(ratios)}
            best, found = overlap, [arguments]
    return found
