"""Find the images and videos that the words of a command line name."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Literal

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import IMAGE_SUFFIXES as ANNOTATED_SUFFIXES
from densenet_backbones.inference.inputs.downloads import is_url, name_file
from densenet_backbones.messages import describe_missing
from densenet_backbones.untrusted.limits import MAX_LIST_FILE
from densenet_backbones.untrusted.reading import read_bytes

IMAGE_SUFFIXES = {*ANNOTATED_SUFFIXES, ".gif", ".ppm", ".pgm"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv"}
_ANIMATIONS = {".gif", ".webp"}
_CAMERA = "camera"


@dataclass(frozen=True)
class Source:
    """Something to predict.

    Attributes:
        name: Path, http(s) address, or ``camera:NUMBER``.
        kind: "image", or "clip" for a video, an animation or a camera.
    """

    name: str
    kind: Literal["image", "clip"] = "image"

    @property
    def is_camera(self) -> bool:
        """True for a camera."""
        return self.name.startswith(f"{_CAMERA}:")

    @property
    def path(self) -> Path | None:
        """The file; None for an address or a camera."""
        return None if self.is_camera or is_url(self.name) else Path(self.name)

    @property
    def stem(self) -> str:
        """Name for files of results."""
        if self.is_camera:
            return self.name.replace(":", "-")
        return Path(name_file(self.name) if is_url(self.name) else self.name).stem


def list_sources(words: Sequence[str], recursive: bool = False) -> list[Source]:
    """List what the words of a command line name.

    Args:
        words: Files, folders, patterns (``'photos/*.jpg'``, ``**`` for folders in folders),
            http(s) addresses, lists of these (``.txt``, or ``@`` before any name, a line each,
            from the folder of the list or the present one), and ``camera`` or ``camera:1``.
        recursive: Take the folders inside folders, too.

    Raises:
        DataError: A path does not exist, or a folder, a pattern or a list names nothing.
    """
    return [source for word in words for source in _find(word, recursive)]


def _find(word: str, recursive: bool) -> Iterator[Source]:
    path = Path(word)
    if is_url(word):
        kind = Path(name_file(word)).suffix.lower()
        yield Source(word, "clip" if kind in VIDEO_SUFFIXES | {".gif"} else "image")
    elif word == _CAMERA or (word.startswith(f"{_CAMERA}:") and word[7:].isdecimal()):
        yield Source(f"{_CAMERA}:{word[7:] or 0}", "clip")
    elif word.startswith("@") or (path.suffix.lower() == ".txt" and path.is_file()):
        yield from _read_list(Path(word.removeprefix("@")), recursive)
    elif path.is_file():
        yield _classify(path)
    elif path.is_dir():
        yield from _look_into(path, recursive)
    elif glob.has_magic(word):
        patterns = word, word.replace("[", "[[]")  # brackets are more often a folder's than sets
        names = (name for pattern in patterns for name in glob.glob(pattern, recursive=True))
        files = sorted({name for name in names if os.path.isfile(name)})
        if not files:
            raise DataError(f"{word}: no file has a name like this; check the pattern")
        yield from map(_classify, map(Path, files))
    else:
        raise DataError(describe_missing(path, "file or folder"))


def _look_into(folder: Path, recursive: bool) -> Iterator[Source]:
    """Yield the images and videos of a folder; hidden ones are what systems leave beside others."""
    found = []
    for place, folders, files in os.walk(folder):  # which follows no links in circles
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [
            Path(place) / name
            for name in files
            if Path(name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
            and not name.startswith(".")
            and os.path.isfile(os.path.join(place, name))
        ]
    if not found:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        deeper = "" if recursive else ", or --recursive for the folders in it"
        raise DataError(f"{folder}: no images here; give files, or a folder of {known}{deeper}")
    yield from map(_classify, sorted(found))


def _read_list(file: Path, recursive: bool) -> Iterator[Source]:
    if not file.is_file():
        raise DataError(f"{file}: there is no such list of images; check the path")
    text = read_bytes(file, MAX_LIST_FILE, DataError).decode("utf-8", "surrogateescape")
    lines = {n: line.strip() for n, line in enumerate(text.splitlines(), start=1)}
    lines = {n: line for n, line in lines.items() if line and not line.startswith("#")}
    if not lines:
        raise DataError(f"{file}: the list is empty; write a path or an address in each line")
    for number, line in lines.items():
        where = f"{file}: line {number}"
        if line.startswith("@") or Path(line).suffix.lower() == ".txt":
            raise DataError(f"{where}: names another list, {line}; give that on the command line")
        try:
            yield from _find(_look_beside(file, line), recursive)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        except (OSError, ValueError) as error:  # no name of a file, such as one with a NUL in it
            raise DataError(f"{where}: cannot be looked for ({error}); correct it") from error


def _look_beside(file: Path, line: str) -> str:
    """Return what a line of a list names, in the folder of the list where it is there."""
    beside = file.parent / line
    if is_url(line) or beside.exists():
        return line if is_url(line) else str(beside)
    pattern = os.path.join(glob.escape(str(file.parent)), line)
    is_there = glob.has_magic(line) and any(glob.iglob(pattern, recursive=True))
    return pattern if is_there else line


def _classify(path: Path) -> Source:
    """Return a file as an image, or as a clip if it is a video or moves."""
    suffix = path.suffix.lower()
    moves = suffix in VIDEO_SUFFIXES or (suffix in _ANIMATIONS and _is_animated(path))
    return Source(str(path), "clip" if moves else "image")


def _is_animated(path: Path) -> bool:
    from densenet_backbones.data.images import open_image

    try:
        with open_image(path, of_any_size=True) as image:
            return bool(getattr(image, "is_animated", False))
    except (DataError, MemoryError, OSError):  # said when its turn comes
        return False


def choose_stems(
    out: Path, sources: Sequence[Source], endings: Sequence[str]
) -> dict[Source, Path]:
    """Choose where each source's results go: ``OUT/NAME``, numbered where a name is taken.

    Args:
        out: Folder of all results.
        sources: What is predicted.
        endings: Endings of the files that are written beside each other.

    Raises:
        DataError: A result would replace one of the images.
    """
    inputs = {os.path.realpath(source.path) for source in sources if source.path}
    stems: dict[Source, Path] = {}
    taken: set[str] = set()
    for source in sources:
        if source in stems:
            continue
        names = chain([source.stem], (f"{source.stem}_{number}" for number in count(2)))
        stem = next(s for s in names if not taken & {f"{s}{end}".lower() for end in endings})
        stems[source] = out / stem
        for ending in endings:
            taken.add(f"{stem}{ending}".lower())  # some file systems do not tell cases apart
            result = out / f"{stem}{ending}"
            if os.path.realpath(result) in inputs:
                raise DataError(f"{result} would be overwritten; name another folder with --out")
    return stems
