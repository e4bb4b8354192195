"""Reads image files as upright 8-bit RGB arrays, by one decoder for every format.

"As shown" means that the orientation which a camera wrote into the file (EXIF) has been applied.
Everything else in the data room (sizes, boxes) lives in that frame.

Pillow alone decodes: OpenCV's JPEG decoder gives the same pixels 15 % faster (500x375 photographs),
but returns a truncated file as a half gray image without an error, and knows other color rules.

Files are untrusted. All that one may cost is bounded here: it is a regular file (a pipe would be
waited for) in one of `FORMATS`, and has at most `MAX_PIXELS`, of which no more than 8 bytes each
are in memory at a time: 4 of Pillow's, and 3 of the array or 4 of a turned copy. Tags (EXIF, TIFF)
are read by Pillow up to the size of the file, text and color profiles up to its own limits, and of
an animation the first picture alone. Of a damaged TIFF, libtiff writes a line of its own to stderr;
Pillow has no switch for it, and an error names the file as for all others.
"""

import io
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from densenet_backbones.data.depths import (
    find_limits,
    gray_from_integers,
    gray_from_range,
    mend_samples,
)
from densenet_backbones.data.faults import DataError
from densenet_backbones.untrusted.limits import MAX_PIXELS

# Formats of photographs and masks, by Pillow's names. It would try 30 more on any file, whatever
# its name: one of them (EPS) starts another program, and others call decoders of rare use.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF")
PIXELS_AT_ONCE = 1 << 20  # that are converted to RGB: what else that takes is small
_OPENING = threading.Lock()  # Pillow's limit on pixels is one for all threads
STAND_IN = (4093, 4091)
"""Size of a file that cannot be read: two primes, so that hardly an image has it."""
_unreadable: dict[str, DataError] | None = None  # see `collect_unreadable`
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO 23008-12, brands
_BACKGROUND = (255, 255, 255, 255)  # transparent pixels are shown on white, as on a page
_ORIENTATION = 0x0112  # EXIF 2.3, section 4.6.4, tag "Orientation"
_TURN = {  # EXIF orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageSizeError(DataError):
    """An image has another size than its annotations say."""


def read_image(
    path: str | Path, promised: tuple[int, int] | None = None, content: bytes | None = None
) -> np.ndarray:
    """Decode an image file as it is shown.

    EXIF orientation is applied. Grayscale, palette, CMYK and other color spaces become RGB;
    16-bit gray is scaled (65535 becomes 255), not clipped, and so is 32-bit float gray of a range
    that is known (0 to 1, or that of the file's tags); transparency is laid on white; of an
    animation, the first picture is taken.

    Args:
        path: The file, in one of `FORMATS`.
        promised: Its (W, H) as shown, as annotations say; None if there are none.
        content: The file's bytes where they are at hand; `path` then names them in messages.

    Returns:
        (H, W, 3) uint8, RGB, contiguous and writable.

    Raises:
        DataError: If the file is missing, damaged, truncated, not an image, larger than
            `MAX_PIXELS`, has 32-bit pixels of no known range, or is not of the promised size
            (`ImageSizeError`). The message names the file and the fix.
    """
    return read_reduced_image(path, promised=promised, content=content)[0]


def convert_picture(image: Image.Image, name: str = "picture") -> np.ndarray:
    """Return the pixels of a picture that Pillow opened, as `read_image` reads its file.

    Args:
        image: In any mode; of an animation, the frame that it stands at.
        name: For messages.

    Raises:
        DataError: It cannot be decoded, or is larger than `MAX_PIXELS`.
    """
    with _convert_errors(name):
        if image.width * image.height > MAX_PIXELS:
            raise DataError(_describe_size_limit(name, f"{image.width}x{image.height} pixels,"))
        orientation = _read_orientation(image)
        upright = image.transpose(_TURN[orientation]) if orientation in _TURN else image
        return _convert_to_array(upright, name)


def read_reduced_image(
    path: str | Path,
    at_least: tuple[int, int] | None = None,
    promised: tuple[int, int] | None = None,
    *,
    in_any_format: bool = False,
    content: bytes | None = None,
) -> tuple[np.ndarray, int]:
    """Decode an image file, a large JPEG at a half, a quarter or an eighth of its size.

    That is fast, as the decoder leaves out frequencies that the result could not show.

    Args:
        path: The file, in one of `FORMATS`.
        at_least: (H, W) of the smallest result, as shown; None for the full size. Smaller images
            and other formats come at full size.
        promised: (W, H) of the full size as shown, as annotations say; None if there are none.
        in_any_format: Average the pixels of other formats, and of JPEGs that are still twice as
            large, so that no side of the result is four times `at_least`.
        content: As `read_image`.

    Returns:
        The array, and the number of pixels of the full image's sides that one of its own stands
        for, a power of 2. A row or a column at an edge may stand for fewer.

    Raises:
        DataError: As `read_image`.
    """
    with open_image(path, content=content) as image:
        stored = image.size  # a TIFF is turned by the next line
        orientation = _read_orientation(image)
        _check_size(path, image, orientation, stored, promised)
        width = image.width
        if at_least is not None:
            # Pillow wants (W, H) as stored; orientations 5 to 8 swap the sides.
            image.draft(None, at_least if orientation >= 5 else at_least[::-1])
        factor = round(width / image.width)
        expected = image.size
        image.load()
        if image.size != expected:  # a damaged HEIC file can have two sizes
            sizes = ["{}x{}".format(*size) for size in (image.size, expected)]
            raise DataError(f"{path}: {_describe_damage(f'decodes to {sizes[0]}, not {sizes[1]}')}")
        upright: Image.Image = image
        if orientation in _TURN:
            upright = image.transpose(_TURN[orientation])
            image.close()  # frees its pixels
        shrink = 1
        if at_least is not None and in_any_format:
            scale = min(upright.height // at_least[0], upright.width // at_least[1])
            shrink = 1 << max(scale.bit_length() - 1, 0)
        return _convert_to_array(upright, path, shrink), factor * shrink


def read_image_size(
    path: str | Path,
    promised: tuple[int, int] | None = None,
    *,
    as_stored: bool = False,
    content: bytes | None = None,
) -> tuple[int, int]:
    """Read the size of an image as shown, ``(W, H)`` pixels, from the file's header.

    (A TIFF file is decoded: Pillow releases differ in when they turn it.)

    Args:
        path: The file, in one of `FORMATS`.
        promised: Its (W, H) as shown, as annotations say; None if there are none.
        as_stored: Return the size before the EXIF orientation turns it, as masks are read.
        content: As `read_image`.

    Raises:
        DataError: If the file is missing, not an image, larger than `MAX_PIXELS`, or not of the
            promised size (`ImageSizeError`).
    """
    try:
        with open_image(path, content=content) as image:
            stored = image.size
            shown = _check_size(path, image, _read_orientation(image), stored, promised)
    except ImageSizeError:
        raise
    except DataError as error:
        if _unreadable is None:
            raise
        _unreadable[str(path)] = error
        return promised or STAND_IN
    return stored if as_stored else shown


@contextmanager
def collect_unreadable() -> Iterator[dict[str, DataError]]:
    """Have `read_image_size` collect the files that it cannot read, by path, and go on.

    Readers of every layout ask for sizes amid their work. What they make of such a file has the
    size that annotations promise or `STAND_IN`; who calls them leaves it out.
    """
    global _unreadable  # threads of the readers share it, as they would not a context variable
    before, _unreadable = _unreadable, {}
    try:
        yield _unreadable
    finally:
        _unreadable = before


def is_turned(path: str | Path) -> bool:
    """Return True if a camera's tag says that an image is shown turned or mirrored (no TIFF).

    Raises:
        DataError: As `read_image_size`.
    """
    with open_image(path) as image:
        return image.format != "TIFF" and _read_orientation(image) in _TURN


def _check_size(
    path: str | Path,
    image: Image.Image,
    orientation: int,
    stored: tuple[int, int],
    promised: tuple[int, int] | None,
) -> tuple[int, int]:
    """Return an image's (W, H) as shown, if annotations promise no other."""
    shown = image.size[::-1] if orientation >= 5 else image.size  # 5 to 8 swap the sides
    if promised is not None and promised != shown:
        raise ImageSizeError(f"{path}: {describe_other_size(promised, shown, stored)}")
    return shown


def describe_other_size(
    promised: tuple[int, int], shown: tuple[int, int], stored: tuple[int, int] | None = None
) -> str:
    """Describe that an image has another size than promised, its likely cause and the fix.

    Args:
        promised: (W, H) that the annotations say.
        shown: (W, H) of the image as shown.
        stored: (W, H) of its pixels before the EXIF orientation turns them; None if not known.
    """
    sizes = (
        f"is {shown[0]}x{shown[1]} pixels as shown, its annotations say {promised[0]}x{promised[1]}"
    )
    if promised == stored:
        return (
            f"{sizes}, its size before the camera's orientation (EXIF) turns it; annotate the "
            "image as it is shown, or take the orientation out of the file"
        )
    if promised == shown[::-1]:
        return f"{sizes}: width and height look swapped; exchange them in the annotations"
    if factor := _find_scale(promised, shown):
        return (
            f"{sizes}: the image looks resized by {factor:.4g} after it was annotated; use the "
            f"image of {promised[0]}x{promised[1]}, or resize the annotations too"
        )
    return f"{sizes}; annotate the image as it is shown"


def _find_scale(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """Return the factor that makes one size of the other, sides rounded up or down; or None."""
    if min(before) < 1 or before[0] == after[0] or before[1] == after[1]:
        return None
    lowest = max((new - 1) / old for old, new in zip(before, after, strict=True))
    highest = min((new + 1) / old for old, new in zip(before, after, strict=True))
    # The longer side was rounded less.
    side = int(before[1] > before[0])
    return after[side] / before[side] if lowest < highest else None


@contextmanager
def open_image(
    path: str | Path, *, of_any_size: bool = False, content: bytes | None = None
) -> Iterator[ImageFile.ImageFile]:
    """Open an image; every failure inside the context becomes a `DataError`.

    Args:
        path: The file, in one of `FORMATS`.
        of_any_size: True for who reads the header alone.
        content: The file's bytes where they are at hand; `path` then names them in messages.

    Raises:
        MemoryError: Names the file; the image may be sound.
    """
    with _convert_errors(path):
        if content is None and not stat.S_ISREG(Path(path).stat().st_mode):
            raise DataError(f"{path}: cannot be read as an image (it is not a file); take it away")
        with _open(path if content is None else io.BytesIO(content), of_any_size) as image:
            if image.width * image.height > MAX_PIXELS and not of_any_size:
                raise DataError(_describe_size_limit(path, f"{image.width}x{image.height} pixels,"))
            yield mend_samples(image)


def _open(source: str | Path | io.BytesIO, of_any_size: bool) -> ImageFile.ImageFile:
    """Open a file with Pillow's own limit on pixels, or without it."""
    with _OPENING:
        limit = Image.MAX_IMAGE_PIXELS
        try:
            Image.MAX_IMAGE_PIXELS = None if of_any_size else limit
            return Image.open(source, formats=list_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _convert_errors(path: str | Path) -> Iterator[None]:
    """Make a `DataError` of every failure to decode an image."""
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise MemoryError(f"{path}: there is not enough memory to decode it") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: cannot be read as an image ({_describe_unknown(path)}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image file; check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(_describe_size_limit(path, "has")) from None
    except Exception as error:  # Pillow's plug-ins raise almost any type on damaged files
        raise DataError(
            f"{path}: {_describe_damage(f'{type(error).__name__}: {error}')}"
        ) from error


def _describe_damage(what: str) -> str:
    return (
        f"cannot be read as an image ({what}); fetch or export the file again, or take it out of "
        "the data set"
    )


@cache
def list_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are opened: HEIC, too, where pi_heif is there."""
    try:
        from pi_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


def _describe_unknown(path: str | Path) -> str:
    """Describe a file that Pillow does not know: TIFF has more kinds than it reads."""
    with suppress(OSError), open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] == b"ftyp" and head[8:12] in _HEIC and "HEIF" not in list_formats():
            return (
                'it is HEIC); pip install "densenet-backbones[heic]", or export it as JPEG or PNG'
            )
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return (
                "its kind of TIFF is not decoded); save it as gray or RGB of 8 or 16 bits, or as "
                "gray of 32-bit float from 0 to 1"
            )
    return f"it is none of {', '.join(FORMATS)}); export it again, or take it out of the data set"


def _describe_size_limit(path: str | Path, size: str) -> str:
    return (
        f"{path}: {size} more than the {MAX_PIXELS} pixels that are allowed, to protect the "
        "memory; cut it into tiles or save it smaller"
    )


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    if image.format == "TIFF":
        image.load()  # turns the image, and takes the tag away
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # it might follow the pixels; looking there would decode the whole file
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not make the pixels worse
        return 1
    return value if value in _TURN else 1


def _convert_to_array(image: Image.Image, path: str | Path, shrink: int = 1) -> np.ndarray:
    """Return the pixels of a loaded image, (H, W, 3) uint8 RGB, converted some rows at a time.

    Args:
        image: The image.
        path: Its file, for messages.
        shrink: Sides of the squares of pixels that are averaged.
    """
    width, height = image.size
    limits = find_limits(image, path)
    pixels = np.empty((-(-height // shrink), -(-width // shrink), 3), np.uint8)
    rows = max(1, PIXELS_AT_ONCE // (width * shrink)) * shrink
    for top in range(0, height, rows):
        whole = rows >= height
        part = image if whole else image.crop((0, top, width, min(top + rows, height)))
        if limits is not None:
            part = Image.fromarray(gray_from_range(np.asarray(part), *limits))
        part = _convert_to_rgb(part, path)
        part = part.reduce(shrink) if shrink > 1 else part
        pixels[top // shrink : top // shrink + part.height] = np.asarray(part)
    return pixels


def _convert_to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """Convert any mode to RGB."""
    if image.mode.startswith("I"):
        image = Image.fromarray(gray_from_integers(np.asarray(image), path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, _BACKGROUND)
        return Image.alpha_composite(page, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
