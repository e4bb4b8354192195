"""Reads COCO's instances files for segmentation: objects become the pixels of their classes.

Multiclass: label 0 is the background, then come the categories in order of their ids. Where objects
overlap, the smaller one (in pixels) lies on top, as a cup lies on its table; of two of one size the
later one in the file. Crowds are ignored where no object lies on them, as are the boxes of objects
without an outline.

Multilabel: one channel a category and no background, so that objects of several classes can share
a pixel.

The format: https://cocodataset.org/#format-data, section "Object Detection".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import refuse_if_strict
from densenet_backbones.data.mask_samples import (
    BACKGROUND,
    IGNORED,
    MaskClasses,
    MaskRecord,
    MaskTask,
    SegmentationSet,
)
from densenet_backbones.data.packing.records import MappedRecords
from densenet_backbones.data.readers.coco.boxes import read_coco
from densenet_backbones.data.readers.coco.outlines import (
    decode_mask,
    encode_outline,
    make_box_outline,
)
from densenet_backbones.data.readers.foreign.content import CocoContent
from densenet_backbones.data.readers.masks.files import reorder_classes
from densenet_backbones.data.samples import (
    Annotation,
    DetectionSet,
    ImageRecord,
    Outline,
    RunLengths,
)
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_MASK_PIXELS, MAX_PIXELS


@dataclass(frozen=True)
class ObjectOutline:
    """Object of an image and the way it is drawn.

    Attributes:
        annotation_id: Id of the annotation in its file.
        label: Label of its class, or `IGNORED`.
        channel: Channel of its class in a multilabel mask.
        outline: COCO's `segmentation`: polygons, or run lengths.
    """

    annotation_id: int
    label: int
    channel: int
    outline: Outline


@dataclass(frozen=True)
class MaskLabels:
    """Labels and channels of the categories of a file, and makes records of its images.

    Attributes:
        file: The annotation file.
        label_of: Label of each category id.
        channel_of: Channel of each category id in a multilabel mask.
        channels: Number of channels of a multilabel mask, K; None for labels.
        files: Files of single images, by their ids, where they have some.
    """

    file: Path
    label_of: Mapping[int, int]
    channel_of: Mapping[int, int]
    channels: int | None
    files: Mapping[int, Path] = field(default_factory=dict)

    def __call__(self, record: ImageRecord) -> MaskRecord:
        """Make the record of an image; its outlines stay packed until its mask is read."""
        file = self.files.get(record.image_id, self.file)
        labels = self if file is self.file else replace(self, file=file, files={})
        mask = InstanceMask((record.height, record.width), record.annotations, labels)
        path = record.path
        return MaskRecord(record.image_id, path, record.width, record.height, mask, path.stem)

    def make_outline(self, annotation: Annotation) -> ObjectOutline:
        """Return the outline of an annotation, its box where it has none."""
        outline = annotation.get("segmentation")
        category = annotation["category_id"]
        ignored = annotation["iscrowd"] or not outline
        return ObjectOutline(
            annotation["id"],
            IGNORED if ignored else self.label_of[category],
            self.channel_of[category],
            outline or make_box_outline(annotation["bbox"]),
        )


@dataclass(frozen=True, eq=False)
class InstanceMask:
    """Reader of a mask that draws the outlines of one image's objects.

    Attributes:
        size: (H, W) of the mask, pixels.
        annotations: The image's own, in the file's order.
        labels: Labels of their categories.
    """

    size: tuple[int, int]
    annotations: Sequence[Annotation]
    labels: MaskLabels

    @property
    def objects(self) -> Iterator[ObjectOutline]:
        """Objects in the file's order."""
        return map(self.labels.make_outline, self.annotations)

    @property
    def rule(self) -> str:
        """Text that changes when labels come about in another way."""
        return f"smaller on top, {sorted(self.labels.label_of.items())}"

    @property
    def files(self) -> tuple[Path, ...]:
        """The annotation file."""
        return (self.labels.file,)

    def read(self) -> np.ndarray:
        """Draw (H, W) labels, or (K, H, W) of 0, 1 and `IGNORED`.

        Raises:
            DataError: If an outline is faulty; names the annotation.
        """
        # Codes of some hundred bytes; the pixels of a single object exist at once.
        codes = [(item, self._encode(item)) for item in self.objects]
        # Largest first; crowds before all, so that objects lie on them. The sort is stable.
        codes.sort(key=lambda pair: (pair[0].label != IGNORED, -int(coco_mask.area(pair[1]))))
        if self.labels.channels is None:
            labels = np.zeros(self.size, np.uint8)
            for item, code in codes:
                labels[decode_mask(code)] = item.label
            return labels
        channels = np.zeros((self.labels.channels, *self.size), np.uint8)
        for item, code in codes:
            channels[item.channel][decode_mask(code)] = IGNORED if item.label == IGNORED else 1
        return channels

    def _encode(self, item: ObjectOutline) -> RunLengths:
        where = f"{self.labels.file}: annotation {item.annotation_id}"
        return encode_outline(item.outline, self.size, where)


