"""Reads detection data from one folder or several."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote
from densenet_backbones.data.instances import order_keypoints
from densenet_backbones.data.readers.coco.boxes import has_coco_layout, read_coco
from densenet_backbones.data.readers.voc.boxes import has_voc_layout, read_voc
from densenet_backbones.data.readers.voc.loose import read_loose_voc
from densenet_backbones.data.recognition.formats import find_part, read_foreign
from densenet_backbones.data.recognition.recognize import recognize
from densenet_backbones.data.samples import Annotation, DetectionSet, ImageRecord

Layout = Literal["auto", "coco", "voc", "yolo", "labelme", "cvat", "via", "csv"]
Source = tuple[str | Path, str] | Sequence[str] | Mapping[str, Any]
FILE_KEYS = {"annotation_file", "image_folder", "mask_folder"}
SOURCE_KEYS = {"root", "split", "layout", "annotation_file", "image_folder"}
FOREIGN_LAYOUTS = ("yolo", "labelme", "cvat", "via", "csv")


def read_detection(
    root: str | Path | Sequence[Source],
    split: str | None = None,
    *,
    layout: Layout = "auto",
    classes: Sequence[str] | None = None,
    masks: bool = True,
    keypoints: bool = False,
    strict: bool = False,
    need_images: bool = True,
) -> DetectionSet:
    """Read detection data in any layout.

    Args:
        root: A folder, annotation file or zip archive; or several sources taken as one set, each
            a ``(root, split)`` pair or a dict with `root`, `split` and, where needed, `layout`,
            `annotation_file` and `image_folder` (COCO; {split} in them stands for the split).
        split: Name of the split; None with several sources.
        layout: "auto" looks (see `recognize`); where a folder has COCO's and VOC's, COCO's is read
            (it can say more).
        classes: Names in label order. Default: the data's own. Sources whose classes differ in
            name need it; sources that name the same classes in another order do not.
        masks: Keep COCO's outlines of objects (see `read_coco`).
        keypoints: Read COCO's file of keypoints where there is one (see `read_coco`).
        strict: Raise for what is otherwise reported in `DetectionSet.problems`.
        need_images: False goes on without the image files of COCO's layout (see `read_coco`).

    Returns:
        The set. Image ids of a single source are the reader's; of several, they count from 1.

    Raises:
        DataError: If a source is wrong (see `read_coco` and `read_voc`), or classes differ.
    """
    options: dict[str, Any] = {"classes": classes, "strict": strict}
    coco_options: dict[str, Any] = {"masks": masks, "keypoints": keypoints}
    coco_options["need_images"] = need_images
    sources = list_sources(root, split, layout)
    sets = [_read_one(source, options, coco_options) for source in sources]
    return sets[0] if len(sets) == 1 else _merge_sets(sets, keypoints)


def list_sources(
    root: str | Path | Sequence[Source],
    split: str | None,
    layout: str,
    keys: Collection[str] = SOURCE_KEYS,
) -> list[dict[str, Any]]:
    """List the sources of a set as dicts with `root`, `split` and `layout`.

    Args:
        root: A folder, or several sources, each a ``(root, split)`` pair or a dict.
        split: Name of the split of a folder; None with several sources.
        layout: Layout of the folder, and of sources that name none.
        keys: Keys that a dict may have.

    Raises:
        DataError: If there is no source, a split is missing or there are two, an entry is neither a
            pair nor a dict, or has unknown keys.
    """
    if isinstance(root, str | os.PathLike):
        if split is None:
            raise DataError(f"{root}: which split? Give its name, such as 'train'")
        return [{"root": root, "split": split, "layout": layout}]
    if split is not None:
        raise DataError("with several sources each names its own split; leave `split` out")
    if not root:
        raise DataError("no sources: give a folder, or a list of (root, split)")
    return [_parse_source(entry, layout, keys) for entry in root]


def _parse_source(entry: Source, layout: str, keys: Collection[str]) -> dict[str, Any]:
    if isinstance(entry, Mapping):
        unknown = sorted(set(entry) - set(keys))
        if unknown or not {"root", "split"} <= set(entry):
            raise DataError(
                f"a source needs root and split, and may have {quote(sorted(keys), 9)}; "
                f"got {quote(sorted(entry), 9)}"
            )
        files = {key: value for key, value in entry.items() if value is not None}
        for key in files.keys() & FILE_KEYS:
            files[key] = str(files[key]).replace("{split}", str(entry["split"]))
        return {"layout": layout, **files}
    if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 2:
        raise DataError(f"a source is a pair (root, split) or a dict, not {entry!r}")
    return {"root": entry[0], "split": entry[1], "layout": layout}


def _read_one(
    source: Mapping[str, Any], options: Mapping[str, Any], coco_options: Mapping[str, Any]
) -> DetectionSet:
    """Read one source, with the options of all readers and those of COCO's alone."""
    root, split, layout = Path(source["root"]), source["split"], source["layout"]
    files = {key: source[key] for key in ("annotation_file", "image_folder") if key in source}
    if layout not in get_args(Layout):
        raise DataError(f"layout must be one of {get_args(Layout)}, not {layout!r}")
    if layout in FOREIGN_LAYOUTS:
        match, content = read_foreign(root, layout, split, files.get("annotation_file"))
        return read_coco(root, match, content=content, **options, **coco_options)
    # Names of files make sense in COCO's layout alone.
    if files and layout == "voc":
        raise DataError(f"{root}: {quote(list(files))} belong to COCO's layout, not to VOC's")
    if layout == "coco" or files or (layout == "auto" and has_coco_layout(root)):
        return read_coco(root, split, **options, **coco_options, **files)
    if has_voc_layout(root):
        return read_voc(root, split, **options)
    if layout == "voc":
        tree, finding, match = find_part(root, layout, split)
        return read_loose_voc(tree, finding, match, **options)
    source = recognize(root, "detection").name_source(split)
    return _read_one(source, options, coco_options)


