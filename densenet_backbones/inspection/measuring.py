"""Measures a data set: classes, sizes of images and boxes, and what no prior matches.

Everything is plain numbers, lists and texts, for JSON and for the page.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision

import densenet_backbones.torchvision_models  # noqa: F401 - registers the detectors
from densenet_backbones.analysis.reference_boxes import ReferenceBoxes, read_references
from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import map_in_threads, spread
from densenet_backbones.data.mask_samples import IGNORED, MaskRecord, SegmentationSet
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.sets.counts import count_classes
from densenet_backbones.messages import nearest

MATCHED = 2000  # images whose boxes are matched with priors: a millisecond each
MASKS_READ = 500
TINY = 4  # pixels of a side: less than half of the smallest stride of usual detectors
_BINS = 24

Table = dict[str, Any]


def measure(parts: Mapping[str, AnySet]) -> Table:
    """Measure every split."""
    sizes = np.concatenate([_list_sizes(data) for data in parts.values()])
    report: Table = {
        "images": {split: len(data) for split, data in parts.items()},
        "image_sizes": _summarize_sizes(sizes),
        "classes": _count(parts),
    }
    boxes = [data.packed.columns for data in parts.values() if isinstance(data, DetectionSet)]
    if boxes:
        report |= _measure_boxes(parts)
    return report


def _list_sizes(data: AnySet) -> np.ndarray:
    """Return (N, 2) widths and heights."""
    if isinstance(data, DetectionSet):
        return data.packed.columns.sizes
    return np.array([(r.width, r.height) for r in data.records], np.int64).reshape(-1, 2)


def _summarize_sizes(sizes: np.ndarray) -> Table:
    different, counts = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {
        "width": _summarize(sizes[:, 0]),
        "height": _summarize(sizes[:, 1]),
        "aspect_ratio": _summarize(sizes[:, 0] / np.maximum(sizes[:, 1], 1)),
        "different": len(different),
        "most_frequent": [[*different[n].tolist(), int(counts[n])] for n in order[:8].tolist()],
        "points": [[*different[n].tolist(), int(counts[n])] for n in order[:1000].tolist()],
    }


def _summarize(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    low, middle, high = np.percentile(values, (0, 50, 100)).tolist()
    return {"least": _round(low), "median": _round(middle), "most": _round(high)}


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _count(parts: Mapping[str, AnySet]) -> list[Table]:
    """Return a row a class: its name, and its numbers in each split."""
    rows: dict[str, Table] = {}
    for split, data in parts.items():
        counted = (
            [
                (
                    c.name,
                    {
                        "objects": c.objects,
                        "images": c.images,
                        "crowd": c.crowd,
                        "difficult": c.difficult,
                        "left_out": c.left_out,
                    },
                )
                for c in count_classes(data)
            ]
            if isinstance(data, DetectionSet)
            else _count_pixels(data)
        )
        for name, numbers in counted:
            rows.setdefault(name, {"name": name})[split] = numbers
    return list(rows.values())


def _count_pixels(data: SegmentationSet) -> list[tuple[str, Table]]:
    """Count the pixels of each class, and the images that have it, in at most `MASKS_READ`."""
    size = data.classes.num_classes
    total, images, seen = np.zeros(size, np.int64), np.zeros(size, np.int64), 0
    for counts in map_in_threads(
        lambda record: _count_in_mask(record, size), spread(data.records, MASKS_READ), "Masks"
    ):
        total, images, seen = total + counts, images + (counts > 0), seen + 1
    share = total / max(1, int(total.sum()))
    return [
        (
            name,
            {"pixels": int(total[n]), "share": _round(float(share[n])), "images": int(images[n])},
        )
        for n, name in enumerate(data.classes.names)
    ]


def _count_in_mask(record: MaskRecord, size: int) -> np.ndarray:
    try:
        mask = record.read_mask()
    except DataError:  # is among the faults
        return np.zeros(size, np.int64)
    if mask.ndim == 3:
        return np.asarray((mask == 1).sum(axis=(1, 2)))
    return np.bincount(mask[mask != IGNORED].ravel(), minlength=size)[:size]


# -- boxes -----------------------------------------------------------------------------------------


def _measure_boxes(parts: Mapping[str, AnySet]) -> Table:
    sets = [data for data in parts.values() if isinstance(data, DetectionSet)]
    columns = [data.packed.columns for data in sets]
    boxes = np.concatenate([c.boxes for c in columns])
    counts = [np.diff(c.box_ends, prepend=0) for c in columns]
    sides = np.concatenate(
        [np.repeat(c.sizes, n, axis=0) for c, n in zip(columns, counts, strict=True)]
    )
    width, height = (boxes[:, 2:] - boxes[:, :2]).T.astype(np.float64)
    area = np.sqrt(width * height)
    relative = area / np.sqrt(np.maximum(sides.prod(axis=1), 1))
    per_image = np.concatenate(counts)
    return {
        "boxes": {
            "count": len(boxes),
            "side": _summarize(area),
            "share_of_image_side": _summarize(relative),
            "aspect_ratio": _summarize(width / np.maximum(height, 1e-9)),
            # COCO's bounds of small and medium objects.
            "small": int((area < 32).sum()),
            "medium": int(((area >= 32) & (area < 96)).sum()),
            "large": int((area >= 96).sum()),
            "per_image": _summarize(per_image),
            "histograms": {
                "side of boxes, pixels (square root of the area)": _make_histogram(area, log=True),
                "side of boxes as share of the image's": _make_histogram(relative),
                "width : height of boxes": _make_histogram(
                    width / np.maximum(height, 1e-9), log=True
                ),
                "objects an image": _make_histogram(per_image),
            },
        }
    }


def _make_histogram(values: np.ndarray, log: bool = False) -> Table:
    """Return edges and counts of bars; on a logarithmic axis where that is asked for."""
    if not len(values):
        return {"edges": [], "counts": [], "log": log}
    values = np.maximum(values, 1e-6) if log else values
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer) and high - low < _BINS:
        edges = np.arange(low, high + 2) - 0.5
    elif log and high > low:
        edges = np.geomspace(low, high * (1 + 1e-9), _BINS + 1)
    else:
        edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    counts, edges = np.histogram(values, edges)
    return {"edges": [_round(v) for v in edges.tolist()], "counts": counts.tolist(), "log": log}


def match_priors(parts: Mapping[str, AnySet], detector: str) -> Table | None:
    """Count the boxes that no prior of a detector matches; None for detectors without priors.

    Raises:
        DataError: There is no detector of that name.
    """
    known = torchvision.models.list_models(torchvision.models.detection)
    if detector not in known:
        raise DataError(f"--detector: there is no {detector!r}{nearest(detector, known)}")
    sets = [data for data in parts.values() if isinstance(data, DetectionSet)]
    if not sets or not any(len(data.packed.columns.boxes) for data in sets):
        return None
    names = sets[0].categories.names
    model = torchvision.models.get_model(
        detector, weights=None, weights_backbone=None, num_classes=len(names) + 1
    )
    references = read_references(model)
    if references is None or not references.has_priors:
        return None
    records = [r for data in sets for r in data.records[:: math.ceil(len(data) / MATCHED)]]
    return {"detector": detector, **match_references(references, records, names)}


def match_references(
    references: ReferenceBoxes, records: Sequence[ImageRecord], names: Sequence[str]
) -> Table:
    """Match annotated boxes with a detector's priors or anchors.

    Args:
        references: Of the detector.
        records: Images with their boxes.
        names: Classes, in label order.

    Returns:
        ``images``, ``of`` (boxes), ``missed`` (boxes whose IoU with every prior or anchor is below
        the one from which it learns them), ``median_side`` of these in pixels, ``classes`` that
        have some, ``coverage`` (share of boxes that overlap one by half), ``mean_best_iou``, and
        ``best_possible_recall`` (share of boxes that one learns by the detector's own matching).
    """
    missed, total = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    smallest: list[float] = []
    best: list[np.ndarray] = []
    learned = 0
    for record in records:
        matches = references.match(torch.from_numpy(record.boxes), (record.height, record.width))
        best.append(matches.best_iou.numpy())
        learned += int(matches.matched.sum())
        chosen = best[-1] < references.threshold
        total += np.bincount(record.labels - 1, minlength=len(names))
        missed += np.bincount(record.labels[chosen] - 1, minlength=len(names))
        sides = record.boxes[chosen, 2:] - record.boxes[chosen, :2]
        smallest += np.sqrt(np.prod(sides, 1)).tolist()
    overlaps, count = np.concatenate([*best, np.zeros(0)]), max(1, int(total.sum()))
    rows = sorted(zip(names, missed.tolist(), total.tolist(), strict=True), key=lambda row: -row[1])
    return {
        "images": len(records),
        "missed": int(missed.sum()),
        "of": int(total.sum()),
        "median_side": _round(float(np.median(smallest))) if smallest else None,
        "classes": [list(row) for row in rows if row[1]],
        "coverage": _round(float((overlaps >= 0.5).sum() / count)),
        "mean_best_iou": _round(float(overlaps.sum() / count)),
        "best_possible_recall": _round(learned / count),
    }


def list_tiny(data: DetectionSet) -> list[tuple[int, int]]:
    """List the (image, box) positions of boxes that have a side of less than `TINY` pixels."""
    columns = data.packed.columns
    sides = (columns.boxes[:, 2:] - columns.boxes[:, :2]).min(axis=1, initial=np.inf)
    owners = np.repeat(np.arange(len(data)), np.diff(columns.box_ends, prepend=0))
    return [(int(owners[n]), int(n)) for n in np.flatnonzero(sides < TINY)]


def list_doubled(data: DetectionSet, overlap: float = 0.95) -> list[tuple[int, int, int]]:
    """List (image, box, box) of objects of one class that lie on each other, box from 0 in it."""
    doubled = []
    for position, record in enumerate(data.records):
        for first, second in find_doubled(record.boxes, record.labels, overlap):
            doubled.append((position, first, second))
    return doubled


def find_doubled(
    boxes: np.ndarray, labels: np.ndarray, overlap: float
) -> Sequence[tuple[int, int]]:
    """Return pairs of boxes of one label whose IoU is at least `overlap`."""
    if len(boxes) < 2:
        return []
    iou = torchvision.ops.box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    same = np.triu((iou >= overlap) & (labels[:, None] == labels), 1)
    return [(int(a), int(b)) for a, b in np.argwhere(same)]
