"""Runs a whole folded dense block in one buffer, with kernels.

A dense block is that of Huang et al. (1608.06993, section 3).

Shapes: N images, C channels before the block, k new channels of a layer, B bottleneck channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.dense_block.interfaces import LayerWeights
from densenet_backbones.dense_block.triton.choice import choose_fastest
from densenet_backbones.dense_block.triton.launch import convolve_1x1, convolve_3x3, run_fused_layer
from densenet_backbones.dense_block.triton.tiles import find_best_tile

__all__ = [
    "count_images_in_cache",
    "list_layer_ways",
    "run_folded_kernels",
    "run_layer",
    "run_two_kernels",
]

# Places of a program of `layer_kernel` that are tried.
_PIXELS = (64, 128, 256)
# Above this it computes too much twice to win.
_MOST_RECOMPUTE = 2.0


def run_folded_kernels(
    buffer: Tensor,
    layers: Sequence[LayerWeights],
    *,
    dilation: int = 1,
    ceiling: float = inf,
    images_at_once: int | None = None,
) -> Tensor:
    """Run the layers of a block; each reads the buffer's first channels and writes the next k.

    Run it once before a CUDA graph is captured: the first run of a size compiles and chooses
    kernels, which cannot be captured.

    Args:
        buffer: (N, C + sum of k, H, W), channels-last, its first C channels filled. The rest is
            written.
        layers: Layers in order; the first reads C channels.
        dilation: Dilation of every 3x3.
        ceiling: Value at which activations cut off, beside 0: infinity for ReLU, 6 for ReLU6.
        images_at_once: Images that pass through all layers before the next ones do; None for
            `count_images_in_cache`. Other values change no result.

    Returns:
        The buffer.

    Raises:
        ValueError: The widths of the layers do not add up to the buffer's, or it is not
            channels-last.
    """
    width = len(layers[0].weight1) if layers else buffer.shape[1]
    for layer in layers:
        if len(layer.weight1) != width:
            raise ValueError(f"a layer reads {len(layer.weight1)} channels of {width} there are")
        width += len(layer.weight2)
    if width != buffer.shape[1]:
        raise ValueError(f"the layers end at channel {width}, the buffer at {buffer.shape[1]}")
    for part in buffer.split(images_at_once or count_images_in_cache(buffer)):
        for layer in layers:
            run_layer(part, layer, dilation, ceiling)
    return buffer


def count_images_in_cache(buffer: Tensor) -> int:
    """Count the images of a block that a GPU's L2 cache holds, bottlenecks included.

    Every layer reads all maps before it. When those of a few images stay in the cache from layer
    to layer, a block costs memory traffic only for its input and its output. Where not even one
    image fits, all are run at once: cutting would cost launches and save nothing.
    """
    images = buffer.shape[0]
    cache = _read_cache_bytes(buffer.device)
    if cache == 0 or images == 0:
        return max(images, 1)
    # Half, as weights and what is being written want room too. 1.25: the bottleneck.
    image = 1.25 * buffer[0].numel() * buffer.element_size()
    room = int(cache / 2 / image)
    if room == 0 or room >= images:
        return images
    return -(-images // -(-images // room))  # parts of one size, so that one choice serves all


def _read_cache_bytes(device: torch.device) -> int:
    """Return the size of the GPU's L2 cache; 0 without a GPU."""
    if device.type != "cuda":
        return 0
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.L2_cache_size)


def run_layer(buffer: Tensor, weights: LayerWeights, dilation: int, ceiling: float) -> None:
    """Write the layer's new maps into the buffer in the way that was measured to be fastest.

    Args:
        buffer: (N, at least C + k, H, W), where C is what the layer reads.
        weights: Weights of the layer.
        dilation: Dilation of the 3x3.
        ceiling: Value at which both activations cut off, beside 0.
    """
    ways = list_layer_ways(buffer, weights, dilation, ceiling)
    images, _, height, width = buffer.shape
    sizes = (images * height, width, *weights.weight1.shape, len(weights.weight2), dilation)
    ways[choose_fastest((buffer.device, buffer.dtype, *sizes), ways, buffer.device)]()


def run_two_kernels(
    buffer: Tensor,
    weights: LayerWeights,
    *,
    dilation: int = 1,
    ceiling: float = inf,
    pixels: int | None = None,
) -> None:
    """Run a layer as `convolve_1x1` into a bottleneck in memory, then `convolve_3x3`."""
    scale, shift, weight1, bias1, weight2, bias2 = weights
    channels, bottleneck = weight1.shape
    images, _, height, width = buffer.shape
    squeezed = torch.empty(
        (images, bottleneck, height, width),
        dtype=buffer.dtype,
        device=buffer.device,
        memory_format=torch.channels_last,
    )
    convolve_1x1(buffer, scale, shift, weight1, bias1, squeezed, ceiling=ceiling, activate=True)
    out = buffer[:, channels : channels + len(weight2)]
    convolve_3x3(squeezed, weight2, bias2, out, dilation=dilation, pixels=pixels)


def list_layer_ways(
    buffer: Tensor, weights: LayerWeights, dilation: int, ceiling: float
) -> dict[str, Callable[[], None]]:
    """List the ways to run a layer that may be worth it, the safest first.

    Args:
        buffer: As for `run_layer`.
        weights: Weights of the layer.
        dilation: Dilation of the 3x3.
        ceiling: Value at which both activations cut off, beside 0.
    """
    options: Any = {"dilation": dilation, "ceiling": ceiling}
    two, fused = (
        partial(way, buffer, weights, **options) for way in (run_two_kernels, run_fused_layer)
    )
    ways: dict[str, Callable[[], None]] = {"two kernels": two}
    images, _, height, width = buffer.shape
    # Float32 products without TF32 are not made on tensor cores; what is on the chip is no help.
    for pixels in _PIXELS if buffer.dtype != torch.float32 else ():
        tile = find_best_tile(images * height, width, dilation, pixels)
        if tile is not None and tile.recompute <= _MOST_RECOMPUTE:
            ways[f"two kernels, {pixels} pixels"] = partial(two, pixels=pixels)
            ways[f"fused, {pixels} pixels"] = partial(fused, pixels=pixels)
    return ways
