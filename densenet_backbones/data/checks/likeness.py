"""Finds pictures that look the same, and those whose pixels are the same in files that differ.

Looks are compared by a difference hash: N. Krawetz, "Kind of Like That" (2013, hackerfactor.com),
the signs of the differences between neighboring pixels of a small gray picture.

Legend: N pictures.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.checks.image_files import ImageFile
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import map_in_threads
from densenet_backbones.data.images import read_image, read_reduced_image
from densenet_backbones.data.samples import DetectionSet

_SIDE = 16  # of the hash: 256 bits
_BITS_APART = 20  # of 256; other pictures of one place differ in 40 and more
_GRAY_APART = 8.0  # of 255, mean: flat pictures have hashes of chance
_ROWS_AT_ONCE = 256
PICTURES_COMPARED = 4000
"""Most pictures of a set whose looks are compared, a second or two a thousand photographs."""
PIXELS_COMPARED = 2**31
"""Most pixels that are decoded in full because pictures look the same: half a minute."""


def make_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Make the (16, 17) uint8 gray picture, which looks are compared by, of (H, W, 3) uint8 RGB."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(gray, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA))


def find_alike(thumbnails: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Yield the positions of each two pictures that look the same, the smaller one first.

    Args:
        thumbnails: N pictures of `make_thumbnail`.
    """
    if len(thumbnails) < 2:
        return
    small = np.stack(thumbnails).astype(np.int16)  # (N, 16, 17)
    bits = np.packbits(small[:, :, 1:] > small[:, :, :-1], axis=None).reshape(len(small), -1)
    for start in range(0, len(small), _ROWS_AT_ONCE):
        rows = bits[start : start + _ROWS_AT_ONCE]
        apart = np.bitwise_count(rows[:, None] ^ bits[None]).sum(axis=2, dtype=np.int64)
        for a, b in np.argwhere(apart <= _BITS_APART).tolist():
            if start + a < b and np.abs(small[start + a] - small[b]).mean() <= _GRAY_APART:
                yield start + a, b


def find_same_pictures(data: AnySet, files: Sequence[ImageFile]) -> list[list[ImageFile]]:
    """Group the files that show the same pixels, whatever their formats and tags.

    Pictures of one size are decoded small, and in full only where they look the same. Of sets that
    are large the first `PICTURES_COMPARED` are looked at, so that the time is bounded.

    Args:
        data: The set.
        files: Its files; of several with the same bytes one is enough.

    Returns:
        Groups of two and more, in the order of the files.
    """
    size_of = _list_sizes(data)
    by_size: dict[tuple[int, int], list[ImageFile]] = defaultdict(list)
    for file in files:
        by_size[size_of[file.image_id]].append(file)
    same_size = [own for own in by_size.values() if len(own) > 1]
    chosen = [file for own in same_size for file in own][:PICTURES_COMPARED]
    thumbnails = list(map_in_threads(_read_thumbnail, chosen, "Looking for copies"))
    seen = [
        (file, small) for file, small in zip(chosen, thumbnails, strict=True) if small is not None
    ]
    suspects: dict[ImageFile, None] = {}
    for a, b in find_alike([small for _, small in seen]):
        one, other = seen[a][0], seen[b][0]
        if size_of[one.image_id] == size_of[other.image_id]:
            suspects |= {one: None, other: None}
    left, decoded = PIXELS_COMPARED, []
    for file in suspects:
        left -= size_of[file.image_id][0] * size_of[file.image_id][1]
        if left >= 0:
            decoded.append(file)
    same: dict[object, list[ImageFile]] = {}
    digests = map_in_threads(_hash_pixels, decoded, "Comparing images")
    for file, digest in zip(decoded, digests, strict=True):
        same.setdefault(digest, []).append(file)
    return [group for group in same.values() if len(group) > 1]


def _list_sizes(data: AnySet) -> dict[int, tuple[int, int]]:
    if isinstance(data, DetectionSet):
        columns = data.packed.columns
        sizes = map(tuple, columns.sizes.tolist())
        return dict(zip(columns.image_ids.tolist(), sizes, strict=True))
    return {record.image_id: (record.width, record.height) for record in data.records}


def _read_thumbnail(file: ImageFile) -> np.ndarray | None:
    try:
        return make_thumbnail(read_reduced_image(file.path, (64, 64))[0])
    except DataError:  # who reads the images says so
        return None


def _hash_pixels(file: ImageFile) -> object:
    """Return a digest of an image's pixels; of one that cannot be read, what no other has."""
    try:
        return hashlib.blake2b(read_image(file.path).data).digest()
    except DataError:
        return file.identity
