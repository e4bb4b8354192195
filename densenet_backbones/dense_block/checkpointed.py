"""Executions of a dense block that compute maps again in the backward pass instead of keeping them.

They are the "naive" checkpoints of Pleiss et al. (1707.06990) and efficient_densenet_pytorch, and
coarser ones; `modes` says what each keeps. Checkpointing of a batch norm without further care
updates its running statistics twice, once in the forward pass and once when the maps are computed
again (pytorch/pytorch#96136). Here the second time leaves them alone, so outputs, gradients and
buffers are those of the plain execution.

Shapes: N images, C channels of the block's input, k new maps of a layer, H and W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from densenet_backbones.dense_block.interfaces import DenseLayerLike
from densenet_backbones.dense_block.plain import run_plain

__all__ = ["checkpoint_block", "checkpoint_bottlenecks", "checkpoint_layers"]


class _TrackingNorm(Protocol):
    """A norm that mixes the batch's statistics into running ones: `nn.BatchNorm2d` and others."""

    momentum: float | None
    num_batches_tracked: Tensor | None


def checkpoint_bottlenecks(x: Tensor, layers: Sequence[DenseLayerLike]) -> Tensor:
    """Run a dense block that keeps new maps and bottlenecks; the rest is computed again.

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Dense layers in order; those without bottleneck are computed again as a whole.

    Returns:
        The concatenation of the input and all new maps, as `run_plain` returns it.
    """
    maps = [x]
    for layer in layers:
        if layer.bottleneck:
            maps.append(
                layer.expand(_checkpoint(_concatenate_first(layer.squeeze), [layer], *maps))
            )
        else:
            maps.append(_checkpoint(_concatenate_first(layer), [layer], *maps))
    return torch.cat(maps, dim=1)


def checkpoint_layers(x: Tensor, layers: Sequence[DenseLayerLike]) -> Tensor:
    """Run a dense block that keeps new maps, and computes layers again one by one.

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Dense layers in order.

    Returns:
        The concatenation of the input and all new maps, as `run_plain` returns it.
    """
    maps = [x]
    for layer in layers:
        maps.append(_checkpoint(_concatenate_first(layer), [layer], *maps))
    return torch.cat(maps, dim=1)


def checkpoint_block(x: Tensor, layers: Sequence[DenseLayerLike]) -> Tensor:
    """Run a dense block that keeps its input alone, and is computed again as a whole.

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Dense layers in order.

    Returns:
        The concatenation of the input and all new maps, as `run_plain` returns it.
    """
    return _checkpoint(lambda x: run_plain(x, layers), layers, x)


def _concatenate_first(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return ``function`` of the concatenation of its arguments, which is not kept then."""
    return lambda *maps: function(torch.cat(maps, dim=1) if len(maps) > 1 else maps[0])


def _checkpoint(
    function: Callable[..., Tensor], layers: Sequence[DenseLayerLike], *maps: Tensor
) -> Tensor:
    if torch.compiler.is_compiling():
        # Dynamo takes no context_fn, and needs none: what it computes again updates no buffers.
        return checkpoint(function, *maps, use_reentrant=False)
    modules = (module for layer in layers for module in layer.modules())
    norms = cast(
        "list[_TrackingNorm]",
        [module for module in modules if getattr(module, "track_running_stats", False)],
    )
    return checkpoint(
        function,
        *maps,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _KeepStatistics(norms)),
    )


class _KeepStatistics:
    """A context within which batch norms in training mode leave their buffers as they are.

    With momentum 0 the running statistics are multiplied by one. They cannot simply be left out:
    autograd keeps them with the rest, and checkpointing compares what is kept. It may be entered
    again, once for every backward pass.
    """

    def __init__(self, norms: Iterable[_TrackingNorm]) -> None:
        self.norms = tuple(norms)

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *args: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
