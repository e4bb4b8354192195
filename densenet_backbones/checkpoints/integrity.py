"""Check that a file of weights is whole, and that its tensors are what they claim to be.

Nothing here trusts a file: a kilobyte of pickle can stand for a tensor of terabytes (one value with
stride 0, a sparse tensor, one on the meta device), a compressed archive for gigabytes of zeros.

Damage is noticed in files of torch (zip) by the checksum of each record, which torch writes and
does not read, and in safetensors files of this package by the digest of each tensor.
"""

import hashlib
import json
import mmap
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_TENSORS, MAX_WEIGHTS_HEADER
from densenet_backbones.untrusted.reading import parse_json

__all__ = [
    "check_safetensors_header",
    "check_size_of_content",
    "check_torch_file",
    "compute_digests",
    "list_tensors",
    "refuse_damaged",
    "refuse_unusable",
]

DIGESTS = "densenet_backbones.digests"
"""Entry of a safetensors file's metadata: digest of each tensor, and of the other metadata."""

_FIX = "fetch or copy the file again, or take an earlier one"
_SHARED = 8  # times the file's bytes: tensors of one file may share storage, as tied weights do
_SLACK = 2**20  # bytes
_PIECE = 2**20  # bytes read at once
_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_LEARNED = (".weight", ".bias", ".running_mean", ".running_var")
_IS_FOLDER = 0x10  # MS-DOS's: torch reads nothing of such a record, and returns what memory held
_FILLED = b"\nbytearray\n"  # as a pickle names the type, which takes any size in five bytes


# ------------------------------------------------------------------------------ before reading


def check_safetensors_header(path: Path) -> None:
    """Refuse a header so long that parsing it takes gigabytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_WEIGHTS_HEADER:
        raise CheckpointError(
            f"{path}: it is no file of weights, or damaged (its header would have {length} bytes, "
            f"and at most {MAX_WEIGHTS_HEADER} are read); give a file written by safetensors"
        )


def check_torch_file(path: Path, is_zip: bool) -> list[str]:
    """Refuse files of torch that stand for more bytes than they have.

    Returns:
        Names of the records whose checksum is wrong; empty where torch wrote none.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_FILLED) >= 0:
            raise CheckpointError(
                f"{path}: it holds a bytearray, which can be of any size, so it is refused; save "
                "the weights alone with torch.save(model.state_dict(), ...)"
            )
    if not is_zip:
        return []
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        unpacked = sum(record.file_size for record in records)
        if packed or unpacked > path.stat().st_size or len(records) > 4 * MAX_TENSORS:
            raise CheckpointError(
                f"{path}: its archive is compressed or holds more than the file has, as torch.save "
                "never writes it; unpack it and save the weights with torch.save"
            )
        if len({record.filename for record in records}) < len(records):
            raise CheckpointError(f"{path}: its archive has two records of one name; {_FIX}")
        damaged = [record.filename for record in records if not _is_whole(archive, record)]
    # torch can be told to leave checksums out; then none is right.
    return damaged if len(damaged) < len(records) else []


def _is_whole(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    if record.external_attr & _IS_FOLDER:
        return False
    try:
        with archive.open(record) as content:
            while content.read(_PIECE):
                pass
    except zipfile.BadZipFile:  # the checksum, or a header that contradicts the list of contents
        return False
    return True


# ------------------------------------------------------------------------------ after reading


def list_tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """List the tensors in nested lists and mappings with their places, in the order of the file."""
    seen: set[int] = set()  # of containers: a pickle can hold one in itself, or in many places
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Tensor):
            yield place, value
        if not isinstance(value, dict | list | tuple | set) or id(value) in seen:
            continue
        seen.add(id(value))
        pairs = dict.items(value) if isinstance(value, dict) else enumerate(value)
        inner = [(f"{place}.{key!s:.200}" if place else f"{key!s:.200}", one) for key, one in pairs]
        waiting.extend(reversed(inner))


