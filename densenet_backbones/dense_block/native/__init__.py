"""C++ kernels on a CPU, in float32 and bfloat16: of deployed nets, and of training.

The source is compiled by the machine's own compiler the first time it is needed, in seconds, and
kept in the user's cache. Ask `is_usable` (or `explain_unavailability`) before anything else here is
called.
"""

from densenet_backbones.dense_block.native.availability import (
    explain_unavailability,
    get_vector_bits,
    has_bfloat16,
    has_bfloat16_tiles,
    is_usable,
    run_multiply_adds,
)
from densenet_backbones.dense_block.native.block import (
    fill_block,
    run_convolution,
    run_transition,
)

__all__ = [
    "explain_unavailability",
    "fill_block",
    "get_vector_bits",
    "has_bfloat16",
    "has_bfloat16_tiles",
    "is_usable",
    "run_convolution",
    "run_multiply_adds",
    "run_transition",
]
