"""Reads detections that were made elsewhere, in COCO's results format, checked entry by entry.

The format: https://cocodataset.org/#format-results, and `loadRes` of ``pycocotools/coco.py``, which
makes boxes of masks and keypoints where results have none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote
from densenet_backbones.data.instances import TargetType
from densenet_backbones.data.readers.coco.json_values import (
    JsonObject,
    abbreviate,
    check_list,
    check_objects,
    load_json,
    read_categories,
    read_entries,
    read_integer,
)
from densenet_backbones.data.readers.coco.outlines import encode_outline
from densenet_backbones.data.samples import DetectionSet, ImageRecord, Outline
from densenet_backbones.messages import nearest, pluralize
from densenet_backbones.untrusted.limits import MAX_RESULTS_FILE
from densenet_backbones.untrusted.reading import check_file

_NAME_KEYS = ("category_name", "class_name")
"""Keys of a class's name beside, or in place of, its id."""


@dataclass(frozen=True, eq=False)
class ResultsFile:
    """Detections of a file, of which nothing but the form is known.

    Attributes:
        path: The file.
        entries: A dictionary a detection.
        known: Classes that tell what its category ids mean, where there are some.
        image_names: Names of files that tell what its image ids mean, where there are some.
        target_types: Kinds of annotations that the first detection, and so all, must have.
    """

    path: Path
    entries: list[JsonObject]
    known: Categories | None
    image_names: Mapping[int, str] | None
    target_types: tuple[TargetType, ...]


def read_results(path: Path, categories_file: Path | None = None) -> ResultsFile:
    """Read a file of detections; `match_results` checks what they say.

    Args:
        path: COCO's results format: a list of objects with ``image_id``, ``category_id``, ``score``
            and one or more of ``bbox`` (xywh in pixels), ``segmentation`` (polygons or run lengths)
            and ``keypoints``; or an object with such a list as "annotations", and perhaps with
            "categories" and "images" that tell what the ids mean (``coco.json`` of `predict`).
        categories_file: JSON with a list of categories, or with one as "categories".

    Raises:
        DataError: The file cannot be read, or has another form.
    """
    check_file(path, MAX_RESULTS_FILE, DataError)
    entries, _ = load_json(path)
    known: Categories | None = None
    image_names: dict[int, str] | None = None
    if isinstance(content := entries, dict):
        entries = check_list(content, "annotations", path)
        if content.get("images"):
            image_names = _read_image_names(content, path)
        if content.get("categories"):
            known = read_categories(read_entries(content, "categories", path), path)
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: must be a list of detections, as COCO's results format has it, not "
            f"{abbreviate(entries)}"
        )
    check_objects(entries, "detections", path)
    if categories_file is not None:
        known = _read_categories_file(categories_file)
    kinds = _list_kinds(entries[0]) if entries else []
    return ResultsFile(path, entries, known, image_names, ("boxes", *kinds))


def match_results(file: ResultsFile, part: DetectionSet) -> tuple[list[dict[str, Any]], str]:
    """Check the detections of a set's images, and bring them into the form of predictions.

    Classes are told by the names that detections carry, or that a list of categories gives to their
    ids; else their ids are those of the annotation file. Images are told by the names of their
    files, with or without ending, or that the file's own list of images gives to their ids; else
    their ids are those of the annotation file.

    Args:
        file: The detections.
        part: The set, read with the masks and keypoints that they have.

    Returns:
        A dictionary an image of the set, as `CocoMetric.update` takes them; and a clause that says
        how classes were told.

    Raises:
        DataError: An entry is wrong; names its index and the fix.
    """
    reader = _Reader(file, part)
    rows: dict[int, list[dict[str, Any]]] = {}
    for index, entry in enumerate(file.entries):
        image_id, row = reader.read(entry, f"{file.path}: detections[{index}]")
        rows.setdefault(image_id, []).append(row)
    points = len(part.categories.keypoints)
    predictions = [
        _join(record.image_id, rows.get(record.image_id, ()), file.target_types, points)
        for record in part.records
    ]
    return predictions, reader.matched_by


