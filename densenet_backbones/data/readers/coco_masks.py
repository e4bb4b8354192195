"""COCO's instances files to a `SegmentationSet`: objects become the pixels of their classes.

Multiclass: label 0 is the background, then come the categories in order of their ids. Where objects
overlap, the smaller one (in pixels) lies on top, as a cup lies on its table; of two of one size the
later one in the file. Crowds are ignored where no object lies on them, as are the boxes of objects
without an outline.

Multilabel: one channel a category and no background, so that objects of several classes can share
a pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from densenet_backbones.data.files import refuse_if_strict
from densenet_backbones.data.images import MAX_PIXELS
from densenet_backbones.data.mask_samples import (
    BACKGROUND,
    IGNORED,
    MaskClasses,
    MaskRecord,
    SegmentationSet,
)
from densenet_backbones.data.readers.coco import find_annotation_file, read_coco
from densenet_backbones.data.readers.coco_json import abbreviate
from densenet_backbones.data.readers.mask_files import reorder_classes
from densenet_backbones.data.samples import Categories, DataError, ImageRecord, Problem

_REACH = 10  # image sides that a polygon may lie outside: the rasteriser walks along every edge
_FIX = "correct the annotation or remove it"


@dataclass(frozen=True)
class ObjectOutline:
    """One object of an image.

    Attributes:
        annotation_id: The file's own.
        label: Of its class, or `IGNORED`.
        channel: Of its class in a multilabel mask.
        outline: COCO's `segmentation`: polygons, or run lengths.
    """

    annotation_id: int
    label: int
    channel: int
    outline: Any


@dataclass(frozen=True, eq=False)
class InstanceMask:
    """Draws a mask from the outlines of one image's objects.

    Attributes:
        file: The annotation file.
        size: (H, W) pixels.
        objects: In the file's order.
        channels: K of a multilabel mask; None for labels.
        rule: How labels came about.
    """

    file: Path
    size: tuple[int, int]
    objects: tuple[ObjectOutline, ...]
    channels: int | None
    rule: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The annotation file."""
        return (self.file,)

    def read(self) -> np.ndarray:
        """(H, W) labels, or (K, H, W) of 0, 1 and `IGNORED`.

        Raises:
            DataError: If an outline is faulty; names the annotation.
        """
        drawn = [(item, self._draw(item)) for item in self.objects]
        # Largest first; crowds before all, so that objects lie on them. The sort is stable.
        drawn.sort(key=lambda pair: (pair[0].label != IGNORED, -int(pair[1].sum())))
        if self.channels is None:
            labels = np.zeros(self.size, np.uint8)
            for item, mask in drawn:
                labels[mask] = item.label
            return labels
        channels = np.zeros((self.channels, *self.size), np.uint8)
        for item, mask in drawn:
            channels[item.channel][mask] = IGNORED if item.label == IGNORED else 1
        return channels

    def _draw(self, item: ObjectOutline) -> np.ndarray:
        where = f"{self.file}: annotation {item.annotation_id}"
        return draw_outline(item.outline, self.size, where)


