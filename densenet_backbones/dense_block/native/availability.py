"""Tells if the C++ kernels can run on this machine, and if not, why."""

import os
import warnings
from functools import lru_cache

from densenet_backbones.dense_block.native.library import CompilationError, load_library

__all__ = [
    "SWITCH",
    "explain_unavailability",
    "get_vector_bits",
    "has_bfloat16",
    "has_bfloat16_tiles",
    "is_usable",
    "run_multiply_adds",
]

SWITCH = "DENSENET_BACKBONES_NATIVE"


@lru_cache
def explain_unavailability() -> str | None:
    """Return why the kernels cannot run here, as the end of a sentence; None if they can.

    The first call compiles them. ``DENSENET_BACKBONES_NATIVE=0`` in the environment switches them
    off.
    """
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 switches them off"
    try:
        load_library()
    except CompilationError as error:
        return str(error)
    return None


@lru_cache
def is_usable() -> bool:
    """Return True if the kernels can run on this machine; if not, a warning says why, once."""
    reason = explain_unavailability()
    if reason is not None and os.environ.get(SWITCH) != "0":
        warnings.warn(f"dense blocks run without their C++ kernels: {reason}", stacklevel=2)
    return reason is None


@lru_cache
def has_bfloat16() -> bool:
    """Return True if there are kernels for bfloat16 too: on x86 that multiplies its vectors."""
    return is_usable() and bool(load_library().has_bfloat16())


@lru_cache
def has_bfloat16_tiles() -> bool:
    """Return True if these multiply whole tiles of it, as x86 processors with AMX do."""
    return has_bfloat16() and bool(load_library().has_bfloat16_tiles())


def get_vector_bits() -> int:
    """Return the width of the kernels' vectors: 512 with AVX-512, 256 with AVX, else 128."""
    return 32 * int(load_library().lanes())


def run_multiply_adds(rounds: int) -> int:
    """Keep this core's multipliers busy, to measure their speed; return operations done.

    A multiplication and an addition are two operations, also where they are one instruction.
    """
    kernels = load_library()
    kernels.multiply_adds(rounds)
    return 24 * int(kernels.lanes()) * rounds
