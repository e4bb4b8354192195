"""Counts the objects and images of the classes of a set."""

from dataclasses import dataclass

import numpy as np

from densenet_backbones.data.samples import DetectionSet


@dataclass(frozen=True)
class ClassCount:
    """Counts of a class in a set.

    Attributes:
        name: Name of the class.
        objects: Number of boxes that training may use.
        images: Number of images with at least one of them.
        difficult: Number of `objects` marked difficult (VOC).
        crowd: Number of crowd regions (COCO), which are not among `objects`.
        left_out: Number of objects whose box is faulty; evaluation alone counts them.
    """

    name: str
    objects: int
    images: int
    difficult: int
    crowd: int
    left_out: int


def count_classes(detection_set: DetectionSet) -> tuple[ClassCount, ...]:
    """Count the objects and images of every class, in label order."""
    categories, size = detection_set.categories, detection_set.categories.num_classes
    columns = detection_set.packed.columns
    labels, difficult = columns.labels, columns.labels[columns.difficult]
    # Each pair of an image and a class counts once.
    owners = np.repeat(np.arange(len(detection_set)), np.diff(columns.box_ends, prepend=0))
    pairs = np.unique(owners * size + labels) % size
    # Crowds and faulty boxes are among the annotations only.
    entries = columns.table.numbers[columns.rows]
    crowd, single = (
        categories.labels_of_ids(entries["category_id"][(entries["iscrowd"] != 0) == is_crowd])
        for is_crowd in (True, False)
    )
    counts = [
        np.bincount(values, minlength=size)[1:]  # row 0 is the background
        for values in (labels, pairs, difficult, crowd, single)
    ]
    counts[4] = counts[4] - counts[0]
    return tuple(
        ClassCount(name, *(int(value) for value in row))
        for name, row in zip(categories.names, zip(*counts, strict=True), strict=True)
    )
