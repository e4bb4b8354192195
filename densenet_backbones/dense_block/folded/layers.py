"""Inference of a dense block from folded weights, in one buffer that every layer writes into.

A dense block is that of Huang et al. (1608.06993, section 3); that its layers can share one buffer
is the idea of Pleiss et al. (1707.06990).

The norm in front of a layer cannot go into a convolution, as every layer norms the concatenation
anew: it becomes one scale and shift. The norm behind a bottleneck's convolution goes into that
convolution. Maps lie channels last, so that the first C channels of the buffer are a matrix of
cells, which a layer reads where it is.

Shapes: N images, C channels of the concatenation, B of the bottleneck, k new maps, H and W pixels,
M = N * H * W cells.

Blocks with ReLU or ReLU6 run in kernels of our own where those can run: see `backends`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.dense_block.backends import fill_in_kernels
from densenet_backbones.dense_block.folded.convolution import (
    ONEDNN,
    FoldedConv2d,
    LayoutCache,
    is_for_onednn,
)
from densenet_backbones.dense_block.folded.operators import LIBRARY
from densenet_backbones.dense_block.interfaces import (
    allocate_channels_last,
    has_hooks,
    has_own_methods,
    read_relu_ceiling,
)
from densenet_backbones.dense_block.plain import run_plain

__all__ = [
    "FoldedLayer",
    "find_folded_change",
    "run_folded",
    "run_folded_compiled",
]


class FoldedLayer(LayoutCache, nn.Module):
    """A dense layer in evaluation: act(scale * x + shift), 1x1, act, 3x3; no 1x1, no bottleneck.

    Nothing in it learns. Called on the concatenation it returns the new maps, like the layer that
    it stands for; `run_folded` runs a block of them in one buffer.

    Args:
        scale: Scale of the first norm, (C,).
        shift: Shift of the first norm, (C,).
        squeeze: Weight, (C, B), and bias, (B,), of the 1x1 convolution with the second norm in it;
            None without bottleneck.
        conv: The 3x3 convolution.
        act: The activation behind either norm.
    """

    def __init__(
        self,
        scale: Tensor,
        shift: Tensor,
        squeeze: tuple[Tensor, Tensor] | None,
        conv: FoldedConv2d,
        act: nn.Module,
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.shift = nn.Parameter(shift, requires_grad=False)
        self.bottleneck = squeeze is not None
        if squeeze is not None:
            self.weight = nn.Parameter(squeeze[0], requires_grad=False)
            self.bias = nn.Parameter(squeeze[1], requires_grad=False)
        self.conv = conv
        self.act = act
        self._layouts = {}

    def forward(self, x: Tensor) -> Tensor:
        """Compute new maps, (N, k, H, W), from the concatenation, (N, C, H, W)."""
        scale, shift = self.scale[:, None, None], self.shift[:, None, None]
        x = self.act(torch.addcmul(shift, x, scale).to(x.dtype))
        if self.bottleneck:
            # Under autocast maps have another type than weights.
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            x = self.act(F.conv2d(x, weight.t()[..., None, None], bias))
        return cast(Tensor, self.conv(x))

    def squeeze(self, cells: Tensor) -> Tensor:
        """Compute the activated bottleneck of cells, (M, C) to (M, B)."""
        if not is_for_onednn(cells):
            weight, bias = self.weight.to(cells.dtype), self.bias.to(cells.dtype)
            return _squeeze(weight, bias, _work_in_place(self.act), cells)

        def lay_out() -> tuple[Tensor, Tensor]:
            weight = self.weight.to(cells.dtype).t().contiguous()
            return ONEDNN._reorder_linear_weight(weight, None), self.bias.to(cells.dtype)

        weights = self.get_laid_out(cells.dtype, (self.weight, self.bias), lay_out)
        fused = "relu" if type(self.act) is nn.ReLU else "none"
        out: Tensor = ONEDNN._linear_pointwise(cells, *weights, fused, [], "")
        return out if fused == "relu" else self.act(out)

    def make_step(self) -> "_Step":
        """Return the layer as `run_folded` runs it."""
        squeeze = self.squeeze if self.bottleneck else None
        act = _work_in_place(self.act)
        return _Step(self.scale, self.shift, act, squeeze, self.conv, self.conv.out_channels)

    def takes(self, channels: int) -> bool:
        """Return True if all tensors of the layer are made for so many channels, C."""
        sizes, convolved = [self.scale.shape, self.shift.shape], channels
        if self.bottleneck:
            convolved = len(self.bias)
            if self.weight.shape != (channels, convolved):
                return False
        kernel, bias = self.conv.list_tensors()
        new = (self.conv.out_channels,)
        fits = kernel.shape[:2] == (*new, convolved) and bias.shape == new
        return fits and all(size == (channels,) for size in sizes)

    def list_tensors(self) -> list[Tensor]:
        """Return scale and shift, then weights and biases in order of use: `LayerWeights`."""
        squeeze = [self.weight, self.bias] if self.bottleneck else []
        return [self.scale, self.shift, *squeeze, *self.conv.list_tensors()]


def find_folded_change(layer: nn.Module, name: str) -> str | None:
    """Return which part of a folded layer was changed since it was folded; None if none was.

    Args:
        layer: A `FoldedLayer`, or what was put in its place.
        name: Its name, with which the sentence begins.
    """
    if type(layer) is not FoldedLayer:
        return f"{name} is a {type(layer).__name__}"
    if type(layer.conv) is not FoldedConv2d:
        return f"{name}.conv is a {type(layer.conv).__name__}"
    for part, module in ((name, layer), (f"{name}.act", layer.act), (f"{name}.conv", layer.conv)):
        if has_hooks(module):
            return f"{part} carries hooks"
        if has_own_methods(module):
            return f"{part} has a forward of its own"
    return None


def _work_in_place(act: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return ``act``, as a function that overwrites its input if it is ReLU or ReLU6."""
    ceiling = read_relu_ceiling(act)
    return act if ceiling is None else partial(torch.clamp_, min=0.0, max=ceiling)


