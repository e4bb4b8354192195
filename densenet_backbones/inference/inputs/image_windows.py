"""Read windows of an image, without the rest of it in memory where its format allows that.

The prediction of large images by tiles reads through this file: a TIFF of gigabytes is never in
memory as a whole. Compressed ones are decoded piece by piece, by tifffile; what it needs besides
(imagecodecs, for LZW and JPEG) is asked for only where Pillow cannot read the file at once.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ImageFile
from tifffile import TiffFile, TiffPage

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import open_image, read_image
from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.inference.merging.tiling import Window
from densenet_backbones.untrusted.limits import MAX_PIXELS

# TIFF 6.0, tags of a page whose strips or tiles are rows of plain 8-bit bytes from the top down.
_UNCOMPRESSED, _BY_PIXEL, _UPRIGHT, _ORIENTATION_TAG = 1, 1, 1, 274
_LARGEST_PIECE, _PIECES_KEPT = 2**23, 16  # pixels of a compressed one; together 400 MB
_MOST_BANDS = 4
_MOST_BYTES = 2 * _MOST_BANDS * _LARGEST_PIECE  # of a piece of 16 bits
_DEFLATE, _CODECS = (8, 32946), (5, 7, 8, 32773, 32946)  # LZW, JPEG, deflate, PackBits
_YCBCR = 6  # of JPEG, whose decoder makes RGB of it
_BANDS = {1: 1, 2: 3}  # photometric interpretation (dark is 0; RGB) -> samples a pixel


class ImageWindows:
    """An image of which windows are read.

    RGB and gray files are read from the disk window by window: TIFF (in strips or tiles, also of
    more than 4 GB) and PPM, if they are uncompressed; compressed TIFF of more than `MAX_PIXELS`.
    Any other file has to be decoded at once, which `read_image` allows up to `MAX_PIXELS`.

    Args:
        image: A file, or (H, W, 3) uint8 RGB pixels.
        content: Bytes of the file where they are at hand.
        name: Name of the image; None for the file's.

    Attributes:
        size: (H, W).
        name: The file, or the name given; empty for pixels.
        in_parts: True if the file is read window by window.

    Raises:
        DataError: The file is missing, damaged, or too large for its format.
    """

    def __init__(
        self, image: str | Path | np.ndarray, content: bytes | None = None, name: str | None = None
    ) -> None:
        self._pieces: Sequence[_Piece] = []
        self._pixels: np.ndarray | None = None
        self.name = name or ("" if isinstance(image, np.ndarray) else str(image))
        self.content = content
        if isinstance(image, np.ndarray):
            self._pixels = image
        elif content is not None:
            self._pixels = read_image(image, content=content)
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
            self.size, self._pieces = size, _find_compressed_pieces(path)
            if self._pieces:
                return
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
                # Gray pieces have one band, which fills all three; further ones are left out.
                part = piece.read((y1, x1, y2, x2))[..., :3]
                pixels[y1 - top : y2 - top, x1 - left : x2 - left] = part
        return pixels

    def shrink(self, largest: int) -> ReadImage:
        """Return the image for pictures: its longer side has at most `largest` pixels."""
        step = 1
        while max(self.size) > largest * step:
            step *= 2
        return ReadImage(self.subsample(step), self.size, step, self.name, self.content)

    def subsample(self, step: int) -> np.ndarray:
        """Read every `step`-th pixel of every `step`-th row, some rows at a time."""
        height, width = self.size
        rows = step * max(1, 1024 // step)
        parts = [
            self.read((top, 0, min(top + rows, height), width))[::step, ::step]
            for top in range(0, height, rows)
        ]
        return np.concatenate(parts)


class _Piece(Protocol):
    """A strip or tile of a file.

    Attributes:
        window: Pixels of the image that the piece holds.
    """

    @property
    def window(self) -> Window: ...

    def read(self, window: Window) -> np.ndarray:
        """Read a part of the piece, (h, w, bands); the window is in pixels of the image."""


@dataclass(frozen=True)
class _PlainPiece:
    """A strip or tile of rows of plain bytes.

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


