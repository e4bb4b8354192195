"""Reads every split of a data set, as far as the readers take it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.coco.boxes import has_coco_layout
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.recognition.recognize import Recognized, Split, recognize
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.sets.classes import (
    ClassChanges,
    change_classes,
    parse_names,
    parse_renaming,
    refuse_new_classes,
)


@dataclass(frozen=True)
class InspectedData:
    """Data set, split by split.

    Attributes:
        found: What was recognized.
        parts: Set of each split that the readers take.
        refused: Why the others are not taken, by their names.
    """

    found: Recognized
    parts: dict[str, AnySet]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def has_masks_of_classes(self) -> bool:
        """True if pixels have a class, and not objects."""
        return not any(isinstance(part, DetectionSet) for part in self.parts.values())

    @property
    def class_names(self) -> Sequence[str]:
        """Names in label order, without a background that is no label."""
        return name_classes(next(iter(self.parts.values())))


def name_classes(data: AnySet) -> tuple[str, ...]:
    """Return the names of a set's classes, in label order."""
    return data.categories.names if isinstance(data, DetectionSet) else data.classes.names


def read_data(options: argparse.Namespace) -> InspectedData:
    """Read the data that the command line names.

    Raises:
        DataError: Nothing is recognized, or the readers take no split.
    """
    found = recognize(
        options.data,
        "segmentation" if options.masks else None,
        layout=options.layout,
        annotation_file=options.annotation_file,
        image_folder=options.image_folder,
    )
    changes = ClassChanges(
        parse_renaming(options.rename) if options.rename else {},
        parse_names(options.drop) if options.drop else (),
    )
    chosen = parse_names(options.classes) if options.classes else None
    parts: dict[str, AnySet] = {}
    refused: dict[str, str] = {}
    for split in found.splits:
        try:
            parts[split.name] = _read_split(found, split, options.masks)
        except DataError as error:
            refused[split.name] = str(error)
    refuse_new_classes(list(parts.values()), changes, chosen)
    for name, part in list(parts.items()):
        try:
            parts[name] = _change(part, changes, chosen)
        except DataError as error:
            refused[name] = str(error)
            del parts[name]
    _drop_unions(parts)
    if not parts:
        raise DataError(next(iter(refused.values()), f"{found.root}: has no split"))
    # Splits may name different classes: all get those of all, in the order they are met.
    names = list(dict.fromkeys(name for part in parts.values() for name in name_classes(part)))
    for name, part in parts.items():
        if name_classes(part) != tuple(names):
            parts[name] = _change(part, ClassChanges(), names)
    return InspectedData(found, parts, refused)


def _drop_unions(parts: dict[str, AnySet]) -> None:
    """Leave out splits all of whose images are in several others: VOC's trainval."""
    paths = {name: {record.path for record in part.records} for name, part in parts.items()}
    for name in sorted(paths, key=lambda name: -len(paths[name])):
        inside = [own for other, own in paths.items() if other != name and own < paths[name]]
        if len(inside) > 1 and set.union(*inside) == paths[name]:
            del parts[name], paths[name]


def _change(data: AnySet, changes: ClassChanges, classes: Sequence[str] | None) -> AnySet:
    if isinstance(data, DetectionSet):
        return change_classes(data, changes, classes)
    return change_classes(data, changes, classes)


def _read_split(found: Recognized, split: Split, as_masks: bool) -> AnySet:
    sources = [dict(split.source)]
    if "boxes" in found.serves and not as_masks:
        # COCO's files of keypoints hold people alone: where all objects have a file, that is read.
        keypoints = "keypoints" in found.serves and not has_coco_layout(found.root)
        return read_detection(sources, keypoints=keypoints)
    return read_segmentation(sources)
