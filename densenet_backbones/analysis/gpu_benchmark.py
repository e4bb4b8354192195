"""Times of the Triton kernels of a folded DenseNet, layer by layer, beside PyTorch's own.

Weights and maps are random; what a layer computes is compared with PyTorch in float32 before it is
timed. Times are of CUDA graphs, so they hold no time of the CPU.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.analysis.gpu_costs import Cost, block_shapes, layer_cost, net_cost
from densenet_backbones.dense_block.backends import LayerWeights
from densenet_backbones.dense_block.kernels import (
    pointwise,
    run_folded_kernels,
    why_unavailable,
)
from densenet_backbones.dense_block.kernels.block import images_that_fit, layer_ways
from densenet_backbones.dense_block.kernels.choice import milliseconds
from densenet_backbones.densenet_spec import BlockPlan
from densenet_backbones.variants import VARIANTS

__all__ = ["GpuRow", "measure_kernels"]

_DTYPE = torch.bfloat16
# Two roundings to 8 bits and the float32 sums in another order; see the kernels' tests.
_TOLERANCE = 2e-2


@dataclass(frozen=True)
class GpuRow:
    """What was measured of one layer, block or transition.

    Attributes:
        name: Which one.
        milliseconds: Of each way to run it; ``torch`` is PyTorch's convolutions on the same buffer.
        floor_unfused: Milliseconds on paper with a kernel for each convolution.
        floor_fused: Milliseconds on paper with a kernel for each layer.
        bandwidth: GB a second of traffic on paper that each way achieves: fused traffic for fused
            kernels. It may exceed the memory's, as maps may come from the L2 cache.
    """

    name: str
    milliseconds: dict[str, float]
    floor_unfused: float
    floor_fused: float
    bandwidth: dict[str, float]


@dataclass(frozen=True)
class _Card:
    bandwidth: float
    flops: float

    def row(self, name: str, ways: dict[str, Callable[[], object]], cost: Cost) -> GpuRow:
        times = {}
        for way, run in ways.items():
            try:
                times[way] = milliseconds(run)
            except Exception as error:  # a kernel that this card cannot run is a result as well
                print(f"{name}, {way}: {type(error).__name__}: {error}", flush=True)
        traffic = {
            way: cost.bytes_fused if way.startswith("fused") else cost.bytes_unfused
            for way in times
        }
        return GpuRow(
            name,
            times,
            1e3 * cost.seconds(self.bandwidth, self.flops, fused=False),
            1e3 * cost.seconds(self.bandwidth, self.flops, fused=True),
            {way: traffic[way] / times[way] / 1e6 for way in times},
        )


def measure_kernels(
    net: str = "densenet121",
    batch: int = 8,
    size: tuple[int, int] = (224, 224),
    *,
    every_layer: bool = False,
    bandwidth: float = 4.3e12,
    flops: float = 790e12,
    file: Path | None = None,
) -> str:
    """Measures layers, whole blocks and transitions in bfloat16.

    Args:
        net: A published net with bottlenecks and the ImageNet stem.
        batch: Images.
        size: Their height and width in pixels.
        every_layer: Measure all layers, not the first and last of each block.
        bandwidth: Bytes a second of the card's memory, for the floor.
        flops: Operations a second of its tensor cores.
        file: Where to write the rows as JSON too; it is written again after every row.

    Returns:
        A table.

    Raises:
        ValueError: There is no CUDA device, or it cannot run the kernels.
    """
    if not torch.cuda.is_available():
        raise ValueError("this measurement needs a CUDA device, and PyTorch finds none")
    device = torch.device("cuda")
    reason = why_unavailable(device, _DTYPE)
    if reason is not None:
        raise ValueError(f"this measurement needs the Triton kernels: {reason}")
    card = _Card(bandwidth, flops)
    spec = VARIANTS[net]
    cost = net_cost(spec, *size) * batch
    head = {"net": net, "batch": batch, "size": size, "device": torch.cuda.get_device_name()}
    head |= {"torch": torch.__version__, "floor": asdict(cost)}
    rows: list[GpuRow] = []
    with torch.inference_mode():
        for number, (height, width, plan) in enumerate(block_shapes(spec, *size), start=1):
            assert spec.bn_size is not None
            block = _Block(f"block {number}", batch, height, width, plan, spec.bn_size, card)
            for row in block.rows(every_layer):
                rows.append(row)
                print(_line(row), flush=True)  # a slot that ends early has shown something
                if file is not None:
                    values = {**head, "rows": [asdict(row) for row in rows]}
                    file.write_text(json.dumps(values, indent=1))
    floors = [1e6 * cost.seconds(bandwidth, flops, fused) / batch for fused in (False, True)]
    return (
        f"{net}, {batch} images of {size[0]}x{size[1]}, bfloat16, {head['device']}; floor of the "
        f"whole net on paper: {floors[0]:.1f} us an image unfused, {floors[1]:.1f} us fused"
    )


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
        card: _Card,
    ) -> None:
        self.name, self.plan, self.card = name, plan, card
        self.bottleneck = bn_size * plan.growth_rate
        self.buffer = _channels_last(batch, plan.channels, height, width)
        self.pixels = batch * height * width
        widths = range(plan.in_channels, plan.channels, plan.growth_rate)
        self.layers = [_random_layer(c, self.bottleneck, plan) for c in widths]

    def rows(self, every_layer: bool) -> Iterator[GpuRow]:
        """Layers, the block as a whole, the transition."""
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            if every_layer or i in (0, last):
                yield self._layer_row(i, layer)
        yield self._block_row()
        if self.plan.transition_channels is not None:
            yield self._transition_row(self.plan.transition_channels)

    def _layer_row(self, index: int, layer: LayerWeights) -> GpuRow:
        ways: dict[str, Callable[[], Any]] = {"torch": partial(self._plain_layer, layer)}
        ways |= layer_ways(self.buffer, layer, self.plan.dilation, inf)
        channels = len(layer.weight1)
        new = self.buffer[:, channels : channels + len(layer.weight2)]
        wide = LayerWeights(*(tensor.float() for tensor in layer))
        expected = _new_maps(self.buffer[:, :channels].float(), wide, self.plan.dilation)
        for way in list(ways):
            try:
                new.zero_()
                ways[way]()
                error = float((new.float() - expected).abs().max() / expected.abs().max())
            except Exception as problem:
                print(f"{self.name}, {way}: {type(problem).__name__}: {problem}", flush=True)
                del ways[way]
                continue
            if not error <= _TOLERANCE:
                raise RuntimeError(f"{self.name}, layer {index + 1}, {way}: off by {error:.1e}")
        cost = layer_cost(self.pixels, channels, self.bottleneck, self.plan.growth_rate)
        return self.card.row(f"{self.name}, layer {index + 1}, {channels} channels", ways, cost)

    def _block_row(self) -> GpuRow:
        widths = [len(layer.weight1) for layer in self.layers]
        growth = self.plan.growth_rate
        costs = [layer_cost(self.pixels, c, self.bottleneck, growth) for c in widths]
        ways: dict[str, Callable[[], Any]] = {"torch": self._plain}
        images = self.buffer.shape[0]
        # Layers are chosen while this is measured first; parts of another size choose anew.
        for count in sorted({images, images_that_fit(self.buffer)}, reverse=True):
            options: Any = {"dilation": self.plan.dilation, "images_at_once": count}
            run = partial(run_folded_kernels, self.buffer, self.layers, **options)
            run()
            ways[f"kernels, {count} images at once"] = run
        return self.card.row(f"{self.name}, all layers", ways, sum(costs, Cost(0, 0, 0)))

    def _plain(self) -> None:
        for layer in self.layers:
            self._plain_layer(layer)

    def _plain_layer(self, layer: LayerWeights) -> None:
        channels, growth = len(layer.weight1), len(layer.weight2)
        new = _new_maps(self.buffer[:, :channels], layer, self.plan.dilation)
        self.buffer[:, channels : channels + growth] = new

    def _transition_row(self, outputs: int) -> GpuRow:
        images, channels, height, width = self.buffer.shape
        layer = _random_layer(channels, outputs, self.plan)
        scale, shift, weight, bias = layer[:4]
        out = _channels_last(images, outputs, height // 2, width // 2)

        def plain() -> Tensor:
            return F.avg_pool2d(_squeezed(_normed(self.buffer, layer), layer), 2)

        def pool_first() -> Tensor:
            return _squeezed(F.avg_pool2d(_normed(self.buffer, layer), 2), layer)

        def pooled() -> None:
            pointwise(self.buffer, scale, shift, weight, bias, out, pool=True)

        ways: dict[str, Callable[[], Any]] = {"torch": plain, "torch, pooled first": pool_first}
        ways["kernel"] = pooled
        cost = Cost(
            2 * self.pixels * channels * outputs,
            2 * self.pixels * (channels + 2.25 * outputs),
            2 * self.pixels * (channels + 0.25 * outputs),
        )
        return self.card.row(f"{self.name}, transition", ways, cost)


def _channels_last(images: int, channels: int, height: int, width: int) -> Tensor:
    x = torch.randn(images, channels, height, width, device="cuda", dtype=_DTYPE)
    return x.to(memory_format=torch.channels_last)


def _random_layer(channels: int, bottleneck: int, plan: BlockPlan) -> LayerWeights:
    weight2 = torch.randn(plan.growth_rate, bottleneck, 3, 3) / (9 * bottleneck) ** 0.5
    return LayerWeights(
        (1 + 0.3 * torch.randn(channels)).to("cuda", _DTYPE),
        (0.3 * torch.randn(channels)).to("cuda", _DTYPE),
        (torch.randn(channels, bottleneck) / channels**0.5).to("cuda", _DTYPE),
        (0.1 * torch.randn(bottleneck)).to("cuda", _DTYPE),
        weight2.to("cuda", _DTYPE, memory_format=torch.channels_last),
        torch.zeros(plan.growth_rate, device="cuda", dtype=_DTYPE),
    )


def _new_maps(x: Tensor, layer: LayerWeights, dilation: int) -> Tensor:
    x = _squeezed(_normed(x, layer), layer).relu_()
    return F.conv2d(x, layer.weight2, layer.bias2, padding=dilation, dilation=dilation)


def _normed(x: Tensor, layer: LayerWeights) -> Tensor:
    return torch.addcmul(layer.shift[:, None, None], x, layer.scale[:, None, None]).relu_()


def _squeezed(x: Tensor, layer: LayerWeights) -> Tensor:
    return F.conv2d(x, layer.weight1.t()[..., None, None], layer.bias1)


def _line(row: GpuRow) -> str:
    ways = [
        f"{way} {1e3 * time:.1f} us ({row.bandwidth[way]:.0f} GB/s)"
        for way, time in row.milliseconds.items()
    ]
    floor = f"floor {1e3 * row.floor_unfused:.1f} / {1e3 * row.floor_fused:.1f} us"
    return f"{row.name}: {'; '.join(ways)}; {floor}"
