"""Strips, tiles and planes of image files, from which windows are read one by one.

How samples become bytes is decided where whole files are read: `data.depths` and `data.images`.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from tifffile import TiffFile, TiffPage

from densenet_backbones.data.depths import PHOTOMETRIC, choose_range, scale_samples
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import convert_picture, open_image
from densenet_backbones.inference.merging.tiling import Window

# TIFF 6.0, tags of a page whose strips or tiles are rows of plain bytes from the top down.
_UNCOMPRESSED, _BY_PIXEL, _BY_PLANE, _UPRIGHT, _ORIENTATION_TAG = 1, 1, 2, 1, 274
_LARGEST_PIECE, _PIECES_KEPT = 2**23, 16  # pixels of a compressed one; together 400 MB
_MOST_BANDS = 4
_MOST_BYTES = 2 * _MOST_BANDS * _LARGEST_PIECE  # of a piece of 16 bits
_DEFLATE, _CODECS = (8, 32946), (1, 5, 7, 8, 32773, 32946)  # none, LZW, JPEG, deflate, PackBits
_ROWS_AT_ONCE = 1 << 20  # pixels, where the whole file is looked through
_PREMULTIPLIED = 1  # TIFF 6.0, tag ExtraSamples: colors that hold their transparency

# Kinds of samples by Pillow's mode: photometric interpretations, types.
_WHITE_IS_0, _BLACK_IS_0, _RGB, _YCBCR = 0, 1, 2, 6  # the last of JPEG, whose decoder makes RGB
_GRAY = (_WHITE_IS_0, _BLACK_IS_0)
_KINDS: dict[str, tuple[tuple[int, ...], tuple[type, ...]]] = {
    "L": (_GRAY, (np.uint8,)),
    "LA": ((_BLACK_IS_0,), (np.uint8,)),
    "I;16": (_GRAY, (np.uint16,)),
    "I;16B": (_GRAY, (np.uint16,)),
    "F": ((_BLACK_IS_0,), (np.float32,)),
    "RGB": ((_RGB, _YCBCR), (np.uint8, np.uint16)),
    "RGBA": ((_RGB,), (np.uint8, np.uint16)),
}


class _Piece(Protocol):
    """A strip or tile of a file, perhaps of one plane.

    Attributes:
        window: Pixels of the image that the piece holds.
        plane: The band that it holds; None for all.
    """

    @property
    def window(self) -> Window: ...

    @property
    def plane(self) -> int | None: ...

    def read(self, window: Window) -> np.ndarray:
        """Read a part of the piece, (h, w, bands); the window is in pixels of the image."""


@dataclass(frozen=True)
class PiecedImage:
    """Image whose file is read window by window.

    Attributes:
        path: The file.
        size: (H, W).
        mode: Pillow's mode of the file.
        dtype: Of its samples.
        samples: Of a pixel.
        pieces: Strips or tiles.
        limits: Values of black and white of gray, where the type alone does not say them.
    """

    path: Path
    size: tuple[int, int]
    mode: str
    dtype: np.dtype[Any]
    samples: int
    pieces: Sequence[_Piece]
    limits: tuple[float, float] | None = None

    def read(self, window: Window) -> np.ndarray:
        """Read the pixels of a window inside the image, (h, w, 3) uint8 RGB.

        Raises:
            DataError: A piece is damaged, or its compression needs imagecodecs.
        """
        pixels = scale_samples(self.read_samples(window), self.limits, self.path)
        bands = Image.getmodebands(self.mode)
        pixels = pixels[..., :bands]  # further ones mean nothing
        if self.mode in ("LA", "RGBA"):
            return convert_picture(Image.fromarray(np.ascontiguousarray(pixels)), str(self.path))
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def read_samples(self, window: Window) -> np.ndarray:
        """Read a window as it is stored, (h, w, samples)."""
        top, left, bottom, right = window
        values = np.empty((bottom - top, right - left, self.samples), self.dtype)
        for piece in self.pieces:
            y1, x1 = max(top, piece.window[0]), max(left, piece.window[1])
            y2, x2 = min(bottom, piece.window[2]), min(right, piece.window[3])
            if y1 < y2 and x1 < x2:
                bands = slice(None) if piece.plane is None else slice(piece.plane, piece.plane + 1)
                part = values[y1 - top : y2 - top, x1 - left : x2 - left, bands]
                part[...] = piece.read((y1, x1, y2, x2))
        return values

    def choose_limits(self, tags: Mapping[int, Any]) -> "PiecedImage":
        """Return the image with its values of black and white; float gray is looked through."""
        white_is_0 = tags.get(PHOTOMETRIC) == _WHITE_IS_0
        if self.dtype != np.float32:
            white = np.iinfo(self.dtype).max
            return replace(self, limits=(white, 0)) if white_is_0 else self
        height, width = self.size
        rows = max(1, _ROWS_AT_ONCE // width)
        parts = [
            self.read_samples((top, 0, min(top + rows, height), width))
            for top in range(0, height, rows)
        ]
        extremes = np.array([(part.min(), part.max()) for part in parts])
        lowest, highest = float(extremes[:, 0].min()), float(extremes[:, 1].max())
        return replace(self, limits=choose_range(tags, lowest, highest, self.path))


@dataclass(frozen=True)
class _PlainPiece:
    """A strip or tile of rows of plain samples.

    Attributes:
        path: The file.
        window: Pixels of the image that the piece holds.
        offset: Bytes of the file before the piece.
        row_bytes: Bytes of a row, padding included.
        bands: Samples of a pixel.
        dtype: Of a sample, with the order of its bytes.
        plane: The band that it holds; None for all.
    """

    path: Path
    window: Window
    offset: int
    row_bytes: int
    bands: int
    dtype: np.dtype[Any]
    plane: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the file that it takes."""
        return (self.window[2] - self.window[0]) * self.row_bytes

    def read(self, window: Window) -> np.ndarray:
        """Read a part of the piece, (h, w, bands); the window is in pixels of the image."""
        top, left, bottom, right = (
            edge - self.window[number % 2] for number, edge in enumerate(window)
        )
        rows = np.memmap(
            self.path, np.uint8, "r", self.offset + top * self.row_bytes,
            (bottom - top, self.row_bytes),
        )  # fmt: skip
        pixel = self.bands * self.dtype.itemsize
        part = np.ascontiguousarray(rows[:, left * pixel : right * pixel])
        return part.view(self.dtype).reshape(bottom - top, right - left, self.bands)


