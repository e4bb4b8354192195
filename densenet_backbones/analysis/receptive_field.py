"""Receptive fields of a net's levels: theoretical, from kernels, and effective, by gradients.

The theoretical size: Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks"
(Distill, 2019); the effective one: Luo et al., "Understanding the Effective Receptive Field in Deep
Convolutional Neural Networks" (1701.04128).

Shapes: N images, C channels, H and W pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from timm.layers.blur_pool import BlurPool2d
from torch import Tensor, nn

from densenet_backbones.analysis.feature_reuse import list_sources
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.layers import DenseBlock
from densenet_backbones.pooling import DilatedBlurPool2d, DilatedPool2d

__all__ = ["compute_fields", "measure_effective_fields"]

EDGE = 1 - 0.9545
"""Share of the largest gradient from which a pixel counts: two deviations of a Gaussian, as in the
paper's section 3."""


@dataclass(frozen=True)
class _Field:
    """Side of a cell's receptive field and distance of neighboring cells, in pixels."""

    side: int = 1
    step: int = 1

    def add(self, kernel: int, stride: int, dilation: int = 1) -> "_Field":
        reach = self.side + (kernel - 1) * dilation * self.step
        return _Field(reach, self.step * stride)


def compute_fields(net: DenseFeatureNet) -> dict[str, int]:
    """Compute the side of the theoretical receptive field of each level, in pixels.

    The longest path counts: through every layer of a dense block, unless it was pruned.

    Args:
        net: A feature net; of a layer's tap the field of that layer's concatenation is given.

    Returns:
        Level's name -> side of the square of the image that a cell can depend on; it may be larger
        than the image.
    """
    field = _Field()
    sides: dict[str, int] = {}
    for name in net.feature_names:
        stage = getattr(net, name)
        if isinstance(stage, DenseBlock):
            for layer_name, behind in _walk_block(stage, field):
                sides[f"{name}.{layer_name}"] = behind.side
                field = behind
        else:
            field = _walk(stage, field)
        # A transition's activation lies before its 1x1, which sees no further.
        sides[name] = sides[f"{name}.relu"] = field.side
    return {
        level.name: sides[point] for level, point in zip(net.levels, net.return_layers, strict=True)
    }


def _walk_block(block: DenseBlock, entry: _Field) -> Iterator[tuple[str, _Field]]:
    """Yield each layer's name and the field of the concatenation with its maps."""
    sides = [entry.side]  # of each source
    for number, (name, layer) in enumerate(block.items(), start=1):
        # A layer that was pruned away reads no source, and its zeros see no pixel.
        read = max((sides[source] for source in list_sources(layer, number)), default=0)
        sides.append(_walk(layer, _Field(read, entry.step)).side if read else 0)
        yield name, _Field(max(sides), entry.step)


def _walk(module: nn.Module, field: _Field) -> _Field:
    """Follow the parts of a module, which run in turn."""
    if isinstance(module, DilatedBlurPool2d):
        return field.add(3, 1, module.dilation)
    if isinstance(module, DilatedPool2d):
        return field.add(2, 1, module.dilation)
    if isinstance(module, BlurPool2d):
        return field.add(module.filt_size, module.stride)
    if isinstance(module, nn.Conv2d):
        return field.add(module.kernel_size[0], module.stride[0], module.dilation[0])
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return field.add(_first(module.kernel_size), _first(module.stride))
    for part in module.children():
        field = _walk(part, field)
    return field


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def measure_effective_fields(
    net: nn.Module, size: Sequence[int], images: int = 2, seed: int = 0
) -> list[float]:
    """Measure the side of each returned map's effective receptive field, in pixels.

    The gradient of the central cell, summed over its channels, is taken with respect to random
    images in evaluation mode; pixels count whose gradient is at least `EDGE` of the largest, and
    the side is that of a square of as many pixels. It grows in training, so weights matter.

    Args:
        net: Returns a list of maps, (N, C, h, w).
        size: (C, H, W) of the images.
        images: Number of images, N, over which gradients are averaged.
        seed: Seed of the images.

    Returns:
        One number a map; of a field that is larger than the image the part within.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(images, *size, generator=generator)
    parameter = next(net.parameters())
    batch = batch.to(parameter.device, parameter.dtype).requires_grad_()
    training = {module: module.training for module in net.modules()}
    try:
        with torch.enable_grad():
            maps = cast("list[Tensor]", list(net.eval()(batch)))
            sides = []
            for position, x in enumerate(maps):
                center = x[:, :, x.shape[2] // 2, x.shape[3] // 2].sum()
                keep = position + 1 < len(maps)
                (gradient,) = torch.autograd.grad(center, batch, retain_graph=keep)
                weight = gradient.abs().mean(dim=(0, 1))
                counted = int((weight >= EDGE * weight.max()).sum()) if weight.any() else 0
                sides.append(math.sqrt(counted))
    finally:
        for module, flag in training.items():
            module.training = flag
    return sides
