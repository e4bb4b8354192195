"""Reads YOLO's labels: a text file an image, an object a line, coordinates as shares of its sides.

The format: https://docs.ultralytics.com/datasets (detect, segment, pose), and darknet's `obj.data`
and `obj.names`. A line is the number of the class (from 0) and

- ``x y w h``, the middle and the sides of a box;
- ``x1 y1 x2 y2 x3 y3 ...``, an outline;
- with `kpt_shape` in the YAML file: a box, and ``x y`` or ``x y visibility`` of each keypoint.

Labels of ``…/images/…/a.jpg`` are ``…/labels/…/a.txt``; else they lie beside the image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote, track_progress
from densenet_backbones.data.images import read_image_size
from densenet_backbones.data.readers.foreign.content import (
    CocoContent,
    Finding,
    ForeignFormat,
    Item,
    assign_splits,
    check_name,
    check_number,
)
from densenet_backbones.data.recognition.sniffing import choose_some, is_yolo_labels
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import (
    MAX_CLASSES,
    MAX_KEYPOINTS,
    MAX_LIST_FILE,
    MAX_XML_FILE,
)
from densenet_backbones.untrusted.plain_yaml import read_yaml
from densenet_backbones.untrusted.reading import read_text

_SPLIT_KEYS = ("train", "val", "test")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_NO_LABELS = {*_NAME_FILES, "requirements.txt"}


@dataclass(frozen=True)
class YoloNames:
    """Names that a data set gives; empty where it gives none.

    Attributes:
        file: File that has them.
        classes: Names of the classes, by their numbers.
        keypoints: Names of the keypoints.
        numbers_each: Numbers of a keypoint in a line, 2 or 3.
    """

    file: str = ""
    classes: tuple[str, ...] = ()
    keypoints: tuple[str, ...] = ()
    numbers_each: int = 3


def find_yolo(tree: Tree) -> Finding | None:
    """Look for YOLO's labels."""
    file, content = _find_yaml(tree)
    texts = {name for name in tree.list_with(".txt") if name.rpartition("/")[2] not in _NO_LABELS}
    parts = _list_parts_of_yaml(tree, content, texts) if content else {}
    if not parts:
        items = [item for name in tree.images if (item := _pair(name, texts)).labels]
        # Images without a label file count where their folder has labelled ones.
        folders = {item.image.rpartition("/")[0] for item in items}
        images = [n for n in tree.images if n.rpartition("/")[0] in folders]
        parts = assign_splits([_pair(name, texts) for name in images])
    labels = [item.labels for items in parts.values() for item in items if item.labels]
    sniffed = {is_yolo_labels(tree.root / name) for name in choose_some(labels)}
    if not (labels and (True in sniffed or (content and False not in sniffed))):
        return None
    bare = sum(not item.labels for items in parts.values() for item in items)
    names = _read_names(tree, file, content)
    remarks = (
        f"{pluralize(bare, 'image has', 'images have')} no label file: taken as without objects",
    ) * bool(bare)
    if not names.classes:
        remarks += ("no class has a name (no data.yaml, no classes.txt): they are numbered",)
    kinds = {"boxes", "keypoints"} if names.keypoints else {"boxes"}
    if not names.keypoints and _has_outlines(tree, labels):
        kinds.add("masks")
    return Finding(
        layout="yolo",
        title="YOLO's labels",
        evidence=f"{names.file or 'no list of classes'}, {len(labels)} .txt",
        serves=frozenset(kinds),
        parts=parts,
        remarks=remarks,
    )


def _find_yaml(tree: Tree) -> tuple[str, Mapping[str, object]]:
    """Find the outermost YAML file that names classes and splits; empty where there is none."""
    files = [name for name in tree.list_with(".yaml", ".yml") if name.count("/") <= 2]
    for name in sorted(files, key=lambda n: (n.count("/"), n))[:50]:
        try:
            content = read_yaml(tree.root / name, DataError)
        except DataError:
            continue  # no file of ours
        if isinstance(content, dict) and "names" in content and set(_SPLIT_KEYS) & content.keys():
            return name, content
    return "", {}


def _list_parts_of_yaml(
    tree: Tree, content: Mapping[str, object], texts: set[str]
) -> dict[str, list[Item]]:
    """List the images of the splits that a YAML file names: folders, lists of files, or several."""
    parts: dict[str, list[Item]] = {}
    for split in _SPLIT_KEYS:
        value = content.get(split)
        entries = value if isinstance(value, list) else [value]
        images: dict[str, None] = {}
        for entry in entries:
            if isinstance(entry, str) and entry.strip():
                images |= dict.fromkeys(_list_images(tree, entry.strip()))
        if images:
            parts[split] = [_pair(name, texts) for name in images]
    return parts


def _list_images(tree: Tree, entry: str) -> Iterable[str]:
    if entry.endswith(".txt"):
        file = tree.find(entry)
        if file is None:
            return []
        lines = read_text(tree.root / file, MAX_LIST_FILE, DataError).splitlines()
        images = []
        for number, line in enumerate(lines, start=1):
            where = f"{tree.root / file}: line {number}"
            if line.strip():
                image = tree.find(line.strip(), where=where)
                if image is None:
                    raise DataError(f"{where}: there is no image {line.strip()[:200]!r}; add it")
                images.append(image)
        return images
    folder = tree.find_folder(entry)
    if folder is None:  # "test" is often named and left out
        return []
    prefix = f"{folder}/" if folder not in ("", ".") else ""
    return [name for name in tree.images if name.startswith(prefix)]