def _list_kinds(entry: JsonObject) -> list[TargetType]:
    keys: dict[str, TargetType] = {"segmentation": "masks", "keypoints": "keypoints"}
    return [kind for key, kind in keys.items() if entry.get(key)]


def _read_image_names(content: JsonObject, path: Path) -> dict[int, str]:
    names = {}
    for index, entry in enumerate(read_entries(content, "images", path)):
        where = f"{path}: images[{index}]"
        name = entry.get("file_name")
        if not isinstance(name, str):
            raise DataError(f"{where}: 'file_name' must be a name, not {abbreviate(name)}")
        names[read_integer(entry, "id", where)] = PureWindowsPath(name).name
    return names


def _read_categories_file(path: Path) -> Categories:
    content, _ = load_json(path)
    listed = {"categories": content} if isinstance(content, list) else content
    if not isinstance(listed, dict):
        raise DataError(f"{path}: must hold a list of categories, not {abbreviate(content)}")
    return read_categories(read_entries(listed, "categories", path), path)


class _Reader:
    """Checks entries against a set; the first entry says what all must have."""

    def __init__(self, file: ResultsFile, part: DetectionSet) -> None:
        first = file.entries[0] if file.entries else {}
        self.categories, self.kinds = part.categories, file.target_types
        self.image_names = file.image_names
        self.records = {record.image_id: record for record in part.records}
        self.image_of_name: dict[str, int] = {}
        for record in part.records:
            self.image_of_name.setdefault(record.path.stem, record.image_id)
        self.image_of_name |= {record.path.name: record.image_id for record in part.records}
        self.name_key = next((key for key in _NAME_KEYS if isinstance(first.get(key), str)), None)
        self.names: dict[int, str] | None = None
        if file.known is not None:
            self.names = dict(zip(file.known.ids, file.known.names, strict=True))
        self.matched_by = "their ids, which must be those of the annotation file"
        if self.name_key is not None:
            self.matched_by = f"the names they carry ({self.name_key})"
        elif self.names is not None:
            self.matched_by = "the names that the list of categories gives to their ids"

    def read(self, entry: JsonObject, where: str) -> tuple[int, dict[str, Any]]:
        """Return the image's id and the checked values of a detection."""
        record = self._find_image(entry, where)
        score = _read_numbers([entry.get("score")], 1)
        if score is None or not 0 <= score[0] <= 1:
            raise DataError(
                f"{where}: 'score' must be a number in [0, 1], not "
                f"{abbreviate(entry.get('score'))}; divide all scores by the largest possible one"
            )
        row: dict[str, Any] = {"score": score[0], "label": self._find_label(entry, where)}
        for kind, key in (("masks", "segmentation"), ("keypoints", "keypoints")):
            if kind in self.kinds and not entry.get(key):
                raise DataError(
                    f"{where}: has no {key!r}, which the first detection has; give all of them "
                    "one, or none"
                )
        if "masks" in self.kinds:
            row["mask"] = _read_mask(entry["segmentation"], record, where)
        if "keypoints" in self.kinds:
            row["keypoints"] = self._read_keypoints(entry["keypoints"], where)
        row["box"] = _read_box(entry, row, where)
        return record.image_id, row

    def _find_image(self, entry: JsonObject, where: str) -> ImageRecord:
        image_id = entry.get("image_id", entry.get("file_name"))
        if not {"image_id", "file_name"} & entry.keys():
            raise DataError(
                f"{where}: has no 'image_id'; give COCO's results format, such as coco.json of "
                "`densenet predict --save coco`"
            )
        if self.image_names is not None and isinstance(image_id, int):
            image_id = self.image_names.get(image_id, image_id)
        if isinstance(image_id, str):
            found = self.image_of_name.get(image_id)
            if found is None:
                raise DataError(
                    f"{where}: no image is called {image_id[:60]!r}; give 'image_id' as the id of "
                    f"the annotation file or the file's name"
                    f"{nearest(image_id, self.image_of_name)}"
                )
            return self.records[found]
        number = read_integer(entry, "image_id", where)
        if number not in self.records:
            few = quote(sorted(self.records)[:3])
            raise DataError(
                f"{where}: image_id {number} is not among the "
                f"{pluralize(len(self.records), 'image')} ({few}, …); give the annotation file's "
                "ids or the files' names, and choose the split that the detections are of"
            )
        return self.records[number]

    def _find_label(self, entry: JsonObject, where: str) -> int:
        if self.name_key is not None:
            name = entry.get(self.name_key)
        elif self.names is not None:
            name = self.names.get(read_integer(entry, "category_id", where))
            if name is None:
                raise DataError(
                    f"{where}: category_id {entry['category_id']} is not in the list of categories "
                    f"(ids {quote(sorted(self.names), 9)}); complete the list"
                )
        else:
            number = read_integer(entry, "category_id", where)
            if number not in self.categories.ids:
                raise DataError(
                    f"{where}: category_id {number} is not among the annotation file's "
                    f"({quote(self.categories.ids, 9)}); give its ids, or the classes' names with "
                    "--categories"
                )
            return self.categories.label_of_id(number)
        if not isinstance(name, str) or name not in self.categories.names:
            close = nearest(name, self.categories.names) if isinstance(name, str) else ""
            raise DataError(
                f"{where}: class {abbreviate(name)} is not one of the data's "
                f"({quote(self.categories.names, 9)}); rename it{close}"
            )
        return self.categories.label_of_name(name)

    def _read_keypoints(self, value: object, where: str) -> np.ndarray:
        count = len(self.categories.keypoints)
        numbers = _read_numbers(value, 3 * count)
        if numbers is None or not count:
            raise DataError(
                f"{where}: 'keypoints' must be {3 * count} finite numbers, x, y and any third for "
                f"each of the data's {pluralize(count, 'keypoint')}, not {abbreviate(value)}; "
                "correct it"
            )
        return self.categories.put_in_label_order(np.array(numbers).reshape(count, 3))


