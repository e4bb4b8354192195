"""Reads the files that describe YOLO's data: a YAML file, darknet's `obj.data`, lists of classes.

The forms: https://docs.ultralytics.com/datasets/detect (`path`, `train`, `val`, `test`, `nc`,
`names`), and https://pjreddie.com/darknet/yolo (``valid = data/val.txt``, `classes`, `names`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote
from densenet_backbones.data.readers.foreign.content import check_name
from densenet_backbones.data.recognition.sniffing import read_ends
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import nearest, pluralize
from densenet_backbones.untrusted.limits import (
    MAX_CLASSES,
    MAX_KEYPOINTS,
    MAX_LIST_FILE,
    MAX_YAML_FILE,
)
from densenet_backbones.untrusted.plain_yaml import read_yaml
from densenet_backbones.untrusted.reading import read_text

_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")


@dataclass(frozen=True)
class Description:
    """File that describes a data set.

    Attributes:
        file: The file, relative to the root; empty where there is none.
        content: What it says, by the keys of a YAML file.
        faults: Why files that may have been meant were not read.
    """

    file: str = ""
    content: Mapping[str, object] = field(default_factory=dict)
    faults: tuple[DataError, ...] = ()

    @property
    def folder(self) -> str:
        """Folder of the file, relative to the root."""
        return self.file.rpartition("/")[0]

    @property
    def splits(self) -> Mapping[str, list[str]]:
        """Folders and lists of images, as the file gives them, by the names of the splits."""
        entries: dict[str, list[str]] = {}
        for key in _SPLIT_KEYS:
            value = self.content.get(key)
            values = value if isinstance(value, list) else [value]
            texts = [one.strip() for one in values if isinstance(one, str) and one.strip()]
            entries |= {key: list(dict.fromkeys(texts))} if texts else {}
        return entries

    @property
    def has_names(self) -> bool:
        """True if the file names classes, or a file of them."""
        return bool(self.content.get("names"))


@dataclass(frozen=True)
class YoloNames:
    """Names that a data set gives; empty where it gives none.

    Attributes:
        file: File that has them.
        classes: Names of the classes, by their numbers.
        keypoints: Names of the keypoints.
        numbers_each: Numbers of a keypoint in a line, 2 or 3.
        remark: What is unusual; empty for nothing.
    """

    file: str = ""
    classes: tuple[str, ...] = ()
    keypoints: tuple[str, ...] = ()
    numbers_each: int = 3
    remark: str = ""


# ------------------------------------------------------------------------------ finding


def find_description(tree: Tree) -> Description:
    """Find the outermost file that names splits and classes, or else one of both."""
    files = [*tree.list_with(".yaml", ".yml"), *tree.list_with(".data")]
    files = [name for name in files if name.count("/") <= 2]
    found, faults = [], []
    for name in sorted(files, key=lambda n: (n.count("/"), n))[:50]:
        try:
            content = _read_description(tree.root / name)
        except DataError as error:
            faults += [error] * (b"names" in read_ends(tree.root / name))
            continue
        one = Description(name, content)
        # Configs of other programs have a `train` or a `names`, too.
        if one.has_names or len(one.splits) + ("nc" in content) >= 2:
            found.append(one)
    whole = [one for one in found if one.has_names and one.splits]
    return (whole or found or [Description(faults=tuple(faults))])[0]


def _read_description(path: Path) -> Mapping[str, object]:
    if path.suffix.lower() != ".data":
        content = read_yaml(path, DataError)
        return content if isinstance(content, dict) else {}
    lines = read_text(path, MAX_YAML_FILE, DataError).splitlines()
    pairs = [line.partition("=") for line in lines if not line.lstrip().startswith(("#", ";"))]
    values = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    return {"nc" if key == "classes" else key: value for key, value in values.items()}


# ------------------------------------------------------------------------------ splits


def list_splits(tree: Tree, found: Description) -> tuple[dict[str, list[str]], list[str]]:
    """List the images of the splits that a description names.

    Returns:
        Their names by split, and sentences about what was passed over.

    Raises:
        DataError: An entry of another split than "test" leads to no images.
    """
    splits: dict[str, list[str]] = {}
    remarks: list[str] = []
    for split, entries in found.splits.items():
        images: dict[str, None] = {}
        for entry in entries:
            images |= dict.fromkeys(own := list(_list_images(tree, found, split, entry)))
            if not own and split == "test":  # often named and left out
                remarks.append(f"{found.file} names {entry!r} for test, which has no images")
            elif not own:
                _refuse_entry(tree, found, split, entry)
        if images:
            splits[split] = list(images)
    return splits, remarks


def _list_images(tree: Tree, found: Description, split: str, entry: str) -> Iterator[str]:
    """Yield the images of a folder, or of a list that lies anywhere below the root."""
    base = found.content.get("path")
    promised = f"{base}/{entry}" if isinstance(base, str) else entry
    if not entry.endswith(".txt"):
        folder = tree.find_folder(promised, found.folder)
        if folder is None:  # "." below a path of another machine
            folder = tree.find_folder(entry, found.folder)
        if folder is not None:
            prefix = f"{folder}/" if folder not in ("", ".") else ""
            yield from (name for name in tree.images if name.startswith(prefix))
        return
    file = tree.find(promised, found.folder, f"{tree.root / found.file}: {split}")
    if file is None:
        return
    lines = read_text(tree.root / file, MAX_LIST_FILE, DataError).splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{tree.root / file}: line {number}"
            image = tree.find(line.strip(), file.rpartition("/")[0], where)
            if image is None:
                raise DataError(f"{where}: there is no image {line.strip()[:200]!r}; add it")
            yield image


def _refuse_entry(tree: Tree, found: Description, split: str, entry: str) -> None:
    """Raise a `DataError` about an entry that leads to no images, with what may be meant."""
    start = f"{found.folder}/" if found.folder else ""
    if entry.endswith(".txt"):
        beside = [name.removeprefix(start) for name in tree.list_with(".txt")]
        known, what = [name for name in beside if "/" not in name], "lists"
    else:
        folders = {str(p) for name in tree.images for p in PurePosixPath(name).parents} - {"."}
        known, what = sorted(name.removeprefix(start) for name in folders), "images"
    meant = nearest(entry, known)
    there = f" ({what} are in {quote(known)})" if known and not meant else ""
    raise DataError(
        f"{tree.root / found.file}: {split}: {entry[:200]!r} leads to no images below "
        f"{tree.root}{there}; correct it, or remove it{meant}"
    )


# ------------------------------------------------------------------------------ names


def read_names(tree: Tree, found: Description) -> YoloNames:
    """Read the names of classes and keypoints.

    Raises:
        DataError: Names the file and the entry that is wrong.
    """
    path, names, count = tree.root / found.file, found.content.get("names"), None
    points = _read_keypoints(found.content, path)
    if "nc" in found.content:
        count = _read_count(found.content["nc"], path)
    if names is not None and not isinstance(names, str):
        file, classes = found.file, _read_classes(names, path)
    else:
        file = _find_names(tree, found, names)
        classes = _read_name_file(tree.root / file) if file else ()
    if classes and count is not None and count != len(classes):
        # Which one is forgotten is not known: names behind it would be those of other classes.
        raise DataError(
            f"{path}: says that it has {pluralize(count, 'class')}, but {file} names "
            f"{len(classes)} ({quote(classes)}); correct one of them"
        )
    if classes:
        return YoloNames(file, classes, *points)
    why = "no data.yaml, no classes.txt"
    if found.file:
        why = f"{found.file} names {names!r}, not there" if names else f"{found.file} has no names"
    remark = f"no class has a name ({why}): they are numbered"
    return YoloNames("", tuple(f"class {n}" for n in range(count or 0)), *points, remark)


def _read_count(value: object, path: Path) -> int:
    count = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(count) is not int or not 1 <= count <= MAX_CLASSES:
        raise DataError(
            f"{path}: the number of classes must be 1 to {MAX_CLASSES}, not {str(value)[:60]!r}"
        )
    return count


def _find_names(tree: Tree, found: Description, promised: str | None) -> str:
    """Find the file of classes that a description names, or any; empty where there is none."""
    if promised:
        return tree.find(promised, found.folder, f"{tree.root / found.file}: names") or ""
    known = (n for n in tree.files if n.rpartition("/")[2] in NAME_FILES or n.endswith(".names"))
    return next(known, "")


def _read_name_file(path: Path) -> tuple[str, ...]:
    lines = read_text(path, MAX_LIST_FILE, DataError).splitlines()
    classes = tuple(
        check_name(line, f"{path}: line {n}") for n, line in enumerate(lines, 1) if line.strip()
    )
    return _check_classes(classes, path)


def _read_classes(names: object, path: Path) -> tuple[str, ...]:
    """Read the classes that stand in a YAML file: a list, or a mapping of their numbers."""
    if isinstance(names, dict):
        texts = {key: str(key) for key in names}
        numbers = {int(t) if t.isdecimal() else key: names[key] for key, t in texts.items()}
        if set(numbers) != set(range(len(names))):
            raise DataError(f"{path}: names must be numbered from 0 without gaps; correct them")
        names = [numbers[n] for n in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{path}: names must be a list or a mapping, not {str(names)[:60]!r}")
    classes = tuple(check_name(name, f"{path}: names[{n}]") for n, name in enumerate(names))
    return _check_classes(classes, path)


def _check_classes(classes: tuple[str, ...], path: Path) -> tuple[str, ...]:
    twice = sorted({name for name in classes if classes.count(name) > 1}) if classes else []
    if not 1 <= len(classes) <= MAX_CLASSES or twice:
        raise DataError(
            f"{path}: must name 1 to {MAX_CLASSES} classes, each once"
            + (f"; given twice: {quote(twice)}" if twice else f", not {len(classes)}")
        )
    return classes


def _read_keypoints(content: Mapping[str, object], path: Path) -> tuple[tuple[str, ...], int]:
    """Return the keypoints' names, and how many numbers each has in a line."""
    shape, flips = content.get("kpt_shape"), content.get("flip_idx")
    if shape is None:
        return (), 3
    if (
        not isinstance(shape, list)
        or [type(n) for n in shape] != [int, int]
        or not (1 <= shape[0] <= MAX_KEYPOINTS and shape[1] in (2, 3))
    ):
        raise DataError(
            f"{path}: kpt_shape must be [number of keypoints, 2 or 3], not {str(shape)[:60]!r}"
        )
    names = [f"point {n + 1}" for n in range(shape[0])]
    own = content.get("kpt_names")
    if isinstance(own, dict) and own:
        own = next(iter(own.values()))
    if isinstance(own, list) and len(own) == shape[0]:
        names = [check_name(name, f"{path}: kpt_names[{n}]") for n, name in enumerate(own)]
    elif isinstance(flips, list) and len(flips) == shape[0]:
        # Names say which point is the other side's, as augmentation reads them.
        for n, other in enumerate(flips):
            if type(other) is int and n < other < len(names) and flips[other] == n:
                names[n], names[other] = f"left point {n + 1}", f"right point {n + 1}"
    return tuple(names), shape[1]
