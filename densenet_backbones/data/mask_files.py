"""Mask pictures to labels: palette and grey pictures hold ids, RGB pictures colours.

A colour is one number here, ``R + 256 G + 65536 B``, as in COCO's panoptic pictures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from densenet_backbones.data.files import files_in, nearest, refuse_faults, some, with_progress
from densenet_backbones.data.images import image_size, opened_image
from densenet_backbones.data.mask_samples import (
    IGNORED,
    Color,
    MaskClasses,
    MaskReader,
    MaskRecord,
    SegmentationSet,
    fault_of_size,
    voc_color,
)
from densenet_backbones.data.samples import DataError

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # JPEG and GIF writers change values
_UNKNOWN = 256  # beside the labels 0 .. 255 in tables
# Pillow spreads grey of 2 and 4 bits over 0..255; ids must stay what they are in the file.
_SPREAD = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class ValueMap:
    """What the values in a mask picture stand for.

    Attributes:
        values: Unique, each at least 0.
        labels: One a value, ``0 .. K - 1`` or `IGNORED`.
        are_colors: Whether values are colours (for messages).
    """

    values: tuple[int, ...]
    labels: tuple[int, ...]
    are_colors: bool = False

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.values)
        return np.array(self.values, np.int64)[order], np.array(self.labels, np.uint16)[order]

    @cached_property
    def _table(self) -> np.ndarray:
        """(256,) uint16: label of each value of 8 bits."""
        table = np.full(256, _UNKNOWN, np.uint16)
        for value, label in zip(self.values, self.labels, strict=True):
            if value < 256:
                table[value] = label
        return table

    def to_labels(self, raw: np.ndarray, where: str, fix: str) -> np.ndarray:
        """(H, W) integers to (H, W) uint8 labels.

        Args:
            raw: The picture's values.
            where: The file, for the message.
            fix: What to do about unknown values.

        Raises:
            DataError: If there are unknown values; lists them with their counts.
        """
        if raw.dtype == np.uint8:
            found = self._table[raw]
        else:
            values, labels = self._sorted
            place = np.minimum(np.searchsorted(values, raw), len(values) - 1)
            found = np.where(values[place] == raw, labels[place], np.uint16(_UNKNOWN))
        unknown = found == _UNKNOWN
        if unknown.any():
            raise DataError(self._message(raw[unknown], where, fix))
        return found.astype(np.uint8)

    def _message(self, unknown: np.ndarray, where: str, fix: str) -> str:
        values, counts = np.unique(unknown, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:8]
        listed = ", ".join(f"{self._shown(int(values[i]))} ({counts[i]} pixels)" for i in order)
        more = f" and {len(values) - 8} more" if len(values) > 8 else ""
        kind = "colors" if self.are_colors else "ids"
        return (
            f"{where}: has {len(values)} {kind} that no class has: {listed}{more}; known are "
            f"{self._known(False)} and, ignored, {self._known(True) or 'none'}; {fix}"
        )

    def _shown(self, value: int) -> str:
        return f"rgb{color_of(value)}" if self.are_colors else str(value)

    def _known(self, ignored: bool) -> str:
        pairs = zip(self.values, self.labels, strict=True)
        values = sorted(v for v, label in pairs if (label == IGNORED) == ignored)
        if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
            return f"{self._shown(values[0])} to {self._shown(values[-1])}"
        more = f" and {len(values) - 12} more" if len(values) > 12 else ""
        return ", ".join(self._shown(v) for v in values[:12]) + more


def packed(color: Sequence[int]) -> int:
    """A colour as one number."""
    return int(color[0]) + 256 * int(color[1]) + 65536 * int(color[2])


def color_of(value: int) -> Color:
    """Inverse of `packed`."""
    return value & 255, value >> 8 & 255, value >> 16 & 255


def pack_colors(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (H, W) int32 numbers."""
    channels = rgb.astype(np.int32)
    return channels[..., 0] + (channels[..., 1] << 8) + (channels[..., 2] << 16)


