"""Read checkpoint files without running code from them."""

import pickle
import re
import reprlib
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.hub import locate_file
from densenet_backbones.checkpoints.integrity import (
    check_safetensors_header,
    check_size_of_content,
    check_torch_file,
    compare_digests,
    refuse_damaged,
    refuse_unusable,
)
from densenet_backbones.checkpoints.pickled import ALLOWED
from densenet_backbones.messages import describe_error, describe_missing, pluralize
from densenet_backbones.untrusted.limits import MAX_NAME, MAX_TENSORS

__all__ = [
    "WeightsFile",
    "read_checkpoint",
    "read_metadata",
    "read_state_dict",
    "read_weights_file",
]

# Where training programs put the weights, the usual ones first: Lightning, timm, places365,
# mmengine; DETR; the PyTorch tutorials; CIFAR examples; timm's and others' averaged weights.
_AVERAGED = ("state_dict_ema", "model_ema", "ema")
_WEIGHT_ENTRIES = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "weights",
    *_AVERAGED,
    "module",
)
_DEEPEST = 3
_PICKLED_NAME = re.compile(r"GLOBAL ([\w.]+)")  # as torch's restricted unpickler reports it


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """Weights of a file, and where they were in it.

    Attributes:
        format: ``safetensors``, ``torch (zip)`` or ``torch (legacy)``.
        entry: Entry that holds the weights, ``model.state_dict`` for nested ones; empty for bare
            weights.
        other_entries: Other entries of the file that may hold weights.
        weights: Parameter names, as saved, to tensors.
    """

    format: str
    entry: str
    other_entries: tuple[str, ...]
    weights: dict[str, Tensor]


def _read_format(path: Path) -> str:
    if path.suffix == ".safetensors":
        return "safetensors"
    with path.open("rb") as file:
        # The length of a safetensors header, then its JSON.
        if file.read(9)[8:] == b"{":
            return "safetensors"
    return "torch (zip)" if zipfile.is_zipfile(path) else "torch (legacy)"


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def _load_torch(path: Path, map_location: str | torch.device) -> Any:
    with torch.serialization.safe_globals(ALLOWED):
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except UnicodeDecodeError:  # bytes that Python 2 pickled as text
            with warnings.catch_warnings():
                # torch says that weights_only ignores the encoding, and does not ignore it.
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(
                    path, map_location=map_location, weights_only=True, encoding="latin1"
                )


