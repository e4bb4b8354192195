"""Vectors of batch norm, forward and backward, one kernel where PyTorch starts several, in Triton.

The formulas are those of Ioffe and Szegedy (1502.03167, section 3), as `norms` has them.

Shapes: C channels, R rows of sums. A program takes BLOCK_C channels.
"""

import triton
import triton.language as tl

__all__ = ["affine_kernel", "norm_gradients_kernel"]


@triton.jit
def _read(vector_ptr, c, channels):
    return tl.load(vector_ptr + c, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit
def _write(vector_ptr, c, channels, values):
    tl.store(vector_ptr + c, values.to(vector_ptr.dtype.element_ty), mask=c < channels)


@triton.jit
def affine_kernel(
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    running_mean_ptr,
    running_var_ptr,
    affine_ptr,
    channels,
    eps,
    momentum,
    correction,
    BLOCK_C: tl.constexpr,
):
    """Compute scale, shift and 1 / std, (3, C); mix statistics into the running ones, if any.

    Without a weight it is 1, without a bias 0.
    """
    # The norm as a map: scale = weight / std, shift = bias - mean * scale.
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean, var = _read(mean_ptr, c, channels), _read(var_ptr, c, channels)
    inverse_std = tl.rsqrt(var + eps)
    scale = inverse_std
    if weight_ptr is not None:
        scale *= _read(weight_ptr, c, channels)
    shift = -mean * scale
    if bias_ptr is not None:
        shift += _read(bias_ptr, c, channels)
    _write(affine_ptr, c, channels, scale)
    _write(affine_ptr + channels, c, channels, shift)
    _write(affine_ptr + 2 * channels, c, channels, inverse_std)
    # Mix the statistics into the running ones.
    if running_mean_ptr is not None:
        # Not as a step from the old value, which would be rounded where a momentum of 1 drops it.
        keep = 1.0 - momentum
        mixed = keep * _read(running_mean_ptr, c, channels) + momentum * mean
        _write(running_mean_ptr, c, channels, mixed)
        mixed = keep * _read(running_var_ptr, c, channels) + momentum * correction * var
        _write(running_var_ptr, c, channels, mixed)


@triton.jit
def norm_gradients_kernel(
    summed_ptr,
    weighted_ptr,
    mean_ptr,
    scale_ptr,
    inverse_std_ptr,
    linear_ptr,
    weight_gradient_ptr,
    bias_gradient_ptr,
    rows,
    channels,
    sums_stride,
    share,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute gradients from a norm's two sums, of which there are R rows: see `NormForm.backward`.

    ``share`` is one over the count of values a channel, or 0 where statistics are constants.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    summed = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    weighted = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    # Every BLOCK_R-th row first, then those sums: always in this order.
    for start in range(0, rows, BLOCK_R):
        inside = (start + r < rows)[:, None] & (c < channels)[None, :]
        at = (start + r).to(tl.int64)[:, None] * sums_stride + c[None, :]
        summed += tl.load(summed_ptr + at, mask=inside, other=0.0)
        weighted += tl.load(weighted_ptr + at, mask=inside, other=0.0)
    # The weight's gradient, and the two coefficients that statistics of the batch take.
    total = tl.sum(summed, 0)
    mean, inverse_std = _read(mean_ptr, c, channels), _read(inverse_std_ptr, c, channels)
    correlated = (tl.sum(weighted, 0) - mean * total) * inverse_std
    factor = _read(scale_ptr, c, channels) * share
    slope = factor * correlated * inverse_std
    _write(linear_ptr, c, channels, factor * total - slope * mean)
    _write(linear_ptr + channels, c, channels, slope)
    if weight_gradient_ptr is not None:
        _write(weight_gradient_ptr, c, channels, correlated)
    if bias_gradient_ptr is not None:
        _write(bias_gradient_ptr, c, channels, total)
