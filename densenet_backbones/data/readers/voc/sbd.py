"""Reads the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011) for segmentation.

    dataset/img/*.jpg   dataset/cls/*.mat   dataset/train.txt   dataset/val.txt

Its masks are MATLAB files with the struct `GTcls`, whose field `Segmentation` holds VOC's class
numbers (0 is the background; nothing is ignored). Its train and val lists overlap VOC 2012's.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import IMAGE_SUFFIXES, list_files, list_images, track_progress
from densenet_backbones.data.images import read_image_size
from densenet_backbones.data.mask_samples import MaskRecord, SegmentationSet
from densenet_backbones.data.masks.code import MaskCode
from densenet_backbones.data.readers.masks.files import refuse_missing, reorder_classes
from densenet_backbones.data.readers.voc.boxes import read_split, report_unannotated
from densenet_backbones.data.readers.voc.masks import VOC_MASK_CLASSES
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_MAT_CELLS, MAX_MAT_CONTENT, MAX_MAT_FILE
from densenet_backbones.untrusted.reading import read_bytes

_HEADER = 128  # bytes before the first element (MAT-File Format, section "Level 5 MAT-Files")
_COMPRESSED = 15  # miCOMPRESSED
_MATRIX = 14
_TYPES = {*range(1, 8), 9, 12, 13, _MATRIX, 16, 17, 18}
_CONTAINERS = {1, 2}  # cells and structs
_CLASSES = {1, 2, 4, *range(6, 16)}  # cells, structs, texts and numbers
_CODE = MaskCode.from_classes(
    VOC_MASK_CLASSES, ignored_ids=(), fix="SBD has VOC's classes only; fetch the file again"
)


@dataclass(frozen=True)
class SbdMask:
    """Reader of a mask from a MATLAB file."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Path of the file, alone."""
        return (self.path,)

    @property
    def rule(self) -> str:
        """Rule of VOC's ids, without any that are ignored."""
        return _CODE.rule

    def read(self) -> np.ndarray:
        """Read (H, W) uint8 labels.

        Raises:
            DataError: If it is not a MATLAB file of version 5 to 7, damaged or too large, has no
                GTcls.Segmentation, or has unknown values.
        """
        values = read_mat_mask(self.path)
        assert _CODE.ids is not None
        return _CODE.ids.to_labels(values, str(self.path), _CODE.fix)


def read_sbd_masks(
    root: str | Path, split: str, *, classes: Sequence[str] | None = None
) -> SegmentationSet:
    """Read one split of SBD, with VOC's background and 20 classes.

    Args:
        root: The folder with `img` and `cls`, or one above it (`benchmark_RELEASE`, `dataset`).
        split: "train", "val", another list, or "all".
        classes: Names in label order, among them all of VOC's that have pixels.

    Returns:
        The set; image ids count the list from 1. Sizes of masks are compared when they are read
        (their files have no header to look at).

    Raises:
        DataError: If the layout or the list is wrong, or images or masks are missing.
    """
    folder = find_sbd_folder(Path(root))
    if folder is None:
        raise DataError(
            f"{root}: not SBD's layout; expected img/*.jpg, cls/*.mat, train.txt and val.txt in "
            "dataset/"
        )
    masks = {n[: -len(".mat")] for n in list_files(folder / "cls") if n.endswith(".mat")}
    ids = read_split(folder, split, sorted(masks))
    refuse_missing(folder / "cls", [i for i in ids if i not in masks], split, suffixes=(".mat",))
    images = list_images(folder / "img")
    lost = [i for i in ids if i not in images]
    refuse_missing(folder / "img", lost, split, "image", IMAGE_SUFFIXES)
    records = []
    for number, name in enumerate(track_progress(ids, f"Reading {split}"), start=1):
        width, height = read_image_size(images[name])
        mask = SbdMask(folder / "cls" / f"{name}.mat")
        records.append(MaskRecord(number, images[name], width, height, mask, name))
    problems = tuple(report_unannotated(folder, split, folder / "img", masks, "mask"))
    data = SegmentationSet(f"SBD/{split}", tuple(records), VOC_MASK_CLASSES, problems=problems)
    return data if classes is None else reorder_classes(data, classes)


def has_sbd_layout(root: Path) -> bool:
    """Return True if a folder holds SBD."""
    return find_sbd_folder(root) is not None


