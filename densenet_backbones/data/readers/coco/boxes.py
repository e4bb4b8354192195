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

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from densenet_backbones.data.boxes import OVERHANG, clip_boxes, describe_box_fault, measure_overhang
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import list_files, list_folders, quote, refuse_if_strict
from densenet_backbones.data.images import read_image_size
from densenet_backbones.data.packing.blobs import pack_blobs
from densenet_backbones.data.packing.records import PackedRecords, RecordColumns
from densenet_backbones.data.readers.coco.annotation_file import CocoFile, read_coco_file
from densenet_backbones.data.readers.foreign.content import CocoContent
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.garbage import collecting_later
from densenet_backbones.messages import nearest, pluralize

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
    need_images: bool = True,
    content: CocoContent | None = None,
) -> DetectionSet:
    """Read one split of a data set in COCO's layout.

    Images that are not where they should be are looked for by their names below `root`.

    Args:
        root: The folder of the data set.
        split: Such as "val2017". "train" finds the newest of train2014, train2017; "val" finds
            "valid" too.
        annotation_file: The JSON file, where it has another name; absolute or relative to `root`.
        image_folder: The images' folder, where it has another name; absolute or relative.
        classes: Names in label order. Default: the file's categories in order of their ids.
        masks: Keep the objects' outlines, which only the training and evaluation of masks need.
        keypoints: Read the file of keypoints, where there is one, instead of the instances file,
            and refuse classes that name different keypoints.
        strict: Raise for what is otherwise reported in `DetectionSet.problems`.
        need_images: False goes on where image files are missing, if the file says their sizes.
        content: Annotations that were read from another format, instead of a file's; their images
            are named relative to `root`.

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
    if content is not None:
        path, folders = root, [root]
    elif annotation_file is None:
        path, split = find_annotation_file(root, split, keypoints=keypoints)
        folders = list_image_folders(root, split, path)
    else:
        path = root / annotation_file
        folders = list_image_folders(root, split, path)
    if image_folder:
        folders = [root / image_folder]
    finder = ImageFinder(root, path)
    # In the published layout a name that leads out of its folder is an error.
    find_image = finder.find if annotation_file is not None else lambda name: None
    with collecting_later():
        file = read_coco_file(
            path, masks=masks, keypoints=keypoints, content=content, find_image=find_image
        )
        categories = _order_classes(file, classes) if classes is not None else file.categories
        names = file.images.names
        if image_folder:
            folder = find_folder_with(folders, names, path)
        else:
            folder, names = finder.locate(folders, names, need_all=need_images)
        file = replace(file, images=replace(file.images, names=names))
        files = content.files if content is not None else {}
        records, problems = _make_records(file, categories, folder, files)
    problems += content.problems if content is not None else ()
    refuse_if_strict(problems, strict)
    problems += file.remarks
    return DetectionSet(f"{root.name}/{split}", records, categories, tuple(problems), path)


class ImageFinder:
    """Looks below a data set's root for images that are not where their annotations say.

    Args:
        root: The folder of the data set, which is listed when an image is looked for.
        path: The annotation file.
    """

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path = root, path

    @cached_property
    def _tree(self) -> Tree:
        return Tree(self.root)

    def find(self, name: str) -> str | None:
        """Return the one file that a name means, relative to the root; see `Tree.find`."""
        near = ""
        if self.path.parent.is_relative_to(self.root):
            near = self.path.parent.relative_to(self.root).as_posix()
        return self._tree.find(name, "" if near == "." else near, str(self.path))

    def locate(
        self, folders: Sequence[Path], names: list[str], *, need_all: bool = True
    ) -> tuple[Path, list[str]]:
        """Find all images of a file.

        Args:
            folders: Folders where they may be, the likeliest first.
            names: Their names relative to one of them.
            need_all: False takes files that are nowhere to be where they were promised.

        Returns:
            The folder, and the names relative to it.

        Raises:
            DataError: If some are nowhere, or may be any of several files.
        """
        missing, folder = find_fullest_folder(folders, names)
        if not missing:
            return folder, names
        found = {name: self.find(name) for name in names}
        lost = [name for name in names if found[name] is None]
        # The place that was promised is named where looking elsewhere found no more.
        if lost and not need_all:
            return folder, names
        if lost:
            where = folder if len(lost) == len(missing) else self.root
            raise DataError(_describe_missing(self.path, lost, len(names), where))
        return self.root, [str(found[name]) for name in names]


def find_annotation_file(root: Path, split: str, *, keypoints: bool = False) -> tuple[Path, str]:
    """Find the annotation file of a split, and the split's full name.

    Args:
        root: The folder of the data set.
        split: Name of the split, or one that `find_split` knows to stand for it.
        keypoints: Prefer a file of keypoints to the instances file.

    Raises:
        DataError: If there is none; says which splits there are.
    """
    known = list_annotation_files(root, keypoints)
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
    return root.is_dir() and bool(list_annotation_files(root))


def list_annotation_files(root: Path, keypoints: bool = False) -> dict[str, Path]:
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
    what: str = "image",
    fix: str = "give image_folder",
) -> Path:
    """Return the first folder that has all the images; lists folders, looks at no image."""
    missing, folder = find_fullest_folder(folders, names)
    if missing:
        raise DataError(_describe_missing(path, missing, len(names), folder, what, fix))
    return folder


def find_fullest_folder(folders: Sequence[Path], names: Collection[str]) -> tuple[list[str], Path]:
    """Return the first folder that lacks the fewest of the names, and those that it lacks."""
    fewest: tuple[list[str], Path] | None = None
    for folder in [folder for folder in folders if folder.is_dir()] or folders:
        listings: dict[str, frozenset[str]] = {}
        missing = []
        for name in names:
            parent, _, file = name.rpartition("/")
            if parent not in listings:
                listings[parent] = list_files(folder / parent)
            if file not in listings[parent]:
                missing.append(name)
        if not missing:
            return [], folder
        if fewest is None or len(missing) < len(fewest[0]):
            fewest = (missing, folder)
    assert fewest is not None
    return fewest


def _describe_missing(
    path: Path,
    missing: Sequence[str],
    total: int,
    folder: Path,
    what: str = "image",
    fix: str = "give image_folder",
) -> str:
    return (
        f"{path}: {folder} lacks {len(missing)} of its {pluralize(total, what)} "
        f"({quote(missing)}); add them, {fix}, or take them out of the file"
    )


def _order_classes(content: CocoFile, classes: Sequence[str]) -> Categories:
    """Give classes the file's ids; those that the file does not know get new ids."""
    ordered = Categories.from_names(classes)  # refuses names given twice
    ids = dict(zip(content.categories.names, content.categories.ids, strict=True))
    used = set(np.unique(content.table.numbers["category_id"]).tolist())
    known = set(ordered.names)
    lost = [name for name, i in ids.items() if i in used and name not in known]
    if lost:
        raise DataError(
            f"{content.path}: has objects of {pluralize(len(lost), 'class')} ({quote(lost)}) that "
            f"are not among the {len(ordered.names)} known ({quote(ordered.names)}); rename or "
            f"remove them, or train with all of them in `classes`{nearest(lost[0], ordered.names)}"
        )
    # New classes get the ids above the file's.
    free = max(0, *ids.values()) + 1
    new = [name for name in ordered.names if name not in ids]
    ids |= {name: free + n for n, name in enumerate(new)}
    return replace(
        content.categories, names=ordered.names, ids=tuple(ids[name] for name in ordered.names)
    )


