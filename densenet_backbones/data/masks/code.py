"""Decodes mask pictures to labels: palette and gray pictures hold ids, RGB pictures colors.

A color is one number here, ``R + 256 G + 65536 B``, as in COCO's panoptic pictures
(cocodataset/panopticapi, ``utils.py``, `rgb2id`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import PIXELS_AT_ONCE, open_image
from densenet_backbones.data.mask_samples import IGNORED, Color, MaskClasses
from densenet_backbones.messages import pluralize

_UNKNOWN = 256  # beside the labels 0 .. 255 in tables
WITHOUT_ALPHA = {"LA": "L", "RGBA": "RGB"}
"""Pillow's modes with an alpha channel, which says nothing where it is opaque."""
# Pillow spreads gray of 2 and 4 bits over 0..255; ids must stay what they are in the file.
_SPREAD = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class ValueMap:
    """Labels that the values in a mask picture stand for.

    Attributes:
        values: Values, unique, each at least 0.
        labels: Labels, one a value, ``0 .. K - 1`` or `IGNORED`.
        are_colors: True if values are colors (for messages).
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
        """Label of each value of 8 bits, (256,) uint16."""
        table = np.full(256, _UNKNOWN, np.uint16)
        for value, label in zip(self.values, self.labels, strict=True):
            if value < 256:
                table[value] = label
        return table

    def to_labels(self, raw: np.ndarray, where: str, fix: str) -> np.ndarray:
        """Look up the labels of a picture, as (H, W) uint8, some rows at a time.

        Args:
            raw: Values, (H, W) integers, or colors, (H, W, 3) uint8.
            where: Name of the file, for the message.
            fix: Advice about unknown values, for the message.

        Raises:
            DataError: If there are unknown values; lists them with their counts.
        """
        labels = np.empty(raw.shape[:2], np.uint8)
        unknown = []
        rows = max(1, PIXELS_AT_ONCE // raw.shape[1])
        for top in range(0, len(raw), rows):
            part = raw[top : top + rows]
            values = pack_colors(part) if raw.ndim == 3 else part
            looked_up = self._look_up(values)
            labels[top : top + rows] = looked_up  # what is unknown wraps to 0
            is_unknown = looked_up == _UNKNOWN
            if is_unknown.any():
                unknown.append(np.unique(values[is_unknown], return_counts=True))
        if unknown:
            raise DataError(self._describe_unknown(unknown, where, fix))
        return labels

    def _look_up(self, raw: np.ndarray) -> np.ndarray:
        """Return the labels of integers, uint16, `_UNKNOWN` for those that stand for none."""
        if raw.dtype == np.uint8:
            return np.asarray(self._table[raw])
        # 16 bits and more: a search instead of a table.
        values, labels = self._sorted
        place = np.minimum(np.searchsorted(values, raw), len(values) - 1)
        return np.where(values[place] == raw, labels[place], np.uint16(_UNKNOWN))

    def _describe_unknown(
        self, unknown: Sequence[tuple[np.ndarray, np.ndarray]], where: str, fix: str
    ) -> str:
        values, place = np.unique(np.concatenate([v for v, _ in unknown]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([c for _, c in unknown])).astype(int)
        # The most frequent unknown values first.
        order = np.argsort(-counts, kind="stable")[:8]
        listed = ", ".join(
            f"{self._format(int(values[i]))} ({pluralize(int(counts[i]), 'pixel')})" for i in order
        )
        more = f" and {len(values) - 8} more" if len(values) > 8 else ""
        kind = pluralize(len(values), "color" if self.are_colors else "id")
        return (
            f"{where}: has {kind} that no class has: {listed}{more}; known are "
            f"{self._list_known(False)} and, ignored, {self._list_known(True) or 'none'}; {fix}"
        )

    def _format(self, value: int) -> str:
        return f"rgb{unpack_color(value)}" if self.are_colors else str(value)

    def _list_known(self, ignored: bool) -> str:
        pairs = zip(self.values, self.labels, strict=True)
        values = sorted(v for v, label in pairs if (label == IGNORED) == ignored)
        if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
            return f"{self._format(values[0])} to {self._format(values[-1])}"
        more = f" and {len(values) - 12} more" if len(values) > 12 else ""
        return ", ".join(self._format(v) for v in values[:12]) + more


def pack_color(color: Sequence[int]) -> int:
    """Pack a color into one number."""
    return int(color[0]) + 256 * int(color[1]) + 65536 * int(color[2])


def unpack_color(value: int) -> Color:
    """Invert `pack_color`."""
    return value & 255, value >> 8 & 255, value >> 16 & 255


def pack_colors(rgb: np.ndarray) -> np.ndarray:
    """Pack (H, W, 3) uint8 colors into (H, W) int32 numbers."""
    channels = rgb.astype(np.int32)
    return np.asarray(channels[..., 0] + (channels[..., 1] << 8) + (channels[..., 2] << 16))


@dataclass(frozen=True)
class MaskCode:
    """Code in which the mask pictures of a data set are written.

    Attributes:
        ids: Meaning of palette and gray pictures; None where pictures must hold colors.
        colors: Meaning of RGB pictures; None where pictures must hold ids.
        fix: Advice about unknown values, for the message.
        ids_in: File, and what else must stand in it, where classes can be given other ids, for
            messages; empty where they cannot.
    """

    ids: ValueMap | None
    colors: ValueMap | None
    fix: str = "correct the mask, or name them among the classes or as ignored"
    ids_in: str = ""

    @classmethod
    def from_classes(
        cls,
        classes: MaskClasses,
        *,
        ids: bool = True,
        colors: bool = False,
        ignored_ids: Iterable[int] = (IGNORED,),
        ignored_colors: Iterable[Color] = (),
        **options: str,
    ) -> "MaskCode":
        """Make the code in which classes have their ids, their colors or either.

        Raises:
            DataError: If a value stands for two things, or an id is below 0.
        """
        labels = range(classes.num_classes)
        return cls(
            _make_value_map("id", zip(classes.ids, labels, strict=True), ignored_ids)
            if ids
            else None,
            _make_value_map(
                "color",
                zip(map(pack_color, classes.colors), labels, strict=True),
                map(pack_color, ignored_colors),
            )
            if colors
            else None,
            **options,
        )

    @cached_property
    def rule(self) -> str:
        """Text that changes when values stand for other labels."""
        return repr([(m.values, m.labels) if m else None for m in (self.ids, self.colors)])

    def read(self, path: Path) -> np.ndarray:
        """Read the labels of a picture, (H, W) uint8.

        Raises:
            DataError: If the file is missing, damaged or truncated, is JPEG, holds colors where
                ids are expected or the reverse, or has unknown values.
        """
        with open_image(path) as picture:
            if picture.format == "JPEG":
                raise DataError(f"{path}: JPEG changes the values of a mask; save it as PNG")
            spread = _SPREAD.get(_read_raw_mode(picture), 1)
            picture.load()
            raw, values = self._values(picture, path)
        return values.to_labels(raw // spread if spread > 1 else raw, str(path), self.fix)

    def _values(self, picture: Image.Image, path: Path) -> tuple[np.ndarray, ValueMap]:
        mode = picture.mode
        # A palette stands for colors where those are expected.
        if mode == "P" and self.ids is None:
            picture, mode = picture.convert("RGB"), "RGB"
        if mode in WITHOUT_ALPHA:
            if picture.getchannel("A").getextrema() != (255, 255):
                raise DataError(
                    f"{path}: has transparent pixels (Pillow's mode {mode!r}), which have no clear "
                    "meaning in a mask; save it without its alpha channel"
                )
            mode = WITHOUT_ALPHA[mode]
            picture = picture.convert(mode)
        if mode == "RGB":
            # Three channels of color.
            rgb = np.asarray(picture)
            if self.colors is None:
                gray = (rgb == rgb[..., :1]).all()
                hint = " (its three channels are equal: save one of them)" * bool(gray)
                raise DataError(
                    f"{path}: is an RGB picture, but class ids are expected{hint}; save it with "
                    "one channel or a palette, or give its classes colors in classes.yaml with "
                    "`values: colors`"
                )
            return rgb, self.colors
        # One channel of numbers.
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


def _make_value_map(
    kind: str, pairs: Iterable[tuple[int, int]], ignored: Iterable[int]
) -> ValueMap:
    labels: dict[int, int] = {}
    for value, label in (*pairs, *((value, IGNORED) for value in ignored)):
        text = f"rgb{unpack_color(value)}" if kind == "color" else value
        if value in labels and labels[value] != label:
            raise DataError(
                f"the {kind} {text} stands for two things (two classes, or a class and what is "
                "ignored); each needs its own"
            )
        if value < 0:
            raise DataError(f"the {kind} {text} of a class cannot be in a mask; ids start at 0")
        labels[value] = label
    return ValueMap(tuple(labels), tuple(labels.values()), are_colors=kind == "color")


def _read_raw_mode(picture: Image.Image) -> str:
    """Return Pillow's name of the pixel layout in the file."""
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return arguments if isinstance(arguments, str) else ""
