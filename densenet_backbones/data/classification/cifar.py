"""CIFAR-10 and CIFAR-100 as they are published: pickles of Python, and the binary files.

Source: https://www.cs.toronto.edu/~kriz/cifar.html. The pickles are read without running code: only
the operations that build dictionaries, lists, numbers, text and one kind of array are known, and an
array is made here from its bytes.

Legend: N images of 32 x 32 pixels.
"""

import io
import pickle
import pickletools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from densenet_backbones.data.classification.prepared import name_class_folder, prepare_folder
from densenet_backbones.data.faults import DataError
from densenet_backbones.untrusted.limits import MAX_CIFAR_FILE, MAX_CLASSES, MAX_VALUES
from densenet_backbones.untrusted.reading import read_bytes, read_text

SIDE = 32
PIXELS = 3 * SIDE * SIDE
_OPERATIONS = {
    *("PROTO", "STOP", "FRAME", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET"),
    *("LONG_BINGET", "MEMOIZE", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1"),
    *("BININT2", "LONG", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES"),
    *("SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_DICT"),
    *("DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
_MOST_OPERATIONS = 20 * MAX_VALUES


@dataclass(frozen=True)
class Layout:
    """Published layout of CIFAR.

    Attributes:
        title: Name for people.
        train: Files of the training images.
        test: Files of the test images.
        meta: File that names the classes.
        labels: Key of the labels, and of the names in `meta`; None for text files.
        label_bytes: Bytes in front of an image in binary files, the last of which is its label.
    """

    title: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: tuple[str, str] | None = None
    label_bytes: int = 0


_BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))
LAYOUTS = (
    Layout(
        "CIFAR-10's pickles",
        _BATCHES,
        ("test_batch",),
        "batches.meta",
        ("labels", "label_names"),
    ),
    Layout(
        "CIFAR-10's binary files",
        tuple(f"{name}.bin" for name in _BATCHES),
        ("test_batch.bin",),
        "batches.meta.txt",
        label_bytes=1,
    ),
    Layout(
        "CIFAR-100's pickles",
        ("train",),
        ("test",),
        "meta",
        ("fine_labels", "fine_label_names"),
    ),
    Layout(
        "CIFAR-100's binary files",
        ("train.bin",),
        ("test.bin",),
        "fine_label_names.txt",
        label_bytes=2,
    ),
)


def find_cifar(root: Path) -> Layout | None:
    """Return the layout whose files all lie in a folder; None where there is none."""
    for layout in LAYOUTS:
        files = (*layout.train[:1], *layout.test, layout.meta)
        if all((root / name).is_file() for name in files):
            return layout
    return None


def prepare_cifar(root: Path, layout: Layout) -> Path:
    """Write the images as a folder of PNG files, ``train/CLASS`` and ``test/CLASS``, once.

    Raises:
        DataError: A file is damaged, or holds something else than images and labels.
    """
    names = _read_names(root / layout.meta, layout)
    files = [
        (split, root / name)
        for split, parts in (("train", layout.train), ("test", layout.test))
        for name in parts
        if (root / name).is_file()
    ]
    sizes = [(name.name, name.stat().st_size, name.stat().st_mtime_ns) for _, name in files]
    digest = zlib.crc32(repr((names, sizes)).encode())
    # Five files of 30 MB: read one after the other, as the pictures are written.
    pictures = (
        (f"{split}/{name_class_folder(names[label])}/{file.stem}_{n:05d}", image)
        for split, file in files
        for n, (image, label) in enumerate(read_images(file, layout, len(names)))
    )
    return prepare_folder(root, f"{root.name}-images-{digest:08x}", pictures, "Reading CIFAR")


def read_images(path: Path, layout: Layout, classes: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (32, 32, 3) uint8 RGB and the label, from 0, of each image of a file.

    Raises:
        DataError: The file is damaged.
    """
    content = read_bytes(path, MAX_CIFAR_FILE, DataError)
    if layout.labels is None:
        row = layout.label_bytes + PIXELS
        if not content or len(content) % row:
            raise DataError(
                f"{path}: has {len(content)} bytes, which is no number of images of {row} each; "
                "fetch it again"
            )
        table = np.frombuffer(content, np.uint8).reshape(-1, row)
        labels: Sequence[Any] = table[:, layout.label_bytes - 1].tolist()
        data = table[:, layout.label_bytes :]
    else:
        batch = read_plain_pickle(content, path)
        data = _take(batch, "data", path)
        labels = _take(batch, layout.labels[0], path)
        is_table = isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == PIXELS
        if not is_table or not isinstance(labels, list) or len(labels) != len(data):
            raise DataError(
                f"{path}: must hold (N, {PIXELS}) bytes and a list of N labels; fetch it again"
            )
    for n, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(
                f"{path}: image {n}: its label must be 0 to {classes - 1}, got {label!r:.40}; "
                "fetch it again"
            )
        yield data[n].reshape(3, SIDE, SIDE).transpose(1, 2, 0), label


def _read_names(path: Path, layout: Layout) -> list[str]:
    if layout.labels is None:
        names: Any = read_text(path, MAX_CIFAR_FILE, DataError).split()
    else:
        meta = read_plain_pickle(read_bytes(path, MAX_CIFAR_FILE, DataError), path)
        names = _take(meta, layout.labels[1], path)
        names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names]
    is_list = isinstance(names, list) and all(isinstance(n, str) and n.strip() for n in names)
    if not is_list or not 1 <= len(set(names)) == len(names) <= MAX_CLASSES:
        raise DataError(f"{path}: must hold a list of the classes' names; fetch it again")
    return [str(name) for name in names]


def _take(content: object, key: str, path: Path) -> Any:
    """Return an entry of a dictionary whose keys are text, or bytes as Python 2 wrote them."""
    if isinstance(content, dict):
        for name in (key, key.encode()):
            if name in content:
                return content[name]
    raise DataError(f"{path}: has no {key!r}, as CIFAR's pickles have; fetch it again")


# -- pickles ---------------------------------------------------------------------------------------


def read_plain_pickle(content: bytes, path: Path) -> object:
    """Read dictionaries, lists, numbers, text and arrays of bytes from a pickle.

    Args:
        content: The pickle, of any protocol.
        path: Its file, for errors.

    Raises:
        DataError: It is damaged, or would run code to be read.
    """
    try:
        for count, (operation, _, _) in enumerate(pickletools.genops(content)):
            if operation.name not in _OPERATIONS or count > _MOST_OPERATIONS:
                raise DataError(
                    f"{path}: its pickle has {operation.name}, which plain data does not need, or "
                    "too many values; fetch the published file"
                )
        return _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError:
        raise
    except _NotPlainError as error:
        raise DataError(f"{path}: {error}; fetch the published file") from error
    except Exception as error:  # a damaged pickle fails in any way
        reason = f"{type(error).__name__}: {error}"[:200]
        raise DataError(f"{path}: is no usable pickle ({reason}); fetch it again") from error


class _NotPlainError(ValueError):
    """A pickle holds something else than plain data."""


class _Array:
    """Array of bytes that is being built: shape and content come with its state."""

    value: np.ndarray

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Kind) or not isinstance(content, bytes) or is_fortran:
            raise _NotPlainError("an array of the pickle is none of bytes, row by row")
        assert isinstance(shape, tuple)
        self.value = np.frombuffer(content, np.uint8).reshape(shape)


class _Kind:
    """Type of an array's values: unsigned bytes, whatever else its state says."""

    def __setstate__(self, state: object) -> None:
        pass


def _begin_array(*arguments: object) -> _Array:
    return _Array()


def _begin_kind(name: object, *arguments: object) -> _Kind:
    if name not in ("u1", b"u1"):
        raise _NotPlainError(f"an array of the pickle holds {name!r:.20}, not bytes")
    return _Kind()


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 2 pickled as text."""
    return text.encode("latin1")


# The names of numpy before and after its version 2, and what stands in for them.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _begin_array,
    ("numpy._core.multiarray", "_reconstruct"): _begin_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _begin_kind,
    ("_codecs", "encode"): _encode,
}


# Python's own unpickler in Python, whose memo is a dictionary: C's grows with any index.
_InPython: Any = pickle._Unpickler


class _PlainUnpickler(_InPython):
    """Unpickler of plain data; what is none is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in; nothing is imported."""
        if (module, name) not in _STAND_INS:
            raise _NotPlainError(f"the pickle asks for {module}.{name}, which is not plain data")
        return _STAND_INS[module, name]

    def load_build(self) -> None:
        """Give a state to an array or its type, and to nothing else."""
        if not isinstance(self.stack[-2], _Array | _Kind):
            raise _NotPlainError("the pickle gives a state to what is no array")
        super().load_build()

    dispatch: ClassVar[Any] = {**_InPython.dispatch, pickle.BUILD[0]: load_build}

    def load(self) -> object:
        """Return the content, arrays in place of their stand-ins."""
        content = super().load()
        if isinstance(content, dict):
            return {k: v.value if isinstance(v, _Array) else v for k, v in content.items()}
        return content
