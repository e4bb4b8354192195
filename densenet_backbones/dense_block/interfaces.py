"""Contracts between layers, executions and kernels: a dense layer's parts, weights, memory layout.

A dense layer is that of Huang et al. (1608.06993, section 3).

Shapes: N images, C channels of the concatenation, B of the bottleneck, k new maps, H and W pixels.
"""

from collections.abc import Iterator
from math import inf
from typing import NamedTuple, Protocol

from torch import Tensor, nn

__all__ = [
    "DenseLayerLike",
    "LayerWeights",
    "allocate_channels_last",
    "has_hooks",
    "is_in_rows",
    "read_relu_ceiling",
]


class DenseLayerLike(Protocol):
    """A dense layer as executions see it; ``layer(x)`` is ``expand(squeeze(x))``.

    The modules are norm-activation-convolution, once, or twice with a bottleneck.
    """

    @property
    def bottleneck(self) -> bool:
        """True if there is a bottleneck; without one, ``squeeze`` makes the new maps."""

    @property
    def norm1(self) -> nn.Module:
        """Norm of the concatenation."""

    @property
    def relu1(self) -> nn.Module:
        """Activation behind ``norm1``."""

    @property
    def conv1(self) -> nn.Conv2d:
        """The 1x1 to the bottleneck; without one the 3x3 to the new maps."""

    @property
    def norm2(self) -> nn.Module:
        """Norm of the bottleneck, if there is one."""

    @property
    def relu2(self) -> nn.Module:
        """Activation behind ``norm2``."""

    @property
    def conv2(self) -> nn.Conv2d:
        """The 3x3 from the bottleneck to the new maps."""

    @property
    def drop_rate(self) -> float:
        """Probability of a new value to be dropped in training."""

    @property
    def drop_path_rate(self) -> float:
        """Probability of a sample to go without the new maps in training."""

    @property
    def training(self) -> bool:
        """True in training mode."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute new maps, (N, k, H, W), from the concatenation, (N, C, H, W)."""

    def squeeze(self, x: Tensor) -> Tensor:
        """Run norm, activation and first convolution: the concatenation to bottleneck maps."""

    def expand(self, x: Tensor) -> Tensor:
        """Run the rest of the layer: bottleneck maps to new maps."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the layer and everything in it."""


class LayerWeights(NamedTuple):
    """A folded layer with bottleneck as kernels take it: what `FoldedLayer.list_tensors` returns.

    Attributes:
        scale: Scale of the first norm, (C,), of the maps' type or of a longer one.
        shift: Shift of the first norm, (C,), likewise.
        weight1: Weight of the 1x1 convolution, (C, B), of the maps' type.
        bias1: Bias of the 1x1 convolution, (B,).
        weight2: Weight of the 3x3 convolution, (k, B, 3, 3), channels last.
        bias2: Bias of the 3x3 convolution, (k,).
    """

    scale: Tensor
    shift: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


def has_hooks(module: nn.Module) -> bool:
    """Return True if hooks are registered on ``module`` itself; its parts may have their own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def read_relu_ceiling(act: nn.Module) -> float | None:
    """Return the value at which an activation cuts off, beside 0: infinity for ReLU, 6 for ReLU6.

    None for any other activation.
    """
    if isinstance(act, nn.ReLU6):
        return 6.0
    return inf if isinstance(act, nn.ReLU) else None


def is_in_rows(x: Tensor, dense: bool = False) -> bool:
    """Return True if a map is channels last: all of a tensor, or the first channels of a wider one.

    Args:
        x: (N, C, H, W).
        dense: Accept only a map without gaps between pixels.
    """
    _, channels, height, width = x.shape
    stride = channels if dense else x.stride(3)
    return x.stride() == (height * width * stride, 1, width * stride, stride)


def allocate_channels_last(x: Tensor, channels: int) -> Tensor:
    """Allocate a channels-last map, (N, ``channels``, H, W), of the type and device of ``x``."""
    images, _, height, width = x.shape
    return x.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)
