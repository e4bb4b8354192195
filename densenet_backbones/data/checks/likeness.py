"""Finds pictures that look the same, and those whose pixels are the same in files that differ.

Looks are compared by a difference hash: N. Krawetz, "Kind of Like That" (2013, hackerfactor.com),
the signs of the differences between neighboring pixels of a small gray picture.

Legend: N pictures.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.checks.image_files import (
    ImageFile,
    describe_shared,
    list_image_files,
    remark_on_shared,
)
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import map_in_threads, spread
from densenet_backbones.data.images import read_image, read_reduced_image
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.messages import pluralize

_SIDE = 16  # of the hash: 256 bits
_BITS_APART = 20  # of 256; other pictures of one place differ in 40 and more
_GRAY_APART = 8.0  # of 255, mean: flat pictures have hashes of chance
_ROWS_AT_ONCE = 256
PICTURES_COMPARED = 4000
"""Most pictures of a set whose looks are compared, a second or two a thousand photographs."""
PIXELS_COMPARED = 2**31
"""Most pixels that are decoded in full because pictures look the same: half a minute."""
SHARED_PIXELS = 2**30
"""Most pixels of the pictures that each start compares, small and then in full."""
_GO_ON = "; or give data.allow_shared_images true to go on all the same"


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


class _Picture(NamedTuple):
    file: ImageFile
    size: tuple[int, int]
    is_evaluated: bool = False


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
    by_size: dict[tuple[int, int], list[_Picture]] = defaultdict(list)
    for picture in _list_pictures(data, files):
        by_size[picture.size].append(picture)
    same_size = [own for own in by_size.values() if len(own) > 1]
    chosen = [picture for own in same_size for picture in own][:PICTURES_COMPARED]
    suspects = _find_suspects(chosen)
    groups = _group_same(_take_pixels(suspects, PIXELS_COMPARED))
    return [[picture.file for picture in group] for group in groups]


def refuse_shared(train: AnySet, val: AnySet) -> list[str]:
    """Refuse evaluated images that are trained on: the same files, bytes or pixels.

    Returns:
        A line if not all pixels that could be the same were compared.

    Raises:
        DataError: Names an image of both.
    """
    trained, evaluated = list_image_files(train), list_image_files(val)
    for line in remark_on_shared(val.name, trained, evaluated):
        raise DataError(line + _GO_ON)
    pictures = [*_list_pictures(val, evaluated, is_evaluated=True), *_list_pictures(train, trained)]
    # What is of no size that the other part has is no copy.
    sizes = [{p.size for p in pictures if p.is_evaluated is side} for side in (False, True)]
    pictures = [picture for picture in pictures if picture.size in sizes[0] & sizes[1]]
    chosen = _take_of_both(pictures)
    suspects = _find_suspects(chosen, in_both=True)
    decoded = _take_pixels(suspects, SHARED_PIXELS)
    twins = [
        (picture.file, group[-1].file)
        for group in _group_same(decoded)
        for picture in group
        if picture.is_evaluated and not group[-1].is_evaluated
    ]
    if twins:
        example = f"{twins[0][0].path} has the same pixels as {twins[0][1].path}"
        compared = sum(picture.is_evaluated for picture in chosen)
        raise DataError(describe_shared(val.name, len(twins), compared, example) + _GO_ON)
    if len(chosen) == len(pictures) and len(decoded) == len(suspects):
        return []
    alike = f", and of {len(suspects)} that look alike {len(decoded)}"
    return [
        f"Evaluated images that are training images saved anew were looked for in part: of "
        f"{pluralize(len(pictures), 'image')} whose size is that of one in the other part "
        f"{len(chosen)} were compared{alike * (len(decoded) < len(suspects))}."
    ]


def _take_of_both(pictures: Sequence[_Picture]) -> list[_Picture]:
    """Take as many evaluated pictures and training pictures as a start has time for."""
    if not pictures:
        return []
    pixels = sum(picture.size[0] * picture.size[1] for picture in pictures) / len(pictures)
    most = max(2, min(PICTURES_COMPARED, int(SHARED_PIXELS / pixels)))
    evaluated = [picture for picture in pictures if picture.is_evaluated]
    trained = [picture for picture in pictures if not picture.is_evaluated]
    evaluated = list(spread(evaluated, max(most // 2, most - len(trained))))
    return [*evaluated, *spread(trained, most - len(evaluated))]


def _find_suspects(pictures: Sequence[_Picture], in_both: bool = False) -> list[_Picture]:
    """List the pictures that look the same as another of their size, in their order.

    Args:
        pictures: Those to compare.
        in_both: Compare evaluated pictures with training pictures alone.
    """
    files = [picture.file for picture in pictures]
    thumbnails = map_in_threads(_read_thumbnail, files, "Looking for copies")
    seen = [(n, small) for n, small in enumerate(thumbnails) if small is not None]
    suspects: set[int] = set()
    for a, b in find_alike([small for _, small in seen]):
        one, other = pictures[seen[a][0]], pictures[seen[b][0]]
        if one.size == other.size and not (in_both and one.is_evaluated == other.is_evaluated):
            suspects |= {seen[a][0], seen[b][0]}
    return [pictures[n] for n in sorted(suspects)]


def _take_pixels(pictures: Sequence[_Picture], most: int) -> list[_Picture]:
    """Take the pictures that have no more pixels together than `most`."""
    taken = []
    for picture in pictures:
        most -= picture.size[0] * picture.size[1]
        if most >= 0:
            taken.append(picture)
    return taken


def _group_same(pictures: Sequence[_Picture]) -> list[list[_Picture]]:
    same: dict[object, list[_Picture]] = {}
    files = [picture.file for picture in pictures]
    digests = map_in_threads(_hash_pixels, files, "Comparing images")
    for picture, digest in zip(pictures, digests, strict=True):
        same.setdefault(digest, []).append(picture)
    return [group for group in same.values() if len(group) > 1]


def _list_pictures(
    data: AnySet, files: Sequence[ImageFile], *, is_evaluated: bool = False
) -> list[_Picture]:
    size_of = _list_sizes(data)
    return [_Picture(file, size_of[file.image_id], is_evaluated) for file in files]


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
        pixels = read_image(file.path)
        return pixels.shape, hashlib.blake2b(pixels.data).digest()
    except DataError:
        return file.identity
