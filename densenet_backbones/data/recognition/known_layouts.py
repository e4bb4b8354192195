"""Lists the splits of data in the layouts that it is published in: COCO, VOC, CamVid, SBD."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from densenet_backbones.data.files import list_files, list_folders
from densenet_backbones.data.readers.coco.boxes import has_coco_layout, list_annotation_files
from densenet_backbones.data.readers.coco.panoptic import list_panoptic_files
from densenet_backbones.data.readers.masks.folders import (
    has_camvid_layout,
    has_classes_file,
    list_mask_splits,
)
from densenet_backbones.data.readers.voc.boxes import has_voc_layout, list_voc_folders
from densenet_backbones.data.readers.voc.masks import has_voc_masks
from densenet_backbones.data.readers.voc.sbd import find_sbd_folder, has_sbd_layout
from densenet_backbones.data.recognition.sniffing import count_in_file, read_ends
from densenet_backbones.data.recognition.splits import WHOLE, find_split_word


@dataclass(frozen=True)
class KnownLayout:
    """Data set in a layout that its own reader finds its way in.

    Attributes:
        layout: Name of the layout in options.
        title: Name for people.
        serves: What it can teach.
        splits: Number of images of each split.
    """

    layout: str
    title: str
    serves: frozenset[str]
    splits: Mapping[str, int]


def list_known_layouts(root: Path, kind: str) -> Iterator[KnownLayout]:
    """List the layouts that a folder has, in the order in which the readers take them.

    Args:
        root: The folder.
        kind: "detection" or "segmentation".
    """
    if kind == "detection":
        if has_coco_layout(root):
            yield _look_at_coco(root, "coco")
        if has_voc_layout(root):
            yield _look_at_voc(root, "Main", "Annotations", "boxes")
        return
    if has_classes_file(root) or has_camvid_layout(root):
        title = "images and masks (classes.yaml)" if has_classes_file(root) else "CamVid's folders"
        yield KnownLayout("folders", title, frozenset({"semantic"}), list_mask_splits(root))
    if has_voc_masks(root):
        yield _look_at_voc(root, "Segmentation", "SegmentationClass", "semantic")
    if has_sbd_layout(root):
        folder = find_sbd_folder(root) or root
        lists = [name[:-4] for name in list_files(folder) if name.endswith(".txt")]
        splits = {name: _count_lines(folder / f"{name}.txt") for name in lists}
        splits = splits or {WHOLE: len(list_files(folder / "cls"))}
        yield KnownLayout("sbd", "SBD's masks", frozenset({"semantic"}), splits)
    panoptic = list_panoptic_files(root)
    if panoptic:
        counts = {name: count_in_file(path, b'"segments_info"') for name, path in panoptic.items()}
        title = "COCO's panoptic layout"
        yield KnownLayout("coco_panoptic", title, frozenset({"semantic"}), counts)
    if has_coco_layout(root):
        yield _look_at_coco(root, "coco_instances")


def _look_at_coco(root: Path, layout: str) -> KnownLayout:
    files = list_annotation_files(root)
    texts = [read_ends(path) for path in files.values()]
    serves = {"boxes"}
    serves |= {"masks"} if any(b'"segmentation"' in text for text in texts) else set()
    with_points = any("keypoints" in name for name in list_files(root / "annotations"))
    serves |= {"keypoints"} if with_points or any(b'"keypoints"' in t for t in texts) else set()
    counts = {name: count_in_file(path, b'"file_name"') for name, path in files.items()}
    return KnownLayout(layout, "COCO's layout", frozenset(serves), counts)


def _look_at_voc(root: Path, lists: str, annotations: str, serves: str) -> KnownLayout:
    folder = list_voc_folders(root, (annotations, "JPEGImages"))[0]
    files = list_files(folder / "ImageSets" / lists)
    # Lists of a class ("dog_train") are no splits.
    names = [name[:-4] for name in files if name.endswith(".txt") and "_" not in name]
    splits = {name: _count_lines(folder / "ImageSets" / lists / f"{name}.txt") for name in names}
    if not splits:
        splits = {WHOLE: len(list_files(folder / annotations))}
    return KnownLayout("voc", "VOC's layout", frozenset({serves}), splits)


def _count_lines(path: Path) -> int:
    return count_in_file(path, b"\n")


def find_only_folder(root: Path) -> Path | None:
    """Return the folder that a folder holds and nothing else, as unpacked archives do."""
    names = [name for name in list_folders(root) if not name.startswith((".", "__MACOSX"))]
    is_alone = len(names) == 1 and all(name.startswith(".") for name in list_files(root))
    if not is_alone or find_split_word(f"{names[0]}/_") or (root / names[0]).is_symlink():
        return None
    return root / names[0]
