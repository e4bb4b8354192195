"""Formats of labelling tools by their names in options: finding them, and reading one split."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.foreign.content import CocoContent, Finding, ForeignFormat
from densenet_backbones.data.readers.foreign.cvat import CVAT
from densenet_backbones.data.readers.foreign.labelme import LABELME
from densenet_backbones.data.readers.foreign.tables import TABLES
from densenet_backbones.data.readers.foreign.via import VIA
from densenet_backbones.data.readers.foreign.yolo import YOLO
from densenet_backbones.data.readers.voc.loose import find_voc
from densenet_backbones.data.recognition.sniffing import describe_files
from densenet_backbones.data.recognition.splits import WHOLE, match_split, order_splits
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import nearest

FOREIGN: Mapping[str, ForeignFormat] = {
    "yolo": YOLO,
    "labelme": LABELME,
    "cvat": CVAT,
    "via": VIA,
    "csv": TABLES,
}
"""Formats of other tools, by their names in options."""
FINDERS: Mapping[str, Callable[[Tree], Finding | None]] = {
    "voc": find_voc,
    **{name: form.find for name, form in FOREIGN.items()},
}
"""Functions that look for a format, VOC's loose XML files among them."""


def find_part(
    root: Path, layout: str, split: str, annotation_file: str | None = None
) -> tuple[Tree, Finding, str]:
    """Find a format's files again, for reading one split.

    Args:
        root: The folder.
        layout: Name of the format.
        split: Name of the split; "all" stands for all of them together.
        annotation_file: The only file to take, relative to the root.

    Returns:
        The files, what was found, and the split's full name, one of its `parts`.

    Raises:
        DataError: If they are not there, or not the split.
    """
    tree = Tree(root, annotation_file)
    finding = FINDERS[layout](tree)
    if finding is None:
        seen = describe_files(tree)
        raise DataError(f"{root}: has nothing in the layout {layout!r}; it has {seen}")
    parts = dict(finding.parts)
    match = match_split(split, parts)
    if match is None and split == WHOLE:
        match = WHOLE
        parts[WHOLE] = [item for name in order_splits(parts) for item in parts[name]]
    if match is None:
        known = ", ".join(order_splits(parts))
        raise DataError(
            f"{root}: has no split {split!r} (there are: {known}); choose one of them, or "
            f'"{WHOLE}"{nearest(split, parts)}'
        )
    return tree, replace(finding, parts=parts), match


def read_foreign(
    root: Path, layout: str, split: str, annotation_file: str | None = None
) -> tuple[str, CocoContent]:
    """Read one split of another tool's format as COCO's structure.

    Returns:
        The split's full name, and its content.

    Raises:
        DataError: As `find_part`, and if a file or a value in it is wrong.
    """
    tree, finding, match = find_part(root, layout, split, annotation_file)
    return match, FOREIGN[layout].read(tree, finding, match)
