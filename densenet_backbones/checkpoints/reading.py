"""Reading checkpoint files without running code from them."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

__all__ = ["CheckpointError", "read_checkpoint", "read_state_dict"]

# Where training programs put the weights: Lightning and timm; DETR and others.
_WEIGHT_ENTRIES = ("state_dict", "model")
_PICKLED_NAME = re.compile(r"GLOBAL ([\w.]+)")  # as torch's restricted unpickler reports it


class CheckpointError(ValueError):
    """A checkpoint file is missing, unreadable, unsafe or not what was asked for."""


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> Any:
    """Reads a ``.safetensors`` file, or a torch file that holds tensors and plain values only.

    Args:
        path: File.
        map_location: Device of the tensors.

    Returns:
        What was saved: for safetensors a dictionary of tensors.

    Raises:
        CheckpointError: The file does not exist, cannot be read, or needs unpickling of code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device=str(map_location))
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = _PICKLED_NAME.search(str(error))
        if found:
            raise CheckpointError(
                f"{path}: it holds a pickled {found[1]}, and unpickling it can run any program, so "
                "it is refused; in a place that trusts the file, save the weights alone with "
                "torch.save(model.state_dict(), ...) and give that file"
            ) from error
        raise CheckpointError(
            f"{path}: it is no file of weights, or damaged, or pickled with another protocol than "
            "torch.save's own"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: it is no file of weights, or damaged ({reason}); give a file written by "
            "torch.save(model.state_dict(), ...) or by safetensors"
        ) from error


def read_state_dict(
    path: str | Path, map_location: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Reads weights: a bare state dict, or one under ``state_dict`` or ``model``.

    Args:
        path: File.
        map_location: Device of the tensors.

    Returns:
        Parameter names, as saved, to tensors.

    Raises:
        CheckpointError: As `read_checkpoint`, or the file holds no dictionary of tensors.
    """
    weights = read_checkpoint(path, map_location)
    for entry in _WEIGHT_ENTRIES:
        if isinstance(weights, Mapping) and isinstance(weights.get(entry), Mapping):
            weights = weights[entry]
            break
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(
            f"{path}: it holds no weights but a {type(weights).__name__}; a dictionary from "
            "parameter names to tensors is needed"
        )
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {key!r} is a {type(value).__name__} where a tensor is needed; give "
                f"bare weights, or weights under one of {_WEIGHT_ENTRIES}"
            )
    return dict(weights)
