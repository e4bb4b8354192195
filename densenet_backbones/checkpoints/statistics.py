"""Compare the running statistics of a DenseNet's norms, which show how it was trained.

In train mode every norm that reads a channel of a block's concatenation sees the same batches of
it: layers l + 1, l + 2, ... and the transition's (or final) norm keep one and the same running
mean and variance of it. Statistics that differ show that norms were not updated alike. There are
good reasons (some layers were frozen, or trained longer) and bad ones: activation checkpointing
that runs ``norm1`` a second time in the backward pass (torchvision's ``memory_efficient=True``;
its norms in the layers still agree with each other, but not with the transition's norm), or a
damaged file. So differences are reported, and nothing is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from densenet_backbones.checkpoints.recognition import Recognized

__all__ = [
    "TOLERANCE",
    "BlockStatistics",
    "compare_block_statistics",
    "count_batches",
    "find_layers_updated_twice",
]

# Another order of summation in float32 changes statistics by about 1e-6; a second update of every
# batch by about a tenth of what one batch differs from the average.
TOLERANCE = 1e-3
_EPS = 1e-5  # a norm's own: what is small against it does not reach the norm's output


@dataclass(frozen=True)
class BlockStatistics:
    """Agreement of the running statistics inside one dense block.

    Attributes:
        block: Number of the block, from 1.
        mean_difference: Largest difference of running means between neighboring norms, as a share
            of the channel's standard deviation.
        variance_difference: Largest difference of running variances, as a share of the variance.
        differing: Pairs of neighboring norms that differ by more than `TOLERANCE`, with their
            number of channels that do.
    """

    block: int
    mean_difference: float
    variance_difference: float
    differing: tuple[tuple[str, str, int], ...]


def compare_block_statistics(
    weights: Mapping[str, Tensor], network: Recognized
) -> tuple[BlockStatistics, ...]:
    """Compare the statistics of neighboring norms over the channels that both read.

    Args:
        weights: Weights under our names.
        network: Architecture of the weights.

    Returns:
        One value for each block with running statistics. Channels that are not finite are left
        out.
    """
    reports = []
    for block, layers in enumerate(network.spec.block_config, start=1):
        names = [f"denseblock{block}.denselayer{i}.norm1" for i in range(1, layers + 1)]
        last = block == len(network.spec.block_config) and network.spec.final_norm
        names.append("norm5" if last else f"transition{block}.norm")
        names = [name for name in names if _has_statistics(weights, name)]
        if len(names) > 1:
            reports.append(_compare(weights, block, names))
    return tuple(reports)


def _has_statistics(weights: Mapping[str, Tensor], norm: str) -> bool:
    mean, var = (weights.get(f"{norm}.running_{kind}") for kind in ("mean", "var"))
    return mean is not None and var is not None and mean.ndim == 1 and mean.shape == var.shape


def _compare(weights: Mapping[str, Tensor], block: int, names: list[str]) -> BlockStatistics:
    means, variances = [], []
    differing = []
    for first, second in pairwise(names):
        mean, var = _compare_channels(weights, first, second)
        means.append(mean.max().item())
        variances.append(var.max().item())
        channels = int(((mean > TOLERANCE) | (var > TOLERANCE)).sum())
        if channels:
            differing.append((first, second, channels))
    return BlockStatistics(block, max(means), max(variances), tuple(differing))


def _compare_channels(
    weights: Mapping[str, Tensor], first: str, second: str
) -> tuple[Tensor, Tensor]:
    """Return relative differences of mean and variance in the channels both norms read, (C,)."""
    means, variances = (
        [weights[f"{norm}.running_{kind}"].detach().cpu().double() for norm in (first, second)]
        for kind in ("mean", "var")
    )
    shared = min(len(means[0]), len(means[1]))
    (mean1, mean2), (var1, var2) = ([v[:shared] for v in pair] for pair in (means, variances))
    scale = torch.maximum(var1, var2).clamp(min=0) + _EPS
    differences = (mean1 - mean2).abs() / scale.sqrt(), (var1 - var2).abs() / scale
    mean, var = (torch.nan_to_num(d, nan=0.0, posinf=0.0, neginf=0.0) for d in differences)
    return mean, var


def count_batches(weights: Mapping[str, Tensor]) -> dict[int, tuple[str, ...]]:
    """Group norms by the number of batches they counted, the largest number first.

    Args:
        weights: Weights under our names.
    """
    counts: dict[int, list[str]] = {}
    for key, value in weights.items():
        norm = key.removesuffix(".num_batches_tracked")
        if norm != key and value.numel() == 1 and not value.is_meta:
            counts.setdefault(int(value), []).append(norm)
    return {count: tuple(counts[count]) for count in sorted(counts, reverse=True)}


def find_layers_updated_twice(counts: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
    """Find dense layers whose first norm counted twice the batches of their second.

    Args:
        counts: From `batch_counts`.
    """
    batches = {norm: count for count, norms in counts.items() for norm in norms}
    layers = [norm.removesuffix(".norm1") for norm in batches if norm.endswith(".norm1")]
    pairs = [(layer, batches[f"{layer}.norm1"], batches.get(f"{layer}.norm2")) for layer in layers]
    return tuple(layer for layer, first, second in pairs if second and first == 2 * second)
