"""Decodes images once, and keeps what tells faults and near duplicates: no pixels.

Legend: N images, of which D are decoded.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.checks.image_files import ImageFile, find_copies, list_image_files
from densenet_backbones.data.checks.likeness import find_alike, make_thumbnail
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import map_in_threads, spread
from densenet_backbones.data.images import ImageSizeError, is_turned, read_reduced_image
from densenet_backbones.data.mask_samples import MaskRecord
from densenet_backbones.data.samples import ImageRecord

Place = tuple[str, int]
"""Split, and position of an image in it."""


@dataclass(frozen=True, eq=False)
class LookedAt:
    """Image that was decoded, or could not be.

    Attributes:
        place: Its split and position.
        path: Its file.
        fault: Why it cannot be used; None if it can.
        is_resized: True if the fault is its size alone.
        is_turned: True if a camera's tag turns it.
        small: (16, 17) uint8, its gray picture; None where there is none.
    """

    place: Place
    path: Path
    fault: str | None = None
    is_resized: bool = False
    is_turned: bool = False
    small: np.ndarray | None = None


@dataclass(frozen=True)
class Looks:
    """Images looked at.

    Attributes:
        total: Number of images of the data.
        images: The D images that were decoded, or could not be.
        copies: Places of files with the same bytes, a list each.
        alike: Pairs of places of images that look the same and are no copies.
    """

    total: int
    images: list[LookedAt]
    copies: list[list[Place]]
    alike: list[tuple[Place, Place]]


def look_at_images(parts: dict[str, AnySet], most: int) -> Looks:
    """Decode at most so many images, spread evenly over each split, and compare all files."""
    places = [(split, n) for split, data in parts.items() for n in range(len(data))]
    chosen = spread(places, most)
    records = [(place, parts[place[0]].records[place[1]]) for place in chosen]
    images = list(
        map_in_threads(
            lambda pair: _look(pair[0], pair[1].path, (pair[1].width, pair[1].height)),
            records,
            "Looking at images",
        )
    )
    copies = find_copied_places(parts)
    return Looks(len(places), images, copies, _find_alike(images, copies))


def find_copied_places(parts: dict[str, AnySet]) -> list[list[Place]]:
    """Find the images that are one file, or have the same bytes, over all splits."""
    files: list[ImageFile] = []
    place_of: dict[int, Place] = {}
    for split, data in parts.items():
        records: Sequence[ImageRecord | MaskRecord] = data.records
        positions = {record.image_id: n for n, record in enumerate(records)}
        for file in list_image_files(data):
            place_of[len(files)] = split, positions[file.image_id]
            files.append(file._replace(image_id=len(files)))
    return [[place_of[file.image_id] for file in same] for same in find_copies(files)]


def _look(place: Place, path: Path, promised: tuple[int, int]) -> LookedAt:
    try:
        pixels, _ = read_reduced_image(path, (64, 64), promised)
        turned = is_turned(path)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return LookedAt(place, path, reason, isinstance(error, ImageSizeError))
    return LookedAt(place, path, is_turned=turned, small=make_thumbnail(pixels))


def _find_alike(
    images: Sequence[LookedAt], copies: Sequence[Sequence[Place]]
) -> list[tuple[Place, Place]]:
    """Return pairs of images that look the same and are no copies."""
    seen = [(image.place, image.small) for image in images if image.small is not None]
    group: dict[Place, int] = defaultdict(lambda: -1)
    group.update({place: n for n, same in enumerate(copies) for place in same})
    pairs = ((seen[a][0], seen[b][0]) for a, b in find_alike([small for _, small in seen]))
    return [(one, other) for one, other in pairs if not -1 != group[one] == group[other]]
