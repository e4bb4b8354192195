"""Formats of detections for other programs: our JSON, COCO, YOLO, VOC, labelme and CSV.

Boxes are xyxy in pixels of the image as shown, from 0 at its left and top edges.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from xml.etree import ElementTree

import cv2
import numpy as np
from torch import Tensor

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.masks.run_lengths import decode_mask
from densenet_backbones.data.samples import RunLengths
from densenet_backbones.data.writers.voc import XML_CODES

JsonDict = dict[str, Any]
_XML_CODES = {**XML_CODES, 9: "_", 10: "_", 13: "_"}  # and what ends a line
CSV_COLUMNS = ("file", "frame", "name", "score", "x1", "y1", "x2", "y2")


class Objects(Protocol):
    """Detections of an image, as `results.detections.Detections` describes them."""

    @property
    def boxes(self) -> Tensor: ...  # noqa: D102 - see `Detections`
    @property
    def labels(self) -> Tensor: ...  # noqa: D102
    @property
    def scores(self) -> Tensor: ...  # noqa: D102
    @property
    def names(self) -> list[str]: ...  # noqa: D102
    @property
    def masks(self) -> list[RunLengths] | None: ...  # noqa: D102
    @property
    def keypoints(self) -> Tensor | None: ...  # noqa: D102
    @property
    def keypoint_scores(self) -> Tensor | None: ...  # noqa: D102
    @property
    def categories(self) -> Categories | None: ...  # noqa: D102
    @property
    def file(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[str, float, float, float, float, float]]: ...


def dump(content: object) -> str:
    """Return plain JSON types as text."""
    return json.dumps(content, indent=1) + "\n"


def name_labels(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Return the names of labels from 1 on, as far as detections tell them."""
    known = dict(zip(labels, names, strict=True))
    return [known.get(label, "") for label in range(1, max(known, default=0) + 1)]


def to_json(detections: Objects, picture: str | None = None, frame: int | None = None) -> JsonDict:
    """Return the detections of an image as an entry of `predictions.json`.

    Boxes are xyxy in pixels of the image as shown, masks COCO's run-length codes, keypoints lists
    of x, y and score (the higher the surer; no probabilities) in the order of the training data.

    Args:
        detections: The result.
        picture: File of its picture, or of the video that shows it.
        frame: Number of the frame in its video, from 0.
    """
    height, width = detections.size
    return {
        "file": detections.file,
        **({} if frame is None else {"frame": frame}),
        "picture": picture,
        "width": width,
        "height": height,
        "detections": [_describe(detections, number) for number in range(len(detections))],
    }


def _describe(detections: Objects, number: int) -> JsonDict:
    entry: JsonDict = {
        "name": detections.names[number],
        "score": round(float(detections.scores[number]), 4),
        "box": [round(v, 2) for v in detections.boxes[number].tolist()],
    }
    if detections.masks is not None:
        entry["mask"] = detections.masks[number]
    if detections.keypoints is not None:
        points, point_scores = detections.keypoints[number], detections.keypoint_scores
        scores = points[:, 2] if point_scores is None else point_scores[number]
        places = points[:, :2].tolist()
        entry["keypoints"] = [
            [round(x, 2), round(y, 2), round(score, 4)]
            for (x, y), score in zip(places, scores.tolist(), strict=True)
        ]
    return entry


def to_coco(detections: Objects, image_id: int) -> list[JsonDict]:
    """Return the detections in COCO's results format; see `Detections.to_coco`."""
    known = detections.categories
    results = []
    for number, (x1, y1, x2, y2) in enumerate(detections.boxes.double().tolist()):
        label = int(detections.labels[number])
        entry: JsonDict = {
            "image_id": image_id,
            "category_id": known.id_of_label(label) if known else label,
            "category_name": detections.names[number],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "score": float(detections.scores[number]),
        }
        if detections.masks is not None:
            entry["segmentation"] = detections.masks[number]
        if detections.keypoints is not None:
            entry["keypoints"] = detections.keypoints[number].double().flatten().tolist()
        results.append(entry)
    return results