def _read_numbers(value: object, count: int) -> list[float] | None:
    """Return a list of finite numbers of a length, or None."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if any(type(number) not in (int, float) or abs(number) > 1e9 for number in value):
        return None  # NaN is caught below
    return None if any(math.isnan(number) for number in value) else [float(n) for n in value]


def _read_mask(value: Any, record: ImageRecord, where: str) -> dict[str, Any]:
    if not isinstance(value, list | dict):
        raise DataError(
            f"{where}: 'segmentation' must be polygons or run lengths, not {abbreviate(value)}"
        )
    return dict(encode_outline(cast(Outline, value), (record.height, record.width), where))


def _read_box(entry: JsonObject, row: Mapping[str, Any], where: str) -> list[float]:
    """Return the box xyxy; of the mask or the keypoints where a detection has none of its own."""
    if entry.get("bbox") is not None or not {"mask", "keypoints"} & row.keys():
        numbers = _read_numbers(entry.get("bbox"), 4)
        if numbers is None or min(numbers[2:]) < 0:
            raise DataError(
                f"{where}: 'bbox' must be four finite numbers [x, y, width, height] in pixels, "
                f"sides not below 0, not {abbreviate(entry.get('bbox'))}; correct it"
            )
        x, y, width, height = numbers
    elif "mask" in row:
        x, y, width, height = coco_mask.toBbox(row["mask"]).tolist()
    else:
        low, high = row["keypoints"][:, :2].min(axis=0), row["keypoints"][:, :2].max(axis=0)
        return [*low.tolist(), *high.tolist()]
    return [x, y, x + width, y + height]


def _join(
    image_id: int, rows: Sequence[dict[str, Any]], kinds: Sequence[TargetType], keypoints: int
) -> dict[str, Any]:
    """Return the detections of one image as arrays."""
    prediction: dict[str, Any] = {
        "image_id": image_id,
        "boxes": np.array([row["box"] for row in rows], float).reshape(-1, 4),
        "scores": np.array([row["score"] for row in rows], float),
        "labels": np.array([row["label"] for row in rows], np.int64),
    }
    if "masks" in kinds:
        prediction["masks"] = [row["mask"] for row in rows]
    if "keypoints" in kinds:
        points = [row["keypoints"] for row in rows]
        prediction["keypoints"] = np.array(points, float).reshape(len(points), keypoints, 3)
    return prediction
