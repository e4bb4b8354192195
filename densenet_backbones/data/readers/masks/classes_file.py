"""Reads `classes.yaml`, which says what the masks of a folder hold and where they lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import check_relative_path
from densenet_backbones.data.mask_samples import IGNORED, Color, MaskClasses, is_color, voc_color
from densenet_backbones.data.masks.code import MaskCode
from densenet_backbones.messages import nearest
from densenet_backbones.untrusted.plain_yaml import parse_yaml, read_yaml

CLASSES_FILE = "classes.yaml"
_PAIRS = (
    ("{split}", "{split}annot"),
    ("images/{split}", "masks/{split}"),
    ("{split}/images", "{split}/masks"),
)
_KEYS = ("classes", "ignored", "values", "images", "masks", "mask_suffix", "lists")


@dataclass(frozen=True)
class FolderLayout:
    """Checked content of `classes.yaml`; folders are patterns in which ``{split}`` stands."""

    classes: MaskClasses
    code: MaskCode
    folders: tuple[tuple[str, str], ...] = _PAIRS
    mask_suffix: str = ""
    lists: str | None = None


def read_classes_file(path: Path) -> FolderLayout:
    """Read and check a `classes.yaml`; only plain values are loaded from it.

    Raises:
        DataError: Names the entry that is wrong, and what it must be.
    """
    return _read_content(read_yaml(path, DataError, aliases=False), path)


def parse_classes_file(text: str, path: Path) -> FolderLayout:
    """Parse what would stand in a `classes.yaml`; arguments and errors as `read_classes_file`."""
    return _read_content(parse_yaml(text, path, DataError, aliases=False), path)


def _read_content(content: object, path: Path) -> FolderLayout:
    if not isinstance(content, dict) or not content.get("classes"):
        raise DataError(f"{path}: must be a mapping with `classes`, a list of names or of entries")
    for key in content:
        if key not in _KEYS:
            raise DataError(
                f"{path}: has no use for {key!r}; known are {', '.join(_KEYS)}"
                f"{nearest(str(key), _KEYS)}"
            )
    return _read_layout(content, path)


def _read_layout(content: Mapping[str, object], path: Path) -> FolderLayout:
    """Check the content of a file."""
    # What masks hold, and the classes in that form.
    values = content.get("values", "ids")
    if values not in ("ids", "colors"):
        raise DataError(f'{path}: values must be "ids" or "colors", not {values!r}')
    classes = _read_classes(content["classes"], path, colored=values == "colors")
    ignored_ids = _read_ignored_ids(content, classes, path) if values == "ids" else []
    ignored_colors = _read_ignored_colors(content, path) if values == "colors" else []
    fix = f"correct the mask, or name them in {path}"
    try:
        code = MaskCode.from_classes(
            classes,
            ids=values == "ids",
            colors=values == "colors",
            ignored_ids=ignored_ids,
            ignored_colors=ignored_colors,
            fix=fix,
            ids_in=str(path),
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    # Where images and masks are.
    suffix = content.get("mask_suffix") or ""
    if not isinstance(suffix, str):
        raise DataError(f"{path}: mask_suffix must be a text, not {suffix!r}")
    lists = _read_pattern(content, "lists", path)
    if lists is not None and not lists.endswith(".txt"):
        raise DataError(f"{path}: lists must name a .txt file, not {lists!r}")
    return FolderLayout(classes, code, _read_pairs(content, path), suffix, lists)


def _read_pairs(content: Mapping[str, object], path: Path) -> tuple[tuple[str, str], ...]:
    images, masks = _read_pattern(content, "images", path), _read_pattern(content, "masks", path)
    if (images is None) != (masks is None):
        raise DataError(f"{path}: give both `images` and `masks`, or neither")
    return _PAIRS if images is None or masks is None else ((images, masks),)


def _read_pattern(content: Mapping[str, object], key: str, path: Path) -> str | None:
    """Return a relative path in which ``{split}`` may stand; None where there is none."""
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{path}: {key} must be a path below its folder, not {value!r}")
    if set("{}") & set(value.replace("{split}", "")):
        raise DataError(f"{path}: {key}: only {{split}} may stand in braces, got {value!r}")
    return value if value == "." else str(check_relative_path(value, f"{path}: {key}"))


def _read_classes(entries: object, path: Path, *, colored: bool) -> MaskClasses:
    if not isinstance(entries, list):
        raise DataError(f"{path}: classes must be a list, not {str(entries)[:60]!r}")
    names, ids, colors = [], [], []
    for number, entry in enumerate(entries):
        where = f"{path}: classes[{number}]"
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not set(entry) <= {"name", "id", "color"}:
            raise DataError(
                f"{where}: must be a name, or name with id and color, not {str(entry)[:60]!r}"
            )
        # Without an id, a class's place in the list is its number in the masks.
        name, value, color = entry.get("name"), entry.get("id", number), entry.get("color")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: name must be a text, not {name!r}")
        if type(value) is not int or not 0 <= value < 1 << 16:
            raise DataError(f"{where}: id must be a whole number in 0 .. 65535, not {value!r}")
        if color is None and colored:
            raise DataError(f"{where}: needs a color, because masks hold colors")
        names.append(name)
        ids.append(value)
        colors.append(voc_color(number % 256) if color is None else _read_color(color, where))
    try:
        return MaskClasses.from_names(names, ids, colors)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read_color(color: object, where: str) -> Color:
    if not isinstance(color, list) or not is_color(color):
        raise DataError(f"{where}: a color must be [red, green, blue] in 0..255, not {color!r}")
    return color[0], color[1], color[2]


def _read_ignored_colors(content: Mapping[str, object], path: Path) -> list[Color]:
    where, value = f"{path}: ignored", content.get("ignored") or []
    if isinstance(value, list) and value and not isinstance(value[0], list):
        value = [value]  # one color alone
    if not isinstance(value, list):
        raise DataError(f"{where}: must be a list of colors [r, g, b], not {value!r}")
    return [_read_color(color, where) for color in value]


def _read_ignored_ids(content: Mapping[str, object], classes: MaskClasses, path: Path) -> list[int]:
    if "ignored" not in content:  # the default makes room for a class that has the id
        return [] if IGNORED in classes.ids else [IGNORED]
    value = content["ignored"]
    ids: list[int] = []
    for entry in value if isinstance(value, list) else [] if value is None else [value]:
        if type(entry) is not int or not 0 <= entry < 1 << 16:
            raise DataError(f"{path}: ignored: must be ids in 0 .. 65535, not {entry!r}")
        ids.append(entry)
    return ids
