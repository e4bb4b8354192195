"""Inference of a dense block from folded weights, in one buffer that every layer writes into.

The norm in front of a layer cannot go into a convolution, as every layer norms the concatenation
anew: it becomes one scale and shift. The norm behind a bottleneck's convolution goes into that
convolution. Maps lie channels last, so that the first C channels of the buffer are a matrix of
cells, which a layer reads where it is.

Shapes: N images, C channels of the concatenation, B of the bottleneck, k new maps, H and W pixels,
M = N * H * W cells.

On an NVIDIA GPU, blocks with bottlenecks and ReLU or ReLU6 run in Triton kernels where those can
run (see `kernels.why_unavailable`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from densenet_backbones.dense_block.plain import run_plain

__all__ = [
    "LIBRARY",
    "FoldedConv2d",
    "FoldedLayer",
    "LayerWeights",
    "channels_last",
    "compiled_folded",
    "has_kernels",
    "is_on_gpu",
    "is_written_down",
    "relu_ceiling",
    "run_folded",
]

_ONEDNN: Any = torch.ops.mkldnn  # what torch.compile calls on a CPU


class FoldedConv2d(nn.Conv2d):
    """A convolution that does not learn, with other weights than the one it is made of.

    On a CPU oneDNN lays the weight out once; `nn.Conv2d` has it laid out in every call. What was
    laid out is no part of the state dict, and is made anew after ``to`` and ``load_state_dict``.

    Args:
        like: Whose geometry it takes.
        weight: Shaped as that one's.
        bias: (out channels,).
    """

    def __init__(self, like: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            (like.kernel_size[0], like.kernel_size[1]),
            (like.stride[0], like.stride[1]),
            like.padding if isinstance(like.padding, str) else (like.padding[0], like.padding[1]),
            (like.dilation[0], like.dilation[1]),
            device="meta",
        )
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self._packed: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        if not _is_for_onednn(x):
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):  # which does not know this operation
            x = x.to(torch.get_autocast_dtype("cpu"))
        geometry = [list(pair) for pair in (self.padding, self.stride, self.dilation)]
        if x.dtype not in self._packed:
            weight = _ONEDNN._reorder_convolution_weight(self.weight.to(x.dtype), *geometry)
            self._packed[x.dtype] = weight, self._bias.to(x.dtype)
        weights = self._packed[x.dtype]
        out: Tensor = _ONEDNN._convolution_pointwise(x, *weights, *geometry, 1, "none", [], "")
        return out

    @property
    def _bias(self) -> Tensor:
        assert self.bias is not None
        return self.bias

    def tensors(self) -> list[Tensor]:
        """Weight and bias."""
        return [self.weight, self._bias]

    def _apply(self, *args: Any, **kwargs: Any) -> "FoldedConv2d":
        self._packed.clear()
        super()._apply(*args, **kwargs)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which cannot hold oneDNN's layouts."""
        return {**self.__dict__, "_packed": {}}


