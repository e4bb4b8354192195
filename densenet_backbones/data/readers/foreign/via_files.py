"""Files of the VGG Image Annotator (VIA), versions 1 to 3: projects and exports, JSON and CSV.

The formats: gitlab.com/vgg/via, `via-1.x.y`, `via-2.x.y` (``_via_img_metadata``) and `via-3.x.y`
(``js/_via_data.js``, ``js/_via_import_export.js``).
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.recognition.sniffing import read_ends
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_PROJECT_FILE
from densenet_backbones.untrusted.reading import parse_json, read_text

_FORMAT = "is no file of VIA as it exports them ({}); export it again"
_REGION_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")
_SEGMENT_COLUMNS = ("file_list", "temporal_coordinates", "spatial_coordinates", "metadata")
_COMMENT = re.compile(r"#\s*(ATTRIBUTES?|CSV_HEADER)\s*=\s*(.*)", re.DOTALL)
# VIA 3 numbers its shapes and lists their coordinates: names of both in VIA 2.
_SHAPES: Mapping[object, tuple[str, tuple[str, ...]]] = {
    1: ("point", ("cx", "cy")),
    2: ("rect", ("x", "y", "width", "height")),
    3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")),
    5: ("line", ()),
    6: ("polyline", ()),
    7: ("polygon", ()),
    8: ("rect", ("x", "y", "width", "height")),
    9: ("circle", ("cx", "cy", "r")),
}


@dataclass(frozen=True)
class ViaRegion:
    """Region of an image, as VIA 2 has it.

    Attributes:
        item: Its place in the file.
        shape: Its `name` and coordinates.
        attributes: Values by the names of attributes; several choices are a dict of flags.
    """

    item: str
    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class ViaImage:
    """Image as a file names it, and its regions."""

    name: str
    regions: list[ViaRegion]


RowReader = Callable[[Sequence[str], str, str], tuple[str, list[ViaRegion]]]
"""Reads the cells of a row, with its place in the file and the file's name for messages."""


def is_via_table(path: Path) -> bool:
    """Return True for a CSV file of VIA."""
    text = read_ends(path).decode("utf-8-sig", "replace")
    return all(word in text for word in _REGION_COLUMNS) or "CSV_HEADER = metadata_id" in text


def read_via_file(path: Path) -> list[ViaImage]:
    """Read a file of any version.

    Raises:
        DataError: Names the entry that is wrong.
    """
    text = read_text(path, MAX_PROJECT_FILE, DataError)
    if path.suffix.lower() == ".csv":
        return _read_table(text, path)
    content = _parse(text, str(path))
    if "vid_list" in _find_dict(content, "project", path, optional=True):
        return list(_read_version_3(content, path))
    images = _find_dict(content, "_via_img_metadata", path, optional=True) or content
    return [_read_image(entry, f"{path}: {key[:100]!r}") for key, entry in images.items()]


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); export it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: must be a JSON object, not {text[:40]!r}; export it again")
    return content


def _find_dict(
    content: Mapping[str, Any], key: str, where: object, *, optional: bool = False
) -> dict[str, Any]:
    value = content.get(key)
    if isinstance(value, dict):
        return value
    if optional and value is None:
        return {}
    raise DataError(f"{where}: {_FORMAT.format(f'no object {key!r}')}")


# ------------------------------------------------------------------------------ versions 1 and 2


def _read_image(entry: object, where: str) -> ViaImage:
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
        raise DataError(f"{where}: {_FORMAT.format('no filename')}")
    regions = entry.get("regions", [])
    if isinstance(regions, dict):  # version 1 numbers them
        regions = list(regions.values())
    if not isinstance(regions, list):
        raise DataError(f"{where}: {_FORMAT.format('no list of regions')}")
    return ViaImage(
        entry["filename"],
        [_read_region(region, n, where) for n, region in enumerate(regions)],
    )


def _read_region(region: object, n: int, where: str) -> ViaRegion:
    place = f"{where}: regions[{n}]"
    if not isinstance(region, dict):
        raise DataError(f"{place}: {_FORMAT.format('no object')}")
    shape = _find_dict(region, "shape_attributes", place)
    attributes = _find_dict(region, "region_attributes", place, optional=True)
    return ViaRegion(f"regions[{n}]", shape, attributes)


# ------------------------------------------------------------------------------ version 3


def _read_version_3(content: Mapping[str, Any], path: Path) -> Iterator[ViaImage]:
    views, files = _find_dict(content, "view", path), _find_dict(content, "file", path)
    attributes = _find_dict(content, "attribute", path, optional=True)
    regions: dict[str, list[ViaRegion]] = {}
    for key, entry in _find_dict(content, "metadata", path, optional=True).items():
        if not isinstance(entry, dict):
            raise DataError(f"{path}: metadata[{key[:40]!r}]: {_FORMAT.format('no object')}")
        where, view = f"metadata[{key[:40]!r}]", str(entry.get("vid"))
        values = entry.get("av") or {}
        region = _make_region(where, entry.get("z"), entry.get("xy"), values, attributes, path)
        regions.setdefault(view, []).extend(region)
    for key in views:
        listed = _find_dict(views, key, f"{path}: view").get("fid_list")
        if not isinstance(listed, list) or len(listed) != 1:
            raise DataError(
                f"{path}: view {key[:40]!r} must show one image, not "
                f"{len(listed) if isinstance(listed, list) else 0}; export the images one a view"
            )
        name = _find_dict(files, str(listed[0]), f"{path}: file").get("fname")
        if not isinstance(name, str):
            raise DataError(f"{path}: file {listed[0]!r:.40}: {_FORMAT.format('no fname')}")
        yield ViaImage(name, regions.get(key, []))


