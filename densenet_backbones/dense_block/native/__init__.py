"""C++ kernels on a CPU: folded dense blocks and transitions, and, in float32, passes of training.

The source is compiled by the machine's own compiler the first time it is needed, in seconds, and
kept in the user's cache. Ask `usable` (or `why_unavailable`) before anything else here is called.
"""

from densenet_backbones.dense_block.native.availability import has_bfloat16, usable, why_unavailable
from densenet_backbones.dense_block.native.block import fill_block, run_transition

__all__ = ["fill_block", "has_bfloat16", "run_transition", "usable", "why_unavailable"]
