"""Reads detection data in COCO's layout.

The format: https://cocodataset.org/#format-data, sections "Object Detection" and "Keypoint
Detection".

Layouts: ``annotations/instances_{split}.json`` or ``annotations/{split}.json`` with the images in
``{split}``, ``images/{split}``, ``images`` or the root; and ``{split}/_annotations.coco.json``
beside its images. Keypoints may be in files of their own, ``annotations/person_keypoints_{split}
.json`` or ``annotations/keypoints_{split}.json``.

Frame: sizes and boxes of the file are taken in pixels of the image as shown. Training gets boxes
clipped to the image, without crowds and without boxes that have no area there. Evaluation gets
every annotation as the file has it, so that its numbers are those of pycocotools on that file:
there, an object without area counts as one that was never found.
"""

import gc
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from densenet_backbones.data.boxes import OVERHANG, clip_boxes, describe_box_fault, measure_overhang
from densenet_backbones.data.files import list_files, list_folders, quote, refuse_if_strict
from densenet_backbones.data.images import read_image_size
from densenet_backbones.data.readers.coco_json import CocoFile, read_coco_json
from densenet_backbones.data.samples import (
    Annotation,
    Categories,
    DataError,
    DetectionSet,
    ImageRecord,
    Problem,
)
from densenet_backbones.messages import nearest

_BESIDE = "_annotations.coco.json"
_KEYPOINT_FILES = ("keypoints_", "person_keypoints_")
_OTHER_NAMES = {"val": ("valid", "validation"), "valid": ("val",), "validation": ("val",)}


def read_coco(
    root: str | Path,
    split: str,
    *,
    annotation_file: str | Path | None = None,
    image_folder: str | Path | None = None,
    classes: Sequence[str] | None = None,
    masks: bool = True,
    keypoints: bool = False,
    strict: bool = False,
) -> DetectionSet:
    """Read one split of a data set in COCO's layout.

    Args:
        root: The folder of the data set.
        split: Such as "val2017". "train" finds the newest of train2014, train2017; "val" finds
            "valid" too.
        annotation_file: The JSON file, where it has another name; absolute or relative to `root`.
        image_folder: The images' folder, where it has another name; absolute or relative.
        classes: Names in label order. Default: the file's categories in order of their ids.
        masks: Keep the objects' outlines, which only the evaluation of masks needs. A file of
            train2017's size (860 thousand objects) was read in 27 instead of 38 seconds without
            them, and took 1.8 instead of 3.6 GB.
        keypoints: Read the file of keypoints, where there is one, instead of the instances file,
            and refuse classes that name different keypoints.
        strict: Raise for what is otherwise reported in `DetectionSet.problems`.

    Returns:
        The set, with the file's own image ids and category ids, in the file's order; images
        without annotations are in it.

    Raises:
        DataError: If the layout, the file or a value in it is wrong, images are missing, or an
            object's class is not in `classes`; names it and the fix.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the folder of the data set")
    if annotation_file is None:
        path, split = find_annotation_file(root, split, keypoints=keypoints)
    else:
        path = root / annotation_file
    folders = [root / image_folder] if image_folder else list_image_folders(root, split, path)
    with _without_garbage_collection():
        content = read_coco_json(path, masks=masks, keypoints=keypoints)
        categories = _order_classes(content, classes) if classes is not None else content.categories
        folder = find_folder_with(folders, [image.file_name for image in content.images], path)
        records, problems = _make_records(content, categories, folder)
    refuse_if_strict(problems, strict)
    return DetectionSet(f"{root.name}/{split}", records, categories, tuple(problems), path)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Stop collecting garbage: of millions of new objects none is, and it took 20 of 58 seconds."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def find_annotation_file(root: Path, split: str, *, keypoints: bool = False) -> tuple[Path, str]:
    """Find the annotation file of a split, and the split's full name.

    Args:
        root: The folder of the data set.
        split: Name of the split, or one that `find_split` knows to stand for it.
        keypoints: Prefer a file of keypoints to the instances file.

    Raises:
        DataError: If there is none; says which splits there are.
    """
    known = _list_annotation_files(root, keypoints)
    full = find_split(split, known)
    if full is not None:
        return known[full], full
    raise DataError(
        f"{root}: has no annotations/instances_{split}.json and no {split}/{_BESIDE} (splits "
        f"there: {quote(sorted(known), 12) or 'none'}); choose one, or give annotation_file"
        f"{nearest(split, known)}"
    )


def has_coco_layout(root: Path) -> bool:
    """Return True if a folder has annotation files where COCO data sets have them."""
    return root.is_dir() and bool(_list_annotation_files(root))


def _list_annotation_files(root: Path, keypoints: bool = False) -> dict[str, Path]:
    """Map split names to files; an instances file before one with the split's name alone."""
    folder = root / "annotations"
    files = {
        child.name: child / _BESIDE
        for child in sorted(root.iterdir())
        if (child / _BESIDE).is_file()
    }
    names = sorted(name for name in list_files(folder) if name.endswith(".json"))
    files |= {n[: -len(".json")]: folder / n for n in names if "_" not in n}
    for prefix in ("instances_", *_KEYPOINT_FILES * keypoints):  # the last one stays
        files |= {n[len(prefix) : -len(".json")]: folder / n for n in names if n.startswith(prefix)}
    return files


