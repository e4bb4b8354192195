"""Finds COCO's JSON files of any name, with their images anywhere below the same folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from densenet_backbones.data.recognition.sniffing import (
    choose_some,
    count_in_file,
    read_ends,
    sniff_json,
)
from densenet_backbones.data.recognition.splits import WHOLE, find_split_word
from densenet_backbones.data.recognition.tree import Tree

_ONCE_AN_IMAGE = {"coco": b'"file_name"', "coco_panoptic": b'"segments_info"'}


@dataclass(frozen=True)
class CocoFiles:
    """Annotation files of one kind.

    Attributes:
        layout: "coco" or "coco_panoptic".
        files: File of each split, relative to the root; those that name none by their own names.
        counts: Number of images of each.
        has_masks: True where objects have outlines.
        has_keypoints: True where classes name keypoints.
    """

    layout: str
    files: Mapping[str, str]
    counts: Mapping[str, int]
    has_masks: bool
    has_keypoints: bool


def find_coco_files(tree: Tree, layout: str) -> CocoFiles | None:
    """Look for files with COCO's lists.

    Args:
        tree: The files.
        layout: "coco" for objects; "coco_panoptic" for segments.
    """
    kind = "coco" if layout == "coco" else "panoptic"
    files = [n for n in choose_some(tree.list_with(".json")) if sniff_json(tree.root / n) == kind]
    if not files:
        return None
    words = [find_split_word(name) for name in files]
    if len(files) == 1:
        named = {words[0] or WHOLE: files[0]}
    elif None not in words and len(set(words)) == len(words):
        named = {word: file for word, file in zip(words, files, strict=True) if word}
    else:  # nobody can tell which of them is meant
        named = {name: name for name in files}
    texts = [read_ends(tree.root / name) for name in files]
    word = _ONCE_AN_IMAGE[layout]
    return CocoFiles(
        layout,
        named,
        {split: count_in_file(tree.root / file, word) for split, file in named.items()},
        any(b'"segmentation"' in text and not _has_empty_outlines(text) for text in texts),
        any(b'"keypoints"' in text for text in texts),
    )


def is_ambiguous(found: CocoFiles) -> bool:
    """Return True if several files are there that do not say which split they are."""
    return len(found.files) > 1 and all(split == file for split, file in found.files.items())


def list_mask_folders(tree: Tree, file: str) -> list[str]:
    """List the folders that may hold the pictures of a panoptic file: those of its name first."""
    path = PurePosixPath(file)
    beside = [str(path.parent / path.stem), path.stem]
    return [name for name in beside if tree.find_folder(name) == name]


def _has_empty_outlines(text: bytes) -> bool:
    """Return True if all outlines that can be seen are ``[]``, as tools write for boxes."""
    plain = text.replace(b" ", b"")
    return plain.count(b'"segmentation":[]') == plain.count(b'"segmentation":')
