"""Reads the JSON of a COCO annotation file, checked value by value.

The format: https://cocodataset.org/#format-data, and `pycocotools/coco.py` for what readers expect.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import check_relative_path
from densenet_backbones.data.readers.coco.run_lengths import enclose_runs
from densenet_backbones.data.samples import Annotation
from densenet_backbones.messages import advise, pluralize
from densenet_backbones.untrusted.limits import (
    MAX_CLASSES,
    MAX_JSON_FILE,
    MAX_KEYPOINTS,
    MAX_NAME,
    MAX_PATH,
    MAX_PIXELS,
    MAX_SIDE,
)
from densenet_backbones.untrusted.reading import describe_encoding, parse_json, read_text

JsonObject = dict[str, object]
"""Object of an untrusted JSON file, before its values are checked."""

_DECIMAL = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,20})?")
# Fields that evaluation reads; others (licences, comments) would only take memory.
_OPTIONAL = {"segmentation": (list, dict), "keypoints": (list,), "num_keypoints": (int,)}


@dataclass(frozen=True)
class CocoImage:
    """Image entry; `size` is (W, H) as shown, or None where the file gives none."""

    image_id: int
    file_name: str
    size: tuple[int, int] | None


def load_json(path: Path) -> tuple[object, bool]:
    """Parse a JSON file; the second value is True if it had NaN or Infinity in it.

    Raises:
        DataError: If the file cannot be read or is not JSON (line and column).
    """
    constants: list[str] = []

    def note_constant(name: str) -> float:
        constants.append(name)
        return math.nan

    with translate_json_errors(path):
        text = read_text(path, MAX_JSON_FILE, DataError)
        return parse_json(text, parse_constant=note_constant), bool(constants)


@contextmanager
def translate_json_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading and parsing a file into a `DataError` that names it."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}){advise(error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(describe_encoding(path)) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "correct it or fetch the file again"
        ) from error
    except (
        RecursionError,
        ValueError,
    ) as error:  # nested too deep, or numbers of thousands of digits
        raise DataError(f"{path}: not usable JSON ({error}); correct it") from error


class TextIds:
    """Numbers for ids that a file has as texts, as some tools write them.

    Digits are the number that they say; others are numbered in the order in which they are seen.
    """

    _FIRST = 10**12  # above all that files number by themselves

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, entries: list[JsonObject], keys: Mapping[str, str]) -> list[JsonObject]:
        """Return copies of entries that have no texts for ids.

        Args:
            entries: Objects of a list.
            keys: Key of each id, and what it is the id of.
        """
        numbered = [dict(entry) for entry in entries]
        for entry in numbered:
            for key, what in keys.items():
                value = entry.get(key)
                if isinstance(value, str):
                    entry[key] = self._find(value, what)
        return numbered

    def _find(self, text: str, what: str) -> int:
        if is_number(text):
            return int(text)
        return self._numbers.setdefault((what, text), self._FIRST + len(self._numbers))


def is_number(text: str) -> bool:
    """Return True for the digits of a whole number from 0."""
    return text.isascii() and text.isdecimal() and len(text) <= 12


def read_entries(content: JsonObject, key: str, path: Path) -> list[JsonObject]:
    """Return a list of objects at the top of a file; `DataError` where it is none."""
    entries: list[JsonObject] = check_list(content, key, path)
    check_objects(entries, key, path)
    return entries


def check_list(content: JsonObject, key: str, path: Path) -> list[Any]:
    """Return a list at the top of a file; `DataError` where it is none."""
    entries = content.get(key)
    if entries is None:
        raise DataError(
            f"{path}: has no {key!r}; a COCO annotation file has the lists images, annotations "
            "and categories (for detection: the instances file)"
        )
    if not isinstance(entries, list):
        raise DataError(f"{path}: {key!r} must be a list, not {abbreviate(entries)}")
    return entries


def check_objects(entries: list[Any], key: str, path: Path, first: int = 0) -> None:
    """Raise a `DataError` if an entry of a list, counted from `first`, is no object."""
    for position, entry in enumerate(entries, first):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {key}[{position}] must be an object, not {abbreviate(entry)}")


def read_categories(entries: list[JsonObject], path: Path) -> Categories:
    """Read the classes, sorted by id; `DataError` where ids or names are missing or repeated."""
    if not entries:
        raise DataError(f"{path}: 'categories' is empty; list the classes with id and name")
    if len(entries) > MAX_CLASSES:
        raise DataError(
            f"{path}: 'categories' has {pluralize(len(entries), 'entry')} of {MAX_CLASSES} at most"
        )
    names: dict[int, str] = {}
    seen: set[str] = set()
    for position, entry in enumerate(entries):
        where = f"{path}: categories[{position}]"
        category_id, name = read_integer(entry, "id", where), entry.get("name")
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
            raise DataError(
                f"{where}: 'name' must be a text of at most {MAX_NAME} characters, not "
                f"{abbreviate(name)}"
            )
        if category_id in names:
            raise DataError(f"{where}: category id {category_id} is given twice; ids are unique")
        if name in seen:
            raise DataError(f"{where}: category name {name!r} is given twice; rename or remove one")
        names[category_id] = name
        seen.add(name)
    ids = sorted(names)
    return Categories(tuple(names[i] for i in ids), tuple(ids), *read_keypoints(entries))


def read_keypoints(
    entries: list[JsonObject],
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Read the keypoints' names and skeleton (from 0; in files from 1) that all classes share.

    Empty where they differ, or are not in COCO's form: boxes can be learned all the same.
    """
    having = [entry for entry in entries if entry.get("keypoints")]
    if not having or any(e["keypoints"] != having[0]["keypoints"] for e in having):
        return (), ()
    names, pairs = having[0]["keypoints"], having[0].get("skeleton")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return (), ()
    if len(names) > MAX_KEYPOINTS or max(map(len, names)) > MAX_NAME:
        return (), ()
    pairs = pairs if isinstance(pairs, list) else []
    valid = all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(end) is int and 1 <= end <= len(names) for end in pair)
        for pair in pairs
    )
    return tuple(names), tuple((a - 1, b - 1) for a, b in pairs) if valid else ()


