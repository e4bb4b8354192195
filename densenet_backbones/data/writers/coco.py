"""Writes sets in COCO's layout: ``annotations/instances_{split}.json`` and ``{split}/`` of images.

The format: https://cocodataset.org/#format-data, sections "Object Detection" and "Keypoint
Detection".
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.files import IMAGE_SUFFIXES, check_relative_path
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.samples import CategoryEntry, DetectionSet
from densenet_backbones.data.writers.objects import WritableObject, list_writable, make_objects
from densenet_backbones.data.writers.output import ImagePlacer, make_unique_names
from densenet_backbones.file_writing import save_json

MORE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif", ".ppm", ".pgm")
"""Endings of images that COCO's files may name."""


def write_coco(
    parts: Mapping[str, DetectionSet | SegmentationSet],
    out: Path,
    placer: ImagePlacer,
    left_out: Counter[str],
) -> None:
    """Write the splits of a data set.

    Boxes are read again as the same float32 numbers. Images and objects are numbered from 1, over
    all splits.

    Args:
        parts: Set of each split; all have the same classes.
        out: Folder that exists.
        placer: Puts the images into it.
        left_out: Counts what the layout cannot hold.
    """
    next_image, next_object = 1, 1
    for split, data in parts.items():
        check_relative_path(split, f"{data.name}: split")
        if isinstance(data, SegmentationSet):
            data = make_objects(data, left_out)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        paths = {n: record.path for n, record in enumerate(data.records)}
        names = make_unique_names(paths, MORE_SUFFIXES)
        for n, record in enumerate(data.records):
            placer.place(record.path, out / split / names[n])
            images.append(
                {
                    "id": next_image,
                    "file_name": names[n],
                    "width": record.width,
                    "height": record.height,
                }
            )
            for item in list_writable(data, record, left_out):
                entry = _make_entry(item, data.categories)
                annotations.append({"id": next_object, "image_id": next_image, **entry})
                next_object += 1
            next_image += 1
        content = {
            "info": {"description": data.name},
            "images": images,
            "annotations": annotations,
            "categories": _list_categories(data.categories),
        }
        save_json(out / "annotations" / f"instances_{split}.json", content, indent=None)


def _list_categories(categories: Categories) -> list[CategoryEntry]:
    entries: list[CategoryEntry] = [
        {"id": label, "name": name} for label, name in enumerate(categories.names, start=1)
    ]
    if categories.keypoints:
        for entry in entries:
            entry["keypoints"] = list(categories.keypoints)
            entry["skeleton"] = [[a + 1, b + 1] for a, b in categories.skeleton]
    return entries


def _make_entry(item: WritableObject, categories: Categories) -> dict[str, Any]:
    """Return COCO's form of an object, with what it had before where that still holds."""
    annotation = item.annotation
    bbox = annotation["bbox"]
    if not item.is_crowd:
        bbox = make_bbox(item.box, bbox)
    entry: dict[str, Any] = {
        "category_id": item.label,
        "bbox": bbox,
        "area": annotation["area"] if item.outline else bbox[2] * bbox[3],
        "iscrowd": int(item.is_crowd),
    }
    if item.outline:
        entry["segmentation"] = _to_plain(item.outline)
    if annotation.get("keypoints"):
        points = np.array(annotation["keypoints"], float).reshape(-1, 3)
        ordered = categories.put_in_label_order(points)
        entry["keypoints"] = [v for x, y, seen in ordered.tolist() for v in (x, y, int(seen))]
        entry["num_keypoints"] = int((ordered[:, 2] > 0).sum())
    for flag in ("difficult", "truncated"):
        if annotation.get(flag):
            entry[flag] = 1
    return entry


def make_bbox(box: tuple[float, ...], before: list[float]) -> list[float]:
    """Return xywh that is read as this float32 box; as it was before, or in few digits, if it is.

    Args:
        box: x1, y1, x2, y2, each a float32.
        before: xywh of the box in its own file; empty if there is none.
    """
    x1, y1, x2, y2 = box
    short = [float(str(np.float32(v))) for v in box]
    rounded = [round(v, 6) for v in (short[2] - short[0], short[3] - short[1])]
    for candidate in (before, [short[0], short[1], *rounded]):
        if candidate:
            x, y, w, h = candidate
            corners = np.array([x, y, x + w, y + h], np.float64).astype(np.float32)
            if np.array_equal(corners, np.array(box, np.float32)):
                return candidate
    return [x1, y1, x2 - x1, y2 - y1]


def _to_plain(outline: Any) -> Any:
    """Return an outline for JSON: compressed codes may be bytes."""
    if isinstance(outline, dict) and isinstance(outline["counts"], bytes):
        return {**outline, "counts": outline["counts"].decode()}
    return outline
