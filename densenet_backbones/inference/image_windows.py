"""Read windows of an image, without the rest of it in memory where its format allows that.

The prediction of large images by tiles reads through this file: an uncompressed TIFF of gigabytes
is never in memory as a whole.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from tifffile import TiffFile, TiffPage

from densenet_backbones.data.images import read_image
from densenet_backbones.data.samples import DataError
from densenet_backbones.inference.tiling import Window
from densenet_backbones.untrusted.limits import MAX_PIXELS

# TIFF 6.0, tags of a page whose strips or tiles are rows of plain 8-bit bytes from the top down.
_UNCOMPRESSED, _BY_PIXEL, _UPRIGHT, _ORIENTATION_TAG = 1, 1, 1, 274
_BANDS = {1: 1, 2: 3}  # photometric interpretation (dark is 0; RGB) -> samples a pixel


class ImageWindows:
    """An image of which windows are read.

    Uncompressed RGB and gray files are read from the disk window by window: TIFF (in strips or
    tiles, also of more than 4 GB) and PPM. Any other file has to be decoded at once, which
    `read_image` allows up to `MAX_PIXELS`.

    Args:
        image: A file, or (H, W, 3) uint8 RGB pixels.

    Attributes:
        size: (H, W).
        in_parts: True if the file is read window by window.

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
        size, self._pieces = _find_pieces(path)
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
        """Read the pixels of a window inside the image, (h, w, 3) uint8 RGB."""
        top, left, bottom, right = window
        if self._pixels is not None:
            return np.ascontiguousarray(self._pixels[top:bottom, left:right])
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        for piece in self._pieces:
            y1, x1 = max(top, piece.window[0]), max(left, piece.window[1])
            y2, x2 = min(bottom, piece.window[2]), min(right, piece.window[3])
            if y1 < y2 and x1 < x2:
                # Gray pieces have one band, which fills all three.
                pixels[y1 - top : y2 - top, x1 - left : x2 - left] = piece.read((y1, x1, y2, x2))
        return pixels

    def subsample(self, step: int) -> np.ndarray:
        """Read every `step`-th pixel of every `step`-th row, some rows at a time."""
        height, width = self.size
        rows = step * max(1, 1024 // step)
        parts = [
            self.read((top, 0, min(top + rows, height), width))[::step, ::step]
            for top in range(0, height, rows)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class _Piece:
    """A strip or tile of a file: rows of plain bytes.

    Attributes:
        path: The file.
        window: Pixels of the image that the piece holds.
        offset: Bytes of the file before the piece.
        row_bytes: Bytes of a row, padding included.
        bands: Bytes of a pixel, 1 or 3.
    """

    path: Path
    window: Window
    offset: int
    row_bytes: int
    bands: int

    def read(self, window: Window) -> np.ndarray:
        """Read a part of the piece, (h, w, bands); the window is in pixels of the image."""
        top, left, bottom, right = (
            edge - self.window[number % 2] for number, edge in enumerate(window)
        )
        rows = np.memmap(
            self.path, np.uint8, "r", self.offset + top * self.row_bytes,
            (bottom - top, self.row_bytes),
        )  # fmt: skip
        part = rows[:, left * self.bands : right * self.bands]
        return np.array(part).reshape(bottom - top, right - left, self.bands)


def _find_pieces(path: Path) -> tuple[tuple[int, int], list[_Piece]]:
    """Return (H, W) of a file as stored, and its pieces; none if it must be decoded as a whole."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # only the header is read
    try:
        with Image.open(path) as image:
            size = (image.height, image.width)
            form = image.format
            pieces = _ppm_pieces(path, image) if form == "PPM" else []
        if form == "TIFF":
            with TiffFile(path) as file:
                pieces = _tiff_pieces(path, file.pages.first)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image file; check the path") from None
    except Exception as error:  # Pillow's plug-ins raise almost any type on damaged files
        raise DataError(
            f"{path}: cannot be read as an image ({type(error).__name__}: {error}); fetch or "
            "export the file again"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    file_bytes = path.stat().st_size
    for piece in pieces:
        top, _, bottom, _ = piece.window
        if piece.offset + (bottom - top) * piece.row_bytes > file_bytes:
            raise DataError(f"{path}: is truncated; fetch or export the file again")
    return size, pieces


def _tiff_pieces(path: Path, page: TiffPage) -> list[_Piece]:
    """Return the strips or tiles of a page; none if they are not rows of plain bytes."""
    bands = _BANDS.get(page.photometric)
    orientation = page.tags.valueof(_ORIENTATION_TAG, _UPRIGHT)
    plain = (page.compression, page.planarconfig, page.fillorder, orientation) == (
        *(_UNCOMPRESSED, _BY_PIXEL, 1, _UPRIGHT),
    )
    if not plain or page.dtype != np.uint8 or page.samplesperpixel != bands:
        return []
    height, width = page.imagelength, page.imagewidth
    rows, columns = (
        (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    )
    pieces = []
    # Pieces are stored row by row; those at the right and the bottom may reach over the edge.
    for number, offset in enumerate(page.dataoffsets):
        y, x = divmod(number, -(-width // columns))
        top, left = y * rows, x * columns
        window = (top, left, min(top + rows, height), min(left + columns, width))
        pieces.append(_Piece(path, window, offset, columns * bands, bands))
    return pieces if all(page.dataoffsets) else []  # an offset of 0 is a piece left out


def _ppm_pieces(path: Path, image: ImageFile.ImageFile) -> list[_Piece]:
    """Return the pixels of a binary PPM or PGM file as one piece; none if it is of another kind.

    The place of the pixels is in `ImageFile.tile`, which Pillow documents for its file formats;
    tifffile does not read these files.
    """
    bands = {"RGB": 3, "L": 1}.get(image.mode)
    ((decoder, _, offset, arguments),) = image.tile
    raw_mode = arguments[0] if isinstance(arguments, tuple) else arguments
    if bands is None or decoder != "raw" or raw_mode != image.mode:
        return []
    window = (0, 0, image.height, image.width)
    return [_Piece(path, window, int(offset), image.width * bands, bands)]
