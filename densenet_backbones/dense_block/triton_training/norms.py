"""Starts the Triton kernels for a norm's vectors.

Batch norm and its gradient are those of Ioffe and Szegedy (1502.03167, section 3).

Plain operators are seven launches forward and thirteen backward for each norm, of so few numbers
that to start them may take longer than to run them. Here it is one forward and two backward, as the
map is made again there; and one more where there are very many sums. None of this was ever run on a
GPU.

Shapes: C channels, R rows of sums. Vectors are (C,) without gaps; all is computed in float32,
whatever they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["compute_norm_gradients", "make_affine", "reduce_rows"]

# Sums of more rows are added up by PyTorch first, which splits rows among programs too.
_MOST_ROWS = 256
_BLOCK = {"BLOCK_R": 64, "BLOCK_C": 16}  # few channels, as there must be several programs


def make_affine(
    moments: tuple[Tensor, Tensor],
    parameters: Sequence[Tensor | None],
    eps: float,
    running: tuple[Tensor, Tensor] | None = None,
    momentum: float = 0.0,
    correction: float = 1.0,
) -> tuple[Tensor, ...]:
    """Make a norm a map, and mix its statistics into the running ones.

    Args:
        moments: Mean and biased variance.
        parameters: Weight, None for 1, and bias, None for 0.
        eps: Added to the variance.
        running: Mean and variance that ``moments`` are mixed into, in place; None if they are not.
        momentum: Share of ``moments`` in that.
        correction: Factor that makes the variance unbiased.

    Returns:
        Scale, shift and 1 / std, (C,) each, in float32.
    """
    from densenet_backbones.dense_block.triton_training.norms_kernel import affine_kernel

    mean, var = moments
    out = mean.new_empty(3, len(mean), dtype=torch.float32)
    kernel: Any = affine_kernel
    kernel[(-(-len(mean) // 128),)](
        *(mean, var, *parameters, *(running or (None, None)), out, len(mean)),
        *(float(eps), float(momentum), float(correction)),
        BLOCK_C=128,
    )
    for vector in running or ():
        # As operators in place do: autograd refuses to go back through what it kept of the old.
        torch.autograd.graph.increment_version(vector)
    return out.unbind()


def reduce_rows(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Split two sums over parts of a map, (parts, 2, C), into (R, C) each, of few rows R."""
    if len(sums) > _MOST_ROWS:
        sums = sums.sum(0, keepdim=True)
    return sums[:, 0], sums[:, 1]


def compute_norm_gradients(
    sums: tuple[Tensor, Tensor],
    mean: Tensor,
    scale: Tensor,
    inverse_std: Tensor,
    share: float,
    parameters: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute gradients from a norm's two sums, added up in an order that never changes.

    Args:
        sums: Sums of the gradient of the norm's output, and of that weighted by its input: (C,),
            or (R, C) in rows to be added up, at equal distances.
        mean: Mean that the norm subtracted, (C,).
        scale: Scale of the norm as a map, (C,).
        inverse_std: 1 / std that the norm multiplied by, (C,).
        share: One over the number of values that the statistics are of; 0 where these are
            constants.
        parameters: Weight and bias, each None if its gradient is not asked for.

    Returns:
        ``UnitGradient.linear``, (2, C), in float32, and the gradients of the parameters, in theirs.
    """
    from densenet_backbones.dense_block.triton_training.norms_kernel import norm_gradients_kernel

    summed, weighted = (s.view(1, -1) if s.dim() == 1 else s for s in sums)
    rows, channels = summed.shape
    linear = mean.new_empty(2, channels, dtype=torch.float32)
    of_weight, of_bias = (None if p is None else torch.empty_like(p) for p in parameters)
    kernel: Any = norm_gradients_kernel
    kernel[(-(-channels // _BLOCK["BLOCK_C"]),)](
        *(summed, weighted, mean, scale, inverse_std, linear, of_weight, of_bias),
        *(rows, channels, summed.stride(0), float(share)),
        **_BLOCK,
    )
    return linear, of_weight, of_bias
