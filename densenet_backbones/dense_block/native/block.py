"""Runs folded dense blocks, transitions and convolutions in the C++ kernels.

The first two are those of Huang et al. (1608.06993, section 3); 3x3 convolutions are Winograd's,
as Lavin and Gray (1509.09308, section 4.1) have them.

Shapes: N images, C channels, B of a bottleneck, k new maps, H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from densenet_backbones.dense_block.interfaces import TensorState, allocate_channels_last
from densenet_backbones.dense_block.native.library import Layer, load_library
from densenet_backbones.dense_block.native.packing import (
    Packed,
    choose_tile,
    pack,
    transform_winograd,
)

__all__ = ["fill_block", "run_convolution", "run_transition"]


@dataclass(frozen=True)
class _Layer:
    """Packed weights of a dense layer, without ``conv`` of a transition, or ``conv`` alone.

    Attributes:
        norm: Scale and shift of what is read, if there are.
        squeeze: The 1x1 convolution, if there is one.
        conv: The 3x3 convolution, if there is one.
        bottleneck: Number of channels between the two, or 0.
        new: Number of channels that come out.
    """

    norm: tuple[Tensor, Tensor] | None
    squeeze: Packed | None
    conv: Packed | None
    bottleneck: int
    new: int

    def make_struct(self) -> Layer:
        """Return the addresses of its tensors, which hold as long as this object lives."""
        layer = Layer(bottleneck=self.bottleneck, growth=self.new)
        if self.norm is not None:
            layer.scale, layer.shift = (tensor.data_ptr() for tensor in self.norm)
        for number, packed in enumerate((self.squeeze, self.conv), start=1):
            if packed is not None:
                setattr(layer, f"weight{number}", packed.weight.data_ptr())
                setattr(layer, f"bias{number}", packed.bias.data_ptr())
                setattr(layer, f"panels{number}", packed.panels)
                setattr(layer, f"vectors{number}", packed.vectors)
        return layer


class _Weights:
    """Layers as the kernels take them."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self._held = layers
        self.structs = (Layer * len(layers))(*(layer.make_struct() for layer in layers))
        # Packed columns: of 1x1 convolutions, and most of a 3x3
        self.narrow = {layer.squeeze.columns for layer in layers if layer.squeeze}
        self.wide = max(layer.conv.columns if layer.conv else 0 for layer in layers)


def _pack_dense_layer(
    dtype: torch.dtype, tile: int, scale: Tensor, shift: Tensor, *convs: Tensor
) -> _Layer:
    *first, weight, bias = convs
    return _Layer(
        norm=_prepare_norm(scale, shift),
        squeeze=pack(first[0], first[1], dtype) if first else None,
        conv=pack(transform_winograd(weight, tile), bias, dtype),
        bottleneck=len(first[1]) if first else 0,
        new=len(bias),
    )


def _pack_transition(
    dtype: torch.dtype, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor
) -> _Layer:
    squeeze = pack(weight.flatten(1).t(), bias, dtype)
    return _Layer(_prepare_norm(scale.flatten(), shift.flatten()), squeeze, None, 0, len(bias))


def _pack_convolution(dtype: torch.dtype, tile: int, weight: Tensor, bias: Tensor) -> _Layer:
    return _Layer(None, None, pack(transform_winograd(weight, tile), bias, dtype), 0, len(bias))


