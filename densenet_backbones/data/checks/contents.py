"""Finds data sets and classes without an object or a pixel to learn from.

Annotations are looked at, and the pixel counts that the tables show; no image is opened.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote, spread
from densenet_backbones.data.mask_samples import IGNORED, MaskReader, MaskRecord, SegmentationSet
from densenet_backbones.data.masks.code import MaskCode
from densenet_backbones.data.masks.statistics import count_class_pixels, thin_out
from densenet_backbones.data.readers.coco.masks import InstanceMask
from densenet_backbones.data.readers.masks.files import MaskFile, RelabeledMask
from densenet_backbones.data.samples import DetectionSet, ImageRecord, Outline
from densenet_backbones.messages import pluralize

AnySet = DetectionSet | SegmentationSet

CORNER = 2  # pixels from the origin; boxes of numbers from 0 to 1 end there, whatever their form
SMALLEST_SIDE = 16  # pixels of images whose boxes in the corner say something
SHARE_WORTH_A_LINE = 0.01  # of the objects; single clicks in a corner happen
IMAGES_LOOKED_AT = 2000  # for their objects in the corner
CLASSES_WRITTEN_OUT = 4


def refuse_unlearnable(data: AnySet) -> None:
    """Raise a `DataError` if nothing can be learned from a training set."""
    so = "so nothing can be learned from it"
    if isinstance(data, DetectionSet) and not len(data.packed.columns.boxes):
        raise DataError(_describe_missing_objects(data, so))
    fault = None if isinstance(data, DetectionSet) else _describe_missing_pixels(data, so)
    in_corner, total = _count_in_corner(data)
    if 0 < total == in_corner:
        fault = fault or _describe_corner(data, in_corner, total, f", {so}")
    if fault:
        raise DataError(fault)


def remark_on_untaught_classes(data: AnySet) -> Iterator[str]:
    """Yield a line about the classes of a training set that none of its images teaches."""
    if isinstance(data, DetectionSet):
        names, labels = data.categories.names, data.packed.columns.labels
        counts = np.bincount(labels, minlength=len(names) + 1)[1:]
        what, advice = "an object to learn from", ""
    else:
        part = thin_out(data)
        pixels = count_class_pixels(part, skip=True)
        counts, names = np.array(pixels.pixels), data.classes.names
        looked_at = "" if part is data else f" in {pluralize(len(part), 'mask')} looked at"
        what = f"a pixel to learn from{looked_at}"
        missing = [name for name, count in zip(names, counts, strict=True) if not count]
        # Where one class alone is missing, the ignored pixels may be its own.
        advice = _advise_on_ids(data, missing) if len(missing) == 1 and pixels.ignored else ""
    untaught = [name for name, count in zip(names, counts, strict=True) if not count]
    if untaught:
        yield (
            f"{data.name}: classes without {what}: {len(untaught)} of {len(names)} "
            f"({quote(untaught)}){advice}"
        )


def remark_on_similar_classes(data: AnySet) -> Iterator[str]:
    """Yield a line for classes that are told apart by case, spaces or signs alone."""
    names = data.classes.names if isinstance(data, SegmentationSet) else data.categories.names
    groups = defaultdict(list)
    for name in names:
        groups["".join(filter(str.isalnum, name.casefold()))].append(name)
    for letters, (first, *others) in groups.items():
        if letters and others:
            merged = json.dumps(dict.fromkeys(others, first), ensure_ascii=False)
            yield (
                f"{data.name}: classes {quote([first, *others])} differ in case, spaces or signs "
                f"alone; --data.rename '{merged}' makes them one"
            )


def remark_on_unmeasurable(data: AnySet) -> Iterator[str]:
    """Yield a line if the scores of an evaluated set say nothing."""
    if isinstance(data, SegmentationSet):
        fault = _describe_missing_pixels(data, "so its scores say little")
    else:
        annotations = (a for record in data.records for a in record.annotations)
        counts = any(not (a.get("iscrowd") or a.get("difficult")) for a in annotations)
        fault = None if counts else _describe_missing_objects(data, "so its scores are undefined")
    if fault:
        yield fault


def remark_on_mixed_values(data: AnySet) -> Iterator[str]:
    """Yield a line if the ignored id looks as if it meant in some masks what 1 means in others.

    No mask has ignored pixels beside its second class then, as one with ignored borders has.
    """
    if isinstance(data, DetectionSet) or data.classes.num_classes != 2:
        return
    counts, name = count_class_pixels(thin_out(data), skip=True), data.classes.names[1]
    if counts.images[1] and counts.with_ignored and not counts.beside_ignored[1]:
        yield (
            f"{data.name}: {pluralize(counts.with_ignored, 'mask has', 'masks have')} ignored "
            f"pixels and none of {name!r}, "
            f"{pluralize(counts.images[1], 'other has', 'others have')} {name!r} and no ignored "
            "ones, as if some were written in 0 and 1 and some in 0 and 255; write all with the "
            "same values"
        )


def remark_on_corners(data: AnySet) -> Iterator[str]:
    """Yield a line if objects have coordinates that look like shares of their image's size."""
    in_corner, total = _count_in_corner(data)
    if in_corner and in_corner >= SHARE_WORTH_A_LINE * total:
        yield _describe_corner(data, in_corner, total, "")


# -- objects ---------------------------------------------------------------------------------------


