"""Unpacks a zip archive of a data set beside it: safely, whole or not at all, and once.

The folder is named for the archive and its content, so that another archive of the same name gets
a folder of its own.
"""

import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from filelock import FileLock

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import check_relative_path, track_progress
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import (
    FREE_ARCHIVE_BYTES,
    MAX_ARCHIVE_BYTES,
    MAX_ARCHIVE_FILES,
    MAX_ARCHIVE_RATIO,
    MAX_FOLDER_DEPTH,
)

_CHUNK = 2**20


def unpack_archive(path: Path) -> tuple[Path, str]:
    """Unpack a zip archive, unless it was unpacked before.

    Args:
        path: The archive.

    Returns:
        The folder, and a sentence that says where it is.

    Raises:
        DataError: If it is damaged, has links, names that lead out of it, or two files of one name,
            is encrypted, or would become larger than archives may; nothing is left behind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _list_entries(archive, path)
            folder = choose_folder(path, _name_folder(path, entries))
            # Several processes of a training may ask at the same time.
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if folder.is_dir():
                    return folder, f"{path.name} was unpacked before, to {folder}"
                _unpack(archive, entries, folder, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: no usable zip archive ({error}); fetch it again") from error
    return folder, f"{path.name} is unpacked to {folder}"


def _list_entries(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """Check all names and sizes before anything is written."""
    infos = archive.infolist()
    if len(infos) > MAX_ARCHIVE_FILES:
        raise DataError(
            f"{path}: has {pluralize(len(infos), 'file')}, more than the {MAX_ARCHIVE_FILES} that "
            "an archive may have; unpack it yourself, and give the folder"
        )
    entries: dict[str, zipfile.ZipInfo] = {}
    for number, info in enumerate(infos, start=1):
        where = f"{path}: entry {number} ({info.filename[:200]!r})"
        name = check_relative_path(info.filename, where)
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{where}: is a link or a device, which is not unpacked; remove it")
        if info.flag_bits & 1:
            raise DataError(f"{where}: is encrypted; unpack the archive yourself, give the folder")
        if len(name.parts) > MAX_FOLDER_DEPTH:
            raise DataError(f"{where}: has more than {MAX_FOLDER_DEPTH} folders; it is damaged")
        if info.is_dir() or _is_of_system(name):
            continue
        if str(name).casefold() in entries:
            raise DataError(f"{where}: is there twice; remove one")
        entries[str(name).casefold()] = info
    total = sum(info.file_size for info in entries.values())
    most = max(FREE_ARCHIVE_BYTES, MAX_ARCHIVE_RATIO * path.stat().st_size)
    if total > min(most, MAX_ARCHIVE_BYTES):
        raise DataError(
            f"{path}: would become {total / 2**30:.1f} GiB, more than the "
            f"{min(most, MAX_ARCHIVE_BYTES) / 2**30:.1f} GiB that an archive of its size may; "
            "unpack it yourself, and give the folder"
        )
    return list(entries.values())


def _is_of_system(name: PurePosixPath) -> bool:
    return "__MACOSX" in name.parts or name.name.startswith("._") or name.name == ".DS_Store"


def _name_folder(path: Path, entries: Sequence[zipfile.ZipInfo]) -> str:
    content = [f"{i.filename}\0{i.file_size}\0{i.CRC}" for i in entries]
    return f"{path.stem}-{zlib.crc32(chr(10).join(content).encode('utf-8', 'replace')):08x}"


def choose_folder(path: Path, name: str) -> Path:
    """Return the folder of a name beside a path, or in the cache where that cannot be written.

    Raises:
        DataError: Neither can be written.
    """
    if os.access(path.parent, os.W_OK) or (path.parent / name).is_dir():
        return path.parent / name
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "densenet_backbones"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path}: can be unpacked neither beside itself nor in {folder} "
            f"({error.strerror or error}); unpack it yourself and give the folder, or set "
            "XDG_CACHE_HOME to one that can be written"
        ) from error
    return folder / name


def _unpack(
    archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], folder: Path, path: Path
) -> None:
    """Unpack into a folder of another name, which is renamed when all is there."""
    total = sum(info.file_size for info in entries)
    free = shutil.disk_usage(folder.parent).free
    if total > free:
        raise DataError(
            f"{path}: needs {total / 2**30:.1f} GiB to be unpacked, and {folder.parent} has "
            f"{free / 2**30:.1f} GiB left; make room, or unpack it elsewhere and give the folder"
        )
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for info in track_progress(entries, f"Unpacking {path.name}", from_count=200):
            target = draft / check_relative_path(info.filename, str(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Reading stops at the size that was promised, and compares checksums.
            with archive.open(info) as source, open(target, "xb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
        draft.chmod(0o755)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
