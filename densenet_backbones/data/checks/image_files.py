"""Finds images that are in two places of the data, and images that are almost black.

Costs stay small whatever the number of images: sizes of all files are asked for, pieces of a few
thousand are read, and whole files only where size and piece are the same.
"""

import filecmp
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import NamedTuple

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote, spread
from densenet_backbones.data.images import read_reduced_image
from densenet_backbones.data.mask_samples import MaskRecord
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.messages import pluralize

EVALUATED_COMPARED = 2000  # images of an evaluated set that are looked for among the others
PIECES_READ = 4000  # training images of an evaluated one's size whose piece is read
PIECE = 4096  # bytes, from the middle of a file, where images of one camera differ
MAX_COMPARED = 2**28  # bytes of files that are read whole
DARK = 64  # of 255: below lies what 14 bits of 16 reach
DARK_LOOKED_AT = 16  # images; one is enough where it is bright


class ImageFile(NamedTuple):
    """Image file; its device and number are its identity, whatever links lead there."""

    image_id: int
    path: str
    identity: tuple[int, int]
    size: int


def list_image_files(data: AnySet) -> list[ImageFile]:
    """List the files of a set that are there and not empty; who reads them reports the others."""
    files = []
    for image_id, path in _list_paths(data):
        try:
            state = os.stat(path)
        except (OSError, ValueError):
            continue
        if state.st_size and stat.S_ISREG(state.st_mode):
            files.append(ImageFile(image_id, path, (state.st_dev, state.st_ino), state.st_size))
    return files


def _list_paths(data: AnySet) -> Iterator[tuple[int, str]]:
    """Yield id and path of each image, without making the records of a detection set."""
    if isinstance(data, DetectionSet):
        columns = data.packed.columns
        for n, image_id in enumerate(columns.image_ids.tolist()):
            yield image_id, os.fsdecode(columns.paths[n])
    else:
        yield from ((record.image_id, str(record.path)) for record in data.records)


def remark_on_repeated(name: str, files: Sequence[ImageFile]) -> Iterator[str]:
    """Yield a line if entries of a set have the same image file."""
    entries: dict[tuple[int, int], list[ImageFile]] = {}
    for file in files:
        entries.setdefault(file.identity, []).append(file)
    repeated = [same for same in entries.values() if len(same) > 1]
    if repeated:
        first = repeated[0]
        ids = quote([file.image_id for file in first])
        yield (
            f"{name}: files that are in several entries: {len(repeated)} ({first[0].path} in "
            f"those with the ids {ids}); they count twice, and contradict each other where they "
            "differ, in the class of the image or in objects, which are background to those that "
            "lack them: merge them into one entry, or keep one"
        )


def remark_on_copies(name: str, files: Sequence[ImageFile]) -> Iterator[str]:
    """Yield a line if a set has an image twice, as files of other names with the same bytes."""
    by_identity = {file.identity: file for file in files}.values()
    alike: dict[tuple[int, bytes], list[ImageFile]] = defaultdict(list)
    for file in _take_of_one_size(by_identity):
        alike[file.size, _read_piece(file)].append(file)
    left, copies = MAX_COMPARED, []
    for first, *others in alike.values():
        for other in others:
            left -= 2 * first.size
            if left > 0 and _have_same_bytes(first, other):
                copies.append((first, other))
    if copies:
        first, other = copies[0]
        yield (
            f"{name}: images that are copies of others under another name: {len(copies)} "
            f"({other.path} is a copy of {first.path}); they count twice, and contradict each "
            "other where their annotations differ: keep one of each"
        )


def _take_of_one_size(files: Iterable[ImageFile]) -> list[ImageFile]:
    """Take the files that share their size with another, `PIECES_READ` of them at most."""
    by_size: dict[int, list[ImageFile]] = defaultdict(list)
    for file in files:
        by_size[file.size].append(file)
    return [file for same in by_size.values() if len(same) > 1 for file in same][:PIECES_READ]


def remark_on_shared(
    name: str, trained: Sequence[ImageFile], evaluated: Sequence[ImageFile]
) -> Iterator[str]:
    """Yield a line if evaluated images are trained on: the same files, or copies of them.

    Args:
        name: Name of the evaluated set.
        trained: Files of the training set.
        evaluated: Files of the evaluated set.
    """
    evaluated = spread(evaluated, EVALUATED_COMPARED)
    twins = _find_twins(trained, evaluated)
    if twins:
        one, other = twins[0]
        how = "the same file as" if one.identity == other.identity else "a copy of"
        yield describe_shared(name, len(twins), len(evaluated), f"{one.path} is {how} {other.path}")


