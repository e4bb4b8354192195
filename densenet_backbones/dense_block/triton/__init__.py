"""Triton kernels of dense blocks on NVIDIA GPUs: folded ones, and units and passes of training.

They are off by default: see `backends`. Those of training are in `triton_training`. All are tested
in Triton's interpreter and compiled for compute capability 8.0 and 9.0. They were never run on a
GPU, let alone timed.

Ask `is_usable` (or `explain_unavailability`) before anything else here is called: it says why not
where Triton or the GPU is missing, and importing this package needs neither.
"""

from densenet_backbones.dense_block.triton.availability import explain_unavailability, is_usable
from densenet_backbones.dense_block.triton.block import run_folded_kernels, run_layer
from densenet_backbones.dense_block.triton.launch import convolve_1x1, convolve_3x3, run_fused_layer

__all__ = [
    "convolve_1x1",
    "convolve_3x3",
    "explain_unavailability",
    "is_usable",
    "run_folded_kernels",
    "run_fused_layer",
    "run_layer",
]
