"""COCO's structure in memory, which readers of other formats fill and COCO's reader checks."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.recognition.splits import (
    OTHERS,
    WHOLE,
    find_split_word,
    unify_splits,
)
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.data.samples import Annotation, CategoryEntry, Outline
from densenet_backbones.untrusted.limits import MAX_COORDINATE, MAX_NAME


@dataclass(frozen=True)
class Item:
    """Image and the file of its annotations, by their names relative to the root.

    Attributes:
        image: The image.
        labels: The file, which may be of many images; empty where an image without objects has
            none.
    """

    image: str
    labels: str


@dataclass(frozen=True)
class Finding:
    """Data of one format below a folder.

    Attributes:
        layout: Name of the format in options.
        title: Name for people.
        evidence: Files by which it was recognized, for people.
        serves: What it can teach: "boxes", "masks" (of objects), "keypoints", "semantic".
        parts: Images of each split, with their annotations.
        remarks: Sentences about what is unusual.
    """

    layout: str
    title: str
    evidence: str
    serves: frozenset[str]
    parts: Mapping[str, Sequence[Item]]
    remarks: tuple[str, ...] = ()


@dataclass
class CocoContent:
    """Annotated images as COCO has them; file names are relative to the data's root.

    Attributes:
        images: Images, with their sides where the annotations give them.
        annotations: Objects.
        categories: Classes.
        files: File of the annotations of each image, by its id.
        problems: What was left out, or taken in another way than it is written.
    """

    images: list[dict[str, int | str]] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    categories: list[CategoryEntry] = field(default_factory=list)
    files: dict[int, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def name_classes(
        self, names: Sequence[str], keypoints: Sequence[str] = (), of: Collection[str] | None = None
    ) -> dict[str, int]:
        """Give the classes in label order; returns their ids by name, which count from 1.

        Args:
            names: Names of all classes.
            keypoints: Names of the keypoints.
            of: Names of the classes that have keypoints; None for all.
        """
        for n, name in enumerate(names, start=1):
            entry: CategoryEntry = {"id": n, "name": name}
            if keypoints and (of is None or name in of):
                entry["keypoints"] = list(keypoints)
            self.categories.append(entry)
        return {name: n for n, name in enumerate(names, start=1)}

    def add_image(self, name: str, size: tuple[int, int] | None, file: Path) -> int:
        """Add an image; returns its id.

        Args:
            name: Name relative to the root.
            size: (W, H) as the annotations say.
            file: File of its annotations.
        """
        image_id = len(self.images) + 1
        sides = {} if size is None else {"width": size[0], "height": size[1]}
        self.images.append({"id": image_id, "file_name": name, **sides})
        self.files[image_id] = file
        return image_id

    def add_object(
        self,
        image_id: int,
        category_id: int,
        corners: Sequence[float] | None = None,
        outline: Outline | None = None,
        keypoints: list[float] | None = None,
    ) -> None:
        """Add an object.

        Args:
            image_id: Id of its image.
            category_id: Id of its class.
            corners: Box x1, y1, x2, y2 in pixels, the end not included; None takes the outline's.
            outline: Polygons or run lengths.
            keypoints: x, y and visibility of each keypoint.
        """
        if corners is None:
            assert isinstance(outline, list)
            xs = [x for polygon in outline for x in polygon[::2]]
            ys = [y for polygon in outline for y in polygon[1::2]]
            corners = min(xs), min(ys), max(xs), max(ys)
        x1, y1, x2, y2 = corners
        annotation: Annotation = {
            "id": len(self.annotations) + 1,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": 0,
        }
        if outline is not None:
            annotation["segmentation"] = outline
            # COCO's area is the mask's; that of polygons is the same but for their edges.
            if isinstance(outline, list):
                annotation["area"] = sum(map(_measure_area, outline))
        if keypoints is not None:
            annotation["keypoints"] = keypoints
            annotation["num_keypoints"] = sum(seen > 0 for seen in keypoints[2::3])
        self.annotations.append(annotation)

    def leave_out(self, file: Path, item: str, what: str, action: str = "left out") -> None:
        """Report something that is not read."""
        self.problems.append(Problem(str(file), item, what, action))


def _measure_area(polygon: Sequence[float]) -> float:
    """Return the area of a polygon (the shoelace formula)."""
    xs, ys = polygon[::2], polygon[1::2]
    pairs = zip(xs, ys, [*xs[1:], *xs[:1]], [*ys[1:], *ys[:1]], strict=True)
    return abs(sum(x * y_next - x_next * y for x, y, x_next, y_next in pairs)) / 2


@dataclass(frozen=True)
class ForeignFormat:
    """Format of another tool.

    Attributes:
        find: Looks for it among the files of a folder; None where it is not there.
        read: Reads one split of what was found.
    """

    find: Callable[[Tree], Finding | None]
    read: Callable[[Tree, Finding, str], CocoContent]


def assign_splits(
    items: Sequence[Item], words: Sequence[str | None] | None = None, *, in_tables: bool = False
) -> dict[str, list[Item]]:
    """Assign images to splits.

    Args:
        items: Images and the files of their annotations.
        words: Split that each image's annotations name; where none does, the names of folders do,
            the image's own and those of its annotations.
        in_tables: One file has the annotations of many images: its own name may name the split.

    Returns:
        Images of each split. Where only some name one, the others are "others"; where none does,
        all are "all".
    """
    known: dict[str, str | None] = {}

    def find_word(name: str, is_table: bool) -> str | None:
        folder = name if is_table else f"{name.rpartition('/')[0]}/_"
        if folder not in known:
            known[folder] = find_split_word(folder)
        return known[folder]

    splits = [
        own or find_word(item.labels, in_tables) or find_word(item.image, False) or ""
        for item, own in zip(items, words or [None] * len(items), strict=True)
    ]
    names = unify_splits(splits)
    parts: dict[str, list[Item]] = {}
    for item, split in zip(items, splits, strict=True):
        parts.setdefault(names[split], []).append(item)
    unnamed = parts.pop("", [])
    return {**parts, (OTHERS if parts else WHOLE): unnamed} if unnamed else parts


def find_image(tree: Tree, promised: str, labels: str, where: str) -> str:
    """Find the image that a file of annotations names; see `Tree.find`.

    Raises:
        DataError: If it is nowhere below the root, or may be any of several files.
    """
    image = tree.find(promised, labels.rpartition("/")[0], where) if promised.strip() else None
    if image is None:
        raise DataError(
            f"{where}: its image {promised[:200]!r} is not below {tree.root}; add it, or remove it "
            "from the file"
        )
    return image


def check_name(name: object, where: str) -> str:
    """Return the name of a class or keypoint, stripped.

    Raises:
        DataError: If it is none.
    """
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
        raise DataError(
            f"{where}: the name of the class must be a text of 1 to {MAX_NAME} characters, not "
            f"{name!r:.60}; correct it"
        )
    return name.strip()


def check_number(value: Any, what: str, where: str) -> float:
    """Return a coordinate as a finite number.

    Raises:
        DataError: If it is none.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_COORDINATE:  # NaN is refused, too
        raise DataError(f"{where}: {what} must be a number, not {value!r:.40}; correct it")
    return number
