"""Pairs image files with mask files, and puts a set's classes in another order."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import list_by_stem, quote, refuse_faults, track_progress
from densenet_backbones.data.images import STAND_IN, read_image_size
from densenet_backbones.data.mask_samples import (
    IGNORED,
    MaskClasses,
    MaskReader,
    MaskRecord,
    SegmentationSet,
    describe_size_fault,
    voc_color,
)
from densenet_backbones.data.masks.code import MaskCode
from densenet_backbones.data.packing.records import MappedRecords
from densenet_backbones.messages import nearest, pluralize

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # JPEG and GIF writers change values


@dataclass(frozen=True)
class MaskFile:
    """Reader of a mask from one picture."""

    path: Path
    code: MaskCode

    @property
    def files(self) -> tuple[Path, ...]:
        """Path of the picture, alone."""
        return (self.path,)

    @property
    def rule(self) -> str:
        """Rule of the code."""
        return self.code.rule

    def read(self) -> np.ndarray:
        """Read (H, W) uint8 labels; see `MaskCode.read`."""
        return self.code.read(self.path)


def list_masks(folder: Path) -> dict[str, Path]:
    """List a folder's masks by their names without suffix; see `list_by_stem`."""
    return list_by_stem(folder, MASK_SUFFIXES, "masks")


def refuse_missing(
    folder: Path,
    missing: Sequence[str],
    split: str,
    what: str = "mask",
    suffixes: Sequence[str] = MASK_SUFFIXES,
) -> None:
    """Raise a `DataError` that names masks, or other files, which are not there."""
    if missing:
        raise DataError(
            f"{folder}: lacks {pluralize(len(missing), what)} of the split {split!r} "
            f"({quote(missing)}, with any of {', '.join(suffixes)}); add them, or take their "
            "partners out of the split"
        )


def read_file_records(
    images: Sequence[Path], masks: Sequence[Path], code: MaskCode, name: str
) -> tuple[MaskRecord, ...]:
    """Make records of image files and their mask files, whose headers are read.

    Image ids count from 1.

    Raises:
        DataError: One for all the masks that are not of their image's size.
    """
    records, faults = [], []
    pairs = list(zip(images, masks, strict=True))
    for number, (image, mask) in enumerate(track_progress(pairs, f"Reading {name}"), start=1):
        width, height = read_image_size(image)
        record = MaskRecord(number, image, width, height, MaskFile(mask, code), image.stem)
        faults += compare_sizes(record, mask)
        records.append(record)
    refuse_faults(
        faults, f"{name}: {len(faults)} of {pluralize(len(records), 'mask')} with the wrong size"
    )
    return tuple(records)


def compare_sizes(record: MaskRecord, mask: Path) -> list[str]:
    """Compare a mask's size with its image's, before training; list the fault there is.

    The header is enough for that.
    """
    size, own = read_image_size(mask, as_stored=True), (record.width, record.height)
    if size == own or STAND_IN in (size, own):
        return []
    return [describe_size_fault(mask, size, record)]


@dataclass(frozen=True)
class RelabeledMask:
    """Reader that changes the labels of another reader's mask.

    Attributes:
        reader: Reader of the mask with its old labels.
        table: New label of each old one; `IGNORED` for classes that are left out.
        new_count: Number of channels of a multilabel mask, K, whose channels are reordered; None
            for labels.
        unknown: Old labels that have no new one, each with a clause about its class: their pixels
            are an error.
    """

    reader: MaskReader
    table: tuple[int, ...]
    new_count: int | None = None
    unknown: tuple[tuple[int, str], ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the reader."""
        return self.reader.files

    @property
    def rule(self) -> str:
        """Rule of the reader, and the table."""
        return f"{self.reader.rule} {self.table} {self.new_count} {self.unknown}"

    def read(self) -> np.ndarray:
        """Read the mask with its new labels.

        Raises:
            DataError: As the reader; and if a class has pixels that is not among the new ones.
        """
        mask = self.reader.read()
        for label, clause in self.unknown:
            if pixels := int((mask == label).sum()):
                raise DataError(f"{self.files[0]}: has {pluralize(pixels, 'pixel')} of {clause}")
        # Multilabel: channels move, or are laid over each other; new classes get empty ones.
        if self.new_count is not None:
            channels = np.zeros((self.new_count, *mask.shape[1:]), np.uint8)
            for channel, label in zip(mask, self.table, strict=True):
                if label < self.new_count:  # others are left out
                    same = channels[label]
                    same[(channel == IGNORED) & (same == 0)] = IGNORED
                    same[channel == 1] = 1
            return channels
        # Labels: a table for all values of 8 bits, in which unknown ones stay ignored.
        table = np.full(256, IGNORED, np.uint8)
        table[: len(self.table)] = self.table
        return np.asarray(table[mask])


@dataclass(frozen=True)
class Relabeling:
    """Makes records whose masks have new labels; see `RelabeledMask`."""

    table: tuple[int, ...]
    new_count: int | None
    unknown: tuple[tuple[int, str], ...]

    def __call__(self, record: MaskRecord) -> MaskRecord:
        """Return a record with the same image."""
        mask = RelabeledMask(record.mask, self.table, self.new_count, self.unknown)
        return replace(record, mask=mask)


def has_unknown_classes(data: SegmentationSet) -> bool:
    """Return True if only the pixels of a set can tell whether it has unknown classes."""
    return any(isinstance(r.mask, RelabeledMask) and r.mask.unknown for r in data.records)


def reorder_classes(
    data: SegmentationSet,
    names: Sequence[str],
    file: Path | None = None,
    used: Collection[int] | None = None,
) -> SegmentationSet:
    """Put the classes of a set in another label order, matched by name, perhaps among more.

    Args:
        data: Set whose classes are among the names, those at least that have pixels.
        names: Names in the new label order; classes that the set does not have get free ids.
        file: File that lists the set's classes, for messages.
        used: Labels that masks have; None where only their pixels can tell, which are then looked
            at whenever a mask is read.

    Raises:
        DataError: If a class of the set that is used is not among the names.
    """
    old = data.classes
    lost = [name for name in old.names if name not in names]
    refused = [name for name in lost if used is not None and old.names.index(name) in used]
    if refused:
        raise DataError(
            f"{file or data.name}: has {pluralize(len(refused), 'class')} ({quote(refused)}) that "
            f"are not among the {len(names)} known ({quote(names)}); rename or remove them, or "
            f"train with all of them in `classes`{nearest(refused[0], names)}"
        )
    if old.names == tuple(names):
        return data
    # New classes get ids above the set's own.
    free = iter(range(max(old.ids) + 1, max(old.ids) + 1 + len(names)))
    new = MaskClasses.from_names(
        names,
        [old.ids[old.names.index(n)] if n in old.names else next(free) for n in names],
        [
            old.colors[old.names.index(n)] if n in old.names else voc_color(i % 256)
            for i, n in enumerate(names)
        ],
    )
    # New label of each old one; pixels of those that have none are refused when they are met.
    table = tuple(new.names.index(name) if name in names else IGNORED for name in old.names)
    unknown = tuple(
        (
            old.names.index(name),
            f"the class {name!r}, which is not among the {len(names)} known ({quote(names)}); "
            f"rename or remove it, or train with it in `classes` too{nearest(name, names)}",
        )
        for name in (lost if used is None else ())
    )
    count = len(names) if data.task == "multilabel" else None
    relabel = Relabeling(table, count, unknown)
    return replace(data, classes=new, records=MappedRecords(data.records, relabel))
