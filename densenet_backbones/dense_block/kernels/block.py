"""Runs a whole folded dense block in one buffer, with kernels.

Shapes: N images, C channels before the block, k new channels of a layer, B bottleneck channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.dense_block.folded_layer import FoldedLayer
from densenet_backbones.dense_block.kernels.choice import fastest
from densenet_backbones.dense_block.kernels.launch import conv3x3, fused_layer, pointwise
from densenet_backbones.dense_block.kernels.tiles import best_tile

__all__ = [
    "images_that_fit",
    "layer_ways",
    "run_folded_kernels",
    "run_layer",
    "two_kernels",
]

# Places of a program of `layer_kernel` that are tried.
_PIXELS = (64, 128, 256)
# Above this it computes too much twice to win.
_MOST_RECOMPUTE = 2.0


def run_folded_kernels(
    buffer: Tensor, layers: Sequence[FoldedLayer], images_at_once: int | None = None
) -> Tensor:
    """Runs the layers of a block; each reads the buffer's first channels and writes the next k.

    Run it once before a CUDA graph is captured: the first run of a size compiles and chooses
    kernels, which cannot be captured.

    Args:
        buffer: (N, C + sum of k, H, W), channels-last, its first C channels filled. The rest is
            written.
        layers: In order; the first reads C channels.
        images_at_once: Images that pass through all layers before the next ones do; None for
            `images_that_fit`. Other values change no result.

    Returns:
        The buffer.

    Raises:
        ValueError: The widths of the layers do not add up to the buffer's, or it is not
            channels-last.
    """
    width = layers[0].weight1.shape[1] if layers else buffer.shape[1]
    for layer in layers:
        if layer.weight1.shape[1] != width:
            raise ValueError(
                f"a layer reads {layer.weight1.shape[1]} channels of {width} there are"
            )
        width += layer.weight2.shape[0]
    if width != buffer.shape[1]:
        raise ValueError(f"the layers end at channel {width}, the buffer at {buffer.shape[1]}")
    for part in buffer.split(images_at_once or images_that_fit(buffer)):
        for layer in layers:
            run_layer(part, layer)
    return buffer


def images_that_fit(buffer: Tensor) -> int:
    """How many images of a block a GPU's L2 cache holds, bottlenecks included.

    Every layer reads all maps before it. When those of a few images stay in the cache from layer
    to layer, a block costs memory traffic only for its input and its output. Where not even one
    image fits, all are run at once: cutting would cost launches and save nothing.
    """
    images = buffer.shape[0]
    cache = _cache_bytes(buffer.device)
    if cache == 0 or images == 0:
        return max(images, 1)
    # Half, as weights and what is being written want room too. 1.25: the bottleneck.
    image = 1.25 * buffer[0].numel() * buffer.element_size()
    fitting = int(cache / 2 / image)
    if fitting == 0 or fitting >= images:
        return images
    return -(-images // -(-images // fitting))  # parts of one size, so that one choice serves all


@torch.compiler.assume_constant_result
def _cache_bytes(device: torch.device) -> int:
    """Size of the GPU's L2 cache; 0 without a GPU."""
    if device.type != "cuda":
        return 0
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.L2_cache_size)


def run_layer(buffer: Tensor, layer: FoldedLayer) -> None:
    """Writes the layer's new maps into the buffer in the way that was measured to be fastest.

    Args:
        buffer: (N, at least C + k, H, W), where C is what the layer reads.
        layer: The layer.
    """
    operator = _layer_operator if torch.compiler.is_compiling() else _run_layer
    operator(
        buffer,
        layer.low,
        layer.high,
        layer.weight1,
        layer.bias1,
        layer.weight2,
        layer.bias2,
        layer.dilation,
        layer.mid_low,
        layer.mid_high,
    )


def two_kernels(
    buffer: Tensor,
    low: Tensor,
    high: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor | None,
    dilation: int,
    mid_low: float,
    mid_high: float,
    *,
    pixels: int | None = None,
) -> None:
    """A layer as `pointwise` into a bottleneck in memory, then `conv3x3` into the buffer."""
    bottleneck, channels = weight1.shape
    images, _, height, width = buffer.shape
    squeezed = torch.empty(
        (images, bottleneck, height, width),
        dtype=buffer.dtype,
        device=buffer.device,
        memory_format=torch.channels_last,
    )
    pointwise(buffer, low, high, weight1, bias1, squeezed, out_low=mid_low, out_high=mid_high)
    out = buffer[:, channels : channels + weight2.shape[0]]
    conv3x3(squeezed, weight2, bias2, out, dilation=dilation, pixels=pixels)


def layer_ways(
    buffer: Tensor, tensors: Sequence[Tensor | None], dilation: int, mid_low: float, mid_high: float
) -> dict[str, Callable[[], None]]:
    """The ways to run a layer that may be worth it, the safest first.

    Args:
        buffer: As for `run_layer`.
        tensors: low, high, weight1, bias1, weight2 and bias2.
        dilation: Of the 3x3.
        mid_low: Lower bound of the bottleneck.
        mid_high: Upper bound.
    """
    rest: Any = (*tensors, dilation, mid_low, mid_high)
    ways: dict[str, Callable[[], None]] = {"two kernels": partial(two_kernels, buffer, *rest)}
    images, _, height, width = buffer.shape
    # Float32 products without TF32 are not made on tensor cores; what is on the chip is no help.
    for pixels in _PIXELS if buffer.dtype != torch.float32 else ():
        tile = best_tile(images * height, width, dilation, pixels)
        if tile is not None and tile.recompute <= _MOST_RECOMPUTE:
            shifted = partial(two_kernels, buffer, *rest, pixels=pixels)
            ways[f"two kernels, {pixels} pixels"] = shifted
            ways[f"fused, {pixels} pixels"] = partial(
                fused_layer,
                buffer,
                *tensors,  # type: ignore[arg-type]
                dilation=dilation,
                mid_low=mid_low,
                mid_high=mid_high,
                pixels=pixels,
            )
    return ways


def _run_layer(
    buffer: Tensor,
    low: Tensor,
    high: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor | None,
    dilation: int,
    mid_low: float,
    mid_high: float,
) -> None:
    tensors = (low, high, weight1, bias1, weight2, bias2)
    ways = layer_ways(buffer, tensors, dilation, mid_low, mid_high)
    images, _, height, width = buffer.shape
    sizes = (images * height, width, *weight1.shape, weight2.shape[0], dilation)
    ways[fastest((buffer.device, buffer.dtype, *sizes), ways, buffer.device)]()


_layer_operator: Any = torch.library.custom_op(
    "densenet_backbones::folded_layer_measured", _run_layer, mutates_args=("buffer",)
)
_layer_operator.register_fake(lambda *args: None)
