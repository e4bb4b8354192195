"""Parts of an image, without the rest of it in memory where its format allows that."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densenet_backbones.data.images import MAX_PIXELS, read_image
from densenet_backbones.data.samples import DataError
from densenet_backbones.inference.tiling import Window

_BANDS = {"RGB": 3, "L": 1}
_ORIENTATION = 0x0112  # EXIF 2.3, section 4.6.4, tag "Orientation"


class ImageWindows:
    """An image of which parts are read.

    Uncompressed RGB and grey files are read from the disk window by window: TIFF (in strips or
    tiles, also of more than 4 GB) and PPM. Any other format has to be decoded at once, which
    `read_image` allows up to `MAX_PIXELS`.

    Args:
        image: A file, or (H, W, 3) uint8 RGB pixels.

    Attributes:
        size: (H, W).
        in_parts: Whether the file is read window by window.

    Raises:
        DataError: The file is missing, damaged, or too large for its format.
    """

    def __init__(self, image: str | Path | np.ndarray) -> None:
        self._pieces: list[_Piece] = []
        self._pixels: np.ndarray | None = None
        if isinstance(image, np.ndarray):
            self._pixels = image
        else:
            self._open(Path(image))
        self.in_parts = self._pixels is None
        if self._pixels is not None:
            self.size: tuple[int, int] = self._pixels.shape[:2]

    def _open(self, path: Path) -> None:
        size, self._pieces = _pieces(path)
        if self._pieces:
            self.size = size
            return
        if size[0] * size[1] > MAX_PIXELS:
            raise DataError(
                f"{path}: {size[1]}x{size[0]} pixels are too many to decode at once, and this "
                "format has to be; save it as an uncompressed TIFF, which is read in parts"
            )
        self._pixels = read_image(path)

    def read(self, window: Window) -> np.ndarray:
        """Pixels of a window inside the image, (h, w, 3) uint8 RGB."""
        top, left, bottom, right = window
        if self._pixels is not None:
            return np.ascontiguousarray(self._pixels[top:bottom, left:right])
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        for piece in self._pieces:
            y1, x1 = max(top, piece.window[0]), max(left, piece.window[1])
            y2, x2 = min(bottom, piece.window[2]), min(right, piece.window[3])
            if y1 < y2 and x1 < x2:
                pixels[y1 - top : y2 - top, x1 - left : x2 - left] = piece.read((y1, x1, y2, x2))
        return pixels

    def thinned(self, step: int) -> np.ndarray:
        """Every `step`-th pixel of every `step`-th row, read some rows at a time."""
        height, width = self.size
        rows = step * max(1, 1024 // step)
        parts = [
            self.read((top, 0, min(top + rows, height), width))[::step, ::step]
            for top in range(0, height, rows)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class _Piece:
    """A strip or tile of a file: rows of plain bytes."""

    path: Path
    window: Window
    offset: int
    row_bytes: int
    bands: int

    def read(self, window: Window) -> np.ndarray:
        """A part of the piece, (h, w, bands)."""
        top, left, bottom, right = (
            edge - self.window[number % 2] for number, edge in enumerate(window)
        )
        rows = np.memmap(
            self.path, np.uint8, "r", self.offset + top * self.row_bytes,
            (bottom - top, self.row_bytes),
        )  # fmt: skip
        part = rows[:, left * self.bands : right * self.bands]
        return np.array(part).reshape(bottom - top, right - left, self.bands)


def _pieces(path: Path) -> tuple[tuple[int, int], list[_Piece]]:
    """(H, W) of a file as stored, and its pieces; none where it must be decoded as a whole."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # only the header is read
    try:
        with Image.open(path) as image:
            size = (image.height, image.width)
            bands = _BANDS.get(image.mode, 0)
            plain = bands and image.format in ("TIFF", "PPM")
            if not plain or dict(image.getexif()).get(_ORIENTATION, 1) != 1:
                return size, []
            found = [_piece(path, entry, image.mode, bands) for entry in image.tile]
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image file; check the path") from None
    except Exception as error:  # Pillow's plug-ins raise almost any type on damaged files
        raise DataError(
            f"{path}: cannot be read as an image ({type(error).__name__}: {error}); fetch or "
            "export the file again"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    pieces = [piece for piece in found if piece is not None]
    if len(pieces) < len(found):
        return size, []
    bytes_there = path.stat().st_size
    for piece in pieces:
        top, _, bottom, _ = piece.window
        if piece.offset + (bottom - top) * piece.row_bytes > bytes_there:
            raise DataError(f"{path}: is truncated; fetch or export the file again")
    return size, pieces


def _piece(path: Path, entry: Any, mode: str, bands: int) -> _Piece | None:
    """One of Pillow's tile entries, if it is rows of bytes from the top down."""
    decoder, extents, offset, arguments = entry
    raw_mode, stride, orientation = arguments if isinstance(arguments, tuple) else (arguments, 0, 1)
    if decoder != "raw" or raw_mode != mode or orientation != 1:
        return None
    left, top, right, bottom = extents
    row_bytes = int(stride) or (right - left) * bands
    return _Piece(path, (top, left, bottom, right), int(offset), row_bytes, bands)
