"""Times the Triton kernels of a folded DenseNet, layer by layer, beside PyTorch's own.

Weights and maps are random; what a layer computes is compared with PyTorch in float32 before it is
timed. Times are of CUDA graphs, so they hold no time of the CPU.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.benchmark.gpu_costs import (
    Card,
    Cost,
    compute_layer_cost,
    compute_net_cost,
    list_block_shapes,
)
from densenet_backbones.benchmark.report import Cell, Column, Table, Unavailable
from densenet_backbones.dense_block.interfaces import LayerWeights
from densenet_backbones.dense_block.triton import (
    convolve_1x1,
    explain_unavailability,
    run_folded_kernels,
)
from densenet_backbones.dense_block.triton.block import count_images_in_cache, list_layer_ways
from densenet_backbones.dense_block.triton.choice import measure_milliseconds
from densenet_backbones.densenet_spec import BlockPlan
from densenet_backbones.messages import pluralize
from densenet_backbones.variants import VARIANTS

__all__ = ["measure_kernels", "require_gpu"]

_DTYPE = torch.bfloat16
# Two roundings to 8 bits and the float32 sums in another order; see the kernels' tests.
_TOLERANCE = 2e-2
_COLUMNS = (
    Column("part"),
    Column("way"),
    Column("us", ".1f"),
    Column("GB/s", ".0f"),
    Column("floor us, a kernel a convolution", ".1f"),
    Column("floor us, a kernel a layer", ".1f"),
)
_NOTE = (
    "GB/s: of traffic on paper, that of fused kernels for these; it may exceed the memory's, as "
    "maps may come from the L2 cache"
)


def measure_kernels(
    net: str,
    batch: int,
    size: tuple[int, int],
    *,
    device: torch.device,
    card: Card,
    every_layer: bool = False,
) -> Iterator[Table]:
    """Measure layers, whole blocks and transitions in bfloat16.

    Args:
        net: A published net with bottlenecks and the ImageNet stem.
        batch: Number of images.
        size: Height and width of the images in pixels.
        device: A GPU.
        card: Bandwidth and arithmetic that the GPU reaches at most.
        every_layer: Measure all layers, not the first and last of each block.

    Yields:
        A table for each block, with its transition, as soon as it is measured.

    Raises:
        ValueError: There is no such net, it is no CUDA device, or it cannot run the kernels.
        RuntimeError: A kernel computes something else than PyTorch.
    """
    bn_size = require_gpu(net, device)
    spec = VARIANTS[net]
    cost = compute_net_cost(spec, *size) * batch
    floors = [1e6 * cost.compute_seconds(card, fused) / batch for fused in (False, True)]
    title = (
        f"{net}, {pluralize(batch, 'image')} of {size[0]}x{size[1]}, bfloat16, {device}; floor of "
        f"the whole net on paper: {floors[0]:.1f} us an image unfused, {floors[1]:.1f} us fused"
    )
    for number, (height, width, plan) in enumerate(list_block_shapes(spec, *size), start=1):
        with torch.inference_mode():
            block = _Block(f"block {number}", batch, height, width, plan, bn_size, card)
            rows = tuple(block.measure_rows(every_layer))
        yield Table(title, _COLUMNS, rows, "\n".join((_NOTE, *block.problems)))


def require_gpu(net: str, device: torch.device) -> int:
    """Return the net's ``bn_size`` if the kernels can be measured on a device.

    Raises:
        ValueError: There is no such net, it is no CUDA device, or it cannot run the kernels.
    """
    spec = VARIANTS.get(net)
    if spec is None or spec.bn_size is None or spec.stem != "imagenet":
        raise ValueError(f"--net must be one with bottlenecks and the ImageNet stem, not {net!r}")
    if device.type != "cuda":
        raise Unavailable(f"this measurement needs a CUDA device, not {device}")
    reason = explain_unavailability(device, _DTYPE)
    if reason is not None:
        raise Unavailable(f"this measurement needs the Triton kernels: {reason}")
    return spec.bn_size


class _Block:
    """A dense block of random folded layers, and the transition behind it."""

    def __init__(
        self,
        name: str,
        batch: int,
        height: int,
        width: int,
        plan: BlockPlan,
        bn_size: int,
        card: Card,
    ) -> None:
        self.name, self.plan, self.card = name, plan, card
        self.problems: list[str] = []
        self.bottleneck = bn_size * plan.growth_rate
        self.buffer = _draw_map(batch, plan.channels, height, width)
        self.pixels = batch * height * width
        widths = range(plan.in_channels, plan.channels, plan.growth_rate)
        self.layers = [_draw_layer(c, self.bottleneck, plan) for c in widths]

    def measure_rows(self, every_layer: bool) -> Iterator[tuple[Cell, ...]]:
        """Measure layers, the block as a whole, the transition: a row for each way to run it."""
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            if every_layer or i in (0, last):
                yield from self._measure_layer(i, layer)
        yield from self._measure_block()
        if self.plan.transition_channels is not None:
            yield from self._measure_transition(self.plan.transition_channels)

    def _time_ways(
        self, part: str, ways: dict[str, Callable[[], object]], cost: Cost
    ) -> Iterator[tuple[Cell, ...]]:
        floors = [1e6 * cost.compute_seconds(self.card, fused) for fused in (False, True)]
        for way, run in ways.items():
            try:
                time = measure_milliseconds(run)
            except Exception as error:  # a kernel that this card cannot run is a result as well
                self._note(part, way, error)
                continue
            traffic = cost.bytes_fused if way.startswith("fused") else cost.bytes_unfused
            yield (part, way, 1e3 * time, traffic / time / 1e6, *floors)

    def _note(self, part: str, way: str, problem: Exception) -> None:
        self.problems.append(f"{part}, {way}: {type(problem).__name__}: {problem}")

    def _measure_layer(self, index: int, layer: LayerWeights) -> Iterator[tuple[Cell, ...]]:
        ways: dict[str, Callable[[], Any]] = {"torch": partial(self._run_plain_layer, layer)}
        ways |= list_layer_ways(self.buffer, layer, self.plan.dilation, inf)
        channels = len(layer.weight1)
        part = f"{self.name}, layer {index + 1}, {channels} channels"
        new = self.buffer[:, channels : channels + len(layer.weight2)]
        wide = LayerWeights(*(tensor.float() for tensor in layer))
        expected = _compute_new_maps(self.buffer[:, :channels].float(), wide, self.plan.dilation)
        for way in list(ways):
            try:
                new.zero_()
                ways[way]()
                error = float((new.float() - expected).abs().max() / expected.abs().max())
            except Exception as problem:
                self._note(part, way, problem)
                del ways[way]
                continue
            if not error <= _TOLERANCE:
                raise RuntimeError(f"{part}, {way}: off by {error:.1e}")
        cost = compute_layer_cost(self.pixels, channels, self.bottleneck, self.plan.growth_rate)
        return self._time_ways(part, ways, cost)

    def _measure_block(self) -> Iterator[tuple[Cell, ...]]:
        widths = [len(layer.weight1) for layer in self.layers]
        growth = self.plan.growth_rate
        costs = [compute_layer_cost(self.pixels, c, self.bottleneck, growth) for c in widths]
        ways: dict[str, Callable[[], Any]] = {"torch": self._run_plain}
        images = self.buffer.shape[0]
        # Layers are chosen while this is measured first; parts of another size choose anew.
        for count in sorted({images, count_images_in_cache(self.buffer)}, reverse=True):
            options: Any = {"dilation": self.plan.dilation, "images_at_once": count}
            run = partial(run_folded_kernels, self.buffer, self.layers, **options)
            run()
            ways[f"kernels, {pluralize(count, 'image')} at once"] = run
        return self._time_ways(f"{self.name}, all layers", ways, sum(costs, Cost(0, 0, 0)))

    def _run_plain(self) -> None:
        for layer in self.layers:
            self._run_plain_layer(layer)

    def _run_plain_layer(self, layer: LayerWeights) -> None:
        channels, growth = len(layer.weight1), len(layer.weight2)
        new = _compute_new_maps(self.buffer[:, :channels], layer, self.plan.dilation)
        self.buffer[:, channels : channels + growth] = new

    def _measure_transition(self, outputs: int) -> Iterator[tuple[Cell, ...]]:
        images, channels, height, width = self.buffer.shape
        layer = _draw_layer(channels, outputs, self.plan)
        scale, shift, weight, bias = layer[:4]
        out = _draw_map(images, outputs, height // 2, width // 2)

        def run_plain() -> Tensor:
            return F.avg_pool2d(_squeeze(_normalize_activate(self.buffer, layer), layer), 2)

        def pool_first() -> Tensor:
            return _squeeze(F.avg_pool2d(_normalize_activate(self.buffer, layer), 2), layer)

        def run_kernel() -> None:
            convolve_1x1(self.buffer, scale, shift, weight, bias, out, pool=True)

        ways: dict[str, Callable[[], Any]] = {"torch": run_plain, "torch, pooled first": pool_first}
        ways["kernel"] = run_kernel
        cost = Cost(
            2 * self.pixels * channels * outputs,
            2 * self.pixels * (channels + 2.25 * outputs),
            2 * self.pixels * (channels + 0.25 * outputs),
        )
        return self._time_ways(f"{self.name}, transition", ways, cost)


def _draw_map(images: int, channels: int, height: int, width: int) -> Tensor:
    x = torch.randn(images, channels, height, width, device="cuda", dtype=_DTYPE)
    return x.to(memory_format=torch.channels_last)


def _draw_layer(channels: int, bottleneck: int, plan: BlockPlan) -> LayerWeights:
    weight2 = torch.randn(plan.growth_rate, bottleneck, 3, 3) / (9 * bottleneck) ** 0.5
    return LayerWeights(
        (1 + 0.3 * torch.randn(channels)).to("cuda", _DTYPE),
        (0.3 * torch.randn(channels)).to("cuda", _DTYPE),
        (torch.randn(channels, bottleneck) / channels**0.5).to("cuda", _DTYPE),
        (0.1 * torch.randn(bottleneck)).to("cuda", _DTYPE),
        weight2.to("cuda", _DTYPE, memory_format=torch.channels_last),
        torch.zeros(plan.growth_rate, device="cuda", dtype=_DTYPE),
    )


def _compute_new_maps(x: Tensor, layer: LayerWeights, dilation: int) -> Tensor:
    x = _squeeze(_normalize_activate(x, layer), layer).relu_()
    return F.conv2d(x, layer.weight2, layer.bias2, padding=dilation, dilation=dilation)


def _normalize_activate(x: Tensor, layer: LayerWeights) -> Tensor:
    return torch.addcmul(layer.shift[:, None, None], x, layer.scale[:, None, None]).relu_()


def _squeeze(x: Tensor, layer: LayerWeights) -> Tensor:
    return F.conv2d(x, layer.weight1.t()[..., None, None], layer.bias1)
