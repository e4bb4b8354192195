"""Fit a detector's priors or anchors to a data set's boxes, as arguments of its builder.

Legend: B boxes, L levels, S shapes (width and height in the frame that the network sees).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
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

__all__ = ["collect_sides", "fit_arguments"]

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


def fit_arguments(
    references: ReferenceBoxes, sides: Tensor, args: Mapping[str, Any]
) -> dict[str, Any]:
    """Fit priors or anchors by k-means under IoU.

    Args:
        references: The detector's.
        sides: (B, 2) of the boxes, see `collect_sides`; B at least 1.
        args: Arguments of its builder.

    Returns:
        Arguments to give in their place: ``prior_sizes`` of DSOD and SSD, ``anchor_scale`` and
        ``aspect_ratios`` of RetinaNet and Faster R-CNN. They are those of the best mean IoU among
        some; the detector's own, where none is better, are an empty dictionary.
    """
    if references.has_priors:
        return _fit_priors(references, sides)
    return _fit_anchors(references, sides, float(args.get("anchor_scale", 1.0)))


def _fit_priors(references: ReferenceBoxes, sides: Tensor) -> dict[str, Any]:
    model = references.model
    if references.is_dsod:
        ratios = model.prior_spec.aspect_ratios
    else:
        ratios = references.generator.aspect_ratios
    levels = len(ratios)
    squares = sides.prod(dim=1).sqrt()
    clustered = cluster_shapes(squares[:, None].expand(-1, 2), levels)[:, 0].tolist()
    low, high = np.percentile(squares.numpy(), (5, 95)).tolist()
    rising = [low * (max(high, 1.5 * low) / low) ** (n / levels) for n in range(levels + 1)]
    best, found = mean_overlap(sides, references.shapes()), dict[str, Any]()
    for candidate in (clustered, rising):
        sizes = _make_rising(candidate, levels + 1)
        overlap = mean_overlap(sides, _list_prior_shapes(sizes, ratios))
        if overlap > best:
            best, found = overlap, {"prior_sizes": sizes}
    return found


def _make_rising(sizes: Sequence[float], count: int) -> list[float]:
    """Return that many sizes, each above the one before, to a tenth of a pixel."""
    factors = [after / before for before, after in pairwise(sizes)]
    rise = max(_RISE, factors[-1] if factors else 1.5)
    result: list[float] = []
    for number in range(count):
        size = sizes[number] if number < len(sizes) else result[-1] * rise
        result.append(max(size, result[-1] * _RISE if result else 1.0))
    return [round(size, 1) for size in result]


def _list_prior_shapes(
    sizes: Sequence[float], ratios: Sequence[Sequence[float]]
) -> list[tuple[float, float]]:
    """List the shapes of all levels by SSD's rule, see `PriorSpec`."""
    shapes = []
    for (low, high), of_level in zip(pairwise(sizes), ratios, strict=True):
        shapes += [(low, low), (math.sqrt(low * high),) * 2]
        for ratio in of_level:
            wide, narrow = low * math.sqrt(ratio), low / math.sqrt(ratio)
            shapes += [(wide, narrow), (narrow, wide)]
    return shapes


def _fit_anchors(references: ReferenceBoxes, sides: Tensor, scale: float) -> dict[str, Any]:
    generator = references.generator
    sizes = torch.tensor([size for level in generator.sizes for size in level]) / scale
    own = tuple(generator.aspect_ratios[0])
    clusters = cluster_shapes(sides, _RATIOS)
    fitted = sorted({round(float(h / w), 2) for w, h in clusters})
    best, found = mean_overlap(sides, references.shapes()), dict[str, Any]()
    for ratios, factor in product((own, tuple(max(r, 0.01) for r in fitted)), _SCALES):
        shapes = [
            (float(s) * factor / math.sqrt(r), float(s) * factor * math.sqrt(r))
            for s in sizes
            for r in ratios
        ]
        overlap = mean_overlap(sides, shapes)
        if overlap > best:
            arguments = {"anchor_scale": round(factor, 3), "aspect_ratios": list(ratios)}
            best, found = overlap, arguments
    return found
