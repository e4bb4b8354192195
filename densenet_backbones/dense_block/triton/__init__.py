"""Triton kernels of dense blocks on NVIDIA GPUs: folded ones, and units and passes of training.

They are off by default: see `backends`. Those of training are in `triton_training`. All are tested
in Triton's interpreter and compiled for compute capability 8.0 and 9.0. They were never run on a
GPU, let alone timed.

Ask `is_usable` (or `why_unavailable`) before anything else here is called: it says why not where
Triton or the GPU is missing, and importing this package needs neither.
"""

from densenet_backbones.dense_block.triton.availability import is_usable, why_unavailable
from densenet_backbones.dense_block.triton.block import run_folded_kernels, run_layer
from densenet_backbones.dense_block.triton.launch import conv3x3, fused_layer, pointwise

__all__ = [
    "conv3x3",
    "fused_layer",
    "is_usable",
    "pointwise",
    "run_folded_kernels",
    "run_layer",
    "why_unavailable",
]
