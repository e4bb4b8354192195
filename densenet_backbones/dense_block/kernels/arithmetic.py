"""What the kernels have in common, in Triton."""

import triton
import triton.language as tl
from triton import knobs

__all__ = ["bounded", "product"]

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def bounded(x, low, high):
    """``torch.clamp``: NaN stays NaN, where the plain maximum of a GPU would hide it."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def product(a, b, precision: tl.constexpr):
    """Matrix product in float32; add it to a sum, and the two become one instruction."""
    if _INTERPRETED:
        # The interpreter keeps a bfloat16 as an integer of the same bits, and multiplies those.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=precision)
