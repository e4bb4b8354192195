"""Pixels of more than 8 bits: which values are black and white, and planes that lie apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from densenet_backbones.data.faults import DataError

_DEPTHS, PHOTOMETRIC, _PLANES = 258, 262, 284  # TIFF 6.0, section 8: tags of baseline files
_LOWEST, _HIGHEST = 340, 341  # TIFF 6.0, section 19: SMinSampleValue, SMaxSampleValue


def mend_samples(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Have samples of a TIFF file read by their own depth and order of bytes.

    Pillow (to 12 at least) reads red, green and blue of 16 bits that lie apart as if of 8, and
    compressed float samples, which its library gives in the machine's order, in the file's.
    """
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else None
    if tags is None:
        return image
    is_deep_and_apart = tags.get(_PLANES) == 2 and max(tags.get(_DEPTHS, (8,))) == 16
    order = "L" if tags.prefix == b"II" else "B"
    for n, (codec, place, offset, options) in enumerate(image.tile):
        if not isinstance(options, tuple):
            continue
        kind = options[0]
        if is_deep_and_apart and codec == "raw" and kind in ("R", "G", "B"):
            kind = f"{kind};16{order}"
        elif codec == "libtiff" and kind == "F;32BF":
            kind = "F;32NF"
        else:
            continue
        image.tile[n] = type(image.tile[n])(codec, place, offset, (kind, *options[1:]))
    return image


def find_limits(image: Image.Image, path: str | Path) -> tuple[float, float] | None:
    """Return the values of black and white of gray whose type alone does not say them."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") and tags.get(PHOTOMETRIC) == 0:  # white is zero
        return 65535, 0
    if image.mode != "F":
        return None
    values = np.asarray(image)
    return choose_range(tags, float(values.min()), float(values.max()), path)


def choose_range(
    tags: Mapping[int, Any], lowest: float, highest: float, path: str | Path
) -> tuple[float, float]:
    """Return the values of black and white of float gray.

    Args:
        tags: The file's, by number.
        lowest: Smallest value of the whole image; NaN if there is one.
        highest: Largest value.
        path: The file, for messages.

    Raises:
        DataError: The values are in neither the range of its tags nor in 0 to 1.
    """
    # A tag holds one value, or one of each band.
    said = [np.ravel(tags[tag])[0] for tag in (_LOWEST, _HIGHEST) if tag in tags]
    for low, high in ([map(float, said)] if len(said) == 2 else []) + [(0.0, 1.0)]:
        if low <= lowest <= highest <= high and np.isfinite(high - low) and low < high:
            return low, high
    raise DataError(
        f"{path}: 32-bit float pixels from {lowest:g} to {highest:g} have no known range; scale "
        "them to 0 to 1, or save it as 8- or 16-bit"
    )


def scale_samples(
    values: np.ndarray, limits: tuple[float, float] | None, path: str | Path
) -> np.ndarray:
    """Scale samples as a file stores them to bytes, as reading it whole does.

    Args:
        values: (H, W, bands) of 8 or 16 bits; or float gray.
        limits: Values of black and white where the type alone does not say them, for gray.
        path: The file, for messages.
    """
    if limits is not None:
        return gray_from_range(values, *limits)
    if values.dtype == np.uint16 and values.shape[2] == 1:
        return gray_from_integers(values, path)
    # Of colors of 16 bits, Pillow takes the upper byte.
    return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values


def gray_from_range(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Scale gray of any shape to uint8."""
    scale = 255 / (white - black)
    gray: np.ndarray = ((values.astype(np.float32) - black) * scale + 0.5).astype(np.uint8)
    return gray


def gray_from_integers(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Scale gray of 16 bits, in whatever integer type and shape, to uint8."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise DataError(
            f"{path}: pixels from {lowest} to {highest} are outside 16 bits (0 to 65535); "
            "save it as 8- or 16-bit"
        )
    gray: np.ndarray = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return gray
