"""CIFAR's archives as they are published, ``cifar-10-python.tar.gz`` and its like.

Of an archive only CIFAR's own files are taken, by their last names, into one folder: a name in it
never makes a path, and links, devices and extended headers are passed over.
"""

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from densenet_backbones.data.classification.cifar import LAYOUTS, find_cifar
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.recognition.archives import choose_folder
from densenet_backbones.untrusted.limits import (
    MAX_CIFAR_BYTES,
    MAX_CIFAR_ENTRIES,
    MAX_CIFAR_FILE,
)

__all__ = ["ENDINGS", "unpack_cifar"]

ENDINGS = (".tar.gz", ".tgz")
_KNOWN = {name for layout in LAYOUTS for name in (*layout.train, *layout.test, layout.meta)}
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_WITHOUT_CONTENT = {
    *(tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
}
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 2**20


def unpack_cifar(path: Path) -> tuple[Path, str]:
    """Unpack CIFAR's files of a published archive, unless that was done before.

    Args:
        path: The archive.

    Returns:
        The folder, beside the archive or in the cache, and a sentence that says where it is.

    Raises:
        DataError: It is damaged, larger than the published ones, or no archive of CIFAR; nothing is
            left behind.
    """
    stem = next(path.name[: -len(e)] for e in ENDINGS if path.name.lower().endswith(e))
    folder = choose_folder(path, f"{stem}-{_checksum(path):08x}")
    # Several processes of a training may ask at the same time.
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            return folder, f"{path.name} was unpacked before, to {folder}"
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with gzip.open(path) as stream:
                for name, size in _list_files(stream, path):
                    _copy(stream, draft / name, size, path)
            if find_cifar(draft) is None:
                raise DataError(
                    f"{path}: has not the files of CIFAR-10 or CIFAR-100; unpack other archives "
                    "yourself, and give the folder"
                )
            draft.chmod(0o755)
            draft.rename(folder)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DataError(f"{path}: no usable archive ({error}); fetch it again") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder, f"{path.name} is unpacked to {folder}"


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _list_files(stream: gzip.GzipFile, path: Path) -> Iterator[tuple[str, int]]:
    """Yield name and size of each of CIFAR's files; the stream then stands at its content.

    Headers are read one by one: `tarfile.open` would follow extended ones, which have any size.
    """
    seen: set[str] = set()
    for number in range(1, MAX_CIFAR_ENTRIES + 2):
        header = stream.read(_BLOCK)
        if not header.strip(b"\0"):
            return
        where = f"{path}: entry {number}"
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise DataError(f"{where}: is damaged ({error}); fetch the archive again") from error
        if number > MAX_CIFAR_ENTRIES or not 0 <= info.size <= MAX_CIFAR_FILE:
            break
        size = 0 if info.type in _WITHOUT_CONTENT else info.size
        end = stream.tell() + size + -size % _BLOCK
        if end > MAX_CIFAR_BYTES:
            break
        name = info.name.rpartition("/")[2]
        if info.type in _FILES and name in _KNOWN:
            if name in seen:
                raise DataError(f"{where}: {name} is there twice; fetch the published archive")
            seen.add(name)
            yield name, size
        stream.seek(end)  # reads what lies between
    raise DataError(
        f"{path}: has more or larger files than CIFAR's archives; fetch the published one"
    )


def _copy(stream: gzip.GzipFile, target: Path, size: int, path: Path) -> None:
    with open(target, "xb") as file:
        while size:
            chunk = stream.read(min(size, _CHUNK))
            if not chunk:
                raise DataError(f"{path}: ends in the middle of {target.name}; fetch it again")
            file.write(chunk)
            size -= len(chunk)