def _make_records(
    content: CocoFile, categories: Categories, folder: Path, files: Mapping[int, Path]
) -> tuple[PackedRecords[ImageRecord], list[Problem]]:
    """Make the columns of all records; the boxes of the whole file are clipped at once."""
    images, table = content.images, content.table
    sizes = images.sizes
    for n in np.flatnonzero((sizes == 0).any(axis=1)):
        sizes[n] = read_image_size(folder / images.names[n])
    # Annotations image after image, and the place of each among those of its image.
    rows = np.argsort(content.owners, kind="stable")
    counts = np.bincount(content.owners, minlength=len(sizes))
    ends = np.cumsum(counts)
    place = np.arange(len(rows)) - np.repeat(ends - counts, counts)
    # Objects that are no crowds, their boxes xyxy and clipped; changed ones are reported.
    alone = table.numbers["iscrowd"][rows] == 0
    objects, place = rows[alone], place[alone]
    owner, boxes = content.owners[objects], table.boxes[objects]
    with np.errstate(over="ignore"):  # an infinite end is clipped as any other
        boxes[:, 2:] += boxes[:, :2]
    clipped, usable = clip_boxes(boxes, sizes[owner])
    problems = []
    for n in np.flatnonzero(~usable | (measure_overhang(boxes, sizes[owner]) > OVERHANG)):
        width, height = sizes[owner[n]].tolist()
        what, action = describe_box_fault(boxes[n], (width, height))
        file, item = content.path, f"annotation {table.numbers['id'][objects[n]]}"
        # Other formats have no ids: the place in the image's own file says more.
        if files:
            file = files[int(images.ids[owner[n]])]
            item = f"object {place[n] + 1}"
        problems.append(Problem(str(file), f"{item} ({images.names[owner[n]]})", what, action))
    columns = RecordColumns(
        image_ids=images.ids,
        paths=pack_blobs(os.fsencode(f"{folder}{os.sep}{name}") for name in images.names),
        sizes=sizes,
        box_ends=np.cumsum(np.bincount(owner[usable], minlength=len(sizes))),
        boxes=clipped[usable],
        labels=categories.labels_of_ids(table.numbers["category_id"][objects[usable]]),
        difficult=np.zeros(int(usable.sum()), dtype=bool),
        annotation_of=place[usable],
        row_ends=ends,
        rows=rows,
        table=table,
    )
    return PackedRecords(ImageRecord, columns), problems