def read_images(
    entries: list[JsonObject],
    path: Path,
    first: int = 0,
    find_image: Callable[[str], str | None] = lambda name: None,
) -> tuple[CocoImage, ...]:
    """Read image entries, counted from `first`.

    Names must stay inside the image folder, or be of an image that `find_image` finds.
    """
    if not entries:
        raise DataError(f"{path}: lists no images")
    images: dict[int, CocoImage] = {}
    for position, entry in enumerate(entries, first):
        where = f"{path}: images[{position}]"
        image_id, name = read_integer(entry, "id", where), entry.get("file_name")
        if image_id in images:
            raise DataError(f"{where}: image id {image_id} is given twice; ids are unique")
        if not isinstance(name, str):
            raise DataError(f"{where}: 'file_name' must be a text, not {abbreviate(name)}")
        images[image_id] = CocoImage(
            image_id, _check_name(name, where, find_image), _read_size(entry, where)
        )
    return tuple(images.values())


def _check_name(name: str, where: str, find_image: Callable[[str], str | None]) -> str:
    try:
        return str(check_relative_path(name, where))
    except DataError:
        image = find_image(name[:MAX_PATH])
        if image is None:
            raise
        return image


def _read_size(entry: JsonObject, where: str) -> tuple[int, int] | None:
    if entry.get("width") is None or entry.get("height") is None:
        return None
    width, height = read_integer(entry, "width", where), read_integer(entry, "height", where)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise DataError(
            f"{where}: sides must be in 1 .. {MAX_SIDE} pixels, not {width}x{height}; correct "
            "them, or remove both, so that the image's own size is taken"
        )
    return width, height


def read_annotation(entry: JsonObject, where: str, kept: Collection[str]) -> Annotation:
    """Read an annotation.

    Args:
        entry: Object of the file.
        where: File and position, for messages.
        kept: Optional keys to keep.

    Raises:
        DataError: Names the field that is wrong.
    """
    annotation_id = read_integer(entry, "id", where) if entry.get("id") is not None else None
    where = where if annotation_id is None else f"{where} (id {annotation_id})"
    image_id = read_integer(entry, "image_id", where)
    category_id = read_integer(entry, "category_id", where)
    bbox = _read_bbox(entry, where)
    crowd = entry.get("iscrowd", 0)
    crowd = int(crowd) if crowd in ("0", "1") else crowd
    if crowd not in (0, 1):
        raise DataError(f"{where}: 'iscrowd' must be 0 or 1, not {abbreviate(crowd)}")
    # COCO's area is that of the mask; where it is missing, the box's stands in.
    area = entry.get("area")
    area = bbox[2] * bbox[3] if area is None else area
    number = _to_finite(area)
    if number is None:
        raise DataError(f"{where}: 'area' must be a finite number, not {abbreviate(area)}")
    annotation: Annotation = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": number,
        "iscrowd": int(crowd == 1),
    }
    if annotation_id is not None:  # the others are numbered when all are known
        annotation["id"] = annotation_id
    # What only masks and keypoints need is kept as it is, if it has the right type.
    optional = {key: entry[key] for key in kept if entry.get(key) is not None}
    check_optional(optional, where)
    return {**annotation, **optional}  # type: ignore[typeddict-item]  # checked


