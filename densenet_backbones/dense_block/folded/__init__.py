"""Dense blocks, transitions and convolutions in evaluation, from folded weights.

All of them compute what the trained parts do; `deploy` makes them.
"""

from densenet_backbones.dense_block.folded.convolution import FoldedConv2d
from densenet_backbones.dense_block.folded.layers import (
    FoldedLayer,
    find_folded_change,
    run_folded,
    run_folded_compiled,
)
from densenet_backbones.dense_block.folded.operators import is_recorded
from densenet_backbones.dense_block.folded.transition import (
    FoldedMaxPool2d,
    FoldedTransition,
    ScaleShift,
)

__all__ = [
    "FoldedConv2d",
    "FoldedLayer",
    "FoldedMaxPool2d",
    "FoldedTransition",
    "ScaleShift",
    "find_folded_change",
    "is_recorded",
    "run_folded",
    "run_folded_compiled",
]
