"""Norm, ReLU and convolution of training in the Triton kernels, forward and backward.

Normed maps are made again in the backward pass, as in Pleiss et al. (1707.06990).

No normed copy is made of what is read: each kernel norms and activates it on the way in. None of
this was ever run on a GPU.

It wins nothing where maps are so small that a kernel is started in more time than it runs.

Shapes: N images, C channels in, O channels out, H and W pixels. Maps are channels last, and ``x``
may be the first channels of a wider buffer. Norms are scale and shift, (C,) each.
"""

import torch
from torch import Tensor, nn

from densenet_backbones.dense_block.triton.launch import convolve_1x1, convolve_3x3
from densenet_backbones.dense_block.triton.layout import get_convolution_precision
from densenet_backbones.dense_block.triton_training.gradients import (
    compute_input_gradient,
    compute_weight_gradient,
)

__all__ = ["is_known", "run_unit", "run_unit_backward"]


def is_known(conv: nn.Conv2d) -> bool:
    """Return True if the kernels have this geometry: 1x1, or 3x3 bordered by its dilation."""
    if conv.stride != (1, 1) or conv.groups != 1:
        return False
    if conv.kernel_size == (1, 1):
        return conv.padding == (0, 0)
    (down, right), padding = conv.dilation, conv.padding
    return conv.kernel_size == (3, 3) and down == right and padding == conv.dilation


def run_unit(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
) -> Tensor:
    """Compute ``conv(relu(scale * x + shift))`` with a zero border.

    Args:
        x: (N, C, H, W).
        norm: Scale and shift.
        weight: (O, C, 1, 1) or (O, C, 3, 3); the inputs of the product are rounded to its type.
        bias: (O,), if there is one.
        dilation: Distance of the taps.

    Returns:
        (N, O, H, W), dense, of the weight's type.
    """
    images, _, height, width = x.shape
    out = x.new_empty((images, height, width, len(weight)), dtype=weight.dtype)
    out = out.permute(0, 3, 1, 2)
    precision = get_convolution_precision()
    if weight.shape[2] == 1:
        convolve_1x1(x, *norm, weight[:, :, 0, 0].t(), bias, out, precision=precision)
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)
        convolve_3x3(x, weight, bias, out, norm=norm, dilation=dilation, precision=precision)
    return out


def run_unit_backward(
    gradient: Tensor,
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    weight: Tensor,
    dilation: int = 1,
    needed: bool = True,
    into: Tensor | None = None,
) -> tuple[tuple[Tensor | None, Tensor, Tensor], Tensor | None]:
    """Compute the gradients of `run_unit`.

    Args:
        gradient: Gradient of what `run_unit` returned, (N, O, H, W), of the weight's type.
        x: Input of `run_unit`, (N, C, H, W).
        norm: Scale and shift that it got.
        weight: Weight that it got.
        dilation: Distance of the taps.
        needed: True if the gradient of the weight is asked for.
        into: A map, (N, C, H, W), to which the gradient of the norm's output is added, multiplied
            by the scale.

    Returns:
        The results of `elementwise.mask_and_sum`, and the weight's gradient in float32, or None.
    """
    # Kernels read channels side by side.
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    masked_and_sums = compute_input_gradient(
        gradient, weight, x, norm, dilation=dilation, into=into
    )
    if not needed:
        return masked_and_sums, None
    return masked_and_sums, compute_weight_gradient(
        gradient, x, norm, weight.shape[2], dilation=dilation
    )