def read_coco_masks(
    root: str | Path,
    split: str,
    *,
    multilabel: bool = False,
    annotation_file: str | Path | None = None,
    image_folder: str | Path | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> SegmentationSet:
    """Read one split of a data set with an instances file.

    Args:
        root: The folder of the data set; layouts and names of splits are those of `read_coco`.
        split: Such as "val2017", or "val".
        multilabel: Masks of one channel a category, without a background.
        annotation_file: The JSON file, where it has another name.
        image_folder: The images' folder, where it has another name.
        classes: Names in label order, among them all of the file's (and "background", unless
            multilabel). Default: background and the file's categories.
        strict: Raise for what is otherwise reported in `SegmentationSet.problems`.

    Returns:
        The set, with the file's own image ids, in the file's order. Outlines are drawn, and looked
        at, when a mask is read.

    Raises:
        DataError: As `read_coco`; and if no object has an outline.
    """
    path = Path(root) / annotation_file if annotation_file else None
    data = read_coco(root, split, annotation_file=annotation_file, image_folder=image_folder)
    path = path or find_annotation_file(Path(root), split)[0]
    found, label_of, channel_of = _classes(data.categories, multilabel)
    rule = f"smaller on top, {sorted(label_of.items())}"
    channels = found.num_classes if multilabel else None
    problems: list[Problem] = []
    records = []
    for record in data.records:
        _refuse_huge(record, path)
        objects = tuple(_object(a, label_of, channel_of) for a in record.annotations)
        problems += [_without_outline(path, a) for a in record.annotations if not _has_outline(a)]
        size = record.height, record.width
        mask = InstanceMask(path, size, objects, channels, rule)
        records.append(
            MaskRecord(
                record.image_id, record.path, record.width, record.height, mask, record.path.stem
            )
        )
    _refuse_boxes_only(data.records, problems, path)
    refuse_if_strict(problems, strict)
    task = "multilabel" if multilabel else "multiclass"
    made = SegmentationSet(data.name, tuple(records), found, task, tuple(problems))  # type: ignore[arg-type]
    return made if classes is None else reorder_classes(made, classes)


def _object(
    annotation: dict[str, Any], label_of: dict[int, int], channel_of: dict[int, int]
) -> ObjectOutline:
    outlined = _has_outline(annotation)
    category = annotation["category_id"]
    ignored = annotation["iscrowd"] or not outlined
    return ObjectOutline(
        annotation["id"],
        IGNORED if ignored else label_of[category],
        channel_of[category],
        annotation["segmentation"] if outlined else _box_outline(annotation["bbox"]),
    )


def _has_outline(annotation: dict[str, Any]) -> bool:
    return bool(annotation.get("segmentation"))


def _classes(
    categories: Categories, multilabel: bool
) -> tuple[MaskClasses, dict[int, int], dict[int, int]]:
    """The classes, and label and channel of each category id."""
    if multilabel:
        classes = MaskClasses.from_names(categories.names, categories.ids)
        table = {i: label for label, i in enumerate(categories.ids)}
        return classes, table, table
    own = {n: i for n, i in zip(categories.names, categories.ids, strict=True) if n != BACKGROUND}
    # A file may itself have a background category, or use the id 0.
    free = 0 if 0 not in own.values() else min(own.values()) - 1
    background = dict(zip(categories.names, categories.ids, strict=True)).get(BACKGROUND, free)
    classes = MaskClasses.from_names((BACKGROUND, *own), (background, *own.values()))
    table = {i: label for label, i in enumerate(classes.ids)}
    return classes, table, dict.fromkeys(table, 0)


def _refuse_huge(record: ImageRecord, path: Path) -> None:
    if record.width * record.height > MAX_PIXELS:
        raise DataError(
            f"{path}: image {record.image_id} is {record.width}x{record.height}, more than the "
            f"{MAX_PIXELS} pixels that are allowed; cut it into tiles or correct its size"
        )


def _without_outline(path: Path, annotation: dict[str, Any]) -> Problem:
    item = f"annotation {annotation['id']}"
    return Problem(str(path), item, "has no 'segmentation'", "the pixels of its box are ignored")


def _box_outline(bbox: Sequence[float]) -> list[list[float]]:
    x, y, w, h = bbox
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _refuse_boxes_only(
    records: Sequence[ImageRecord], problems: Sequence[Problem], path: Path
) -> None:
    total = sum(len(record.annotations) for record in records)
    if total and len(problems) == total:
        raise DataError(
            f"{path}: none of its {total} annotations has a 'segmentation', so it holds boxes "
            "only; export it with masks"
        )


def draw_outline(outline: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """COCO's `segmentation` as (H, W) bool.

    Args:
        outline: Polygons, or run lengths (compressed or not).
        size: (H, W).
        where: File and annotation, for the message.

    Raises:
        DataError: If it is neither, or not for an image of this size.
    """
    runs = check_outline(outline, size, where)
    if runs is not None:
        inside = np.arange(len(runs)) % 2 == 1
        return np.repeat(inside, runs).reshape(size[::-1]).T
    drawn = coco_mask.frPyObjects(outline, *size)
    return np.asarray(coco_mask.decode(coco_mask.merge(drawn)), bool)


def check_outline(outline: Any, size: tuple[int, int], where: str) -> list[int] | None:
    """Check that an outline can be drawn; arguments and errors are those of `draw_outline`.

    Returns:
        Its run lengths; None for polygons.
    """
    if isinstance(outline, dict):
        return _runs(outline, size, where)
    for polygon in outline:
        _check_polygon(polygon, size, where)
    return None


def _check_polygon(polygon: Any, size: tuple[int, int], where: str) -> None:
    numbers = polygon if isinstance(polygon, list) else []
    if len(numbers) < 6 or len(numbers) % 2 or any(type(n) not in (int, float) for n in numbers):
        raise DataError(
            f"{where}: a polygon must be a list of at least 3 points [x1, y1, x2, y2, x3, y3, "
            f"...], got {len(numbers)} entries; {_FIX}"
        )
    reach = _REACH * max(size)
    far = [n for n in numbers if not -reach <= n <= reach]  # NaN is far, too
    if far:
        raise DataError(
            f"{where}: a polygon has the coordinate {abbreviate(far[0])}, far outside its image of "
            f"{size[1]}x{size[0]} pixels; {_FIX}"
        )


def _runs(outline: dict[str, Any], size: tuple[int, int], where: str) -> list[int]:
    """Run lengths, column by column, the first of them outside.

    (pycocotools decodes runs that do not fill the mask into memory that was never written.)
    """
    if tuple(outline.get("size", ())) != size:
        raise DataError(
            f"{where}: its run lengths are for the size {outline.get('size')} (H, W), the image's "
            f"is {list(size)}; {_FIX}"
        )
    counts = outline.get("counts")
    runs = parse_run_lengths(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(runs, list) or any(n < 0 for n in runs) or sum(runs) != math.prod(size):
        raise DataError(
            f"{where}: its run lengths do not add up to the {math.prod(size)} pixels of "
            f"{size[1]}x{size[0]}; {_FIX}"
        )
    return runs


def parse_run_lengths(counts: str | bytes) -> list[int] | None:
    """COCO's compressed run lengths as numbers (`rleFrString` in cocoapi's maskApi.c).

    Each number has 5 bits a character, the lowest first, from the character 48 on; bit 6 says that
    more follow. From the fourth on a number is the difference to the last but one before.

    Returns:
        None where the text is no such form.
    """
    codes = counts if isinstance(counts, bytes) else counts.encode("utf-8")
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        if not 48 <= code < 48 + 64 or shift > 40:
            return None
        value |= (code - 48 & 31) << shift
        shift += 5
        if code - 48 & 32:
            continue
        if code - 48 & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 else None
