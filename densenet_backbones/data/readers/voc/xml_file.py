"""Reads the XML of a Pascal VOC annotation file, checked value by value.

The format: M. Everingham and J. Winn, "The PASCAL Visual Object Classes
Challenge 2012 (VOC2012) Development Kit", section 2.5, "Ground Truth Annotation".
"""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError  # types only; defusedxml parses

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from densenet_backbones.data.faults import DataError
from densenet_backbones.untrusted.limits import MAX_COORDINATE, MAX_NAME, MAX_XML_FILE
from densenet_backbones.untrusted.reading import read_bytes

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "": False}


@dataclass(frozen=True)
class VocObject:
    """Object as its file gives it.

    Attributes:
        name: Name of the class.
        corners: xmin, ymin, xmax, ymax in pixels; the first pixel is 1, the last one included.
        difficult: True if VOC's evaluation neither rewards nor punishes detecting it.
        truncated: True if the object goes on outside the box.
    """

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class VocAnnotation:
    """Content of one file; `size` is its (W, H), or None where it gives none."""

    path: Path
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


def read_voc_annotation(path: Path) -> VocAnnotation:
    """Read one annotation file. Its `filename` and `path` fields are not trusted, so not read.

    Raises:
        DataError: If the file cannot be read, is not XML (file, line and column), declares
            entities, is not a VOC annotation, or a value is missing or not what it should be
            (file, object and field).
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise DataError(
            f"{path}: the outermost element is <{root.tag[:40]}>, not <annotation>; "
            "this is not a VOC annotation file"
        )
    objects = tuple(
        _read_object(element, f"{path}: object {number}")
        for number, element in enumerate(root.findall("object"), start=1)
    )
    return VocAnnotation(path, _read_size(root, path), objects)


def _parse(path: Path) -> Element:
    try:
        root: Element = fromstring(read_bytes(path, MAX_XML_FILE, DataError))
        return root
    except DataError:
        raise
    except ParseError as error:
        line, column = error.position
        raise DataError(
            f"{path}: not valid XML at line {line}, column {column + 1} ({error}); "
            "save it as UTF-8, correct it or export it again"
        ) from error
    except DefusedXmlException as error:
        raise DataError(
            f"{path}: declares XML entities ({type(error).__name__}), which annotation files do "
            "not need and attacks use; remove the DOCTYPE"
        ) from error
    except (ValueError, LookupError) as error:  # encodings that the parser does not know
        raise DataError(f"{path}: not valid XML ({error}); save it as UTF-8") from error


def _get_text(parent: Element, tag: str) -> str | None:
    """Return the stripped text of a direct child; None where there is no such child."""
    child = parent.find(tag)
    return None if child is None else (child.text or "").strip()


def _read_number(parent: Element, tag: str, where: str) -> float:
    text = _get_text(parent, tag)
    if text is None:
        raise DataError(f"{where}: <{parent.tag}> has no <{tag}>; add it")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_COORDINATE:  # so that NaN fails
        raise DataError(f"{where}: <{tag}> must be a number of pixels, not {text[:40]!r}")
    return value


def _read_flag(parent: Element, tag: str, where: str) -> bool:
    text = _get_text(parent, tag) or ""
    # LabelImg and others write "Unspecified" where nobody looked.
    if text.lower() not in _FLAGS and text != "Unspecified":
        raise DataError(f"{where}: <{tag}> must be 0 or 1, not {text[:40]!r}")
    return _FLAGS.get(text.lower(), False)


def _read_object(element: Element, where: str) -> VocObject:
    name = _get_text(element, "name")
    if not name:
        raise DataError(f"{where}: has no class <name>; add it or remove the object")
    if len(name) > MAX_NAME:
        raise DataError(
            f"{where}: its class <name> has more than {MAX_NAME} characters; shorten it"
        )
    where = f"{where} ({name!r})"
    box = element.find("bndbox")
    if box is None:
        raise DataError(f"{where}: has no <bndbox>; add it or remove the object")
    xmin, ymin, xmax, ymax = (_read_number(box, corner, where) for corner in _CORNERS)
    return VocObject(
        name,
        (xmin, ymin, xmax, ymax),
        _read_flag(element, "difficult", where),
        _read_flag(element, "truncated", where),
    )


def _read_size(root: Element, path: Path) -> tuple[int, int] | None:
    """Return (W, H) of the file; None where it is left out or 0, as some tools write it."""
    size = root.find("size")
    if size is None:
        return None
    width, height = (_read_number(size, tag, f"{path}: size") for tag in ("width", "height"))
    if width == 0 or height == 0:
        return None
    if width < 0 or height < 0 or width != int(width) or height != int(height):
        raise DataError(
            f"{path}: size must be whole numbers of pixels, not {width:g}x{height:g}; "
            "correct it or remove <size>"
        )
    return int(width), int(height)
