"""Tells if the Triton kernels can run on a device, and if not, why."""

import importlib.util
import os
import warnings
from functools import lru_cache

import torch

__all__ = ["explain_unavailability", "is_usable"]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def explain_unavailability(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """Return why the kernels cannot run there, as the end of a sentence; None if they can.

    With ``TRITON_INTERPRET=1`` in the environment before the first call they run on a CPU, in
    Triton's interpreter, which is for tests: it is slower than anything else.

    Args:
        device: Device of the maps.
        dtype: Type of the maps.
    """
    if dtype not in _DTYPES:
        return f"they compute in bfloat16, float16 or float32, not {dtype}"
    if not _has_triton():
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"they are written for NVIDIA GPUs, and the maps are on {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"they need compute capability 8.0 or newer, and {device} has {major}.{minor}"
    return None


def is_usable(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Return True if the kernels can run there; if not, one warning for each reason says why."""
    reason = explain_unavailability(device, dtype)
    if reason is not None:
        _warn(reason)
    return reason is None


@lru_cache
def _has_triton() -> bool:  # asked in every forward, while modules do not come and go
    return importlib.util.find_spec("triton") is not None


@lru_cache
def _warn(reason: str) -> None:
    warnings.warn(f"dense blocks run without their Triton kernels: {reason}", stacklevel=3)