def format_csv(detections: Objects, frame: int | None = None, *, with_header: bool = False) -> str:
    """Return a line for each detection, of `CSV_COLUMNS`."""
    rows: list[Sequence[object]] = [CSV_COLUMNS] if with_header else []
    for name, score, *box in detections:
        row = [name, f"{score:.4f}", *(f"{value:.2f}" for value in box)]
        rows.append([detections.file, "" if frame is None else frame, *row])
    return format_rows(rows)


def format_rows(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as lines of CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def format_yolo(detections: Objects) -> str:
    """Return YOLO's label file, sides in parts of the image's: class, center x, center y, w, h.

    Keypoints follow the box (x, y and visibility 2). A mask takes the place of the box, as the
    corners of its largest outline. There are no scores: the files are labels, to correct and to
    train on.
    """
    height, width = detections.size
    lines = []
    for number, (x1, y1, x2, y2) in enumerate(detections.boxes.double().tolist()):
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
        values += [(x2 - x1) / width, (y2 - y1) / height]
        if detections.masks is not None and (outlines := trace(detections.masks[number])):
            values = (outlines[0] / [width, height]).flatten().tolist()
        words = [f"{value:.6f}" for value in values]
        if detections.keypoints is not None:
            for x, y, _ in detections.keypoints[number].tolist():
                words += [f"{x / width:.6f}", f"{y / height:.6f}", "2"]
        lines.append(" ".join([str(int(detections.labels[number]) - 1), *words]))
    return "".join(f"{line}\n" for line in lines)


def format_voc(detections: Objects) -> str:
    """Return VOC's annotation of an image, boxes counted from 1 with both edges inside."""
    height, width = detections.size
    root = ElementTree.Element("annotation")
    _add(root, "filename", detections.file.replace("\\", "/").rpartition("/")[2])
    _add(root, "path", detections.file)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, str(value))
    for name, score, *box in detections:
        entry = ElementTree.SubElement(root, "object")
        _add(entry, "name", name)
        _add(entry, "score", f"{score:.4f}")
        corners = ElementTree.SubElement(entry, "bndbox")
        # The first pixel is 1 and the last one belongs to the box (VOC2012 devkit, section 3).
        for tag, edge, shift in zip(
            ("xmin", "ymin", "xmax", "ymax"), box, (1, 1, 0, 0), strict=True
        ):
            _add(corners, tag, f"{edge + shift:.2f}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    # XML 1.0 knows no control characters, however they are written.
    ElementTree.SubElement(parent, tag).text = text.translate(_XML_CODES)


def to_labelme(detections: Objects, image_path: str) -> JsonDict:
    """Return labelme's JSON: rectangles, outlines of masks, and points of keypoints.

    Args:
        detections: The result.
        image_path: Path of the image from the folder of the file.
    """
    height, width = detections.size
    shapes: list[JsonDict] = []
    points = detections.keypoints
    known = detections.categories.keypoints if detections.categories else ()
    for number, (name, score, *box) in enumerate(detections):
        outlines = trace(detections.masks[number]) if detections.masks is not None else []
        corners = np.reshape(box, (2, 2)).tolist()
        parts = [("polygon", o.tolist()) for o in outlines] or [("rectangle", corners)]
        shapes += [_make_shape(name, kind, places, number, score) for kind, places in parts]
        for which, (x, y, _) in enumerate([] if points is None else points[number].tolist()):
            keypoint = known[which] if known else str(which)
            shapes.append(_make_shape(keypoint, "point", [[x, y]], number, score))
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _make_shape(name: str, kind: str, points: object, group: int, score: float) -> JsonDict:
    """Return a shape; those of one object share its group."""
    shape = {"label": name, "points": points, "group_id": group, "shape_type": kind, "flags": {}}
    return {**shape, "description": "", "score": round(score, 4)}


def trace(mask: RunLengths) -> list[np.ndarray]:
    """Return the outer outlines of a mask, the largest first.

    Each is (P, 2): x and y of the middles of the pixels along it.
    """
    pixels = decode_mask(mask).astype(np.uint8)
    outlines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    large = [o[:, 0] + 0.5 for o in outlines if len(o) >= 3]
    return sorted(large, key=len, reverse=True)
