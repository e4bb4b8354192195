"""Says what lies in a folder where nothing was recognized, and why its files are not."""

from pathlib import Path

from densenet_backbones.data.files import list_folders, quote
from densenet_backbones.data.recognition.mask_pairs import explain_refused_masks, find_lossy_masks
from densenet_backbones.data.recognition.sniffing import (
    choose_some,
    describe_files,
    describe_table,
    is_yolo_labels,
    sniff_json,
    sniff_xml,
    summarize_kinds,
)
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import pluralize, quote_word

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_KNOWN = (
    "COCO (JSON of any name), VOC (XML), YOLO (data.yaml, labels/*.txt), labelme (JSON), CVAT "
    "(XML), VIA (JSON or CSV), tables (CSV), folders of images and masks, panoptic pictures"
)
# Folders that make a data set together.
_IMAGES = {"images", "jpegimages", "imgs", "img", "photos"}
_ANNOTATIONS = {"labels", "annotations", "annots", "masks", "segmentationclass"}


def describe_nothing(tree: Tree, layout: str) -> str:
    """Describe what lies in a folder where nothing was recognized, and why its files are not."""
    parent = _describe_parent(tree.root)
    if layout != "auto":
        seen = describe_files(tree)
        return f"{tree.root}: has nothing in the layout {layout!r}; it has {seen}{parent}"
    reasons = [_describe_labels(tree)]
    kinds = ((".json", sniff_json), (".xml", sniff_xml), (".csv", describe_table))
    for suffix, sniff in kinds:
        files = choose_some(tree.list_with(suffix))[:50]
        reasons.append(summarize_kinds((name, sniff(tree.root / name)) for name in files))
    why = "".join(f" ({reason})" for reason in reasons if reason)
    if lossy := find_lossy_masks(tree):
        why += (
            f"; the pictures in {lossy} are JPEG, which blurs the values of masks: save them as PNG"
        )
    why += "".join(f"; {reason}" for reason in explain_refused_masks(tree))
    if tree.outside:
        why += f" ({describe_outside(tree)})"
    archives = tree.list_with(*ARCHIVES)
    if archives:
        unpacked = "give it" if archives[0].lower().endswith(".zip") else "unpack it"
        why += f"; {quote_word(tree.root / archives[0])} is an archive: {unpacked}"
    return (
        f"{tree.root}: has neither COCO's nor VOC's layout, nor any other that is known; it has "
        f"{describe_files(tree)}{why}{parent}; known are {_KNOWN}"
    )


def _describe_labels(tree: Tree) -> str:
    """Describe YOLO's labels of which no image has its own; empty where there are none."""
    texts = tree.list_with(".txt")
    labels = [name for name in choose_some(texts)[:50] if is_yolo_labels(tree.root / name)]
    if not labels:
        return ""
    return (
        f"{quote(labels, 1)}: lines as YOLO's, but no image for them: the labels of "
        "images/train/a.jpg are labels/train/a.txt, or lie in labels or beside the image"
    )


def _describe_parent(root: Path) -> str:
    """Name the folder around one half of a data set that has the other half, too."""
    for folder in (root.absolute(), root.absolute().parent):
        for own, other in ((_IMAGES, _ANNOTATIONS), (_ANNOTATIONS, _IMAGES)):
            if folder.name.lower() in own and folder.parent != folder:
                beside = [n for n in list_folders(folder.parent) if n.lower() in other]
                if beside:
                    return (
                        f"; beside {folder.name} lies {beside[0]}: give the folder of both, "
                        f"{quote_word(folder.parent)}"
                    )
    return ""


def describe_outside(tree: Tree) -> str:
    """Describe the links out of a folder, which are not followed."""
    count = pluralize(len(tree.outside), "link")
    return (
        f"{count} out of the folder, {quote(tree.outside)}: not followed; give a folder that holds "
        "all of it"
    )