def find_split(split: str, known: Collection[str]) -> str | None:
    """Return the known split that is meant: by name, with the newest year, or a synonym."""
    for name in (split, *_OTHER_NAMES.get(split, ())):
        for full in (name, *list_years_of_split(name, known)):
            if full in known:
                return full
    return None


def list_years_of_split(split: str, names: Iterable[str]) -> list[str]:
    """List the names that are the split and a year, the newest first."""
    return sorted((n for n in names if re.fullmatch(re.escape(split) + r"\d{4}", n)), reverse=True)


def list_image_folders(root: Path, split: str, path: Path) -> list[Path]:
    """List the folders where the images may be, the likeliest first."""
    if path.name == _BESIDE:
        return [path.parent]
    folders = []
    for parent in (root, root / "images"):
        names = (split, *list_years_of_split(split, list_folders(parent)))
        folders += [parent / name for name in names]
    return [*folders, root / "images", root]


def find_folder_with(
    folders: Sequence[Path],
    names: Collection[str],
    path: Path,
    what: str = "images",
    fix: str = "give image_folder",
) -> Path:
    """Return the first folder that has all the images; lists folders, looks at no image."""
    fewest: tuple[list[str], Path] | None = None
    for folder in folders:
        listings: dict[PurePosixPath, frozenset[str]] = {}
        missing = []
        for name in names:
            relative = PurePosixPath(name)
            parent = relative.parent
            if parent not in listings:
                listings[parent] = list_files(folder / parent)
            if relative.name not in listings[parent]:
                missing.append(name)
        if not missing:
            return folder
        if fewest is None or len(missing) < len(fewest[0]):
            fewest = (missing, folder)
    assert fewest is not None
    missing, folder = fewest
    raise DataError(
        f"{path}: {len(missing)} of its {len(names)} {what} are not in {folder} "
        f"({quote(missing)}); add them, {fix}, or take them out of the file"
    )


def _order_classes(content: CocoFile, classes: Sequence[str]) -> Categories:
    """Give classes the file's ids; those that the file does not know get new ids."""
    ordered = Categories.from_names(classes)  # refuses names given twice
    ids = dict(zip(content.categories.names, content.categories.ids, strict=True))
    used = {a["category_id"] for entries in content.annotations.values() for a in entries}
    lost = [name for name, i in ids.items() if i in used and name not in ordered.names]
    if lost:
        raise DataError(
            f"{content.path}: has objects of {len(lost)} classes ({quote(lost)}) that are not "
            f"among the {len(ordered.names)} known ({quote(ordered.names)}); rename or remove "
            f"them, or train with all of them in `classes`{nearest(lost[0], ordered.names)}"
        )
    # New classes get the ids above the file's.
    free = max(0, *ids.values()) + 1
    new = [name for name in ordered.names if name not in ids]
    ids |= {name: free + n for n, name in enumerate(new)}
    return replace(
        content.categories, names=ordered.names, ids=tuple(ids[name] for name in ordered.names)
    )


def _make_records(
    content: CocoFile, categories: Categories, folder: Path
) -> tuple[tuple[ImageRecord, ...], list[Problem]]:
    """Make all records; the boxes of the whole file are clipped at once, and records hold views."""
    paths = [folder / image.file_name for image in content.images]
    sizes = [
        image.size or read_image_size(path)
        for image, path in zip(content.images, paths, strict=True)
    ]
    objects: list[Annotation] = []  # those that are no crowds, image after image
    owners: list[int] = []  # position of each one's image
    numbers: list[int] = []  # and of itself among the image's annotations
    for position, image in enumerate(content.images):
        annotations = content.annotations[image.image_id]
        alone = [n for n, a in enumerate(annotations) if not a["iscrowd"]]
        objects += [annotations[n] for n in alone]
        owners += [position] * len(alone)
        numbers += alone
    owner, number = np.array(owners, dtype=np.int64), np.array(numbers, dtype=np.int64)
    # Boxes of all images, xyxy and clipped; those that had to be changed are reported.
    boxes = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore"):  # an infinite end is clipped as any other
        boxes[:, 2:] += boxes[:, :2]
    limits = np.array(sizes, dtype=np.float64)[owner]
    clipped, usable = clip_boxes(boxes, limits)
    problems = []
    for n in np.flatnonzero(~usable | (measure_overhang(boxes, limits) > OVERHANG)):
        what, action = describe_box_fault(boxes[n], sizes[owner[n]])
        item = f"annotation {objects[n]['id']} ({content.images[owner[n]].file_name})"
        problems.append(Problem(str(content.path), item, what, action))
    # Labels, and the usable rows of each image.
    label_of = {i: label for label, i in enumerate(categories.ids, start=1)}
    labels = np.array([label_of[a["category_id"]] for a in objects], dtype=np.int64)
    ends = np.cumsum(np.bincount(owner[usable], minlength=len(paths)))[:-1]
    records = tuple(
        ImageRecord(
            image_id=image.image_id,
            path=path,
            width=size[0],
            height=size[1],
            boxes=box,
            labels=label,
            difficult=np.zeros(len(label), dtype=bool),
            annotations=tuple(content.annotations[image.image_id]),
            annotation_of=own,
        )
        for image, path, size, box, label, own in zip(
            content.images,
            paths,
            sizes,
            np.split(clipped[usable], ends),
            np.split(labels[usable], ends),
            np.split(number[usable], ends),
            strict=True,
        )
    )
    return records, problems
