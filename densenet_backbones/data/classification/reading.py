"""Recognizes and reads labelled images: folders of classes, tables, CIFAR's files, crops of boxes.

Folders are those of torchvision's `ImageFolder`: ``ROOT/CLASS/...`` or ``ROOT/SPLIT/CLASS/...``;
labels follow the sorted names of the classes, as there.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.classification.cifar import find_cifar, prepare_cifar
from densenet_backbones.data.classification.cifar_archive import ENDINGS, unpack_cifar
from densenet_backbones.data.classification.crops import prepare_crops
from densenet_backbones.data.classification.tables import (
    LabelledImage,
    find_label_tables,
    read_label_table,
)
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import map_in_threads, quote, refuse_if_strict
from densenet_backbones.data.images import read_image_size
from densenet_backbones.data.recognition.archives import unpack_archive
from densenet_backbones.data.recognition.known_layouts import find_only_folder
from densenet_backbones.data.recognition.recognize import Recognized, Split
from densenet_backbones.data.recognition.splits import (
    WHOLE,
    find_split_word,
    order_splits,
    unify_splits,
)
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.data.samples import Annotation, DetectionSet, ImageRecord
from densenet_backbones.messages import nearest, pluralize

ClassLayout = Literal["auto", "folders", "csv", "cifar", "crops"]
_NO_CLASSES = {"images", "masks", "labels", "annotations", "jpegimages", "segmentationclass"}
SERVES = frozenset({"classes"})


def recognize_classes(
    path: str | Path, layout: ClassLayout = "auto", annotation_file: str | None = None
) -> Recognized:
    """Recognize labelled images at a path; CIFAR's files and crops become folders of pictures.

    Args:
        path: Folder, table, zip archive or CIFAR's ``.tar.gz``.
        layout: Layout of the data; "auto" looks for all but "crops".
        annotation_file: Table to take, of several.

    Raises:
        DataError: If nothing is recognized; says what is needed.
    """
    path, notes = Path(path), list[str]()
    if layout == "crops":
        folder, found = prepare_crops(path)
        reading = _recognize_folders(Tree(folder))
        assert reading is not None
        title = f"Data: crops of the boxes of {found.root}, in {folder}"
        return _finish(reading, title, [])
    if path.suffix.lower() == ".zip" and path.is_file():
        path, note = unpack_archive(path)
        notes.append(note)
    elif path.name.lower().endswith(ENDINGS) and path.is_file():
        path, note = unpack_cifar(path)
        notes.append(note)
    if path.is_file() and path.suffix.lower() == ".csv":
        path, annotation_file = path.absolute().parent, annotation_file or path.name
    while layout in ("auto", "cifar") and path.is_dir():
        if (cifar := find_cifar(path)) is not None:
            folder = prepare_cifar(path, cifar)
            reading = _recognize_folders(Tree(folder))
            assert reading is not None
            return _finish(reading, f"Data: {cifar.title} of {path}, in {folder}", notes)
        if (inner := find_only_folder(path)) is None:
            break
        path = inner
    tree = Tree(path, annotation_file)
    reading = None
    if layout in ("auto", "csv"):
        reading = _recognize_tables(tree, annotation_file)
    if reading is None and layout in ("auto", "folders"):
        reading = _recognize_folders(tree)
    if reading is None:
        raise DataError(
            f"{path}: has no labelled images; give a folder with one folder of images for each "
            "class (train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg), a table (CSV) with the "
            "columns image and class, or CIFAR's files; --layout crops takes the boxes of "
            "detection data"
        )
    return _finish(reading, f"Data: {reading.lines[0]} in {reading.root}", notes)


def _finish(reading: Recognized, title: str, notes: Sequence[str]) -> Recognized:
    parts = ", ".join(
        f"{split.name} {pluralize(split.images, 'image', grouped=True)}" for split in reading.splits
    )
    lines = (title, f"Found: {parts}.", *notes)
    return Recognized(reading.root, reading.layout, SERVES, reading.splits, lines)


def _recognize_tables(tree: Tree, annotation_file: str | None) -> Recognized | None:
    tables = find_label_tables(tree)
    if annotation_file is not None and not tables:
        raise DataError(
            f"{tree.root / annotation_file}: is no table of labels; name its columns in the first "
            "line: image, class and, if there are splits, split"
        )
    images = _list_in_tables(tree, tables)
    if not images:
        return None
    return _make_reading(tree, "csv", "a table of labels (CSV)", images, ",".join(tables))


def _recognize_folders(tree: Tree) -> Recognized | None:
    images, _ = _sort_into_classes(tree)
    names = {image.label for image in images}
    has_others = any(n.lower() in _NO_CLASSES or find_split_word(f"{n}/_") == n for n in names)
    if len(names) < 2 or has_others:
        return None
    return _make_reading(tree, "folders", "folders of classes", images)


def _make_reading(
    tree: Tree, layout: str, title: str, images: Sequence[LabelledImage], tables: str = ""
) -> Recognized:
    counts = Counter(image.split for image in images)
    source = {"root": str(tree.root), "layout": layout}
    source |= {"annotation_file": tables} if tables else {}
    splits = [Split(n, counts[n], {**source, "split": n}) for n in order_splits(counts)]
    return Recognized(tree.root, layout, SERVES, tuple(splits), (title,))


def _list_in_tables(tree: Tree, tables: Sequence[str]) -> list[LabelledImage]:
    return _unify([image for name in tables for image in read_label_table(tree, name)])


def _unify(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    names = unify_splits(image.split for image in images)
    return [replace(image, split=names[image.split]) for image in images]


def _sort_into_classes(tree: Tree) -> tuple[list[LabelledImage], list[str]]:
    """Return the images in folders of classes, and the names of those that are in none."""
    parts = [PurePosixPath(name).parts for name in tree.images]
    tops = {own[0] for own in parts if len(own) > 1}
    has_splits = bool(tops) and all(find_split_word(f"{top}/_") == top for top in tops)
    images, others = [], []
    for name, own in zip(tree.images, parts, strict=True):
        if len(own) < 2 + has_splits:
            others.append(name)
        else:
            split = own[0] if has_splits else WHOLE
            images.append(LabelledImage(name, own[int(has_splits)], split))
    return _unify(images), others


# -- reading ---------------------------------------------------------------------------------------


def read_classes(
    sources: Sequence[dict[str, Any]],
    layout: ClassLayout = "auto",
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> DetectionSet:
    """Read labelled images of one source or several as a set whose records have one object each.

    Args:
        sources: Dictionaries with `root`, `split` and, where it is known, `layout`.
        layout: Layout of sources that name none.
        classes: Names in label order; None sorts the sources' own.
        strict: Raise for what is otherwise reported in the set's problems.

    Raises:
        DataError: A source is wrong, or has a class that `classes` does not name.
    """
    parts = [_read_source(source, layout) for source in sources]
    own = sorted({image.label for _, _, images, _ in parts for image in images})
    names = list(classes) if classes is not None else own
    if unknown := [name for name in own if name not in names]:
        raise DataError(
            f"{parts[0][0]}: has images of {pluralize(len(unknown), 'class')} ({quote(unknown)}) "
            f"that are not among the {len(names)} known "
            f"({quote(names)}){nearest(unknown[0], names)}; rename them or leave them out "
            "(data.rename, data.drop)"
        )
    categories = Categories.from_names(names)
    problems = [problem for *_, left in parts for problem in left]
    refuse_if_strict(problems, strict)
    files = [(root / image.name, image.label) for _, root, images, _ in parts for image in images]
    records = tuple(_make_records(files, categories))
    name = "+".join(part[0] for part in parts)
    return DetectionSet(name, records, categories, tuple(problems))


def _read_source(
    source: dict[str, Any], layout: ClassLayout
) -> tuple[str, Path, list[LabelledImage], list[Problem]]:
    """Return a source's name, its root, its images and what was left out."""
    files = {key: value for key, value in source.items() if value is not None}
    split = str(files.get("split", WHOLE))
    if "layout" not in files:
        found = recognize_classes(files["root"], layout, files.get("annotation_file"))
        files = dict(found.name_source(split))
        split = files["split"]
    tree = Tree(Path(files["root"]))
    others: list[str] = []
    if files["layout"] == "csv":
        images = _list_in_tables(tree, str(files["annotation_file"]).split(","))
    else:
        images, others = _sort_into_classes(tree)
    own = [image for image in images if image.split == split]
    if not own:
        raise DataError(f"{tree.root}: has no labelled image of split {split!r}")
    left = [
        Problem(str(tree.root / name), "image", "is in no folder of a class", "left out")
        for name in others
    ]
    return f"{tree.root.name}/{split}", tree.root, own, left


def _make_records(
    files: Sequence[tuple[Path, str]], categories: Categories
) -> Iterator[ImageRecord]:
    sizes = map_in_threads(read_image_size, [path for path, _ in files], "Reading sizes")
    pairs = zip(files, sizes, strict=True)
    for number, ((path, name), (width, height)) in enumerate(pairs, start=1):
        label = categories.label_of_name(name)
        annotation: Annotation = {
            "id": number,
            "image_id": number,
            "category_id": categories.id_of_label(label),
            "bbox": [0.0, 0.0, float(width), float(height)],
            "area": float(width * height),
            "iscrowd": 0,
        }
        yield ImageRecord(
            image_id=number,
            path=path,
            width=width,
            height=height,
            boxes=np.array([[0, 0, width, height]], np.float32),
            labels=np.array([label], np.int64),
            difficult=np.zeros(1, bool),
            annotations=(annotation,),
            annotation_of=np.zeros(1, np.int64),
        )
