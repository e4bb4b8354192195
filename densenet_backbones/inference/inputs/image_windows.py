"""Read windows of an image, without the rest of it in memory where its format allows that.

The prediction of large images by tiles reads through this file: a TIFF of gigabytes is never in
memory as a whole. Compressed ones are decoded piece by piece, by tifffile; what it needs besides
(imagecodecs, for LZW and JPEG) is asked for only where Pillow cannot read the file at once.
"""

from pathlib import Path

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.inference.inputs.image_pieces import (
    PiecedImage,
    find_compressed_pieces,
    find_plain_pieces,
)
from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.inference.merging.tiling import Window
from densenet_backbones.untrusted.limits import MAX_PIXELS


class ImageWindows:
    """An image of which windows are read.

    RGB and gray files are read from the disk window by window: TIFF (in strips, tiles or planes, of
    8 or 16 bits or float gray, also of more than 4 GB) and PPM, if they are uncompressed; and
    compressed TIFF, but float gray, of more than `MAX_PIXELS`. Any other file has to be decoded at
    once, which `read_image` allows up to `MAX_PIXELS`. The pixels are the same.

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
        self._file: PiecedImage | None = None
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
        size, self._file = find_plain_pieces(path)
        if self._file is None and size[0] * size[1] > MAX_PIXELS:
            self._file = find_compressed_pieces(path)
            if self._file is None:
                raise DataError(
                    f"{path}: {size[1]}x{size[0]} pixels are too many to decode at once, and this "
                    "kind of file has to be; save it as an uncompressed TIFF of RGB or gray, which "
                    "is read in parts"
                )
        if self._file is None:
            self._pixels = read_image(path)
        else:
            self.size = self._file.size

    def read(self, window: Window) -> np.ndarray:
        """Read the pixels of a window inside the image, (h, w, 3) uint8 RGB."""
        top, left, bottom, right = window
        if self._pixels is not None:
            return np.ascontiguousarray(self._pixels[top:bottom, left:right])
        assert self._file is not None
        return self._file.read(window)

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
