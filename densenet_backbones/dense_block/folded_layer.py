"""What is left of a dense layer in evaluation, once its norms are part of its convolutions.

A batch norm's scale s and shift t followed by a ReLU is a clamp: ``relu(s x + t) = s (clamp(x,
theta, inf) - theta)`` for s > 0 and ``s (clamp(x, -inf, theta) - theta)`` for s < 0, with ``theta =
-t / s``. The factor s goes into the columns of the 1x1 behind it, the constant into its bias.

Shapes: C channels before the layer, B bottleneck channels, k new channels.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["FoldedLayer", "FoldedTensors"]


class FoldedLayer(Protocol):
    """A dense layer with bottleneck as two convolutions with clamped inputs.

    ``bottleneck = clamp(weight1 @ clamp(x, low, high) + bias1, mid_low, mid_high)``, then the 3x3
    ``weight2`` with ``padding = dilation``, plus ``bias2``. The padding is of the clamped
    bottleneck, so it is zero and not the clamp of ``bias1``.

    ``low`` and ``high`` are best values of the type that the maps are computed in, rounded before
    ``bias1`` is made of them: then a clamped input and its share of the bias cancel to the bit.
    """

    @property
    def low(self) -> Tensor:
        """Lower bounds of the input, (C,); may be -inf."""

    @property
    def high(self) -> Tensor:
        """Upper bounds of the input, (C,); may be inf."""

    @property
    def weight1(self) -> Tensor:
        """The 1x1, (B, C)."""

    @property
    def bias1(self) -> Tensor:
        """Its bias, (B,)."""

    @property
    def weight2(self) -> Tensor:
        """The 3x3, (k, B, 3, 3); kernels read it fastest when it is channels-last."""

    @property
    def bias2(self) -> Tensor | None:
        """Its bias, (k,), if any."""

    @property
    def dilation(self) -> int:
        """Distance of the taps of the 3x3."""

    @property
    def mid_low(self) -> float:
        """Lower bound of the bottleneck: 0 for ReLU and ReLU6."""

    @property
    def mid_high(self) -> float:
        """Upper bound of the bottleneck: inf for ReLU, 6 for ReLU6."""


@dataclass(frozen=True)
class FoldedTensors:
    """A `FoldedLayer` that is nothing but its values."""

    low: Tensor
    high: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor | None = None
    dilation: int = 1
    mid_low: float = 0.0
    mid_high: float = float("inf")
