"""Reads and writes the file that says which images are trained on and which are held out.

It lies beside the data, so that every run and every evaluation takes the same images.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote
from densenet_backbones.data.sets.stratification import TRAIN, VAL
from densenet_backbones.file_writing import save_json
from densenet_backbones.untrusted.limits import MAX_LIST_FILE
from densenet_backbones.untrusted.reading import parse_json, read_text

SPLIT_FILE = "densenet_split.json"
_ABOUT = "Images that are trained on and images that are held out; remove this file to split anew."
_PARTS = {"train": TRAIN, "val": VAL}


@dataclass(frozen=True)
class StoredSplit:
    """Content of a file.

    Attributes:
        seed: Seed of the first choice.
        fraction: Share of the images that are held out.
        group_pattern: Pattern of names that stay together, if any.
        sides: `TRAIN` or `VAL` of each image, by its path below the data set's folder.
    """

    seed: int
    fraction: float
    group_pattern: str | None
    sides: dict[str, int]


def name_split_file(data: Path) -> Path:
    """Return the split file of data: in its folder, or beside its annotation file or archive."""
    return data / SPLIT_FILE if data.is_dir() else data.with_name(f"{data.stem}.{SPLIT_FILE}")


def write_split(files: Sequence[Path], split: StoredSplit) -> Path | None:
    """Write a split into the first of the files that can be written; None if none can be."""
    content = {
        "about": _ABOUT,
        "seed": split.seed,
        "fraction": split.fraction,
        "group_pattern": split.group_pattern,
        **{
            part: sorted(name for name, own in split.sides.items() if own == side)
            for part, side in _PARTS.items()
        },
    }
    for file in files:
        with suppress(OSError):
            save_json(file, content)
            return file
    return None


def read_split(file: Path) -> StoredSplit:
    """Read a split.

    Raises:
        DataError: If the file is not one, or has an image twice; says what is wrong.
    """
    fix = "correct it, or remove it to split anew"
    try:
        content: Any = parse_json(read_text(file, MAX_LIST_FILE, DataError))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({error}); {fix}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: must be a JSON object with the lists train and val; {fix}")
    seed, fraction, pattern = (content.get(k) for k in ("seed", "fraction", "group_pattern"))
    if type(seed) is not int or seed < 0:
        raise DataError(f"{file}: seed must be a whole number of at least 0, not {seed!r:.60}")
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise DataError(f"{file}: fraction must lie in (0, 1), not {fraction!r:.60}; {fix}")
    if pattern is not None and not isinstance(pattern, str):
        raise DataError(f"{file}: group_pattern must be a text or null, not {pattern!r:.60}")
    sides: dict[str, int] = {}
    for part, side in _PARTS.items():
        names = content.get(part)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{file}: {part} must be a list of names of images; {fix}")
        twice = [name for name in names if name in sides]
        if twice:
            raise DataError(f"{file}: has images in both parts ({quote(twice)}); {fix}")
        sides |= dict.fromkeys(names, side)
    return StoredSplit(seed, float(fraction), pattern, sides)
