"""Executions of a dense block that compute maps again in the backward pass instead of keeping them.

Naive checkpointing of a batch norm updates its running statistics twice, once in the forward pass
and once when the maps are computed again (pytorch/pytorch#96136). Here the second time leaves them
alone, so outputs, gradients and buffers are those of the plain execution.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densenet_backbones.dense_block.hooks import has_hooks
from densenet_backbones.dense_block.plain import run_plain

__all__ = ["DenseLayerLike", "Memory", "run_checkpointed"]

Memory = Literal["none", "bottleneck", "layer", "block", "shared", "shared_lean"]


class DenseLayerLike(Protocol):
    """What `run_checkpointed` asks of a layer; ``layer(x)`` is ``expand(squeeze(x))``."""

    @property
    def bottleneck(self) -> bool:
        """Whether there is a bottleneck; without one, ``squeeze`` makes the new maps."""

    def __call__(self, x: Tensor) -> Tensor:
        """New maps, (N, k, H, W), from the concatenation, (N, C, H, W)."""

    def squeeze(self, x: Tensor) -> Tensor:
        """Norm, activation and first convolution: bottleneck maps from the concatenation."""

    def expand(self, x: Tensor) -> Tensor:
        """The rest of the layer: new maps from the bottleneck maps."""

    def modules(self) -> Iterator[nn.Module]:
        """The layer and everything in it."""


def run_checkpointed(x: Tensor, layers: Sequence[DenseLayerLike], memory: Memory) -> Tensor:
    """Runs a dense block, keeping less of it for the backward pass.

    What is kept besides the block's input, for L layers:

    ==============  ================================================  ==========================
    memory          kept                                              computed once more
    ==============  ================================================  ==========================
    ``bottleneck``  new maps and bottleneck maps: linear in L         concatenation, norm1, conv1
    ``layer``       new maps: linear in L                             every layer, one by one
    ``block``       nothing                                           the block as a whole
    ==============  ================================================  ==========================

    ``bottleneck`` is what Pleiss et al. (1707.06990) and every other implementation do; a layer
    without bottleneck has nothing but its norm before the 3x3, so there it means ``layer``.
    ``block`` needs room for one block's maps while it runs backward.

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Layers as `run_plain` takes them.
        memory: Row of the table.

    Returns:
        What `run_plain` returns. Layers with hooks run plain, as hooks must see each pass once; a
        warning says so, once.
    """
    # Compiled code carries its hooks within, and computes nothing again behind our back.
    if not torch.compiler.is_compiling() and any(
        has_hooks(module) for layer in layers for module in layer.modules()
    ):
        warnings.warn(
            f"memory={memory!r} is off for dense blocks whose layers carry hooks, as hooks must "
            "see every pass once; hook the blocks instead, or remove the hooks",
            stacklevel=2,
        )
        return run_plain(x, layers)
    if memory == "block":
        return _checkpoint(lambda x: run_plain(x, layers), layers, x)
    maps = [x]
    for layer in layers:
        if memory == "bottleneck" and layer.bottleneck:
            maps.append(layer.expand(_checkpoint(_joined(layer.squeeze), [layer], *maps)))
        else:
            maps.append(_checkpoint(_joined(layer), [layer], *maps))
    return torch.cat(maps, dim=1)


def _joined(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """``function`` of the concatenation of its arguments, which is then not kept either."""
    return lambda *maps: function(torch.cat(maps, dim=1) if len(maps) > 1 else maps[0])


def _checkpoint(
    function: Callable[..., Tensor], layers: Sequence[DenseLayerLike], *maps: Tensor
) -> Tensor:
    if torch.compiler.is_compiling():
        # Dynamo takes no context_fn, and needs none: what it computes again updates no buffers.
        return checkpoint(function, *maps, use_reentrant=False)
    modules = (module for layer in layers for module in layer.modules())
    norms = [module for module in modules if getattr(module, "track_running_stats", False)]
    return checkpoint(
        function,
        *maps,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _StatisticsKept(norms)),
    )


class _StatisticsKept:
    """A context within which batch norms in training mode leave their buffers as they are.

    With momentum 0 the running statistics are multiplied by one. They cannot simply be left out:
    autograd keeps them with the rest, and checkpointing compares what is kept. It may be entered
    again, once for every backward pass.
    """

    def __init__(self, norms: Iterable[Any]) -> None:
        self.norms = tuple(norms)

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *args: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
