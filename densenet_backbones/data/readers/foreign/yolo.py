"""Reads YOLO's labels: a text file an image, an object a line, coordinates as shares of its sides.

The format: https://docs.ultralytics.com/datasets (detect, segment, pose). A line is the
number of the class (from 0) and

- ``x y w h``, the middle and the sides of a box;
- ``x1 y1 x2 y2 x3 y3 ...``, an outline;
- with `kpt_shape` in the YAML file: a box, and ``x y`` or ``x y visibility`` of each keypoint.

Labels of ``…/images/…/a.jpg`` are ``…/labels/…/a.txt``; else they lie beside the image.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote, track_progress
from densenet_backbones.data.images import read_image_size
from densenet_backbones.data.readers.foreign.content import (
    CocoContent,
    Finding,
    ForeignFormat,
    Item,
    assign_splits,
    check_number,
)
from densenet_backbones.data.readers.foreign.yolo_files import (
    NAME_FILES,
    YoloNames,
    find_description,
    list_splits,
    read_names,
)
from densenet_backbones.data.recognition.sniffing import choose_some, is_yolo_labels
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_CLASSES, MAX_XML_FILE
from densenet_backbones.untrusted.reading import read_text

_IMAGE_FOLDERS = ("images", "imgs", "img", "image", "jpegimages")
_NO_LABELS = {*NAME_FILES, "requirements.txt"}


def find_yolo(tree: Tree) -> Finding | None:
    """Look for YOLO's labels.

    Raises:
        DataError: If the file that describes them is wrong.
    """
    texts = [n for n in tree.list_with(".txt") if n.rpartition("/")[2].lower() not in _NO_LABELS]
    if not texts:
        return None
    places = {name.lower(): name for name in texts} | {name: name for name in texts}
    items = {name: _pair(tree, name, places) for name in tree.images}
    labels = [item.labels for item in items.values() if item.labels]
    found = find_description(tree)
    sniffed = {is_yolo_labels(tree.root / name) for name in choose_some(labels)}
    if not (labels and (True in sniffed or (found.file and False not in sniffed))):
        return None
    names = read_names(tree, found)
    if found.faults and not names.file:
        raise found.faults[0]
    splits, remarks = list_splits(tree, found)
    if splits:
        parts = {
            split: [items.get(name) or _pair(tree, name, places) for name in images]
            for split, images in splits.items()
        }
    else:
        # Images without a label file count where their folder has labelled ones.
        folders = {_name_folder(item.image) for item in items.values() if item.labels}
        parts = assign_splits([item for n, item in items.items() if _name_folder(n) in folders])
    kinds = {"boxes", "keypoints"} if names.keypoints else {"boxes"}
    if not names.keypoints and _has_outlines(tree, labels):
        kinds.add("masks")
    remarks += [names.remark] if names.remark else []
    return Finding(
        layout="yolo",
        title="YOLO's labels",
        evidence=f"{names.file or found.file or 'no list of classes'}, {len(labels)} .txt",
        serves=frozenset(kinds),
        parts=parts,
        remarks=(*_describe_rest(tree, items, texts, parts, found.file * bool(splits)), *remarks),
    )


def _name_folder(name: str) -> str:
    return name.rpartition("/")[0]


def _describe_rest(
    tree: Tree,
    items: Mapping[str, Item],
    texts: Iterable[str],
    parts: Mapping[str, Sequence[Item]],
    file: str,
) -> Iterator[str]:
    """Yield sentences about images without labels, labels without image, and images passed over.

    Args:
        tree: All files.
        items: All images.
        texts: Files that may be labels.
        parts: Images of each split.
        file: File that names the splits; empty where none does.
    """
    taken = {item.image: item.labels for own in parts.values() for item in own}
    bare = [image for image, labels in taken.items() if not labels]
    if bare:
        empty = [split for split, own in parts.items() if not any(item.labels for item in own)]
        yield (
            f"{pluralize(len(bare), 'image has', 'images have')} no label file: taken as without "
            f"objects{f' (all of {quote(empty)})' if empty else ''}"
        )
    shared = [labels for labels, count in Counter(taken.values()).items() if labels and count > 1]
    if shared:
        count = pluralize(len(shared), "label file is", "label files are")
        yield f"{count} that of several images, which all take its objects ({quote(shared)})"
    rest = [item for name, item in items.items() if name not in taken]
    if unnamed := [item.image for item in rest if item.labels]:
        count = pluralize(len(unnamed), "labelled image is", "labelled images are")
        yield f"{count} in no split of {file}: passed over ({quote(unnamed)})"
    elif rest and not file:
        folders = sorted({_name_folder(item.image) or "." for item in rest})
        count = pluralize(len(rest), "image is", "images are")
        yield f"{count} in folders without labels: passed over ({quote(folders)})"
    paired = {item.labels for item in items.values()} | set(taken.values())
    labelled = {_name_folder(name) for name in paired}
    lost = [name for name in texts if name not in paired and _name_folder(name) in labelled]
    others = {name for name in choose_some(lost) if not is_yolo_labels(tree.root / name)}
    if lost := [name for name in lost if name not in others]:
        count = pluralize(len(lost), "label file belongs", "label files belong")
        yield f"{count} to no image, or to any of several: passed over ({quote(lost)})"


def _pair(tree: Tree, image: str, places: Mapping[str, str]) -> Item:
    """Find the labels of an image: where `images` in its path is `labels`, or beside it.

    They may all lie in `labels` itself, if no other image has the name.

    Args:
        tree: All files.
        image: The image.
        places: Text files by their names, and by these in lower case.
    """
    path = PurePosixPath(image)
    folders = list(path.parts[:-1])
    mirrored, flat = [], []
    for position in reversed(range(len(folders))):
        if folders[position].lower() in _IMAGE_FOLDERS:
            mirrored.append([*folders[:position], "labels", *folders[position + 1 :]])
            flat.append([*folders[:position], "labels"])
    if len(tree.list_stem(path.stem)) > 1:
        flat = []
    for parts in (*mirrored, folders, [*folders, "labels"], ["labels", *folders], *flat):
        name = "/".join([*parts, f"{path.stem}.txt"])
        if labels := places.get(name) or places.get(name.lower()):
            return Item(image, labels)
    return Item(image, "")


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
    names, content = read_names(tree, find_description(tree)), CocoContent()
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