def _prepare_norm(scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    # Detached: what is kept must not hold the very tensor by which it is kept.
    return scale.detach().float().contiguous(), shift.detach().float().contiguous()


# By the first tensor of a block or transition, with whose end they go, then by type and tile.
_PACKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _get_packed(
    kind: tuple[torch.dtype, int],
    tensors: Sequence[Tensor],
    make: Callable[[], Sequence[_Layer]],
) -> _Weights:
    """Return what ``make`` packs for maps of a kind; packed anew if ``tensors`` have changed."""
    state, packed = _PACKED.get(tensors[0], (None, {}))
    if state is None or not state.holds(tensors):
        packed = {}
        _PACKED[tensors[0]] = TensorState(tensors), packed
    if kind not in packed:
        packed[kind] = _Weights(make())
    weights = packed[kind]
    assert isinstance(weights, _Weights)
    return weights


def fill_block(
    buffer: Tensor, channels: int, layers: Sequence[Sequence[Tensor]], ceiling: float
) -> None:
    """Run a block in place.

    Args:
        buffer: (N, C, H, W), float32 or bfloat16, channels last; its first ``channels`` are the
            block's input.
        channels: Number of input channels.
        layers: For each layer, scale and shift, (C',); with bottleneck weight, (C', B), and bias,
            (B,); weight, (k, B or C', 3, 3), and bias, (k,).
        ceiling: Value at which activations cut off, beside 0.
    """
    tensors, dtype = [tensor for layer in layers for tensor in layer], buffer.dtype
    images, total, height, width = buffer.shape
    tile = choose_tile(height, width, dtype)
    weights = _get_packed(
        (dtype, tile), tensors, lambda: [_pack_dense_layer(dtype, tile, *layer) for layer in layers]
    )
    kernels, threads = load_library(), torch.get_num_threads()
    size, value = (images, height, width), buffer.element_size()
    needed = [kernels.narrow_values(*size, n, value, tile, threads) for n in weights.narrow]
    narrow = buffer.new_empty(max(needed, default=0))
    own = kernels.scratch_floats(max(weights.narrow, default=0), weights.wide, tile)
    scratch = buffer.new_empty(threads * own, dtype=torch.float32)
    kernels.dense_block(
        *(buffer.data_ptr(), value, *size, total, channels),
        *(weights.structs, len(layers), ceiling),
        *(narrow.data_ptr(), scratch.data_ptr(), own, threads, tile),
    )


def run_transition(x: Tensor, tensors: Sequence[Tensor], ceiling: float, *, pool: bool) -> Tensor:
    """Norm and activate cells, average 2x2 of them if there is a pool, then convolve 1x1.

    Args:
        x: (N, C, H, W), float32 or bfloat16.
        tensors: Scale and shift, of C values each, weight, (C', C, 1, 1), and bias, (C',).
        ceiling: Value at which activations cut off, beside 0.
        pool: Average.

    Returns:
        (N, C', H, W), or with a pool (N, C', H // 2, W // 2), channels last.
    """
    weights = _get_packed((x.dtype, 0), tensors, lambda: [_pack_transition(x.dtype, *tensors)])
    x, (columns,), step = x.contiguous(memory_format=torch.channels_last), weights.narrow, 1 + pool
    out = x.new_empty(len(x), x.shape[2] // step, x.shape[3] // step, columns)
    own = load_library().scratch_floats(columns, 0, 2)
    _run("transition", weights, x, ceiling, out, own, int(pool))
    maps = out[..., : len(tensors[-1])].permute(0, 3, 1, 2)
    return maps.contiguous(memory_format=torch.channels_last)


def run_convolution(x: Tensor, weight: Tensor, bias: Tensor, ceiling: float | None) -> Tensor:
    """Convolve 3x3 with a border of one zero, and activate.

    Args:
        x: (N, C, H, W), float32 or bfloat16.
        weight: (C', C, 3, 3).
        bias: (C',).
        ceiling: Value at which the activation cuts off, beside 0; None for no activation.

    Returns:
        (N, C', H, W), channels last.
    """
    tile = choose_tile(x.shape[2], x.shape[3], x.dtype)
    weights = _get_packed(
        (x.dtype, tile), (weight, bias), lambda: [_pack_convolution(x.dtype, tile, weight, bias)]
    )
    x = x.contiguous(memory_format=torch.channels_last)
    out = allocate_channels_last(x, len(bias))
    own = load_library().convolution_floats(x.shape[1], weights.wide, tile)
    _run("convolution", weights, x, -1.0 if ceiling is None else ceiling, out, own, tile)
    return out


def _run(
    kernel: str, weights: _Weights, x: Tensor, ceiling: float, out: Tensor, own: int, *rest: int
) -> None:
    """Run a kernel on a whole map, channels last; each thread has ``own`` floats of memory."""
    images, channels, height, width = x.shape
    kernels, threads = load_library(), torch.get_num_threads()
    scratch = x.new_empty(threads * own, dtype=torch.float32)
    getattr(kernels, kernel)(
        *(x.data_ptr(), x.element_size(), images, height, width, channels),
        *(weights.structs, ceiling, out.data_ptr(), scratch.data_ptr(), own, threads, *rest),
    )
