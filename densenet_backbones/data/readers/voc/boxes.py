"""Reads detection data in Pascal VOC's layout.

The layout: M. Everingham and J. Winn, "The PASCAL Visual Object Classes Challenge 2012 (VOC2012)
Development Kit", sections 2 and 4.

Coordinates: VOC counts pixels from 1 and includes the last one (in the VOC2012 development kit,
the top-left pixel is 1, 1). A box of the file becomes ``[xmin - 1, ymin - 1, xmax, ymax]``: xyxy
from 0, the end not included, so that a box over a whole image of W x H is ``[0, 0, W, H]``.

A box whose `xmax` is not above its `xmin` (or `ymax`, `ymin`) is taken as an annotator's stray
click and left out of training. Evaluation counts it, as VOC's own tool does, one pixel wide.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from densenet_backbones.data.boxes import OVERHANG, clip_boxes, describe_box_fault, measure_overhang
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import (
    IMAGE_SUFFIXES,
    check_relative_path,
    list_files,
    list_folders,
    list_images,
    quote,
    refuse_if_strict,
    track_progress,
)
from densenet_backbones.data.readers.voc.sizes import settle_sizes
from densenet_backbones.data.readers.voc.xml_file import (
    VocAnnotation,
    VocObject,
    read_voc_annotation,
)
from densenet_backbones.data.samples import Annotation, DetectionSet, ImageRecord
from densenet_backbones.messages import nearest, pluralize
from densenet_backbones.untrusted.limits import MAX_CLASSES, MAX_LIST_FILE
from densenet_backbones.untrusted.reading import read_text

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)  # in the development kit's order (VOCinit.m)
DETECTION_FOLDERS = ("Annotations", "JPEGImages")


def read_voc(
    root: str | Path, split: str, *, classes: Sequence[str] | None = None, strict: bool = False
) -> DetectionSet:
    """Read one split of a data set in VOC's layout.

    Args:
        root: The folder with `Annotations`, `ImageSets` and `JPEGImages`, or one above it
            (`VOCdevkit` with a single year in it).
        split: Name of a list in `ImageSets/Main`, such as "trainval". A class list
            ("dog_val", lines ``id flag``) gives the images with that class (flag 0 or 1).
            "all" reads every annotation file when there is no such list; images without one are
            left out, and reported.
        classes: Names in label order. Default: the 20 classes of VOC when every name is one of
            them, otherwise the sorted names of all annotation files, whatever the split.
        strict: Raise for what is otherwise reported in `DetectionSet.problems`.

    Returns:
        The set; image ids count the split's list from 1.

    Raises:
        DataError: If the layout, the list, a file or a value is wrong; names it and the fix.
    """
    folder = find_voc_folder(root)
    # Annotation files of the split, in the order of its list.
    annotated = sorted(n[:-4] for n in list_files(folder / "Annotations") if n.endswith(".xml"))
    ids = read_split(folder / "ImageSets" / "Main", split, annotated)
    paths = _find_annotations(folder, ids, split)
    read: dict[Path, VocAnnotation] = {}
    # Files that are read to find the classes are not read again.
    names = _list_classes(folder, read) if classes is None else classes
    images = find_images(folder, ids, split)
    problems = report_unannotated(
        folder / "ImageSets" / "Main", split, folder / "JPEGImages", annotated, "annotation file"
    )
    pairs = list(zip(paths, images, strict=True))
    return read_pairs(f"{folder.name}/{split}", pairs, names, problems, read, strict=strict)


def read_pairs(
    name: str,
    pairs: Sequence[tuple[Path, Path]],
    classes: Sequence[str],
    problems: Sequence[Problem] = (),
    read: Mapping[Path, VocAnnotation] | None = None,
    *,
    strict: bool = False,
) -> DetectionSet:
    """Read annotation files and their images.

    Args:
        name: Name of the set.
        pairs: Annotation file and image, of each.
        classes: Names in label order.
        problems: What was found so far.
        read: Content of files that were read before.
        strict: Raise for what is otherwise reported.

    Raises:
        DataError: As `read_voc`.
    """
    categories, records, found = Categories.from_names(classes), [], list(problems)
    text = f"Reading {name.rpartition('/')[2]}"
    annotated = [
        ((read or {}).get(path) or read_voc_annotation(path), image)
        for path, image in track_progress(pairs, text)
    ]
    sizes, faults = settle_sizes(annotated)
    found += faults
    for number, (own, size) in enumerate(zip(annotated, sizes, strict=True), start=1):
        record, faults = _make_record(number, *own, size, categories)
        records.append(record)
        found.extend(faults)
    refuse_if_strict(found, strict)
    return DetectionSet(name, tuple(records), categories, tuple(found))


def has_voc_layout(root: Path) -> bool:
    """Return True if a folder is a data set in VOC's layout, or has some in it."""
    return root.is_dir() and bool(list_voc_folders(root))