def _load_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Tensor]:
    check_safetensors_header(path)
    with safetensors.safe_open(path, "pt", device=str(map_location)) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    check_size_of_content(weights, path, allow_meta=True)
    compare_digests(weights, metadata, path)
    return weights


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, texts by name; empty for other files."""
    path = locate_file(path)
    if _read_format(path) != "safetensors":
        return {}
    check_safetensors_header(path)
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> Any:
    """Read a safetensors file, or a torch file that holds tensors and plain values only.

    torch files are read with ``weights_only=True``, always. An `argparse.Namespace` is read
    besides, and a NumPy number becomes a Python number; the module ``pickled`` says why.

    Args:
        path: File, or its name on the Hub; see `locate_file`.
        map_location: Device of the tensors.

    Returns:
        What was saved: for safetensors a dictionary of tensors.

    Raises:
        CheckpointError: The file does not exist, cannot be read, is damaged, needs unpickling of
            code, is a TorchScript archive, or stands for more than it holds.
    """
    path, damaged = locate_file(path), list[str]()
    if not path.is_file():
        raise CheckpointError(describe_missing(path))
    try:
        kind = _read_format(path)
        if kind == "safetensors":
            return _load_safetensors(path, map_location)
        if kind == "torch (zip)" and _is_torchscript(path):
            raise CheckpointError(
                f"{path}: it is a TorchScript archive, which holds a program, so it is refused; in "
                "a place that trusts the file, save the weights alone with "
                "torch.save(torch.jit.load(file).state_dict(), ...) and give that file"
            )
        damaged = check_torch_file(path, kind == "torch (zip)")
        content = _load_torch(path, map_location)
        check_size_of_content(content, path, allow_meta=str(map_location) == "meta")
        refuse_damaged(damaged, content, path)
        return content
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        refuse_damaged(damaged, None, path)
        raise CheckpointError(f"{path}: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    """Explain what is wrong with a file that could not be read, and the fix."""
    pickled = (
        _PICKLED_NAME.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    )
    if pickled:
        return (
            f"it holds a pickled {pickled[1]}, and unpickling it can run any program, so it is "
            "refused; in a place that trusts the file, save the weights alone with "
            "torch.save(model.state_dict(), ...) and give that file"
        )
    if isinstance(error, pickle.UnpicklingError):
        cause = "or pickled otherwise than by torch.save"
    else:
        cause = describe_error(error).partition("\n")[0].partition(". ")[0]  # not torch's advice
    return (
        f"it is no file of weights, or damaged ({cause}); give a file written by "
        "torch.save(model.state_dict(), ...) or by safetensors"
    )


def read_weights_file(
    path: str | Path,
    map_location: str | torch.device = "cpu",
    *,
    entry: str | None = None,
) -> WeightsFile:
    """Read weights: a bare state dict, or one under the entry of a training checkpoint.

    Args:
        path: File.
        map_location: Device of the tensors.
        entry: Entry to read, with dots between nested ones; None for bare weights or the first of
            the usual names: ``state_dict``, ``model``, ``model_state_dict``, ``net``, ``weights``,
            then averaged weights (``state_dict_ema``, ``model_ema``, ``ema``), and ``module``.

    Raises:
        CheckpointError: As `read_checkpoint`, or the file holds no dictionary of tensors there.
    """
    path = locate_file(path)
    content = read_checkpoint(path, map_location)
    taken: list[str] = []
    weights = content
    if entry is None:
        # Bounded: a pickled dictionary can hold itself.
        while len(taken) < _DEEPEST and (names := _find_weight_entries(weights)):
            taken.append(names[0])
            weights = weights[names[0]]
    else:
        taken = entry.split(".") if entry else []
        for name in taken:
            weights = _read_entry(weights, name, path)
    _check_weights(weights, path, bool(taken))
    others = (
        [name for name in _find_weight_entries(content) if name not in taken[:1]] if taken else []
    )
    return WeightsFile(
        _read_format(path), ".".join(taken), tuple(others), dict(dict.items(weights))
    )


def read_state_dict(
    path: str | Path, map_location: str | torch.device = "cpu", *, entry: str | None = None
) -> dict[str, Tensor]:
    """Read weights: a bare state dict, or one under the entry of a training checkpoint.

    A warning says so if averaged weights beside them are not taken, as timm would take those.

    Args:
        path: File.
        map_location: Device of the tensors.
        entry: See `read_weights_file`.

    Returns:
        Parameter names, as saved, to tensors.

    Raises:
        CheckpointError: As `read_weights_file`; or weights are not finite, or no floating-point
            numbers.
    """
    file = read_weights_file(path, map_location, entry=entry)
    refuse_unusable(file.weights, path)
    averaged = [name for name in file.other_entries if name in _AVERAGED]
    if averaged and entry is None:
        warnings.warn(
            f"{path}: the weights of its entry {file.entry!r} are taken, not the averaged ones of "
            f"{averaged[0]!r}; to take those, save that entry as a file of its own",
            stacklevel=2,
        )
    return file.weights


def _find_weight_entries(content: object) -> list[str]:
    """Return the usual entries of weights that the content has."""
    if not isinstance(content, dict):
        return []
    return [name for name in _WEIGHT_ENTRIES if isinstance(dict.get(content, name), dict)]


def _read_entry(content: object, name: str, path: Path) -> object:
    if not isinstance(content, dict) or name not in content:
        known = list(content) if isinstance(content, dict) else []
        has = ", ".join(map(reprlib.repr, known[:8])) or "none"
        raise CheckpointError(f"{path}: there is no entry {name!r} in it; its entries are {has}")
    return content[name]


def _check_weights(weights: object, path: Path, wrapped: bool) -> None:
    if not isinstance(weights, dict) or not weights:
        what = "no weights" if not wrapped else "no weights in that entry"
        raise CheckpointError(
            f"{path}: it holds {what} but a {type(weights).__name__}; a dictionary from "
            "parameter names to tensors is needed"
        )
    if len(weights) > MAX_TENSORS:
        raise CheckpointError(
            f"{path}: it holds {pluralize(len(weights), 'tensor')}, more than the {MAX_TENSORS} "
            "that are read; it is no network's"
        )
    for key, value in dict.items(weights):
        if not isinstance(value, Tensor) or not isinstance(key, str) or len(key) > MAX_NAME:
            raise CheckpointError(
                f"{path}: entry {reprlib.repr(key)} is a {type(value).__name__} where a tensor is "
                f"needed; give bare weights, or weights under one of {_WEIGHT_ENTRIES}"
            )