def _merge_sets(sets: Sequence[DetectionSet], keypoints: bool) -> DetectionSet:
    """Merge several sets, matched by name: labels, ids and keypoints are those of the first."""
    first = sets[0].categories
    refuse_differing_classes([(part.name, part.categories.names) for part in sets])
    # Keypoints that differ between the sets cannot be learned together; boxes can.
    if keypoints and first.keypoints:
        sets = [order_keypoints(part, first) for part in sets]
    elif any(part.categories.keypoints != first.keypoints for part in sets):
        first = replace(first, keypoints=(), skeleton=())
    records: list[ImageRecord] = []
    for part in sets:
        records += _relabel(part, first, len(records))
    return DetectionSet(
        name="+".join(part.name for part in sets),
        records=tuple(records),
        categories=first,
        problems=tuple(problem for part in sets for problem in part.problems),
    )


def refuse_differing_classes(sets: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Raise a `DataError` if one of the sets (name, class names) lacks the first one's classes."""
    first, classes = sets[0]
    for other, names in sets[1:]:
        differing = sorted(set(names) ^ set(classes))
        if differing:
            raise DataError(
                f"{first} and {other} do not have the same classes ({quote(differing, 6)} in one "
                "of them only); give `classes`, all the names in label order"
            )


def _relabel(part: DetectionSet, new: Categories, offset: int) -> list[ImageRecord]:
    """Copy records with the labels and ids of other categories, image ids from `offset` + 1."""
    old = part.categories
    # Old label -> new label, and old id -> new id.
    label_of = np.array([0, *(new.label_of_name(name) for name in old.names)], dtype=np.int64)
    id_of = {i: new.id_of_label(int(label_of[n])) for n, i in enumerate(old.ids, start=1)}

    def rename(annotation: Annotation, image_id: int) -> Annotation:
        renamed: Annotation = {
            **annotation,
            "image_id": image_id,
            "category_id": id_of[annotation["category_id"]],
        }
        own, positions = annotation.get("keypoints"), old.keypoint_positions
        if own and positions and len(own) == 3 * len(positions):  # others are refused later
            renamed["keypoints"] = [v for p in positions for v in own[3 * p : 3 * p + 3]]
        return renamed

    return [
        replace(
            record,
            image_id=image_id,
            labels=label_of[record.labels],
            annotations=tuple(rename(a, image_id) for a in record.annotations),
        )
        for image_id, record in enumerate(part.records, start=offset + 1)
    ]