def find_voc_folder(
    root: str | Path,
    holds: tuple[str, ...] = DETECTION_FOLDERS,
    expected: str = "Annotations/*.xml, ImageSets/Main/*.txt and JPEGImages/",
) -> Path:
    """Find the folder of one year: `root`, or the only one in it or in its `VOCdevkit`.

    Args:
        root: Folder to look in.
        holds: Names of the folders that make a folder the one looked for.
        expected: Content that it should have, for the message.

    Raises:
        DataError: If there is none, or several to choose from.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the folder of the data set")
    folders = list_voc_folders(root, holds)
    if not folders:
        raise DataError(f"{root}: not a data set in VOC's layout; expected {expected} in it")
    if len(folders) > 1:
        raise DataError(
            f"{root}: holds {len(folders)} data sets ({quote([f.name for f in folders], 6)}); give "
            f"one of them, such as {folders[0]}, or a list of (root, split) for several"
        )
    return folders[0]


def list_voc_folders(root: Path, holds: tuple[str, ...] = DETECTION_FOLDERS) -> list[Path]:
    """List the folder, or those in it and in its `VOCdevkit`, that hold the folders named."""
    # Names are compared as listed: COCO's `annotations` is another thing, on every file system.
    children = [f / name for f in (root, root / "VOCdevkit") for name in list_folders(f)]
    for candidates in ([root], children):
        folders = [folder for folder in candidates if set(holds) <= set(list_folders(folder))]
        if folders:
            return folders
    return []


def read_split(lists: Path, split: str, annotated: list[str]) -> list[str]:
    """Read the image ids of a split, in the order of its list.

    Args:
        lists: Folder of the lists, such as `ImageSets/Main`.
        split: Name of the list; "all" takes all of `annotated` where there is no such list.
        annotated: Ids that have annotations.

    Raises:
        DataError: If there is no such list, it is empty or faulty, or repeats an id.
    """
    # The list, or all annotated images for "all".
    known = sorted(name[:-4] for name in list_files(lists) if name.endswith(".txt"))
    if split not in known:
        if split == "all" and annotated:
            return annotated
        raise DataError(
            f"{lists}: has no {split}.txt (there are: {quote(known, 12) or 'no lists'}); write one "
            f"with an image id a line{nearest(split, known)}"
        )
    path = lists / f"{split}.txt"
    ids = read_list(path, frozenset(annotated))
    if not ids:
        raise DataError(f"{path}: lists no images; write one image id a line")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: {len(twice)} image ids are listed more than once ({quote(twice)}); "
            "list each once"
        )
    return ids


def read_list(path: Path, annotated: frozenset[str]) -> list[str]:
    """Read the ids of a list: lines are an id, or in class lists an id and -1, 0 (difficult), 1."""
    lines = read_text(path, MAX_LIST_FILE, DataError).splitlines()
    ids = []
    for number, line in enumerate(lines, start=1):
        name, where = line.strip(), f"{path}: line {number}"
        if name and name not in annotated:  # an id may have blanks in it
            name, *flag = name.rsplit(maxsplit=1)
            if flag and flag[0] not in ("-1", "0", "1"):
                raise DataError(
                    f"{where}: {line.strip()[:60]!r} must be an image id, or an id and -1, 0 or 1; "
                    "there is no annotation file of that name"
                )
            if flag == ["-1"]:
                continue
        if not name:
            continue
        if len(check_relative_path(name, where).parts) != 1:
            raise DataError(f"{where}: {name[:60]!r} must be an image id, not a path")
        ids.append(name)
    return ids


def _find_annotations(folder: Path, ids: Iterable[str], split: str) -> list[Path]:
    files = list_files(folder / "Annotations")
    missing = [name for name in ids if f"{name}.xml" not in files]
    if missing:
        raise DataError(
            f"{folder / 'Annotations'}: lacks {pluralize(len(missing), 'annotation file')} of the "
            f"split {split!r} ({quote([f'{name}.xml' for name in missing])}); an image without "
            "objects needs a file too"
        )
    return [folder / "Annotations" / f"{name}.xml" for name in ids]


def find_images(folder: Path, ids: Iterable[str], split: str) -> list[Path]:
    """Find the image of each id, by the id alone; the suffix may be of any case."""
    images = folder / "JPEGImages"
    by_id = list_images(images)
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise DataError(
            f"{images}: lacks {pluralize(len(missing), 'image')} of the split {split!r} "
            f"({quote(missing)}, with any of {', '.join(IMAGE_SUFFIXES)}); add them, or take their "
            "ids out of the list"
        )
    return [by_id[name] for name in ids]


def report_unannotated(
    lists: Path, split: str, images: Path, annotated: Collection[str], what: str
) -> list[Problem]:
    """Report the images that the split "all" leaves out because they have no annotations.

    Args:
        lists: Folder of the lists; a list of that name says itself what is in it.
        split: Name of the split.
        images: Folder of the images.
        annotated: Ids that have annotations.
        what: Name of the file that holds them.
    """
    if split != "all" or f"{split}.txt" in list_files(lists):
        return []
    by_id = list_images(images)
    bare = sorted(by_id.keys() - set(annotated))
    of = pluralize(len(by_id), "image")
    fault = f"{len(bare)} of {of} have no {what} ({quote([by_id[i].name for i in bare])})"
    action = "left out: an image without objects needs one too"
    return [Problem(str(images), 'split "all"', fault, action)] if bare else []


def _list_classes(folder: Path, read: dict[Path, VocAnnotation]) -> tuple[str, ...]:
    """List the classes of a data set, the same for each of its splits; fills `read` on the way."""
    lists = list_files(folder / "ImageSets" / "Main")
    # The development kit brings lists for each class: no need to read all its files.
    if all(any(name.startswith(f"{cls}_") for name in lists) for cls in VOC_CLASSES):
        return VOC_CLASSES
    annotations = folder / "Annotations"
    paths = [annotations / n for n in sorted(list_files(annotations)) if n.endswith(".xml")]
    names = name_classes(annotations, paths, read)
    return VOC_CLASSES if set(names) <= set(VOC_CLASSES) else names


def name_classes(
    annotations: Path, paths: Sequence[Path], read: dict[Path, VocAnnotation]
) -> tuple[str, ...]:
    """List the classes that files have objects of, sorted.

    Args:
        annotations: Their folder, for messages.
        paths: The files.
        read: Gets their content.
    """
    for path in track_progress(paths, "Looking for classes"):
        read[path] = read_voc_annotation(path)
    names = {item.name for annotation in read.values() for item in annotation.objects}
    if not names:
        raise DataError(
            f"{annotations}: no object in {pluralize(len(paths), 'file')}; give `classes`"
        )
    if len(names) > MAX_CLASSES:
        raise DataError(
            f"{annotations}: its objects have {pluralize(len(names), 'name')}, and a detector at "
            f"most {MAX_CLASSES} classes; correct <name>"
        )
    return tuple(sorted(names))


def _make_record(
    number: int,
    annotation: VocAnnotation,
    image: Path,
    size: tuple[int, int],
    categories: Categories,
) -> tuple[ImageRecord, list[Problem]]:
    file, problems = str(annotation.path), []
    objects = annotation.objects
    labels = np.array(
        [_find_label(item, categories, f"{file}: object {n}") for n, item in enumerate(objects, 1)],
        dtype=np.int64,
    )
    # Boxes from 0 with the end left out, clipped; faulty ones are reported.
    corners = np.array([item.corners for item in objects], dtype=np.float64).reshape(-1, 4)
    boxes = corners - [1, 1, 0, 0]
    clipped, usable = clip_boxes(boxes, np.array(size))
    flat = (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1])
    usable &= ~flat
    for n in np.flatnonzero(~usable | (measure_overhang(boxes, np.array(size)) > OVERHANG)):
        what, action = describe_box_fault(corners[n] if flat[n] else boxes[n], size)
        problems.append(Problem(file, f"object {n + 1} ({objects[n].name!r})", what, action))
    record = ImageRecord(
        image_id=number,
        path=image,
        width=size[0],
        height=size[1],
        boxes=clipped[usable],
        labels=labels[usable],
        difficult=np.array([item.difficult for item in objects], dtype=bool)[usable],
        annotations=tuple(
            _make_annotation(item, box, categories.id_of_label(int(label)), number)
            for item, box, label in zip(objects, boxes.tolist(), labels, strict=True)
        ),
        annotation_of=np.flatnonzero(usable),
    )
    return record, problems


def _find_label(item: VocObject, categories: Categories, where: str) -> int:
    try:
        return categories.label_of_name(item.name)
    except KeyError:
        raise DataError(
            f"{where}: class {item.name!r} is not one of the "
            f"{pluralize(len(categories.names), 'class')} ({quote(categories.names, 5)}); correct "
            f"it or give `classes`{nearest(item.name, categories.names)}"
        ) from None


def _make_annotation(
    item: VocObject, box: list[float], category_id: int, image_id: int
) -> Annotation:
    """Return COCO's form of an object, the box as the file gives it."""
    x1, y1, x2, y2 = box
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": max(x2 - x1, 0.0) * max(y2 - y1, 0.0),
        "iscrowd": 0,
        "difficult": int(item.difficult),
        "truncated": int(item.truncated),
    }
