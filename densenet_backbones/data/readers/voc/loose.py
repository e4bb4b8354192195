"""Finds VOC's XML files in any folders, and reads them beside images of the same names.

labelImg writes them beside the images, other tools into a folder of their own, or one for each
split; no lists are needed.
"""

from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.foreign.content import (
    Finding,
    Item,
    assign_splits,
    find_image,
)
from densenet_backbones.data.readers.voc.boxes import name_classes, read_pairs
from densenet_backbones.data.readers.voc.xml_file import VocAnnotation
from densenet_backbones.data.recognition.sniffing import choose_some, sniff_xml
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.messages import pluralize


def find_voc(tree: Tree) -> Finding | None:
    """Look for VOC's XML files, each with an image of its name."""
    files = tree.list_with(".xml")
    sniffed = {name: sniff_xml(tree.root / name) for name in choose_some(files)}
    if "voc" not in sniffed.values():
        return None
    files = [name for name in files if sniffed.get(name, "voc") == "voc"]
    items = [Item(_find_image(tree, name), name) for name in files]
    bare = len(set(tree.images) - {item.image for item in items})
    without = f"{pluralize(bare, 'image has', 'images have')} no XML file: left out"
    return Finding(
        layout="voc",
        title="VOC's XML",
        evidence=files[0] + f" and {len(files) - 1} more" * bool(files[1:]),
        serves=frozenset({"boxes"}),
        parts=assign_splits(items),
        remarks=(without,) * bool(bare),
    )


def _find_image(tree: Tree, file: str) -> str:
    """Find the image of a file by its name: beside it, or where the folders agree most."""
    folder, _, name = file.rpartition("/")
    images = tree.list_stem(name.rpartition(".")[0])
    beside = [image for image in images if image.rpartition("/")[0] == folder]
    if len(beside) == 1:
        return beside[0]
    names = {image.rpartition("/")[2] for image in images}
    if len(names) != 1:
        fault = f"there are {pluralize(len(images), 'image')}" if names else "there is no image"
        stem = f"{file.rpartition('.')[0]}."
        others = [other for other in tree.files if other.startswith(stem) and other != file]
        advice = f"export {others[0]} as JPEG or PNG" if others else "each file needs one"
        raise DataError(f"{tree.root / file}: {fault} of its name below {tree.root}; {advice}")
    return find_image(tree, f"{folder}/{names.pop()}", file, str(tree.root / file))


def read_loose_voc(
    tree: Tree,
    finding: Finding,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> DetectionSet:
    """Read one split of what was found; the classes are those of all splits.

    Raises:
        DataError: If a file or a value in it is wrong; names it and the fix.
    """
    read: dict[Path, VocAnnotation] = {}
    if classes is None:
        files = [tree.root / item.labels for items in finding.parts.values() for item in items]
        classes = name_classes(tree.root, files, read)
    pairs = [(tree.root / i.labels, tree.root / i.image) for i in finding.parts[split]]
    return read_pairs(f"{tree.root.name}/{split}", pairs, classes, read=read, strict=strict)