def check_optional(values: JsonObject, where: str) -> None:
    """Raise a `DataError` if one of an annotation's optional values has not the right type."""
    for key, value in values.items():
        if not isinstance(value, _OPTIONAL[key]):
            raise DataError(f"{where}: {key!r} has the wrong type: {abbreviate(value)}")
    _check_outline(values.get("segmentation", []), where)


def _read_bbox(entry: JsonObject, where: str) -> list[float]:
    bbox = entry.get("bbox") or _enclose(entry.get("segmentation"), where)
    values = [_to_finite(value) for value in bbox] if isinstance(bbox, list) else []
    numbers = [value for value in values if value is not None]
    if not len(numbers) == len(values) == 4:
        raise DataError(
            f"{where}: 'bbox' must be four finite numbers [x, y, width, height] in pixels, "
            f"not {abbreviate(bbox)}"
        )
    return numbers


def _enclose(polygons: object, where: str) -> list[float] | None:
    """Return the box of an outline, for annotations that have none; None where it is none."""
    if isinstance(polygons, dict):
        _check_outline(polygons, where)
        return enclose_runs(polygons["size"], polygons["counts"])
    if not isinstance(polygons, list) or not all(isinstance(own, list) for own in polygons):
        return None
    values = [_to_finite(value) for own in polygons for value in own]
    numbers = [value for value in values if value is not None]
    if not numbers or len(numbers) < len(values) or any(len(own) % 2 for own in polygons):
        return None
    x, y = min(numbers[::2]), min(numbers[1::2])
    return [x, y, max(numbers[::2]) - x, max(numbers[1::2]) - y]


def _check_outline(mask: object, where: str) -> None:
    """Check that run lengths fill their mask: the evaluator's C code relies on it."""
    if isinstance(mask, list):
        if not all(isinstance(polygon, list) for polygon in mask):
            raise DataError(
                f"{where}: 'segmentation' must be a list of polygons [[x1, y1, x2, y2, ...]], "
                f"not {abbreviate(mask)}"
            )
        return
    assert isinstance(mask, dict)
    size, counts = mask.get("size"), mask.get("counts")
    valid = isinstance(size, list) and len(size) == 2 and all(_is_length(n) for n in size)
    if isinstance(counts, list):
        valid = (
            valid and all(_is_length(n) for n in counts) and sum(counts) == math.prod(size or ())
        )
    else:
        valid = valid and isinstance(counts, str)
    if not valid or math.prod(size or ()) > MAX_PIXELS:
        raise DataError(
            f"{where}: 'segmentation' as run lengths must have 'size' [height, width] of at most "
            f"{MAX_PIXELS} pixels and 'counts' that add up to height x width"
        )


def _is_length(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_PIXELS


def read_integer(entry: JsonObject, key: str, where: str) -> int:
    """Return a whole number of 64 bits; 3.0 and "3" are, as tools that go through tables write."""
    value = entry.get(key)
    if isinstance(value, str) and is_number(value):
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: {key!r} must be a whole number, not {abbreviate(value)}")
    return value


def _to_finite(value: object) -> float | None:
    """Return a number, or a text that is one, as a finite float; None for everything else."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value)
    if type(value) is not float and type(value) is not int:
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def abbreviate(value: object) -> str:
    """Shorten a value for a message."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a whole number of more than 64 bits"  # printing it may itself be refused
    if isinstance(value, list | dict):
        return reprlib.repr(value)[:60] if len(value) < 10 else pluralize(len(value), "entry")
    if isinstance(value, str):
        value = value[:60]
    return repr(value)[:60] if value is not None else "null (missing)"
