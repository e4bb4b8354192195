"""Convolutions in evaluation, from weights that are laid out once.

The calls of oneDNN are those that torch.compile makes on a CPU (pytorch/pytorch,
``torch/_inductor/mkldnn_ir.py`` and ``torch/_inductor/fx_passes/mkldnn_fusion.py``).

Shapes: N images, C channels, H and W pixels.
"""

from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.dense_block import native
from densenet_backbones.dense_block.backends import has_cpp
from densenet_backbones.dense_block.folded.operators import LIBRARY, calls_operators, is_recorded
from densenet_backbones.dense_block.interfaces import (
    TensorState,
    allocate_channels_last,
    has_own_methods,
)

__all__ = ["ONEDNN", "FoldedConv2d", "LayoutCache", "activate", "is_for_onednn"]

ONEDNN: Any = torch.ops.mkldnn  # what torch.compile calls on a CPU

# Sizes of maps whose layouts are kept: a head that all levels share has five or six.
_MOST_LAYOUTS = 6
# Winograd's kernel multiplies fewer times, but transforms what it reads, and reads more weights: it
# pays from so many tiles of 2x2 cells, and channels, on.
_FEWEST_TILES = 4
_FEWEST_CHANNELS = 16


class LayoutCache:
    """Keeps weights as oneDNN lays them out, which it otherwise does in every call.

    They are no part of the state dict, and are made anew after ``to`` and ``load_state_dict``.
    """

    _layouts: dict[Hashable, tuple[TensorState, tuple[Tensor, Tensor]]]

    def get_laid_out(
        self,
        kind: Hashable,
        tensors: Sequence[Tensor],
        lay_out: Callable[[], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Return weight and bias for a kind of maps.

        Args:
            kind: What the layout depends on: type and perhaps shape of the maps.
            tensors: Weight and bias as they are now.
            lay_out: Makes them the first time, and anew when these have changed.
        """
        state, weights = self._layouts.get(kind, (None, None))
        if state is None or weights is None or not state.holds(tensors):
            if len(self._layouts) == _MOST_LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)))
            weights = lay_out()
            self._layouts[kind] = TensorState(tensors), weights
        return weights

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._layouts.clear()
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._layouts.clear()
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, which cannot hold those layouts."""
        return {**self.__dict__, "_layouts": {}}


class FoldedConv2d(LayoutCache, nn.Conv2d):
    """A convolution that does not learn, with other weights than the one it is made of.

    It runs in oneDNN or, where that multiplies less often, in a kernel of our own.

    Args:
        like: Convolution whose geometry it takes.
        weight: Weight, of as many input channels as it is to read.
        bias: Bias, (out channels,).
        ceiling: Value at which its activation cuts off, beside 0: infinity for ReLU, 6 for ReLU6;
            None for no activation.
    """

    def __init__(
        self, like: nn.Conv2d, weight: Tensor, bias: Tensor, ceiling: float | None = None
    ) -> None:
        super().__init__(
            weight.shape[1],
            len(weight),
            (like.kernel_size[0], like.kernel_size[1]),
            (like.stride[0], like.stride[1]),
            like.padding if isinstance(like.padding, str) else (like.padding[0], like.padding[1]),
            (like.dilation[0], like.dilation[1]),
            device="meta",
        )
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.ceiling = ceiling
        self._layouts = {}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and activate, (N, C, H, W) to (N, C', H', W')."""
        if self._is_changed() or is_recorded(x, self.parameters()):
            return activate(super().forward(x), self.ceiling)
        if x.dim() != 4 or x.shape[1] != self.weight.shape[1]:  # which torch's own refuses
            return activate(super().forward(x), self.ceiling)
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))  # which does not know what comes
        if calls_operators(x):
            call = torch.ops.densenet_backbones.folded_convolution
            own = (*self.list_tensors(), self._list_geometry())
            result: Tensor = call(x, *own, self.ceiling)
            return result
        if _is_for_winograd(x, self.weight, self._list_geometry()) and has_cpp(x):
            weight, bias = self.list_tensors()
            return native.run_convolution(x, weight, bias, self.ceiling)
        if not is_for_onednn(x):
            return activate(super().forward(x), self.ceiling)
        geometry = [list(pair) for pair in (self.padding, self.stride, self.dilation)]

        def lay_out() -> tuple[Tensor, Tensor]:
            weight, bias = (tensor.to(x.dtype) for tensor in self.list_tensors())
            return ONEDNN._reorder_convolution_weight(weight, *geometry, 1, list(x.shape)), bias

        # The best layout depends on the size: another one is reordered in every call, which takes
        # far longer than the convolution of a small map.
        weights = self.get_laid_out((x.dtype, x.shape), self.list_tensors(), lay_out)
        fused = "relu" if self.ceiling == inf else "none"
        out: Tensor = ONEDNN._convolution_pointwise(x, *weights, *geometry, 1, fused, [], "")
        return out if fused == "relu" else activate(out, self.ceiling)

    def _is_changed(self) -> bool:
        """Return True if the weight is computed anew in each call, as parametrizations do."""
        is_own = type(self) is FoldedConv2d and not has_own_methods(self)
        return not is_own or not {"weight", "bias"} <= self._parameters.keys()

    def _list_geometry(self) -> list[int]:
        assert not isinstance(self.padding, str)
        return [*self.stride, *self.padding, *self.dilation]

    def list_tensors(self) -> list[Tensor]:
        """Return weight and bias."""
        assert self.bias is not None
        return [self.weight, self.bias]


def activate(x: Tensor, ceiling: float | None) -> Tensor:
    """Activate ``x``; a ceiling of infinity is ReLU, None no activation."""
    if ceiling is None:
        return x
    # Written as ReLU, which exporters know best, where it is one.
    return F.relu(x) if ceiling == inf else x.clamp(0.0, ceiling)


def _is_for_winograd(x: Tensor, weight: Tensor, geometry: Sequence[int]) -> bool:
    # oneDNN multiplies whole tiles of bfloat16 without a transform: 0.5 to 1.1 of the time.
    if x.dtype == torch.bfloat16 and native.has_bfloat16_tiles():
        return False
    plain = weight.shape[2:] == (3, 3) and set(geometry) == {1}
    tiles = len(x) * -(-x.shape[-2] // 2) * -(-x.shape[-1] // 2) if plain else 0
    return tiles >= _FEWEST_TILES and weight.shape[1] >= _FEWEST_CHANNELS


def is_for_onednn(x: Tensor) -> bool:
    """Return True if oneDNN computes on ``x``, at once and without gradients."""
    if torch.compiler.is_compiling() or is_recorded(x):
        return False
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.is_autocast_enabled("cpu") and not _can_compute_in(torch.get_autocast_dtype("cpu")):
        return False
    return _can_compute_in(x.dtype)


def _can_compute_in(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(ONEDNN._is_mkldnn_bf16_supported())
    return dtype == torch.float32  # few processors have float16


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, geometry: list[int], ceiling: float | None
) -> Tensor:
    """Convolve and activate.

    Args:
        x: (N, C, H, W).
        weight: (C', C, height, width).
        bias: (C',).
        geometry: Stride, padding and dilation, two numbers each.
        ceiling: Value at which the activation cuts off, beside 0; None for no activation.

    Returns:
        (N, C', H', W'), channels last.
    """
    if _is_for_winograd(x, weight, geometry) and has_cpp(x):
        return native.run_convolution(x, weight, bias, ceiling)
    out = _convolve_plainly(x, weight.to(x.dtype), bias.to(x.dtype), geometry)
    if ceiling is not None:
        out.clamp_(min=0.0, max=ceiling)
    return out.contiguous(memory_format=torch.channels_last)


def _convolve_plainly(x: Tensor, weight: Tensor, bias: Tensor, geometry: list[int]) -> Tensor:
    return F.conv2d(x, weight, bias, geometry[:2], geometry[2:4], geometry[4:])


def _allocate_output(
    x: Tensor, weight: Tensor, bias: Tensor, geometry: list[int], ceiling: float | None
) -> Tensor:
    out = _convolve_plainly(x, weight.to(x.dtype), bias.to(x.dtype), geometry)
    return allocate_channels_last(out, len(bias))


LIBRARY.define(
    "folded_convolution(Tensor x, Tensor weight, Tensor bias, int[] geometry, float? ceiling)"
    " -> Tensor"
)
LIBRARY.impl("folded_convolution", _convolve, "CompositeExplicitAutograd")
torch.library.register_fake("densenet_backbones::folded_convolution", _allocate_output)