@dataclass(frozen=True)
class _CompressedPiece:
    """A strip or tile that tifffile decodes; some that were decoded last are kept.

    Attributes:
        path: The file.
        window: Pixels of the image that the piece holds.
        number: Its place among the pieces.
        page: The file's first page.
        plane: The band that it holds; None for all.
    """

    path: Path
    window: Window
    number: int
    page: TiffPage = field(repr=False)
    plane: int | None = None

    def read(self, window: Window) -> np.ndarray:
        """Read a part of the piece, (h, w, bands); the window is in the image's pixels."""
        top, left, bottom, right = (
            edge - self.window[number % 2] for number, edge in enumerate(window)
        )
        part: np.ndarray = self.decode()[top:bottom, left:right]
        return part

    @lru_cache(maxsize=_PIECES_KEPT)  # noqa: B019 - of all images together
    def decode(self) -> np.ndarray:
        """Decode the piece, (h, w, bands).

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
            return np.zeros((height, width, 1), self.page.dtype)
        values: np.ndarray = pixels[0]
        return values


def find_plain_pieces(path: Path) -> tuple[tuple[int, int], PiecedImage | None]:
    """Return (H, W) of a file as stored, and its pieces of plain samples if it has such.

    Raises:
        DataError: The file is missing, damaged or no image.
    """
    with open_image(path, of_any_size=True) as image:
        size = (image.height, image.width)
        found = _find_ppm_pieces(path, image) if image.format == "PPM" else None
        if image.format == "TIFF":
            with TiffFile(path) as file:
                found = _find_tiff_pieces(path, image, file.pages.first)
        tags = dict(getattr(image, "tag_v2", {}))
    if found is None:
        return size, None
    file_bytes = path.stat().st_size
    plain = [piece for piece in found.pieces if isinstance(piece, _PlainPiece)]
    if any(piece.offset + piece.bytes > file_bytes for piece in plain):
        raise DataError(f"{path}: is truncated; fetch or export the file again")
    # Pieces that overlap in the file could promise any size; others are bounded by the file's.
    if sum(piece.bytes for piece in plain) > file_bytes:
        return size, None
    return size, found.choose_limits(tags)


def find_compressed_pieces(path: Path) -> PiecedImage | None:
    """Return a compressed TIFF by its strips or tiles; None if they cannot be read one by one.

    Raises:
        DataError: The file is missing, damaged or no image.
    """
    with open_image(path, of_any_size=True) as image:
        if not isinstance(image, TiffImageFile):
            return None
        with TiffFile(path) as file:
            page = file.pages.first
        windows = _list_windows(page)
        fits = windows and (windows[0][2] * windows[0][3]) <= _LARGEST_PIECE
        # Float gray would have to be unpacked as a whole to find its range.
        is_read = page.compression in _CODECS and image.mode != "F"
        if not (fits and is_read and _is_known(page, image)):
            return None
        pieces = [
            _CompressedPiece(path, window, number, page, _find_plane(page, number, len(windows)))
            for number, window in enumerate(windows)
        ]
        return _make_image(path, image, page, pieces).choose_limits(dict(image.tag_v2))


def _find_tiff_pieces(path: Path, image: ImageFile.ImageFile, page: TiffPage) -> PiecedImage | None:
    """Return the strips or tiles of a page; None if they are not rows of plain samples."""
    windows = _list_windows(page)
    is_plain = (page.compression, page.fillorder) == (_UNCOMPRESSED, 1)
    is_whole = windows and all(page.dataoffsets)  # an offset of 0 is a piece left out
    if not (_is_known(page, image) and is_plain and is_whole):
        return None
    bands = 1 if page.planarconfig == _BY_PLANE else page.samplesperpixel
    dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    columns = page.tilewidth if page.is_tiled else page.imagewidth
    row_bytes = columns * bands * dtype.itemsize
    planes = [_find_plane(page, number, len(windows)) for number in range(len(windows))]
    pieces = [
        _PlainPiece(path, window, offset, row_bytes, bands, dtype, plane)
        for window, offset, plane in zip(windows, page.dataoffsets, planes, strict=True)
    ]
    return _make_image(path, image, page, pieces)


def _make_image(
    path: Path, image: ImageFile.ImageFile, page: TiffPage, pieces: Sequence[_Piece]
) -> PiecedImage:
    size = (page.imagelength, page.imagewidth)
    return PiecedImage(path, size, image.mode, np.dtype(page.dtype), page.samplesperpixel, pieces)


def _is_known(page: TiffPage, image: ImageFile.ImageFile) -> bool:
    """Return True if samples of a page become bytes as they do where it is read whole."""
    if page.dtype is None or image.mode not in _KINDS:
        return False
    photometrics, types = _KINDS[image.mode]
    return (
        PHOTOMETRIC in page.tags  # without it, Pillow inverts gray of 8 bits alone
        and page.photometric in photometrics
        and page.dtype in types
        and page.bitspersample == 8 * np.dtype(page.dtype).itemsize
        and page.tags.valueof(_ORIENTATION_TAG, _UPRIGHT) == _UPRIGHT
        and page.planarconfig in (_BY_PIXEL, _BY_PLANE)
        and Image.getmodebands(image.mode) <= page.samplesperpixel <= _MOST_BANDS
        and _PREMULTIPLIED not in tuple(page.extrasamples or ())
    )


def _list_windows(page: TiffPage) -> list[Window]:
    """Return the window of each strip or tile, row by row, and plane by plane.

    Those at the right and the bottom may reach over the edge in the file. There are none where the
    file does not say the place of each.
    """
    height, width = page.imagelength, page.imagewidth
    rows, columns = (
        (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    )
    planes = page.samplesperpixel if page.planarconfig == _BY_PLANE else 1
    # A damaged file may promise any number.
    if planes * -(-height // rows) * -(-width // columns) != len(page.dataoffsets):
        return []
    windows = [
        (top, left, min(top + rows, height), min(left + columns, width))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    return windows * planes


def _find_plane(page: TiffPage, number: int, count: int) -> int | None:
    if page.planarconfig != _BY_PLANE or page.samplesperpixel == 1:
        return None
    return number // (count // page.samplesperpixel)


def _find_ppm_pieces(path: Path, image: ImageFile.ImageFile) -> PiecedImage | None:
    """Return the pixels of a binary PPM or PGM file as one piece; None if it is of another kind.

    The place of the pixels is in `ImageFile.tile`, which Pillow documents for its file formats;
    tifffile does not read these files.
    """
    bands = {"RGB": 3, "L": 1}.get(image.mode)
    ((decoder, _, offset, arguments),) = image.tile
    raw_mode = arguments[0] if isinstance(arguments, tuple) else arguments
    if bands is None or decoder != "raw" or raw_mode != image.mode:
        return None
    window, dtype = (0, 0, image.height, image.width), np.dtype(np.uint8)
    piece = _PlainPiece(path, window, int(offset), image.width * bands, bands, dtype)
    return PiecedImage(path, window[2:], image.mode, dtype, bands, [piece])