@dataclass(frozen=True)
class MaskCode:
    """How the mask pictures of a data set are to be read.

    Attributes:
        ids: Of palette and grey pictures; None where pictures must hold colours.
        colors: Of RGB pictures; None where pictures must hold ids.
        fix: What to do about unknown values, for the message.
    """

    ids: ValueMap | None
    colors: ValueMap | None
    fix: str = "correct the mask, or name them among the classes or as ignored"

    @classmethod
    def of_classes(
        cls,
        classes: MaskClasses,
        *,
        ids: bool = True,
        colors: bool = False,
        ignored_ids: Iterable[int] = (IGNORED,),
        ignored_colors: Iterable[Color] = (),
        **options: str,
    ) -> "MaskCode":
        """The code in which classes have their ids, their colours or either.

        Raises:
            DataError: If a value stands for two things, or an id is below 0.
        """
        labels = range(classes.num_classes)
        return cls(
            _value_map("id", zip(classes.ids, labels, strict=True), ignored_ids) if ids else None,
            _value_map(
                "color",
                zip(map(packed, classes.colors), labels, strict=True),
                map(packed, ignored_colors),
            )
            if colors
            else None,
            **options,
        )

    @cached_property
    def rule(self) -> str:
        """A text that changes when values stand for other labels."""
        return repr([(m.values, m.labels) if m else None for m in (self.ids, self.colors)])

    def read(self, path: Path) -> np.ndarray:
        """Labels of a picture, (H, W) uint8.

        Raises:
            DataError: If the file is missing, damaged or truncated, is JPEG, holds colours where
                ids are expected or the reverse, or has unknown values.
        """
        with opened_image(path) as picture:
            if picture.format == "JPEG":
                raise DataError(f"{path}: JPEG changes the values of a mask; save it as PNG")
            spread = _SPREAD.get(_raw_mode(picture), 1)
            picture.load()
            raw, values = self._values(picture, path)
        return values.to_labels(raw // spread if spread > 1 else raw, str(path), self.fix)

    def _values(self, picture: Image.Image, path: Path) -> tuple[np.ndarray, ValueMap]:
        mode = picture.mode
        if mode == "P" and self.ids is None:
            picture, mode = picture.convert("RGB"), "RGB"
        if mode == "RGBA" and picture.getchannel("A").getextrema() == (255, 255):
            picture, mode = picture.convert("RGB"), "RGB"
        if mode == "RGB":
            rgb = np.asarray(picture)
            if self.colors is None:
                grey = (rgb == rgb[..., :1]).all()
                hint = " (its three channels are equal: save one of them)" * bool(grey)
                raise DataError(
                    f"{path}: is an RGB picture, but class ids are expected{hint}; save it with "
                    "one channel or a palette, or give its classes colors in classes.yaml with "
                    "`values: colors`"
                )
            return pack_colors(rgb), self.colors
        if mode in ("P", "L", "1") or mode.startswith("I"):
            if self.ids is None:
                raise DataError(
                    f"{path}: has one channel of numbers, but colors are expected; save it as RGB "
                    "or with a palette, or give its classes ids (`values: ids` in classes.yaml)"
                )
            raw = np.asarray(picture)
            return raw.astype(np.uint8) if raw.dtype == bool else raw, self.ids
        raise DataError(
            f"{path}: masks of Pillow's mode {mode!r} have no clear meaning (ids: one channel of "
            "8 or 16 bits or a palette; colors: RGB, opaque); save it so"
        )


def _value_map(kind: str, pairs: Iterable[tuple[int, int]], ignored: Iterable[int]) -> ValueMap:
    found: dict[int, int] = {}
    for value, label in (*pairs, *((value, IGNORED) for value in ignored)):
        shown = f"rgb{color_of(value)}" if kind == "color" else value
        if value in found and found[value] != label:
            raise DataError(
                f"the {kind} {shown} stands for two things (two classes, or a class and what is "
                "ignored); each needs its own"
            )
        if value < 0:
            raise DataError(f"the {kind} {shown} of a class cannot be in a mask; ids start at 0")
        found[value] = label
    return ValueMap(tuple(found), tuple(found.values()), are_colors=kind == "color")


def _raw_mode(picture: Image.Image) -> str:
    """Pillow's name of the pixel layout in the file."""
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return arguments if isinstance(arguments, str) else ""


@dataclass(frozen=True)
class MaskFile:
    """Reads a mask from one picture."""

    path: Path
    code: MaskCode

    @property
    def files(self) -> tuple[Path, ...]:
        """The picture."""
        return (self.path,)

    @property
    def rule(self) -> str:
        """The code's."""
        return self.code.rule

    def read(self) -> np.ndarray:
        """(H, W) uint8 labels; see `MaskCode.read`."""
        return self.code.read(self.path)


def masks_by_stem(folder: Path) -> dict[str, Path]:
    """Mask files of a folder by their names without ending; the first of `MASK_SUFFIXES` wins."""
    found: dict[str, Path] = {}
    for suffix in reversed(MASK_SUFFIXES):
        names = sorted(n for n in files_in(folder) if n.lower().endswith(suffix))
        found |= {name[: -len(suffix)]: folder / name for name in names}
    return found


def refuse_missing(
    folder: Path,
    missing: Sequence[str],
    split: str,
    what: str = "masks",
    suffixes: Sequence[str] = MASK_SUFFIXES,
) -> None:
    """Raise a `DataError` that names masks, or other files, which are not there."""
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} {what} of the split {split!r} are missing "
            f"({some(missing)}, with any of {', '.join(suffixes)}); add them, or take their "
            "partners out of the split"
        )


