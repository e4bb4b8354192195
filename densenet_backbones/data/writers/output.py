"""Makes the folder of a written data set whole or not at all, and puts images into it."""

import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.messages import pluralize

_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\u2028\u2029\ufffe\uffff\\/:*?\"<>|,]")
_JPEG_QUALITY = 95  # of images that are turned upright
_LONGEST = 100  # characters of a name: file systems allow 255 bytes


@contextmanager
def fill_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write in, and put it in its place at the end.

    Args:
        out: A new or an empty folder.

    Yields:
        A draft beside it, which is removed if the block fails.

    Raises:
        DataError: If there are files in the folder, or it is none.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already, and not empty; name a new folder")
    draft = out.with_name(f".{out.name[:_LONGEST]}.{os.getpid()}.draft")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)  # of a killed process that had our number
        draft.mkdir()
        yield draft
        with suppress(FileNotFoundError):
            out.rmdir()
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def make_unique_names(paths: Mapping[int, Path], suffixes: Collection[str]) -> dict[int, str]:
    """Give files names of one folder, which differ before the ending and hold no odd letters.

    Args:
        paths: File of each key.
        suffixes: Endings that stay; files of others become PNG.
    """
    taken: set[str] = set()
    names = {}
    for key, path in paths.items():
        stem = _NOT_IN_NAMES.sub("_", path.stem).strip(" .")[:_LONGEST].lstrip(".") or "image"
        suffix = path.suffix if path.suffix.lower() in suffixes else ".png"
        free, number = stem, 2
        while free.casefold() in taken:
            free, number = f"{stem}-{number}", number + 1
        taken.add(free.casefold())
        names[key] = f"{free}{suffix}"
    return names


@dataclass
class ImagePlacer:
    """Puts images into a written data set: linked where the disk can, else copied.

    Attributes:
        upright: Images that a camera's tag turns are written as they are shown, without the tag.
        counts: Number of images that were linked, copied and written anew.
    """

    upright: frozenset[Path] = frozenset()
    counts: dict[str, int] = field(default_factory=lambda: {"linked": 0, "copied": 0, "saved": 0})

    def place(self, source: Path, target: Path) -> None:
        """Put an image in its place; the source stays as it is."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix.lower() != target.suffix.lower() or source in self.upright:
            self._save(read_image(source), target)
            return
        real = Path(os.path.realpath(source))  # a link may lead nowhere from the other folder
        try:
            os.link(real, target)
        except OSError:
            shutil.copyfile(real, target)
            self.counts["copied"] += 1
        else:
            self.counts["linked"] += 1

    def _save(self, pixels: np.ndarray, target: Path) -> None:
        is_jpeg = target.suffix.lower() in (".jpg", ".jpeg")
        picture = Image.fromarray(pixels)
        if is_jpeg:
            picture.save(target, quality=_JPEG_QUALITY, subsampling=0)
        else:
            picture.save(target)
        self.counts["saved"] += 1

    def describe(self) -> str:
        """Describe where the images' bytes are."""
        texts = {
            "linked": "linked (hard links: one file under two names, edit neither)",
            "copied": "copied",
            "saved": "written anew",
        }
        return ", ".join(
            f"{pluralize(count, 'image is', 'images are')} {texts[kind]}"
            for kind, count in self.counts.items()
            if count
        )
