"""Reads segmentation data from one folder or several, in any layout."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote
from densenet_backbones.data.mask_samples import MaskRecord, MaskTask, SegmentationSet
from densenet_backbones.data.readers.coco.boxes import has_coco_layout
from densenet_backbones.data.readers.coco.masks import read_coco_masks
from densenet_backbones.data.readers.coco.panoptic import has_panoptic_layout, read_coco_panoptic
from densenet_backbones.data.readers.detection_sources import (
    FOREIGN_LAYOUTS,
    SOURCE_KEYS,
    Source,
    list_sources,
    refuse_differing_classes,
)
from densenet_backbones.data.readers.masks.files import reorder_classes
from densenet_backbones.data.readers.masks.folders import (
    has_camvid_layout,
    has_classes_file,
    read_mask_folders,
)
from densenet_backbones.data.readers.voc.masks import has_voc_masks, read_voc_masks
from densenet_backbones.data.readers.voc.sbd import has_sbd_layout, read_sbd_masks
from densenet_backbones.data.recognition.formats import read_foreign
from densenet_backbones.data.recognition.recognize import recognize

MaskLayout = Literal[
    "auto",
    "folders",
    "voc",
    "sbd",
    "coco_panoptic",
    "coco_instances",
    "yolo",
    "labelme",
    "cvat",
    "via",
]
_FILES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FOREIGN_LAYOUTS, ("annotation_file",)),
    "coco_panoptic": ("annotation_file", "image_folder", "mask_folder"),
    "coco_instances": ("annotation_file", "image_folder"),
}


def read_segmentation(
    root: str | Path | Sequence[Source],
    split: str | None = None,
    layout: MaskLayout = "auto",
    *,
    task: MaskTask = "multiclass",
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> SegmentationSet:
    """Read segmentation data in any layout.

    Args:
        root: A folder; or several sources taken as one set, each a ``(root, split)`` pair or a
            dict with `root`, `split` and, where needed, `layout`, `annotation_file`,
            `image_folder` (COCO) and `mask_folder` (COCO panoptic).
        split: Name of the split; None with several sources.
        layout: "auto" looks. Where a folder has several, the first of these is read: `classes.yaml`
            or CamVid's folders ("folders"), VOC's `SegmentationClass` ("voc"), "sbd",
            "coco_panoptic" (where it has the split), "coco_instances". A multilabel task looks
            for the last alone.
        task: "multiclass"; "binary" for data of two classes (the first is the negative one);
            "multilabel" for COCO's instances, whose masks then have a channel a class.
        classes: Names in label order; data that names its classes is matched by name (see the
            readers). Default: the data's own. Sources whose classes differ in name need it.
        strict: Raise for what is otherwise reported in `SegmentationSet.problems`.

    Returns:
        The set. Image ids of a single source are the reader's; of several, they count from 1.

    Raises:
        DataError: If a source is wrong (see the readers), or classes differ.
    """
    if task not in get_args(MaskTask):
        raise DataError(f"task must be one of {get_args(MaskTask)}, got {task!r}")
    options = (classes, task, strict)
    sources = list_sources(root, split, layout, SOURCE_KEYS | {"mask_folder", "classes_yaml"})
    sets = [_read_one(source, *options) for source in sources]
    return sets[0] if len(sets) == 1 else _merge_sets(sets)


def _read_one(
    source: Mapping[str, Any], classes: Sequence[str] | None, task: MaskTask, strict: bool
) -> SegmentationSet:
    root, split, layout = Path(source["root"]), source["split"], source["layout"]
    files = {
        k: source[k] for k in ("annotation_file", "image_folder", "mask_folder") if k in source
    }
    # Names of files, and the task, narrow down what the layout can be.
    if layout == "auto":
        known = _find_layout(root, split, task, files)
        if known is None:
            source = recognize(root, "segmentation").name_source(split)
            return _read_one({"layout": "folders", **source}, classes, task, strict)
        layout = known
    if layout not in get_args(MaskLayout):
        raise DataError(f"layout must be one of {get_args(MaskLayout)}, not {layout!r}")
    # Options that the layout does not have.
    if set(files) - set(_FILES.get(layout, ())):
        raise DataError(f"{root}: {quote(list(files))} do not belong to the layout {layout!r}")
    if task == "multilabel" and layout != "coco_instances" and layout not in FOREIGN_LAYOUTS:
        raise DataError(
            f"{root}: a multilabel task needs COCO's instances, where objects may overlap; the "
            f"layout {layout!r} has one class a pixel"
        )
    # The reader of the layout.
    many = task == "multilabel"
    if layout in FOREIGN_LAYOUTS:
        match, content = read_foreign(root, layout, split, files.get("annotation_file"))
        data = read_coco_masks(
            root, match, multilabel=many, classes=classes, strict=strict, content=content
        )
    elif layout == "coco_instances":
        data = read_coco_masks(
            root, split, multilabel=many, classes=classes, strict=strict, **files
        )
    elif layout == "coco_panoptic":
        data = read_coco_panoptic(root, split, classes=classes, **files)
    elif layout == "folders":
        text = source.get("classes_yaml")
        data = read_mask_folders(root, split, classes=classes, classes_yaml=text)
    else:
        readers = {"voc": read_voc_masks, "sbd": read_sbd_masks}
        data = readers[layout](root, split, classes=classes)
    return replace(data, task=task)


def _find_layout(
    root: Path, split: str, task: MaskTask, files: Mapping[str, Any]
) -> MaskLayout | None:
    if task == "multilabel" and has_coco_layout(root):
        return "coco_instances"
    if files:
        return "coco_panoptic" if "mask_folder" in files else "coco_instances"
    # From the most to the least explicit.
    if has_classes_file(root) or has_camvid_layout(root):
        return "folders"
    if has_voc_masks(root):
        return "voc"
    if has_sbd_layout(root):
        return "sbd"
    if has_panoptic_layout(root, split):
        return "coco_panoptic"
    if has_coco_layout(root):
        return "coco_instances"
    return None


def _merge_sets(sets: Sequence[SegmentationSet]) -> SegmentationSet:
    """Merge several sets: classes are matched by name, all else about them is the first's."""
    first = sets[0]
    refuse_differing_classes([(part.name, part.classes.names) for part in sets])
    records: list[MaskRecord] = []
    for part in sets:
        alike = reorder_classes(part, first.classes.names)
        records += [
            replace(record, image_id=image_id)
            for image_id, record in enumerate(alike.records, start=len(records) + 1)
        ]
    return replace(
        first,
        name="+".join(part.name for part in sets),
        records=tuple(records),
        problems=tuple(problem for part in sets for problem in part.problems),
    )