def _pair(image: str, texts: set[str]) -> Item:
    """Find the labels of an image: where `images` in its path is `labels`, or beside it."""
    path = PurePosixPath(image)
    folders = list(path.parts[:-1])
    candidates = []
    for position in reversed(range(len(folders))):
        if folders[position].lower() in ("images", "imgs", "img", "image", "jpegimages"):
            candidates.append([*folders[:position], "labels", *folders[position + 1 :]])
    for parts in (*candidates, folders, [*folders, "labels"], ["labels", *folders]):
        name = "/".join([*parts, f"{path.stem}.txt"])
        if name in texts:
            return Item(image, name)
    return Item(image, "")


def _read_names(tree: Tree, file: str, content: Mapping[str, object]) -> YoloNames:
    if not content:
        for name in tree.files:
            if name.rpartition("/")[2] in _NAME_FILES or name.endswith(".names"):
                lines = read_text(tree.root / name, MAX_LIST_FILE, DataError).splitlines()
                classes = tuple(
                    check_name(line, f"{tree.root / name}: line {n}")
                    for n, line in enumerate(lines, start=1)
                    if line.strip()
                )
                return YoloNames(name, _check_classes(classes, tree.root / name))
        return YoloNames()
    path, names = tree.root / file, content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(f"{path}: names must be numbered from 0 without gaps; correct them")
        names = [names[n] for n in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{path}: names must be a list or a mapping, not {str(names)[:60]!r}")
    classes = tuple(check_name(name, f"{path}: names[{n}]") for n, name in enumerate(names))
    return YoloNames(file, _check_classes(classes, path), *_read_keypoints(content, path))


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


def _has_outlines(tree: Tree, labels: Sequence[str]) -> bool:
    for name in choose_some(labels):
        for line in read_text(tree.root / name, MAX_XML_FILE, DataError).splitlines():
            if len(line.split()) > 6:
                return True
    return False


def read_yolo(tree: Tree, finding: Finding, split: str) -> CocoContent:
    """Read the labels of one split.

    Raises:
        DataError: Names file and line that are wrong.
    """
    file, yaml = _find_yaml(tree)
    names, content = _read_names(tree, file, yaml), CocoContent()
    for item in track_progress(finding.parts[split], f"Reading {split}"):
        size = read_image_size(tree.root / item.image)
        labels = tree.root / item.labels if item.labels else tree.root / item.image
        image_id = content.add_image(item.image, size, labels)
        if not item.labels:
            continue
        lines = read_text(labels, MAX_XML_FILE, DataError).splitlines()
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{labels}: line {number}"
                _add_line(content, image_id, line.split(), size, names, where)
    classes = names.classes or _number_classes(tree, finding)
    content.name_classes(classes, names.keypoints)
    return content


def _number_classes(tree: Tree, finding: Finding) -> list[str]:
    """Name the classes that all label files have by their numbers."""
    highest = 0
    for items in finding.parts.values():
        for item in items:
            if item.labels:
                text = read_text(tree.root / item.labels, MAX_XML_FILE, DataError)
                for number, line in enumerate(text.splitlines(), start=1):
                    if line.strip():
                        where = f"{tree.root / item.labels}: line {number}"
                        highest = max(highest, _read_class(line.split()[0], MAX_CLASSES, where))
    return [f"class {n}" for n in range(highest + 1)]


def _read_class(text: str, count: int, where: str) -> int:
    number = check_number(text, "the number of the class", where)
    if not number.is_integer() or not 0 <= number < count:
        raise DataError(
            f"{where}: the class {text[:20]!r} is not one of the {count} that are named "
            "(their numbers count from 0); correct it, or name it"
        )
    return int(number)


def _add_line(
    content: CocoContent,
    image_id: int,
    words: Sequence[str],
    size: tuple[int, int],
    names: YoloNames,
    where: str,
) -> None:
    """Add the object of a line."""
    category = _read_class(words[0], len(names.classes) or MAX_CLASSES, where)
    values = [check_number(word, "a coordinate", where) for word in words[1:]]
    width, height = size
    expected = 4 + len(names.keypoints) * names.numbers_each if names.keypoints else 4
    is_outline = not names.keypoints and len(values) >= 6 and len(values) % 2 == 0
    if len(values) != expected and not is_outline:
        hint = "; a sixth number is a score, so these are predictions" * (len(values) == 5)
        raise DataError(
            f"{where}: has {len(words)} numbers, but an object has {expected + 1} (class, box"
            f"{' and keypoints' * bool(names.keypoints)}), or a class and the points of an outline"
            f"{hint}"
        )
    coordinates = values if is_outline else values[:4]
    if far := [v for v in coordinates if not -1 <= v <= 2]:
        raise DataError(
            f"{where}: {far[0]:g} is no share of the image's side, which is 0 to 1; divide pixels "
            f"by its {width}x{height}"
        )
    if is_outline:
        sides = (width, height)
        polygon = [v * sides[n % 2] for n, v in enumerate(values)]
        content.add_object(image_id, category + 1, outline=[polygon])
        return
    x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
    corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    keypoints = None
    if names.keypoints:
        keypoints = _read_points(values[4:], names.numbers_each, size)
    content.add_object(image_id, category + 1, corners, keypoints=keypoints)


def _read_points(values: Sequence[float], each: int, size: tuple[int, int]) -> list[float]:
    """Return COCO's x, y and visibility; a point at 0, 0 that says nothing else is none."""
    keypoints: list[float] = []
    for n in range(0, len(values), each):
        x, y = values[n] * size[0], values[n + 1] * size[1]
        seen = int(values[n + 2]) if each == 3 else 2 * int((x, y) != (0, 0))
        keypoints += [x, y, min(max(seen, 0), 2)] if seen > 0 else [0, 0, 0]
    return keypoints


YOLO = ForeignFormat(find_yolo, read_yolo)
