"""Arithmetic that all kernels share, in Triton: activation, norm, matrix product."""

import triton
import triton.language as tl
from triton import knobs

__all__ = ["activate", "multiply", "normalize_activate"]

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def activate(x, ceiling):
    """Compute ReLU, or ReLU6 for a ceiling of 6; NaN stays, which a plain maximum would hide."""
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, ceiling, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def normalize_activate(x, scale, shift, ceiling):
    """Norm and activate what a convolution reads, in float32 whatever the maps are."""
    return activate(x.to(tl.float32) * scale + shift, ceiling)


@triton.jit
def multiply(a, b, precision: tl.constexpr):
    """Multiply matrices in float32; add that to a sum, and the two become one instruction."""
    if _INTERPRETED:
        # The interpreter keeps a bfloat16 as an integer of the same bits, and multiplies those.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=precision)