def describe_shared(name: str, shared: int, compared: int, example: str) -> str:
    """Describe that images of the evaluated set `name` are trained on."""
    return (
        f"{name}: evaluated images that are training images too: {shared} of {compared} "
        f"({example}), so the scores say little about new images; take them out of one of the two"
    )


def find_copies(files: Sequence[ImageFile]) -> list[list[ImageFile]]:
    """Group the files that are one, by links, or have the same bytes; single files are left out."""
    by_identity: dict[tuple[int, int], list[ImageFile]] = {}
    for file in files:
        by_identity.setdefault(file.identity, []).append(file)
    # Of one size, then with one piece, then with one content: most files are never read.
    alike: list[list[list[ImageFile]]] = [list(by_identity.values())]
    for key in (_get_size, _read_piece, _hash_content):
        parted: list[list[list[ImageFile]]] = []
        for candidates in alike:
            parts: dict[object, list[list[ImageFile]]] = {}
            for same in candidates if len(candidates) > 1 else ():
                parts.setdefault(key(same[0]), []).append(same)
            parted += [part for part in parts.values() if len(part) > 1]
        alike = parted
    copies = [list(chain.from_iterable(part)) for part in alike]
    copied = {file.identity for same in copies for file in same}
    links = [same for same in by_identity.values() if len(same) > 1]
    return copies + [same for same in links if same[0].identity not in copied]


def _get_size(file: ImageFile) -> int:
    return file.size


def _hash_content(file: ImageFile) -> object:
    """Return a digest of a file; of one that cannot be read, what no other has."""
    try:
        with open(file.path, "rb") as content:
            return hashlib.file_digest(content, "blake2b").digest()
    except OSError:
        return file.identity


def remark_on_dark(data: AnySet) -> Iterator[str]:
    """Yield a line if images are almost black, as 12 bits in files of 16 are."""
    records: Sequence[ImageRecord | MaskRecord] = data.records
    brightest, names = 0, []
    for record in spread(records, DARK_LOOKED_AT):
        with suppress(DataError):  # its first use says so
            brightest = max(brightest, int(read_reduced_image(record.path, (64, 64))[0].max()))
            names.append(record.path.name)
            if brightest > DARK:
                return
    if names:
        yield (
            f"{data.name}: no pixel of {pluralize(len(names), 'image')} looked at "
            f"({quote(names)}) is brighter than {brightest} of 255; files of 16 bits must reach "
            "65535, so multiply values of 12 bits by 16, and values from 0 to 1 by the largest "
            "of their type"
        )


def _find_twins(
    trained: Sequence[ImageFile], evaluated: Sequence[ImageFile]
) -> list[tuple[ImageFile, ImageFile]]:
    """Pair evaluated files with training files that are the same, or have the same bytes."""
    same = {file.identity: file for file in trained}
    # Of one size and with one piece: candidates for copies.
    sizes = {file.size for file in evaluated if file.identity not in same}
    alike: dict[tuple[int, bytes], list[ImageFile]] = defaultdict(list)
    for file in spread([file for file in trained if file.size in sizes], PIECES_READ):
        alike[file.size, _read_piece(file)].append(file)
    known = {size for size, _ in alike}
    left = MAX_COMPARED
    twins = []
    for file in evaluated:
        if file.identity in same:
            twins.append((file, same[file.identity]))
            continue
        for other in alike.get((file.size, _read_piece(file)), ()) if file.size in known else ():
            left -= 2 * file.size
            if left < 0:
                break
            if _have_same_bytes(file, other):
                twins.append((file, other))
                break
    return twins


def _have_same_bytes(file: ImageFile, other: ImageFile) -> bool:
    with suppress(OSError):
        return filecmp.cmp(file.path, other.path, shallow=False)
    return False


def _read_piece(file: ImageFile) -> bytes:
    """Read a piece of a file's middle; nothing where it cannot be read."""
    with suppress(OSError), open(file.path, "rb", buffering=0) as content:
        content.seek(max(0, (file.size - PIECE) // 2))
        return content.read(PIECE)
    return b""
