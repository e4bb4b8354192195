"""Lists all files below a folder, once and within bounds, and finds the ones that names promise."""

import os
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import IMAGE_SUFFIXES, quote
from densenet_backbones.data.sets.split_file import SPLIT_FILE
from densenet_backbones.messages import describe_missing, pluralize
from densenet_backbones.untrusted.limits import MAX_FOLDER_DEPTH, MAX_LISTED_FILES

ANNOTATION_SUFFIXES = {".json", ".xml", ".csv", ".yaml", ".yml", ".data"}
_SYSTEM = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # what macOS and Windows add


class Tree:
    """Files below a folder by their relative names, with forward slashes, sorted.

    Hidden files and folders (names that begin with a dot), and those that macOS and Windows add,
    are left out; so are links that lead out of the folder, and links to folders within it, whose
    files are listed where they lie.

    Attributes:
        outside: Links that lead out of the folder, which are left out.

    Args:
        root: The folder.
        only: Relative name of the annotation file to take; other files that may be one are passed
            over.

    Raises:
        DataError: If it is no folder, or has more files than are listed.
    """

    def __init__(self, root: Path, only: str | None = None) -> None:
        if not root.exists():
            raise DataError(describe_missing(root, "file or folder"))
        if not root.is_dir():
            raise DataError(
                f"{root}: is not a folder; give that of the data set, an annotation file or a zip "
                "archive"
            )
        self.root, self.only = root, only
        self.files: list[str] = []
        self.outside: list[str] = []
        for name in _walk(root, self.outside):
            if len(self.files) >= MAX_LISTED_FILES:
                raise DataError(
                    f"{root}: has more than {MAX_LISTED_FILES} files, so its layout is not looked "
                    "for; give annotation_file and image_folder, or a folder further down"
                )
            self.files.append(name)
        self.files.sort()

    def list_with(self, *suffixes: str) -> list[str]:
        """List the files with one of the endings (lower case, with the dot)."""
        names = [name for suffix in suffixes for name in self._by_suffix.get(suffix, ())]
        if self.only is not None and set(suffixes) <= ANNOTATION_SUFFIXES:
            return [name for name in names if name == self.only]
        return names

    @cached_property
    def images(self) -> list[str]:
        """The files whose ending is an image's."""
        return sorted(self.list_with(*IMAGE_SUFFIXES))

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Images by the name without folder and ending."""
        stems: dict[str, list[str]] = defaultdict(list)
        for name in self.images:
            stems[PurePosixPath(name).stem].append(name)
        return stems

    @cached_property
    def _by_suffix(self) -> dict[str, list[str]]:
        suffixes: dict[str, list[str]] = defaultdict(list)
        for name in self.files:
            suffixes[os.path.splitext(name)[1].lower()].append(name)
        return suffixes

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for name in self.files:
            names[name.rpartition("/")[2]].append(name)
        return names

    @cached_property
    def _by_lower_name(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for name in self.files:
            names[name.rpartition("/")[2].lower()].append(name)
        return names

    def list_stem(self, stem: str) -> list[str]:
        """List the images of a name without ending; where there is none, in any case."""
        found = self.by_stem.get(stem)
        return found or [n for s in self._stems.get(stem.lower(), ()) for n in self.by_stem[s]]

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = defaultdict(list)
        for stem in self.by_stem:
            stems[stem.lower()].append(stem)
        return stems

    def find(self, promised: str, near: str = "", where: str = "") -> str | None:
        """Find the file that a name from an annotation file means, wherever it lies.

        Other machines' folders in front of the name do not matter: of several files of that name
        the one is taken whose own folders agree with most of the promised ones, and of those that
        still agree the one in the folder `near`, or in the innermost folder around it that has one
        alone. Where no file has the name, it may be an address, differ in case, or be an image's
        without the ending.

        Args:
            promised: Name as the annotation file gives it: relative, absolute, or with ``..``.
            near: Folder of the annotation file, relative to the root.
            where: File and item, for the message.

        Returns:
            The relative name; None where there is no file of that name.

        Raises:
            DataError: If several files agree equally well.
        """
        *folders, name = promised.replace("\\", "/").split("/")
        candidates = self._by_name.get(name) or self._by_name.get(unquote(name), [])
        candidates = candidates or self._by_lower_name.get(unquote(name).lower(), [])
        candidates = candidates or self.list_stem(name)
        if len(candidates) > 1:
            agreeing = [_count_agreeing(folders, c.split("/")[:-1]) for c in candidates]
            candidates = [
                c for c, n in zip(candidates, agreeing, strict=True) if n == max(agreeing)
            ]
        if len(candidates) > 1:
            beside = [c for c in candidates if c.rpartition("/")[0] == near]
            candidates = beside or candidates
        around = near
        while len(candidates) > 1 and around:
            within = [c for c in candidates if c.startswith(f"{around}/")]
            candidates = within if len(within) == 1 else candidates
            around = around.rpartition("/")[0]
        if len(candidates) > 1:
            raise DataError(
                f"{where or self.root}: {promised[:200]!r} may be any of "
                f"{pluralize(len(candidates), 'file')} ({quote(candidates)}); write names "
                f"relative to {self.root}, or give image_folder"
            )
        return candidates[0] if candidates else None

    def find_folder(self, promised: str, near: str = "") -> str | None:
        """Find the folder that a path means: the longest end of it that is one below the root.

        Args:
            promised: Path as a file gives it: relative, absolute, with ``..``, or in another case.
            near: Folder of that file, relative to the root, which comes before the root.
        """
        parts = [p for p in promised.replace("\\", "/").split("/") if p not in ("", ".", "..")]
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            for folder in (f"{near}/{end}", end) if near else (end,):
                if found := self._folders.get(folder) or self._folders.get(folder.lower()):
                    return found
        return None if parts else near

    @cached_property
    def _folders(self) -> dict[str, str]:
        """Folders by their names, and by these in lower case."""
        folders = {str(p) for name in self.files for p in PurePosixPath(name).parents}
        return {name.lower(): name for name in folders} | {name: name for name in folders}


def _walk(root: Path, outside: list[str]) -> Iterator[str]:
    """Yield the relative names of all files that are to be seen; list links that lead out."""
    real, waiting = root.resolve(), [("", 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            entries = list(os.scandir(root / folder))
        except PermissionError as error:
            raise DataError(f"{root / folder}: cannot be read ({error.strerror})") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SYSTEM or _is_split(entry.name):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if depth < MAX_FOLDER_DEPTH:
                    waiting.append((name, depth + 1))
            elif entry.is_symlink() and _leads_out(entry, real):
                outside.append(name)
            elif _is_file(entry):
                yield name


def _is_split(name: str) -> bool:
    """Return True for a split that was stored beside the data: it has no annotations."""
    return name.endswith(SPLIT_FILE)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a circle of links
        return False


def _leads_out(link: os.DirEntry[str], real_root: Path) -> bool:
    """Return True for a link to what is not below the root, or to nothing."""
    try:
        return not Path(link.path).resolve(strict=True).is_relative_to(real_root)
    except (OSError, RuntimeError):  # a circle of links, too
        return True


def _count_agreeing(promised: list[str], own: list[str]) -> int:
    """Count the folders in front of a file that agree, from the innermost on."""
    count = 0
    for a, b in zip(reversed(promised), reversed(own), strict=False):
        if a != b:
            break
        count += 1
    return count