def _make_region(
    item: str,
    times: object,
    numbers: object,
    values: object,
    attributes: Mapping[str, Any],
    path: Path,
) -> list[ViaRegion]:
    """Make a region of version 3; none of what is said of a whole file."""
    if not numbers and not times:
        return []
    if not isinstance(numbers, list) or not isinstance(values, dict):
        raise DataError(f"{path}: {item}: {_FORMAT.format('no list of coordinates')}")
    number, *places = numbers or [None]
    known = _SHAPES.get(number if isinstance(number, int) else None)
    name, keys = known or (f"shape of number {number!r:.20}", ())
    shape: dict[str, Any] = {"name": "moment of a video" if times else name}
    if keys and len(places) != len(keys):
        raise DataError(f"{path}: {item}: a {name} needs {len(keys)} numbers, not {len(places)}")
    for key, place in zip(keys, places, strict=False):
        shape[key] = place
    if name == "polygon":
        shape |= {"all_points_x": places[::2], "all_points_y": places[1::2]}
    named = dict(_name_value(key, value, attributes.get(key)) for key, value in values.items())
    return [ViaRegion(item, shape, named)]


def _name_value(key: str, value: object, attribute: object) -> tuple[str, object]:
    """Return the name of an attribute and its value, whose options the files number."""
    # Later versions describe an attribute, earlier ones say its name alone.
    described = attribute if isinstance(attribute, dict) else {"aname": attribute}
    name, options = described.get("aname"), described.get("options")
    name = name if isinstance(name, str) else key
    if not isinstance(options, dict) or not isinstance(value, str) or not options:
        return name, value
    if value in options:
        return name, options[value]
    chosen = [str(options.get(part, part)) for part in value.split(",")]
    return name, dict.fromkeys(chosen, True) if len(chosen) > 1 else value


# ------------------------------------------------------------------------------ tables


def _read_table(text: str, path: Path) -> list[ViaImage]:
    """Read a table of any version: a row is a region, or an image without any."""
    lines = text.splitlines()
    matches = (_COMMENT.fullmatch(line.strip(" ,\t")) for line in lines)
    notes = {match[1]: match[2] for match in matches if match}
    needed: tuple[str, ...] = _REGION_COLUMNS
    read: RowReader = _read_row
    if "CSV_HEADER" in notes:
        described = notes.get("ATTRIBUTE") or notes.get("ATTRIBUTES") or "{}"
        attributes = _parse(described, f"{path}: ATTRIBUTE")
        header, rows = notes["CSV_HEADER"], [line for line in lines if not line.startswith("#")]
        read = partial(_read_segment, attributes=attributes, path=path)
        needed = _SEGMENT_COLUMNS
    else:
        header, rows = lines[0].lstrip("#") if lines else "", lines[1:]
    names = [word.strip() for word in header.split(",")]
    if not set(needed) <= set(names):
        raise DataError(f"{path}: {_FORMAT.format('no columns ' + ', '.join(needed))}")
    images: dict[str, ViaImage] = {}
    try:
        for number, cells in enumerate(csv.reader(rows), start=1):
            row = dict(zip(names, cells, strict=False))
            if not any(cell.strip() for cell in cells):
                continue
            if not set(needed) <= row.keys():
                raise DataError(
                    f"{path}: row {number} has {pluralize(len(cells), 'cell')}, too few; correct it"
                )
            item = f"row {number}"
            name, regions = read([row[key] for key in needed], item, f"{path}: {item}")
            images.setdefault(name, ViaImage(name, [])).regions.extend(regions)
    except csv.Error as error:
        raise DataError(f"{path}: is no table ({error}); export it again") from error
    return list(images.values())


def _read_row(cells: Sequence[str], item: str, where: str) -> tuple[str, list[ViaRegion]]:
    """Read the name and the region of a row of version 1 or 2."""
    shape, attributes = (_parse(text, where) for text in cells[1:])
    return cells[0], [ViaRegion(item, shape, attributes)] if shape else []


def _read_segment(
    cells: Sequence[str], item: str, where: str, *, attributes: Mapping[str, Any], path: Path
) -> tuple[str, list[ViaRegion]]:
    """Read the name and the region of a row of version 3."""
    names, times, numbers, values = (_parse_cell(text, where) for text in cells)
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise DataError(f"{where}: must name one image, not {cells[0]:.40}; export one a view")
    return names[0], _make_region(item, times, numbers, values, attributes, path)


def _parse_cell(text: str, where: str) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: {text[:40]!r} is not valid JSON ({error})") from error
