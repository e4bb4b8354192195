"""Executes one dense block from tensors and layers; imports nothing else of the project.

Every mode is a function ``run_<mode>(x, layers, ...) -> Tensor`` that computes what `run_plain`
does: outputs, gradients and batch-norm buffers.
"""

from densenet_backbones.dense_block.checkpointed import Memory, run_checkpointed
from densenet_backbones.dense_block.folded import FoldedLayer, compiled_folded, run_folded
from densenet_backbones.dense_block.folded_conv import FoldedConv2d, is_written_down
from densenet_backbones.dense_block.folded_transition import FoldedTransition, ScaleShift
from densenet_backbones.dense_block.hooks import has_hooks
from densenet_backbones.dense_block.lean import lean_steps, run_lean
from densenet_backbones.dense_block.plain import run_plain
from densenet_backbones.dense_block.shared import SharedMemory, run_shared

__all__ = [
    "FoldedConv2d",
    "FoldedLayer",
    "FoldedTransition",
    "Memory",
    "ScaleShift",
    "SharedMemory",
    "compiled_folded",
    "has_hooks",
    "is_written_down",
    "lean_steps",
    "run_checkpointed",
    "run_folded",
    "run_lean",
    "run_plain",
    "run_shared",
]