def read_coco_masks(
    root: str | Path,
    split: str,
    *,
    multilabel: bool = False,
    annotation_file: str | Path | None = None,
    image_folder: str | Path | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = False,
    content: CocoContent | None = None,
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
        content: Annotations that were read from another format, instead of a file's.

    Returns:
        The set, with the file's own image ids, in the file's order. Outlines are drawn, and looked
        at, when a mask is read.

    Raises:
        DataError: As `read_coco`; and if no object has an outline.
    """
    # The detection reader checks the file; its records keep every annotation.
    data = read_coco(
        root, split, annotation_file=annotation_file, image_folder=image_folder, content=content
    )
    assert data.file is not None, "the reader sets it"
    path, files = data.file, content.files if content is not None else {}
    categories = data.categories
    if classes is not None:
        categories = _drop_unused(data, classes)
    mask_classes, label_of, channel_of = _make_classes(categories, multilabel)
    channels = mask_classes.num_classes if multilabel else None
    problems: list[Problem] = []
    for record in data.records:
        _refuse_huge(record, path, channels)
        file = files.get(record.image_id, path)
        problems += [
            _report_missing_outline(file, a) for a in record.annotations if not _has_outline(a)
        ]
    _refuse_boxes_only(data.records, problems, path)
    problems += content.problems if content is not None else ()
    refuse_if_strict(problems, strict)
    problems += [problem for problem in data.problems if problem.item == "categories"]
    task: MaskTask = "multilabel" if multilabel else "multiclass"
    # Outlines stay as the detection reader packed them; pixels are drawn when a mask is read.
    records = MappedRecords(data.records, MaskLabels(path, label_of, channel_of, channels, files))
    masks = SegmentationSet(data.name, records, mask_classes, task, tuple(problems))
    if classes is None:
        return masks
    return reorder_classes(masks, classes, path, used=range(mask_classes.num_classes))


def _drop_unused(data: DetectionSet, classes: Sequence[str]) -> Categories:
    """Leave out classes of the file that are not asked for and have no object, as `read_coco`."""
    used = {a["category_id"] for record in data.records for a in record.annotations}
    own = data.categories
    pairs = zip(own.names, own.ids, strict=True)
    stay = [(name, i) for name, i in pairs if i in used or name in classes]
    return Categories(tuple(name for name, _ in stay), tuple(i for _, i in stay))


def _has_outline(annotation: Annotation) -> bool:
    return bool(annotation.get("segmentation"))


def _make_classes(
    categories: Categories, multilabel: bool
) -> tuple[MaskClasses, dict[int, int], dict[int, int]]:
    """Return the classes, and label and channel of each category id."""
    # Every category has a channel of its own.
    if multilabel:
        classes = MaskClasses.from_names(categories.names, categories.ids)
        labels = {i: label for label, i in enumerate(categories.ids)}
        return classes, labels, labels
    own = {n: i for n, i in zip(categories.names, categories.ids, strict=True) if n != BACKGROUND}
    # A file may itself have a background category, or use the id 0.
    free = 0 if 0 not in own.values() else min(own.values()) - 1
    background = dict(zip(categories.names, categories.ids, strict=True)).get(BACKGROUND, free)
    # Label 0 is the background, then the categories.
    classes = MaskClasses.from_names((BACKGROUND, *own), (background, *own.values()))
    labels = {i: label for label, i in enumerate(classes.ids)}
    return classes, labels, dict.fromkeys(labels, 0)


def _refuse_huge(record: ImageRecord, path: Path, channels: int | None) -> None:
    if record.width * record.height > MAX_PIXELS:
        raise DataError(
            f"{path}: image {record.image_id} is {record.width}x{record.height}, more than the "
            f"{MAX_PIXELS} pixels that are allowed; cut it into tiles or correct its size"
        )
    if record.width * record.height * max(len(record.annotations), channels or 1) > MAX_MASK_PIXELS:
        raise DataError(
            f"{path}: image {record.image_id} of {record.width}x{record.height} pixels has "
            f"{pluralize(len(record.annotations), 'object')}, whose masks are more than the "
            f"{MAX_MASK_PIXELS} pixels that are allowed; cut it into tiles"
        )


def _report_missing_outline(path: Path, annotation: Annotation) -> Problem:
    item = f"annotation {annotation['id']}"
    return Problem(str(path), item, "has no 'segmentation'", "the pixels of its box are ignored")


def _refuse_boxes_only(
    records: Sequence[ImageRecord], problems: Sequence[Problem], path: Path
) -> None:
    total = sum(len(record.annotations) for record in records)
    if total and len(problems) == total:
        raise DataError(
            f"{path}: its {pluralize(total, 'annotation has', 'annotations have')} no "
            "'segmentation', so it holds boxes only; export it with masks"
        )
