"""Memory traffic and arithmetic of a folded DenseNet on paper: the floor that kernels aim at.

Two bytes a value (bfloat16), evaluation, one image. Every map is read once by each convolution that
needs it and written once; weights are left out, as a batch shares them. "Fused" is a dense layer
whose bottleneck never reaches memory, and a transition that pools its input.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from densenet_backbones.densenet_spec import BlockPlan, DenseNetSpec

__all__ = ["Card", "Cost", "compute_layer_cost", "compute_net_cost", "list_block_shapes"]

_BYTES = 2


@dataclass(frozen=True)
class Card:
    """Limits of a GPU; the default numbers are those that an H200 is seen to reach.

    Attributes:
        bandwidth: Bytes a second that its memory moves.
        flops: Operations a second of its tensor cores in bfloat16.
    """

    bandwidth: float = 4.3e12
    flops: float = 790e12


@dataclass(frozen=True)
class Cost:
    """Cost of some part of a network.

    Attributes:
        flops: Number of floating-point operations of convolutions, two a multiply-add.
        bytes_unfused: Memory traffic with a kernel for each convolution and pool.
        bytes_fused: Memory traffic with a kernel for each layer and transition.
    """

    flops: float
    bytes_unfused: float
    bytes_fused: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.bytes_unfused + other.bytes_unfused,
            self.bytes_fused + other.bytes_fused,
        )

    def __mul__(self, count: float) -> "Cost":
        return Cost(self.flops * count, self.bytes_unfused * count, self.bytes_fused * count)

    def compute_seconds(self, card: Card, fused: bool) -> float:
        """Compute the least time: the longer of traffic and arithmetic, as both can overlap.

        Args:
            card: Limits of the GPU it runs on.
            fused: True if each layer is one kernel.
        """
        traffic = self.bytes_fused if fused else self.bytes_unfused
        return max(traffic / card.bandwidth, self.flops / card.flops)


def compute_layer_cost(pixels: int, channels: int, bottleneck: int, growth: int) -> Cost:
    """Compute the cost of a dense layer that reads ``channels`` of ``pixels`` pixels."""
    return Cost(
        flops=2 * pixels * bottleneck * (channels + 9 * growth),
        bytes_unfused=_BYTES * pixels * (channels + 2 * bottleneck + growth),
        bytes_fused=_BYTES * pixels * (channels + growth),
    )


def list_block_shapes(
    spec: DenseNetSpec, height: int, width: int
) -> list[tuple[int, int, BlockPlan]]:
    """List rows and columns of each block's maps, with its plan.

    Args:
        spec: Network to cost; `compute_net_cost` needs bottlenecks and the ImageNet stem.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
    """
    return [(height // plan.stride, width // plan.stride, plan) for plan in spec.blocks]


def compute_net_cost(spec: DenseNetSpec, height: int, width: int) -> Cost:
    """Compute the cost of an image through a net with the ImageNet stem, up to its last block.

    Args:
        spec: Network to cost; `compute_net_cost` needs bottlenecks and the ImageNet stem.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
    """
    return sum(_list_parts(spec, height, width), Cost(0, 0, 0))


def _list_parts(spec: DenseNetSpec, height: int, width: int) -> Iterator[Cost]:
    assert spec.bn_size is not None and spec.stem == "imagenet"
    image, features = height * width, spec.num_init_features
    # The 7x7 of stride 2, then the pool of stride 2.
    read, between, pooled = 3 * image, features * image / 4, features * image / 16
    flops = 2 * between * 3 * 49
    yield Cost(flops, _BYTES * (read + 2 * between + pooled), _BYTES * (read + pooled))
    for rows, columns, plan in list_block_shapes(spec, height, width):
        pixels = rows * columns
        for layer in range(plan.layers):
            channels = plan.in_channels + layer * plan.growth_rate
            yield compute_layer_cost(
                pixels, channels, spec.bn_size * plan.growth_rate, plan.growth_rate
            )
        if plan.transition_channels is not None:
            out = plan.transition_channels
            yield Cost(
                # Unfused: the product at full size, then the pool of its result.
                flops=2 * pixels * plan.channels * out,
                bytes_unfused=_BYTES * pixels * (plan.channels + 2.25 * out),
                bytes_fused=_BYTES * pixels * (plan.channels + 0.25 * out),
            )
