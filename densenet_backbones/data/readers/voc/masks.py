"""Reads Pascal VOC's SegmentationClass folders for segmentation.

Masks are palette pictures whose indices are the classes: 0 the background, 255 the border around
objects and whatever nobody labeled, which is ignored (VOC2012 development kit, section 2.6).
Gray pictures of the same numbers are read too.

A `labelmap.txt` beside the folders names other classes, as CVAT and Datumaro write it: a line
``name:r,g,b:parts:actions`` a class. The class's id is its line's number from 0; masks may then be
RGB pictures of those colors as well. A line named "ignored" (or with the id 255) is ignored.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import (
    BACKGROUND,
    IGNORED,
    Color,
    MaskClasses,
    SegmentationSet,
    voc_color,
)
from densenet_backbones.data.masks.code import MaskCode
from densenet_backbones.data.readers.masks.files import (
    list_masks,
    read_file_records,
    refuse_missing,
    reorder_classes,
)
from densenet_backbones.data.readers.voc.boxes import (
    VOC_CLASSES,
    find_images,
    find_voc_folder,
    list_voc_folders,
    read_split,
    report_unannotated,
)
from densenet_backbones.untrusted.limits import MAX_YAML_FILE
from densenet_backbones.untrusted.reading import read_text

VOC_MASK_CLASSES = MaskClasses.from_names((BACKGROUND, *VOC_CLASSES))
LABEL_MAP = "labelmap.txt"
_FOLDERS = ("JPEGImages", "SegmentationClass")


def read_voc_masks(
    root: str | Path, split: str, *, classes: Sequence[str] | None = None
) -> SegmentationSet:
    """Read one split of a data set in VOC's layout.

    Args:
        root: The folder with `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`, or
            one above it (`VOCdevkit` with a single year in it).
        split: Name of a list in `ImageSets/Segmentation`, such as "train"; "all" reads every mask
            when there is no such list.
        classes: Names in label order. Where `labelmap.txt` names the classes, or these hold all
            of VOC's names, they are matched by name; elsewhere they are the names of the ids 0,
            1, 2, ... in the masks. Default: those of `labelmap.txt`, or VOC's background and 20
            classes.

    Returns:
        The set; image ids count the split's list from 1.

    Raises:
        DataError: If the layout, the list, a file's name or a mask's size is wrong, or images or
            masks are missing; names it and the fix.
    """
    expected = "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/*.txt"
    folder = find_voc_folder(root, _FOLDERS, expected)
    # Classes, and the meaning of the masks' values.
    mask_classes, code = _read_classes(folder, classes)
    code = replace(code, ids_in=_describe_classes_file(Path(root), folder))
    # Pairs of images and masks, in the order of the list.
    masks = list_masks(folder / "SegmentationClass")
    lists = folder / "ImageSets" / "Segmentation"
    ids = read_split(lists, split, sorted(masks))
    refuse_missing(folder / "SegmentationClass", [i for i in ids if i not in masks], split)
    images = find_images(folder, ids, split)
    name = f"{folder.name}/{split}"
    records = read_file_records(images, [masks[i] for i in ids], code, name)
    problems = report_unannotated(lists, split, folder / "JPEGImages", masks, "mask")
    data = SegmentationSet(name, records, mask_classes, problems=tuple(problems))
    return data if classes is None else reorder_classes(data, classes)


def has_voc_masks(root: Path) -> bool:
    """Return True if a folder has VOC's mask folders, or has some in it."""
    return root.is_dir() and bool(list_voc_folders(root, _FOLDERS))


def _read_classes(folder: Path, names: Sequence[str] | None) -> tuple[MaskClasses, MaskCode]:
    path = folder / LABEL_MAP
    are_matched = path.is_file() or (
        names is not None and set(VOC_MASK_CLASSES.names) <= set(names)
    )
    # Names alone: the ids are 0, 1, 2, ....
    if names is not None and not are_matched:
        classes = MaskClasses.from_names(names)
        return classes, MaskCode.from_classes(classes, ignored_ids=_default_ignored(classes))
    # VOC's own classes.
    if not path.is_file():
        fix = f"correct the mask, or name the classes in `classes` or in {path}"
        return VOC_MASK_CLASSES, MaskCode.from_classes(VOC_MASK_CLASSES, fix=fix)
    # CVAT's file; a line for what is ignored is no class.
    lines = read_label_map(path)
    named = {n: v for n, v in lines.items() if n != "ignored" and v[0] != IGNORED}
    classes = MaskClasses.from_names(
        list(named), [i for i, _ in named.values()], [color for _, color in named.values()]
    )
    ignored = [v for n, v in lines.items() if n not in named]
    code = MaskCode.from_classes(
        classes,
        colors=True,
        ignored_ids={IGNORED, *(i for i, _ in ignored)},
        ignored_colors=[color for _, color in ignored] or [voc_color(IGNORED)],
        fix=f"correct the mask, or name them in {path}",
    )
    return classes, code


def _describe_classes_file(root: Path, folder: Path) -> str:
    """Describe the file that makes of VOC's folders others, whose classes have any ids."""
    below = folder.relative_to(root)
    return (
        f"{root / 'classes.yaml'} (with images: {below / 'JPEGImages'}, masks: "
        f"{below / 'SegmentationClass'}, lists: {below / 'ImageSets/Segmentation'}/{{split}}.txt)"
    )


def _default_ignored(classes: MaskClasses) -> tuple[int, ...]:
    return () if IGNORED in classes.ids else (IGNORED,)


def read_label_map(path: Path) -> dict[str, tuple[int, Color]]:
    """Read a label map: the id and the color of each name, in the file's order.

    Raises:
        DataError: Names the line that is not ``name:r,g,b:...``.
    """
    lines = read_text(path, MAX_YAML_FILE, DataError).splitlines()
    classes: dict[str, tuple[int, Color]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.split(":")[0].split(",")
        # A line is name:r,g,b:parts:actions, of which the last two say nothing here.
        numbers = (part.strip() for part in parts)
        values = [int(n) for n in numbers if n.isascii() and n.isdigit() and len(n) < 9]
        if len(values) != 3 or len(parts) != 3 or max(values) > 255 or not name.strip():
            raise DataError(
                f"{path}: line {number}: {line.strip()[:60]!r} must be a name and a color, such as "
                "'road:128,64,128::'"
            )
        if name.strip() in classes:
            raise DataError(f"{path}: line {number}: class {name.strip()[:60]!r} is there twice")
        classes[name.strip()] = len(classes), (values[0], values[1], values[2])
    if not classes:
        raise DataError(f"{path}: names no classes; write a line 'name:r,g,b::' for each")
    return classes