def check_size_of_content(content: object, path: Path, *, allow_meta: bool = False) -> None:
    """Refuse tensors that stand for more than the file holds, or are no plain arrays.

    Args:
        content: What was read from the file.
        path: The file.
        allow_meta: True where the reader asked for tensors without values.
    """
    most = _SHARED * path.stat().st_size + _SLACK
    total = 0
    for count, (place, value) in enumerate(list_tensors(content)):
        # Of attributes that a pickle may give a tensor, some would stand where methods are called.
        hidden = [name for name in vars(value) if hasattr(Tensor, name)]
        if (
            value.layout != torch.strided
            or value.is_quantized
            or value.is_nested
            or (value.is_meta and not allow_meta)
            or hidden
        ):
            raise CheckpointError(
                f"{path}: {place or 'its tensor'} is no plain tensor (sparse, quantized, nested, "
                "or without values); save it dense with torch.save(model.state_dict(), ...)"
            )
        total += value.numel() * value.element_size()
        if total > most or count >= 4 * MAX_TENSORS:
            raise CheckpointError(
                f"{path}: its tensors up to {place or 'the first'} stand for {total} bytes, more "
                f"than a file of {path.stat().st_size} bytes can hold (expanded tensors?); save "
                "copies with tensor.clone()"
            )


def refuse_damaged(records: list[str], content: object, path: Path) -> None:
    """Refuse a file whose checksums are wrong; names the first tensor.

    Args:
        records: From `check_torch_file`.
        content: What was read from the file, or None if that failed.
        path: The file.
    """
    if not records:
        return
    # torch numbers the storages as it meets them.
    names: dict[int, str] = {}
    for place, tensor in list_tensors(content):
        names.setdefault(tensor.untyped_storage()._cdata, place)
    numbered = dict(enumerate(names.values()))
    number = records[0].rpartition("/data/")[2]
    what = numbered.get(int(number)) if number.isdecimal() and len(number) < 9 else None
    raise CheckpointError(
        f"{path}: it is damaged: {what or f'its record {records[0][:200]!r}'} is not what was "
        f"written (its checksum is wrong); {_FIX}"
    )


def refuse_unusable(weights: Mapping[str, Tensor], path: Path | str) -> None:
    """Refuse weights to compute with: no floating-point numbers, not finite, variances below 0.

    Args:
        weights: Parameters and buffers by name.
        path: The file they come from.

    Raises:
        CheckpointError: Names the file, the tensor and the fix.
    """
    for name, value in weights.items():
        if f".{name}".endswith(_LEARNED) and value.dtype not in _FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: {name} is {kind}, not floating point (quantized weights are not read); "
                "give the weights from before they were quantized"
            )
        if value.dtype in _FLOATS and not value.is_meta and not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise CheckpointError(
                f"{path}: {name} has {pluralize(count, 'value')} of NaN or infinity, so the "
                "model would compute nothing; take an earlier file, or train again with a lower "
                "learning rate"
            )
        if name.endswith("running_var") and not value.is_meta and (value < 0).any():
            raise CheckpointError(
                f"{path}: {name} has variances below 0, whose square root is NaN; {_FIX}"
            )


# ------------------------------------------------------------------------------ digests


def compute_digests(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Compute what the entry `DIGESTS` holds: JSON of a digest for each tensor.

    Args:
        weights: Contiguous tensors on the CPU by name.
        metadata: Other entries of the file's metadata, whose digest is the name "".
    """
    others = json.dumps(sorted((k, v) for k, v in metadata.items() if k != DIGESTS))
    digests = {"": _shorten(hashlib.sha256(others.encode()))}
    for name, value in weights.items():
        digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy())  # type: ignore[arg-type]  # an array is a buffer
        digests[name] = _shorten(digest)
    return json.dumps(digests)


def compare_digests(weights: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Refuse a safetensors file that is not what was written; one without digests passes.

    Raises:
        CheckpointError: Names the first tensor that differs.
    """
    if DIGESTS not in metadata:
        return
    try:
        written: Any = parse_json(metadata[DIGESTS])
    except ValueError:
        written = None
    computed: Any = json.loads(compute_digests(weights, metadata))
    if written == computed:
        return
    known = written if isinstance(written, dict) else {}
    differing = [name for name in {**computed, **known} if computed.get(name) != known.get(name)]
    what = differing[0][:200] if differing and differing[0] else "its description"
    raise CheckpointError(
        f"{path}: it is damaged: {what} is not what was written (its digest is another); {_FIX}"
    )


def _shorten(digest: Any) -> str:
    """Return 16 hexadecimal digits: chance changes are found, and headers stay short."""
    return str(digest.hexdigest()[:16])