def _squeeze(
    weight: Tensor, bias: Tensor, act: Callable[[Tensor], Tensor], cells: Tensor
) -> Tensor:
    return act(torch.addmm(bias, cells, weight))


class _Step(NamedTuple):
    """A layer as a step of filling the buffer.

    Attributes:
        scale: Scale of the first norm, (C,), of the maps' type or, under autocast, a longer one.
        shift: Shift of the first norm, (C,), likewise.
        act: The activation behind them; it may work in place.
        squeeze: Activated cells of the bottleneck, (M, B), from those of the concatenation.
        conv: New maps, (N, k, H, W), from what the 3x3 reads.
        new: Number of new maps, k.
    """

    scale: Tensor
    shift: Tensor
    act: Callable[[Tensor], Tensor]
    squeeze: Callable[[Tensor], Tensor] | None
    conv: Callable[[Tensor], Tensor]
    new: int


def run_folded(x: Tensor, layers: Sequence[FoldedLayer]) -> Tensor:
    """Run a block in one buffer: no concatenation, and nothing but new maps is written to it.

    No gradients: layers write in place.

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Layers in order; each reads what all before it made.

    Returns:
        What `run_plain` returns, (N, C + sum of k, H, W), channels last.
    """
    buffer = _make_buffer(x, sum(layer.conv.out_channels for layer in layers))
    ceiling, dilation = _read_ceiling(layers), layers[0].conv.dilation[0]
    if ceiling is not None:
        tensors = [layer.list_tensors() for layer in layers]
        if fill_in_kernels(buffer, x.shape[1], tensors, dilation, ceiling):
            return buffer
    return _fill(buffer, x.shape[1], [layer.make_step() for layer in layers])


def _read_ceiling(layers: Sequence[FoldedLayer]) -> float | None:
    """Return the value at which the activations of all layers cut off; None if they differ."""
    first, *others = [read_relu_ceiling(layer.act) for layer in layers]
    same = all(other == first for other in others)
    dilations = {layer.conv.dilation for layer in layers}
    return first if same and len(dilations) == 1 else None


def _make_buffer(x: Tensor, new: int) -> Tensor:
    buffer = allocate_channels_last(x, x.shape[1] + new)
    buffer[:, : x.shape[1]] = x
    return buffer


def _fill(buffer: Tensor, channels: int, steps: Sequence[_Step]) -> Tensor:
    images, total, height, width = buffer.shape
    cells = buffer.permute(0, 2, 3, 1).view(-1, total)
    # The normed maps of all layers use the same memory, which stays in the caches.
    scratch = buffer.new_empty(len(cells) * (total - steps[-1].new))
    for step in steps:
        normed = scratch[: len(cells) * channels].view(-1, channels)
        torch.addcmul(step.shift, cells[:, :channels], step.scale, out=normed)
        read = step.act(normed)
        if step.squeeze is not None:
            read = step.squeeze(read)
        new = step.conv(read.view(images, height, width, -1).permute(0, 3, 1, 2))
        buffer[:, channels : channels + step.new] = new
        channels += step.new
    return buffer


def run_folded_compiled(x: Tensor, layers: Sequence[FoldedLayer]) -> Tensor:
    """Run `run_folded` as one operation for ``torch.compile``, which then has little to compile.

    Blocks with other activations than ReLU and ReLU6 are compiled as `run_plain` runs them.
    """
    ceiling = _read_ceiling(layers)
    if ceiling is None:
        return run_plain(x, layers)
    tensors = [tensor for layer in layers for tensor in layer.list_tensors()]
    dilation = layers[0].conv.dilation[0]
    result: Tensor = torch.ops.densenet_backbones.folded_block(
        x, tensors, len(layers), dilation, ceiling
    )
    return result


def _run_folded_block(
    x: Tensor, tensors: Sequence[Tensor], layers: int, dilation: int, ceiling: float
) -> Tensor:
    act = partial(torch.clamp_, min=0.0, max=ceiling)

    def step(scale: Tensor, shift: Tensor, *convs: Tensor) -> _Step:
        *squeeze, weight, bias = (tensor.to(x.dtype) for tensor in convs)
        conv = partial(F.conv2d, weight=weight, bias=bias, padding=dilation, dilation=dilation)
        narrow = partial(_squeeze, squeeze[0], squeeze[1], act) if squeeze else None
        return _Step(scale, shift, act, narrow, conv, len(bias))

    each = len(tensors) // layers
    split = [tensors[i : i + each] for i in range(0, len(tensors), each)]
    buffer = _make_buffer(x, sum(len(bias) for *_, bias in split))
    if fill_in_kernels(buffer, x.shape[1], split, dilation, ceiling):
        return buffer
    return _fill(buffer, x.shape[1], [step(*part) for part in split])


def _allocate_block_output(
    x: Tensor, tensors: Sequence[Tensor], layers: int, dilation: int, ceiling: float
) -> Tensor:
    each = len(tensors) // layers
    return allocate_channels_last(
        x, x.shape[1] + sum(len(bias) for bias in tensors[each - 1 :: each])
    )


LIBRARY.define(
    "folded_block(Tensor x, Tensor[] tensors, int layers, int dilation, float ceiling) -> Tensor"
)
LIBRARY.impl("folded_block", _run_folded_block, "CompositeExplicitAutograd")
torch.library.register_fake("densenet_backbones::folded_block", _allocate_block_output)