def _is_for_onednn(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or is_tracing() or isinstance(x, fx.Proxy):
        return False
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if x.requires_grad and torch.is_grad_enabled():
        return False
    if x.dtype == torch.bfloat16:
        return bool(_ONEDNN._is_mkldnn_bf16_supported())
    return x.dtype == torch.float32


class FoldedLayer(nn.Module):
    """A dense layer in evaluation: act(scale * x + shift), 1x1, act, 3x3; no 1x1, no bottleneck.

    Nothing in it learns. Called on the concatenation it returns the new maps, like the layer that
    it stands for; `run_folded` runs a block of them in one buffer.

    Args:
        scale: Of the first norm, (C,).
        shift: Of the first norm, (C,).
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

    def forward(self, x: Tensor) -> Tensor:
        """New maps, (N, k, H, W), from the concatenation, (N, C, H, W)."""
        step = self.step(x.dtype)
        scale, shift = step.scale[:, None, None], step.shift[:, None, None]
        x = self.act(torch.addcmul(shift, x, scale).to(x.dtype))
        if step.squeeze is not None:
            weight, bias = step.squeeze
            x = self.act(F.conv2d(x, weight.t()[..., None, None], bias))
        return self.conv(x)

    def step(self, dtype: torch.dtype) -> "_Step":
        """What it does to maps of ``dtype``, which under autocast is not that of its weights."""
        pair = (self.weight.to(dtype), self.bias.to(dtype)) if self.bottleneck else None
        return _Step(self.scale, self.shift, pair, self.conv, self.act, self.conv.out_channels)

    def tensors(self) -> list[Tensor]:
        """Scale and shift, then weights and biases in the order they are used: `LayerWeights`."""
        squeeze = [self.weight, self.bias] if self.bottleneck else []
        return [self.scale, self.shift, *squeeze, *self.conv.tensors()]


class _Step(NamedTuple):
    """What one layer computes with.

    Attributes:
        scale: (C,), of the maps' type or, as under autocast, of a longer one.
        shift: (C,), likewise.
        squeeze: (C, B) and (B,) of the maps' type, or None.
        conv: New maps from what the 3x3 reads.
        act: It may work in place.
        new: Number of new maps.
    """

    scale: Tensor
    shift: Tensor
    squeeze: tuple[Tensor, Tensor] | None
    conv: Callable[[Tensor], Tensor]
    act: Callable[[Tensor], Tensor]
    new: int


class LayerWeights(NamedTuple):
    """A layer with bottleneck, as kernels take it: what `FoldedLayer.tensors` returns.

    Attributes:
        scale: (C,), of the maps' type or of a longer one.
        shift: (C,), likewise.
        weight1: The 1x1 of the maps' type, (C, B).
        bias1: Its bias, (B,).
        weight2: The 3x3, (k, B, 3, 3), channels last.
        bias2: Its bias, (k,).
    """

    scale: Tensor
    shift: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


def has_kernels(x: Tensor) -> bool:
    """Whether the Triton kernels run on maps like ``x``; says why not, once, if it is on a GPU."""
    if not is_on_gpu(x):
        return False
    # Only here: kernels need this module, and few processes need kernels.
    from densenet_backbones.dense_block.kernels import usable

    return usable(x.device, x.dtype)


def is_on_gpu(x: Tensor) -> bool:
    """Whether kernels are to be asked for."""
    return x.is_cuda


def is_written_down(x: Tensor) -> bool:
    """Whether what runs on ``x`` is exported, traced or differentiated: by operations of torch."""
    if isinstance(x, fx.Proxy) or is_tracing() or torch.compiler.is_exporting():
        return True
    return x.requires_grad and torch.is_grad_enabled()


def relu_ceiling(act: nn.Module) -> float | None:
    """What an activation cuts its input off at, beside 0; None if it is neither ReLU nor ReLU6."""
    if isinstance(act, nn.ReLU6):
        return 6.0
    return inf if isinstance(act, nn.ReLU) else None


def run_folded(x: Tensor, layers: Sequence[FoldedLayer]) -> Tensor:
    """Runs a block in one buffer: no concatenation, and nothing but new maps is written to it.

    No gradients: layers write in place.

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Each reads what all before it made.

    Returns:
        What `run_plain` returns, (N, C + sum of k, H, W), channels last.
    """
    ceiling = relu_ceiling(layers[0].act)
    if layers[0].bottleneck and ceiling is not None and has_kernels(x):
        tensors = [layer.tensors() for layer in layers]
        return _run_kernels(x, tensors, layers[0].conv.dilation[0], ceiling)
    return _run(x, [layer.step(x.dtype) for layer in layers])


def _run_kernels(
    x: Tensor, layers: Sequence[Sequence[Tensor]], dilation: int, ceiling: float
) -> Tensor:
    from densenet_backbones.dense_block.kernels import run_folded_kernels

    # Scales and shifts may stay longer than the maps: kernels norm in float32 in any case.
    weights = [
        LayerWeights(scale, shift, *(tensor.to(x.dtype) for tensor in convs))
        for scale, shift, *convs in layers
    ]
    new = sum(len(layer.bias2) for layer in weights)
    buffer = channels_last(x, x.shape[1] + new)
    buffer[:, : x.shape[1]] = x
    return run_folded_kernels(buffer, weights, dilation=dilation, ceiling=ceiling)


def _run(x: Tensor, steps: Sequence[_Step]) -> Tensor:
    images, channels, height, width = x.shape
    total = channels + sum(step.new for step in steps)
    buffer = channels_last(x, total)
    buffer[:, :channels] = x
    cells = buffer.permute(0, 2, 3, 1).view(-1, total)
    # All layers use the same memory for what they need in between: it stays in the caches.
    scratch = x.new_empty(len(cells) * (total - steps[-1].new))
    squeezed = [x.new_empty(len(cells), len(step.squeeze[1])) for step in steps[:1] if step.squeeze]
    for step in steps:
        normed = scratch[: len(cells) * channels].view(-1, channels)
        torch.addcmul(step.shift, cells[:, :channels], step.scale, out=normed)
        read = step.act(normed)
        if step.squeeze is not None:
            weight, bias = step.squeeze
            read = step.act(torch.addmm(bias, read, weight, out=squeezed[0]))
        new = step.conv(read.view(images, height, width, -1).permute(0, 3, 1, 2))
        buffer[:, channels : channels + step.new] = new
        channels += step.new
    return buffer


def channels_last(x: Tensor, channels: int) -> Tensor:
    """Memory for maps like ``x``, of other channels."""
    images, _, height, width = x.shape
    return x.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)


def compiled_folded(x: Tensor, layers: Sequence[FoldedLayer]) -> Tensor:
    """`run_folded` as one operation for ``torch.compile``, which then has little to compile.

    Blocks with other activations than ReLU and ReLU6 are compiled as `run_plain` runs them.
    """
    ceiling = relu_ceiling(layers[0].act)
    if ceiling is None:
        return run_plain(x, layers)
    tensors = [tensor for layer in layers for tensor in layer.tensors()]
    dilation = layers[0].conv.dilation[0]
    result: Tensor = torch.ops.densenet_backbones.folded_block(
        x, tensors, len(layers), dilation, ceiling
    )
    return result


def _folded_block(
    x: Tensor, tensors: Sequence[Tensor], layers: int, dilation: int, ceiling: float
) -> Tensor:
    act = partial(torch.clamp_, min=0.0, max=ceiling)

    def step(scale: Tensor, shift: Tensor, *convs: Tensor) -> _Step:
        *squeeze, weight, bias = (tensor.to(x.dtype) for tensor in convs)
        conv = partial(F.conv2d, weight=weight, bias=bias, padding=dilation, dilation=dilation)
        pair = (squeeze[0], squeeze[1]) if squeeze else None
        return _Step(scale, shift, pair, conv, act, len(bias))

    each = len(tensors) // layers
    split = [tensors[i : i + each] for i in range(0, len(tensors), each)]
    if each == len(LayerWeights._fields) and has_kernels(x):
        return _run_kernels(x, split, dilation, ceiling)
    return _run(x, [step(*part) for part in split])


def _folded_block_shape(
    x: Tensor, tensors: Sequence[Tensor], layers: int, dilation: int, ceiling: float
) -> Tensor:
    each = len(tensors) // layers
    return channels_last(x, x.shape[1] + sum(len(bias) for bias in tensors[each - 1 :: each]))


# Not torch.library.custom_op, which reads the signature and makes importing slower.
LIBRARY = torch.library.Library("densenet_backbones", "FRAGMENT")
LIBRARY.define(
    "folded_block(Tensor x, Tensor[] tensors, int layers, int dilation, float ceiling) -> Tensor"
)
LIBRARY.impl("folded_block", _folded_block, "CompositeExplicitAutograd")
torch.library.register_fake("densenet_backbones::folded_block", _folded_block_shape)
