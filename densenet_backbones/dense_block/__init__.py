"""Executes one dense block from tensors and layers; imports nothing else of the project.

`modes` runs a block in training, in one of the memory modes; `folded` runs it in evaluation. All
compute what `run_plain` does: outputs, gradients and batch-norm buffers.
"""

from densenet_backbones.dense_block.folded import (
    FoldedConv2d,
    FoldedLayer,
    FoldedMaxPool2d,
    FoldedTransition,
    ScaleShift,
    find_folded_change,
    is_recorded,
    run_folded,
    run_folded_compiled,
)
from densenet_backbones.dense_block.interfaces import (
    DenseLayerLike,
    Role,
    calls_children_in_turn,
    find_change,
    find_layer_change,
    has_hooks,
    has_own_methods,
    list_children,
    warn_eagerly,
)
from densenet_backbones.dense_block.lean import join_lean_steps, run_lean
from densenet_backbones.dense_block.modes import (
    MEMORY_MODES,
    Memory,
    SharedMemory,
    check_memory,
    has_shared_buffer,
    is_known_to_shared,
    rank_modes,
    run_block,
)
from densenet_backbones.dense_block.native.plain_convolutions import use_compiled_convolutions
from densenet_backbones.dense_block.plain import run_plain

__all__ = [
    "MEMORY_MODES",
    "DenseLayerLike",
    "FoldedConv2d",
    "FoldedLayer",
    "FoldedMaxPool2d",
    "FoldedTransition",
    "Memory",
    "Role",
    "ScaleShift",
    "SharedMemory",
    "calls_children_in_turn",
    "check_memory",
    "find_change",
    "find_folded_change",
    "find_layer_change",
    "has_hooks",
    "has_own_methods",
    "has_shared_buffer",
    "is_known_to_shared",
    "is_recorded",
    "join_lean_steps",
    "list_children",
    "rank_modes",
    "run_block",
    "run_folded",
    "run_folded_compiled",
    "run_lean",
    "run_plain",
    "use_compiled_convolutions",
    "warn_eagerly",
]