def file_records(
    images: Sequence[Path], masks: Sequence[Path], code: MaskCode, name: str
) -> tuple[MaskRecord, ...]:
    """Records of image files and their mask files; ids count from 1.

    Reads the headers of all of them.

    Raises:
        DataError: One for all the masks that are not of their image's size.
    """
    records, faults = [], []
    pairs = list(zip(images, masks, strict=True))
    for number, (image, mask) in enumerate(with_progress(pairs, f"Reading {name}"), start=1):
        width, height = image_size(image)
        record = MaskRecord(number, image, width, height, MaskFile(mask, code), image.stem)
        with opened_image(mask) as picture:
            size = picture.size
        if size != (width, height):
            faults.append(fault_of_size(mask, size, record))
        records.append(record)
    refuse_faults(faults, f"{name}: {len(faults)} of {len(records)} masks have the wrong size")
    return tuple(records)


@dataclass(frozen=True)
class RelabelledMask:
    """Another reader's mask with other labels.

    Attributes:
        reader: Whose labels are changed.
        table: The new label of each old one.
        new_count: K of a multilabel mask, whose channels are reordered; None for labels.
    """

    reader: MaskReader
    table: tuple[int, ...]
    new_count: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The reader's."""
        return self.reader.files

    @property
    def rule(self) -> str:
        """The reader's and the table."""
        return f"{self.reader.rule} {self.table} {self.new_count}"

    def read(self) -> np.ndarray:
        """The reader's mask, relabelled."""
        mask = self.reader.read()
        if self.new_count is not None:
            channels = np.zeros((self.new_count, *mask.shape[1:]), np.uint8)
            channels[list(self.table)] = mask
            return channels
        table = np.full(256, IGNORED, np.uint8)
        table[: len(self.table)] = self.table
        return table[mask]


def with_classes(found: SegmentationSet, names: Sequence[str]) -> SegmentationSet:
    """The set with its classes in another label order, matched by name, and perhaps more of them.

    Args:
        found: Its classes must all be among the names.
        names: In the new label order; classes that the set does not have get free ids.

    Raises:
        DataError: If a class of the set is not among the names.
    """
    old = found.classes
    lost = [name for name in old.names if name not in names]
    if lost:
        raise DataError(
            f"{found.name}: has {len(lost)} classes ({some(lost)}) that are not among the "
            f"{len(names)} given in `classes` ({some(names)}); add them{nearest(lost[0], names)}"
        )
    if old.names == tuple(names):
        return found
    free = iter(range(max(old.ids) + 1, max(old.ids) + 1 + len(names)))
    new = MaskClasses.from_names(
        names,
        [old.ids[old.names.index(n)] if n in old.names else next(free) for n in names],
        [
            old.colors[old.names.index(n)] if n in old.names else voc_color(i % 256)
            for i, n in enumerate(names)
        ],
    )
    table = tuple(new.names.index(name) for name in old.names)
    count = len(names) if found.task == "multilabel" else None
    records = tuple(replace(r, mask=RelabelledMask(r.mask, table, count)) for r in found.records)
    return replace(found, classes=new, records=records)
