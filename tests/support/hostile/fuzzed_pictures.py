"""Readers of pictures and clips as functions of bytes, for `READERS` of `fuzzed_readers.py`."""

import base64
import io
import tempfile
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import (
    list_formats,
    read_image,
    read_image_size,
    read_reduced_image,
)
from densenet_backbones.inference.inputs.clips import VideoWriter, open_clip
from densenet_backbones.inference.inputs.image_pieces import (
    find_compressed_pieces,
    find_plain_pieces,
)

MOST_PIXELS = 1 << 22  # of a picture that is read twice, so that the fuzzer is quick

# A picture of 64x48, red on its left and blue on its right, as libheif 1.20 encodes it.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAA"
    "AAAAACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAFkAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAA"
    "AA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNw"
    "AAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFz"
    "wIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAA"
    "Av////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAGFtZGF0AAAAVSgBrxOA9SeBP//a"
    "BR//AJnh96AcxP/6ZYo/oGsf/lV3eJJThIfYd1F2mDtRZnEjFZSgLviVp1xidlTa9EHpw3soMuuktaEGi90zCCRzVDbQBfsC"
    "TWA="
)


def read_picture(data: bytes, folder: Path) -> None:
    """Read a picture's size, a smaller form and the whole: all of them, or none."""
    path = folder / "a.jpg"
    path.write_bytes(data)
    width, height = read_image_size(path)
    small, step = read_reduced_image(path, (8, 8), in_any_format=True)
    assert small.shape[0] * step >= height and small.shape[1] * step >= width
    if width * height <= MOST_PIXELS:
        pixels = read_image(path, (width, height))
        assert (pixels.shape, pixels.dtype) == ((height, width, 3), np.uint8)


def picture_seeds() -> list[bytes]:
    """Pictures of each format and of several modes."""
    values = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(12, 16, 3)
    color = Image.fromarray(values)
    modes = {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGBA", "P", "LA", "1", "I;16"),
        "BMP": ("RGB", "P"),
        "GIF": ("P",),
        "TIFF": ("RGB", "F", "CMYK"),
        "WEBP": ("RGBA",),
        "PPM": ("RGB", "L"),
        "AVIF": ("RGB",),
    }
    seeds = [HEIC] if "HEIF" in list_formats() else []
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind, names in modes.items():
        for mode in names:
            gray = mode in ("I;16", "F")
            own = Image.fromarray(values[..., 0]).convert(mode) if gray else color.convert(mode)
            own = own.point(lambda value: value / 255) if mode == "F" else own
            options = {"exif": turned} if mode in ("RGB", "RGBA") and kind not in _NO_EXIF else {}
            own.save(buffer := io.BytesIO(), kind, **options)
            seeds.append(buffer.getvalue())
    return seeds


_NO_EXIF = ("BMP", "PPM")


def read_windows(data: bytes, folder: Path) -> None:
    """Read a picture window by window: it has the pixels of the whole."""
    path = folder / "a.tif"
    path.write_bytes(data)
    (height, width), plain = find_plain_pieces(path)
    for pieces in filter(None, (plain, find_compressed_pieces(path))):
        assert pieces.size == (height, width)
        top, left = max(0, height - 8), max(0, width - 8)
        corner = pieces.read((top, left, height, width))
        if height * width <= MOST_PIXELS:
            try:
                whole = read_image(path)
            except DataError:  # one of them reads more than the other of a damaged file
                continue
            assert whole.shape == (height, width, 3)
            np.testing.assert_array_equal(corner, whole[top:, left:])


def window_seeds() -> list[bytes]:
    """TIFF files in strips, tiles and planes, plain and packed; and binary PPM."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (32, 48, 3), np.uint8)
    gray, deep = color[..., 0], rng.integers(0, 65536, (32, 48), np.uint16)
    kinds = (
        (color, {"rowsperstrip": 5}),
        (color, {"tile": (16, 16)}),
        (color.transpose(2, 0, 1), {"planarconfig": "separate", "photometric": "rgb"}),
        (color, {"tile": (16, 16), "compression": "zlib"}),
        (gray, {"byteorder": ">", "photometric": "miniswhite"}),
        (deep, {"byteorder": ">"}),
        (deep, {"compression": "zlib", "rowsperstrip": 7}),
        (gray.astype(np.float32) / 255, {}),
        (gray, {"bigtiff": True}),
    )
    seeds = []
    for values, options in kinds:
        tifffile.imwrite(buffer := io.BytesIO(), values, metadata=None, **options)
        seeds.append(buffer.getvalue())
    for picture in (color, gray):
        Image.fromarray(picture).save(buffer := io.BytesIO(), "PPM")
        seeds.append(buffer.getvalue())
    return seeds


def read_clip(data: bytes, folder: Path) -> None:
    """Read the first frames of a video or an animation."""
    path = folder / "a.mp4"
    path.write_bytes(data)
    with open_clip(str(path)) as clip:
        assert clip.rate >= 0
        for frame in islice(clip.frames, 5):
            assert frame.ndim == 3 and frame.dtype == np.uint8


def clip_seeds() -> list[bytes]:
    """An animation in each format, and a video where PyAV is there to write one."""
    frames = [Image.new("RGB", (16, 12), (90 * n, 40, 0)) for n in range(3)]
    seeds = []
    for kind in ("GIF", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=40)
        seeds.append(buffer.getvalue())
    with suppress(DataError), tempfile.TemporaryDirectory() as folder:
        writer = VideoWriter(Path(folder, "a.mp4"), Fraction(5))
        for frame in frames:
            writer.add(np.asarray(frame))
        writer.close()
        seeds.append(Path(folder, "a.mp4").read_bytes())
    return seeds