def _describe_missing_objects(data: DetectionSet, so: str) -> str:
    """Describe that no object of a set counts, the likeliest cause and the fix."""
    columns = data.packed.columns
    annotations = columns.table.numbers[columns.rows]
    crowds = int((annotations["iscrowd"] != 0).sum())
    where = data.file or data.name
    images = pluralize(len(data), "image has", "images have")
    head = f"{where}: its {images} no object that counts, {so}"
    if not len(annotations):
        return f"{head}; it has no annotations: add them, or give the file that has them"
    if crowds == len(annotations):
        all_crowds = "annotations are crowd regions"
        return (
            f"{head}: all {pluralize(crowds, 'annotation is a crowd region', all_crowds)} "
            "(iscrowd 1), which are ignored; set iscrowd to 0 where one is a single object"
        )
    others = len(annotations) - crowds
    among = pluralize(crowds, "is a crowd region", "are crowd regions")
    regions = f" and {among}" * bool(crowds)
    if len(columns.boxes):
        marked = pluralize(others, "annotation is", "annotations are")
        return f"{head}: {marked} marked difficult{regions}"
    first = f" (the first in {data.problems[0]})" if data.problems else ""
    faulty = pluralize(others, "annotation has a faulty box", "annotations have faulty boxes")
    return f"{head}: {faulty}{first}{regions}; correct them"


def _describe_corner(data: AnySet, in_corner: int, total: int, so: str) -> str:
    where = data.file if isinstance(data, DetectionSet) and data.file else data.name
    return (
        f"{where}: {in_corner} of {pluralize(total, 'object')} end within {CORNER} pixels of "
        "their image's corner, as shares of its size do (numbers from 0 to 1, which YOLO's files "
        f"have){so}; multiply x by the image's width and y by its height"
    )


def _count_in_corner(data: AnySet) -> tuple[int, int]:
    """Count the objects that end in the image's corner, and all, of images spread evenly."""
    records: Sequence[ImageRecord | MaskRecord] = data.records
    flags = [
        flag
        for record in spread(records, IMAGES_LOOKED_AT)
        if min(record.width, record.height) > SMALLEST_SIDE
        for flag in _find_in_corner(record)
    ]
    return sum(flags), len(flags)


def _find_in_corner(record: ImageRecord | MaskRecord) -> Iterator[bool]:
    """Yield True for each object of an image that ends in its corner, and False for others."""
    if isinstance(record, ImageRecord):
        for annotation in record.annotations:
            x, y, width, height = annotation["bbox"]
            ends = x + width <= CORNER and y + height <= CORNER and width > 0 < height
            yield ends or _ends_in_corner(annotation.get("segmentation"))
    else:
        mask = _unwrap(record.mask)
        if isinstance(mask, InstanceMask):
            yield from (_ends_in_corner(item.outline) for item in mask.objects)


def _ends_in_corner(outline: Outline | None) -> bool:
    """Return True for polygons that have no coordinate beyond the corner."""
    if not outline or not isinstance(outline, list):
        return False
    # Polygons are checked when they are drawn: here they may still hold anything.
    numbers = (value for polygon in outline for value in polygon)
    return all(type(value) in (int, float) and value <= CORNER for value in numbers)


# -- pixels ----------------------------------------------------------------------------------------


def _describe_missing_pixels(data: SegmentationSet, so: str) -> str | None:
    """Describe that the masks of a set tell no classes apart, and the fix; None if they do."""
    # All masks of a large set are read only where a part of them tells no classes apart.
    for part in (thin_out(data), data):
        counts, names = count_class_pixels(part, skip=True), data.classes.names
        present = [name for name, pixels in zip(names, counts.pixels, strict=True) if pixels]
        if len(present) >= min(2, len(names)) or (present and data.task == "multilabel"):
            return None
    head = f"{data.name}: its {pluralize(len(data), 'mask has', 'masks have')}"
    if not counts.labeled:
        return f"{head} ignored pixels alone, {so}{_advise_on_ids(data, names)}"
    alone = f"pixels of {present[0]!r} alone" if present else "no pixel of any class"
    others = [name for name in names if name not in present]
    advice = _advise_on_ids(data, others) if counts.ignored else "; label the others' pixels"
    return f"{head} {alone} and {counts.ignored_share:.2%} ignored ones, {so}{advice}"


def _advise_on_ids(data: SegmentationSet, missing: Sequence[str]) -> str:
    """Say how an ignored id becomes that of a class; nothing where masks have no ids."""
    code = _find_code(data.records[0])
    if code is None or code.ids is None or not code.ids_in:
        return ""
    pairs = zip(code.ids.values, code.ids.labels, strict=True)
    ignored = sorted(value for value, label in pairs if label == IGNORED)
    if not ignored:
        return ""
    ids = dict(zip(data.classes.names, data.classes.ids, strict=True))
    ids[missing[0]] = ignored[-1]
    listed = ids if len(ids) <= CLASSES_WRITTEN_OUT else missing[:1]
    entries = ", ".join(f"{{name: {name!r}, id: {ids[name]}}}" for name in listed)
    return (
        f"; if the ignored id {' or '.join(map(str, ignored))} stands for {missing[0]!r}, write "
        f"classes: [{entries}{', ...' * (len(listed) < len(ids))}] in {code.ids_in}, and leave it "
        "out of `ignored`"
    )


def _find_code(record: MaskRecord) -> MaskCode | None:
    mask = _unwrap(record.mask)
    return mask.code if isinstance(mask, MaskFile) else None


def _unwrap(mask: MaskReader) -> MaskReader:
    """Return the reader that knows the files, without those that change its labels."""
    return _unwrap(mask.reader) if isinstance(mask, RelabeledMask) else mask