@dataclass(frozen=True)
class _CompressedPiece:
    """A strip or tile that tifffile decodes; some that were decoded last are kept.

    Attributes:
        path: The file.
        window: Pixels of the image that the piece holds.
        number: Its place among the pieces.
        page: The file's first page.
    """

    path: Path
    window: Window
    number: int
    page: TiffPage = field(repr=False)

    def read(self, window: Window) -> np.ndarray:
        """Read a part of the piece, (h, w, bands), 8 bits; the window is in the image's pixels."""
        top, left, bottom, right = (
            edge - self.window[number % 2] for number, edge in enumerate(window)
        )
        part: np.ndarray = self.decode()[top:bottom, left:right]
        return part

    @lru_cache(maxsize=_PIECES_KEPT)  # noqa: B019 - of all images together
    def decode(self) -> np.ndarray:
        """Decode the piece, (h, w, bands) uint8.

        Raises:
            DataError: It is damaged, or its compression needs imagecodecs.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.page.dataoffsets[self.number])
                content = file.read(min(self.page.databytecounts[self.number], _MOST_BYTES))
            if self.page.compression in _DEFLATE:  # tifffile would unpack a thousandfold
                unpacked = zlib.decompressobj().decompress(content, _MOST_BYTES)
                if len(unpacked) == _MOST_BYTES:
                    raise ValueError("it unpacks to more than a piece can hold")
            pixels, _, _ = self.page.decode(content, self.number)
        except Exception as error:  # of any codec
            needs = "imagecodecs" in str(error)
            fix = "pip install imagecodecs" if needs else "fetch or export the file again"
            raise DataError(
                f"{self.path}: piece {self.number} cannot be decoded "
                f"({' '.join(str(error).split())[:150]}); {fix}"
            ) from error
        if pixels is None:  # left out: the background
            height, width = (self.window[k + 2] - self.window[k] for k in (0, 1))
            return np.zeros((height, width, 1), np.uint8)
        values: np.ndarray = pixels[0]
        return values if values.dtype == np.uint8 else (values // 257).astype(np.uint8)


def _find_pieces(path: Path) -> tuple[tuple[int, int], list[_PlainPiece]]:
    """Return (H, W) of a file as stored, and its pieces; none if it must be decoded as a whole."""
    with open_image(path, of_any_size=True) as image:
        size = (image.height, image.width)
        pieces = _ppm_pieces(path, image) if image.format == "PPM" else []
        if image.format == "TIFF":
            with TiffFile(path) as file:
                pieces = _tiff_pieces(path, file.pages.first)
    file_bytes = path.stat().st_size
    lengths = [(p.window[2] - p.window[0]) * p.row_bytes for p in pieces]
    if any(p.offset + n > file_bytes for p, n in zip(pieces, lengths, strict=True)):
        raise DataError(f"{path}: is truncated; fetch or export the file again")
    # Pieces that overlap in the file could promise any size; others are bounded by the file's.
    return size, pieces if sum(lengths) <= file_bytes else []


def _tiff_pieces(path: Path, page: TiffPage) -> list[_PlainPiece]:
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
        pieces.append(_PlainPiece(path, window, offset, columns * bands, bands))
    # An offset of 0 is a piece left out.
    count = -(-height // rows) * -(-width // columns)
    return pieces if all(page.dataoffsets) and len(pieces) == count else []


def _find_compressed_pieces(path: Path) -> Sequence[_CompressedPiece]:
    """Return the strips or tiles of a compressed TIFF; none if they cannot be read one by one."""
    with open_image(path, of_any_size=True) as image:
        if image.format != "TIFF":
            return []
    with TiffFile(path) as file:
        page = file.pages.first
    height, width = page.imagelength, page.imagewidth
    rows, columns = (
        (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    )
    upright = page.tags.valueof(_ORIENTATION_TAG, _UPRIGHT) == _UPRIGHT
    known = page.photometric in (*_BANDS, _YCBCR) and page.dtype in (np.uint8, np.uint16)
    count = -(-height // rows) * -(-width // columns)
    fits = rows * columns <= _LARGEST_PIECE and len(page.dataoffsets) == count
    known &= page.compression in _CODECS and page.samplesperpixel <= _MOST_BANDS
    if not (upright and known and fits and page.planarconfig == _BY_PIXEL):
        return []
    pieces = []
    for number in range(count):
        y, x = divmod(number, -(-width // columns))
        top, left = y * rows, x * columns
        window = (top, left, min(top + rows, height), min(left + columns, width))
        pieces.append(_CompressedPiece(path, window, number, page))
    return pieces


def _ppm_pieces(path: Path, image: ImageFile.ImageFile) -> list[_PlainPiece]:
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
    return [_PlainPiece(path, window, int(offset), image.width * bands, bands)]
