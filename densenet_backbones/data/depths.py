"""Pixels of more than 8 bits: which values are black and white, and planes that lie apart."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from densenet_backbones.data.faults import DataError

_DEPTHS, _PHOTOMETRIC, _PLANES = 258, 262, 284  # TIFF 6.0, section 8: tags of baseline files
_LOWEST, _HIGHEST = 340, 341  # TIFF 6.0, section 19: SMinSampleValue, SMaxSampleValue


def mend_planes(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Have the planes of an uncompressed TIFF read by their own depth.

    Pillow (to 12 at least) reads red, green and blue of 16 bits that lie apart as if of 8.
    """
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else None
    if tags is not None and tags.get(_PLANES) == 2 and max(tags.get(_DEPTHS, (8,))) == 16:
        order = "L" if tags.prefix == b"II" else "B"
        for n, (codec, place, offset, options) in enumerate(image.tile):
            if codec == "raw" and isinstance(options, tuple) and options[0] in ("R", "G", "B"):
                options = (f"{options[0]};16{order}", *options[1:])
                image.tile[n] = type(image.tile[n])(codec, place, offset, options)
    return image


def find_limits(image: Image.Image, path: str | Path) -> tuple[float, float] | None:
    """Return the values of black and white of gray whose type alone does not say them."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0:  # white is zero
        return 65535, 0
    if image.mode != "F":
        return None
    values = np.asarray(image)
    lowest, highest = float(values.min()), float(values.max())  # NaN if there is any
    # A tag holds one value, or one of each band.
    said = [np.ravel(tags[tag])[0] for tag in (_LOWEST, _HIGHEST) if tag in tags]
    for low, high in ([map(float, said)] if len(said) == 2 else []) + [(0.0, 1.0)]:
        if low <= lowest <= highest <= high and np.isfinite(high - low) and low < high:
            return low, high
    raise DataError(
        f"{path}: 32-bit float pixels from {lowest:g} to {highest:g} have no known range; scale "
        "them to 0 to 1, or save it as 8- or 16-bit"
    )


def gray_from_range(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Scale (H, W) gray to (H, W) uint8."""
    scale = 255 / (white - black)
    gray: np.ndarray = ((values.astype(np.float32) - black) * scale + 0.5).astype(np.uint8)
    return gray


def gray_from_integers(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Scale (H, W) gray of 16 bits, in whatever integer type, to (H, W) uint8."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise DataError(
            f"{path}: pixels from {lowest} to {highest} are outside 16 bits (0 to 65535); "
            "save it as 8- or 16-bit"
        )
    gray: np.ndarray = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return gray
