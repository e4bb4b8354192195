"""Folded dense blocks run by definition and by the C++ kernels."""

import math

import torch
import torch.nn.functional as F

from densenet_backbones.dense_block.interfaces import allocate_channels_last
from densenet_backbones.dense_block.native.block import fill_block


def block_by_definition(x, layers, ceiling):
    """The layers one by one with plain operators, in float64."""
    x = x.double()
    for scale, shift, *convs in layers:
        y = (x * scale[:, None, None] + shift[:, None, None]).clamp(0.0, ceiling)
        *squeeze, weight, bias = (tensor.double() for tensor in convs)
        if squeeze:
            y = F.conv2d(y, squeeze[0].t()[..., None, None], squeeze[1]).clamp(0.0, ceiling)
        x = torch.cat([x, F.conv2d(y, weight, bias, padding=1)], 1)
    return x


def run_native_block(x, layers, ceiling=math.inf):
    """The same by the C++ kernels; what they leave out stays NaN."""
    buffer = allocate_channels_last(x, x.shape[1] + sum(len(layer[-1]) for layer in layers))
    buffer.fill_(math.nan)
    buffer[:, : x.shape[1]] = x
    fill_block(buffer, x.shape[1], layers, ceiling)
    return buffer