def find_sbd_folder(root: Path) -> Path | None:
    """Return the folder with SBD's `img` and `cls`: a folder, or one below it."""
    for folder in (root, root / "dataset", root / "benchmark_RELEASE" / "dataset"):
        if (folder / "cls").is_dir() and (folder / "img").is_dir():
            return folder
    return None


def read_mat_mask(path: Path) -> np.ndarray:
    """Read the array GTcls.Segmentation of a file, (H, W) integers.

    SciPy's reader neither unpickles nor runs anything; what a small file unpacks to is limited
    before it sees the file.

    Raises:
        DataError: If the file cannot be read, or has no such array of whole numbers.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]  # SBD alone needs it

    fix = "fetch the file again (SBD's are MATLAB files of version 5)"
    try:
        _refuse_bombs(read_bytes(path, MAX_MAT_FILE, DataError), path)
        content = loadmat(path, variable_names=["GTcls"], struct_as_record=True)
        values = content["GTcls"][0, 0]["Segmentation"]
        values = values[0, 0] if values.dtype == object else values
    except DataError:
        raise
    except Exception as error:  # SciPy raises almost any type on damaged files
        raise DataError(
            f"{path}: GTcls.Segmentation cannot be read ({type(error).__name__}: {error}); {fix}"
        ) from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "uif":
        raise DataError(f"{path}: GTcls.Segmentation is no matrix of numbers; {fix}")
    whole = values.astype(np.int64)
    if values.dtype.kind == "f" and not (whole == values).all():
        raise DataError(f"{path}: GTcls.Segmentation has numbers that are not whole; {fix}")
    return whole


def _refuse_bombs(content: bytes, path: Path) -> None:
    """Refuse other formats, and unpack each compressed element up to a limit."""
    if not content.startswith(b"MATLAB 5.0 MAT-file"):
        raise DataError(f"{path}: is not a MATLAB file of version 5 to 7; save it with -v7")
    order = "<" if content[126:128] == b"IM" else ">"
    place = _HEADER
    while place + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        if kind == _COMPRESSED:
            unpacking = zlib.decompressobj()
            packed = content[place + 8 : place + 8 + length]
            element = unpacking.decompress(packed, MAX_MAT_CONTENT)
            if unpacking.unconsumed_tail:
                raise DataError(f"{path}: unpacks to more than {MAX_MAT_CONTENT} bytes; remove it")
            _check_tags(element, order, path)
        else:
            _check_tags(content[place : place + 8 + length], order, path)
        place += 8 + length


def _check_tags(element: bytes, order: str, path: Path) -> None:
    """Refuse codes of types and classes that SciPy would look up beyond the end of its tables.

    Elements are looked at in the order in which SciPy reads them: a matrix is a tag and, behind it,
    the elements in it ("MAT-File Format", MathWorks, section "Data Element Format").
    """
    place = 0
    while place + 8 <= len(element):
        kind, length = struct.unpack_from(f"{order}II", element, place)
        if kind >> 16:  # four bytes at most, in the tag itself
            kind, length, step = kind & 0xFFFF, 0, 8
        else:
            step = 8 if kind == _MATRIX else 8 + length + -length % 8
        is_matrix = kind == _MATRIX and length > 0
        # The class is the lowest byte of the flags, which have a tag of their own.
        flags = struct.unpack_from(f"{order}I", element[place + 16 : place + 20].ljust(4, b"\0"))[0]
        if kind not in _TYPES or (is_matrix and flags & 0xFF not in _CLASSES):
            raise DataError(f"{path}: is damaged at byte {place} of an element; fetch it again")
        if is_matrix and flags & 0xFF in _CONTAINERS:
            count = prod(_read_sizes(element[place + 24 : place + 160], order))
            if count > MAX_MAT_CELLS:
                raise DataError(
                    f"{path}: promises {pluralize(count, 'cell')} or structs in one array at byte "
                    f"{place} of an element; {MAX_MAT_CELLS} are read, fetch it again"
                )
        place += step


def _read_sizes(element: bytes, order: str) -> list[int]:
    """Read an array's sizes, of which SciPy takes 32, from the element that holds them."""
    kind, length = struct.unpack_from(f"{order}II", element.ljust(8, b"\0"))
    start, length = (4, min(kind >> 16, 4)) if kind >> 16 else (8, length)
    values = element[start : start + length]
    return [abs(size) for (size,) in struct.iter_unpack(f"{order}i", values[: len(values) & ~3])]
