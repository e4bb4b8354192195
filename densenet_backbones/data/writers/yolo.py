"""Writes sets in YOLO's layout: ``images/{split}``, ``labels/{split}`` and ``data.yaml``.

The forms are those of Ultralytics (``ultralytics/data/utils.py``, ``verify_image_label``): a line
an object, its class from 0 and the box as shares of the image's size, center first; for outlines
the points of one polygon; for poses the keypoints behind the box.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.files import IMAGE_SUFFIXES, check_relative_path
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.readers.coco.outlines import draw_outline
from densenet_backbones.data.samples import DetectionSet, ImageRecord, Outline
from densenet_backbones.data.writers.objects import (
    WritableObject,
    has_outlines,
    list_visible_keypoints,
    list_writable,
    make_objects,
)
from densenet_backbones.data.writers.output import ImagePlacer, make_unique_names
from densenet_backbones.file_writing import save_text

_DIGITS = (6, 9, 12, 17)
"""Significant digits that are tried until a box is read again as it was."""
_INEXACT = "outlines of several parts or with holes (joined to one polygon, holes filled)"


def write_yolo(
    parts: Mapping[str, DetectionSet | SegmentationSet],
    out: Path,
    placer: ImagePlacer,
    left_out: Counter[str],
) -> None:
    """Write the splits of a data set; arguments are those of `write_coco`.

    Sets whose objects have keypoints are written as poses, others that have outlines as outlines:
    a data set is of one form.
    """
    objects = {
        split: make_objects(data, left_out) if isinstance(data, SegmentationSet) else data
        for split, data in parts.items()
    }
    first = next(iter(objects.values()))
    categories = first.categories
    form = "detect"
    if categories.keypoints:
        form = "pose"
    elif any(map(has_outlines, objects.values())):
        form = "segment"
    for split, data in objects.items():
        check_relative_path(split, f"{data.name}: split")
        paths = {n: record.path for n, record in enumerate(data.records)}
        names = make_unique_names(paths, IMAGE_SUFFIXES)
        (out / "labels" / split).mkdir(parents=True, exist_ok=True)
        for n, record in enumerate(data.records):
            placer.place(record.path, out / "images" / split / names[n])
            lines = [
                line
                for item in list_writable(data, record, left_out)
                for line in _make_lines(item, record, form, data.categories, left_out)
            ]
            file = out / "labels" / split / f"{Path(names[n]).stem}.txt"
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    save_text(out / "data.yaml", _make_yaml(list(objects), categories, form))


def _make_yaml(splits: Sequence[str], categories: Categories, form: str) -> str:
    """Write `data.yaml`; names are JSON texts, which are YAML's as well."""
    lines = ["path: ."]
    lines += [f"{json.dumps(split)}: {json.dumps(f'images/{split}')}" for split in splits]
    if form == "pose":
        count = len(categories.keypoints)
        lines += [
            f"kpt_shape: [{count}, 3]",
            f"flip_idx: {list(categories.mirrored_keypoints)}",
            f"kpt_names: {{0: {json.dumps(list(categories.keypoints))}}}",
        ]
    lines += ["names:", *(f"  {n}: {json.dumps(name)}" for n, name in enumerate(categories.names))]
    return "".join(f"{line}\n" for line in lines)


def _make_lines(
    item: WritableObject,
    record: ImageRecord,
    form: str,
    categories: Categories,
    left_out: Counter[str],
) -> list[str]:
    """Return the line of an object; none for a crowd."""
    if item.is_crowd:
        left_out["crowd regions"] += 1
        return []
    size = (record.width, record.height)
    number = item.label - 1
    left_out["marks of difficult objects"] += bool(item.annotation.get("difficult"))
    if form == "segment":
        polygon = _to_polygon(item, size, f"{record.path}", left_out)
        return [" ".join([str(number), *_share_points(polygon, size)])]
    words = [str(number), *share_box(item.box, size)]
    left_out["outlines (a data set of poses has none)"] += bool(item.outline)
    if form == "pose":
        flat = item.annotation.get("keypoints") or [0.0] * (3 * len(categories.keypoints))
        points = categories.put_in_label_order(np.array(flat, float).reshape(-1, 3))
        for x, y, seen in points.tolist():
            words += [repr(x / size[0]), repr(y / size[1]), str(int(seen))]
    else:
        left_out["objects' keypoints"] += list_visible_keypoints(item.annotation)
    return [" ".join(words)]


def share_box(box: Sequence[float], size: tuple[int, int]) -> list[str]:
    """Write a float32 box as shares of the image's size, with the digits that keep it.

    Args:
        box: x1, y1, x2, y2 in pixels.
        size: (W, H) of the image.
    """
    shares = []
    for low, high, side in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        for digits in _DIGITS:
            center = f"{(low + high) / 2 / side:.{digits}g}"
            length = f"{(high - low) / side:.{digits}g}"
            middle, half = float(center) * side, float(length) * side / 2
            ends = np.clip([middle - half, middle + half], 0, side).astype(np.float32)
            if ends.tolist() == [low, high]:
                break
        shares.append((center, length))
    return [shares[0][0], shares[1][0], shares[0][1], shares[1][1]]


def _to_polygon(
    item: WritableObject, size: tuple[int, int], where: str, left_out: Counter[str]
) -> list[float]:
    """Return x1, y1, x2, y2, ... of one polygon around an object."""
    outline = item.outline
    if isinstance(outline, list) and len(outline) == 1:
        return outline[0]
    if not outline:
        x1, y1, x2, y2 = item.box
        left_out["objects without an outline (written as the outline of their box)"] += 1
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    polygons = outline if isinstance(outline, list) else _trace(outline, size, where)
    left_out[_INEXACT] += 1
    return _join_polygons(polygons)


def _trace(outline: Outline, size: tuple[int, int], where: str) -> list[list[float]]:
    """Trace the outer edges of a mask's parts."""
    mask = draw_outline(outline, (size[1], size[0]), where).astype(np.uint8)
    doubled = np.repeat(np.repeat(mask, 2, 0), 2, 1)  # as `trace_outline` explains
    curves, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = [((curve[:, 0] + 1) // 2).astype(float).ravel().tolist() for curve in curves]
    return polygons or [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]


def _join_polygons(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Join polygons to one: a line leads to each from the first point, and back."""
    first = list(polygons[0])
    joined = list(first)
    for polygon in polygons[1:]:
        joined += [*first[:2], *polygon, *polygon[:2], *first[:2]]
    return joined


def _share_points(polygon: Sequence[float], size: tuple[int, int]) -> list[str]:
    return [f"{min(max(v / size[n % 2], 0), 1):.9g}" for n, v in enumerate(polygon)]
