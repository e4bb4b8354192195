"""Prune a net by its feature reuse: least used connections, or whole layers, are taken out.

A pruned net equals the whole one with the weights of what was taken out set to zero: connections in
a layer's first convolution, absent layers in their last one, whose maps are zeros from then on.
Transitions and heads read all maps of a block, so no level changes its channels.

The measure is that of the DenseNet paper's figure 5 (1608.06993, section 5); that weights near zero
may go is Han et al., "Learning both Weights and Connections" (1506.02626).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from densenet_backbones.analysis.feature_reuse import BlockReuse, list_sources, measure_reuse
from densenet_backbones.analysis.reuse_findings import measure_usage
from densenet_backbones.densenet_spec import BlockPlan, Connections
from densenet_backbones.layers import AbsentLayer, DenseBlock, DenseLayer
from densenet_backbones.messages import check_interval, check_whole
from densenet_backbones.stages import DenseStages

__all__ = ["Pruning", "choose_connections", "cut_weights", "mask_weights"]

_Sources = list[list[int]]
"""Sources that each layer of a block reads, in the making."""


@dataclass(frozen=True)
class Pruning:
    """Choice of the connections and layers that a net goes without.

    Attributes:
        connections: What is left, as of `DenseNetSpec`.
        before: Number of connections before.
        after: Number of connections left.
        absent: Names of the layers taken out.
    """

    connections: tuple[Connections, ...]
    before: int
    after: int
    absent: tuple[str, ...]


def choose_connections(
    model: nn.Module,
    keep: float = 1.0,
    layers: int = 0,
    head_readers: Sequence[tuple[str, str, nn.Module | None]] = (),
    scaled: bool = True,
) -> Pruning:
    """Choose what a net needs least.

    Layers go first: those whose maps their readers use least (`measure_usage`). Then connections
    between the others go, by their weight relative to the mean of their reader. A block keeps one
    layer at least, and a layer one source.

    Args:
        model: Net, detector, segmenter or classifier, pruned before or not.
        keep: Share of the connections between layers to keep, in (0, 1].
        layers: Number of layers to take out.
        head_readers: As of `measure_reuse`.
        scaled: Weights scaled by batch norm, rather than plain ones.

    Raises:
        ValueError: The model has no DenseNet of ours, or a CondenseNet; a number is out of range;
            nothing would be taken out, or more than can be.
    """
    check_interval("keep", keep, "(0, 1]")
    check_whole("layers", layers, least=0)
    prefix, net = _find_net(model)
    # A segmenter may have further blocks, on its way up.
    known = {reuse.name: reuse for reuse in measure_reuse(model, head_readers)}
    blocks = [known[f"{prefix}{name}"] for name, _ in _iterate_blocks(net)]
    sources = [
        [list(list_sources(layer, n)) for n, layer in enumerate(block.values(), start=1)]
        for _, block in _iterate_blocks(net)
    ]
    before = _count(sources)
    absent = _drop_layers(blocks, sources, layers, scaled)
    left = _count(sources)
    _drop_connections(blocks, sources, left - round(keep * left), scaled)
    after = _count(sources)
    if after == before:
        raise ValueError(f"nothing is taken out of {before} connections; keep less of them")
    return Pruning(
        tuple(tuple(map(tuple, block)) for block in sources), before, after, tuple(absent)
    )


def _find_net(model: nn.Module) -> tuple[str, DenseStages]:
    """Return the DenseNet in a model, and what its parameters' names begin with in the model."""
    for name, module in model.named_modules():
        if isinstance(module, DenseStages):
            if module.spec.is_condensed:
                raise ValueError("a CondenseNet prunes itself in training, by its learned groups")
            return f"{name}.".lstrip("."), module
    raise ValueError(f"{type(model).__name__} has no DenseNet of ours, so there is none to prune")


def _iterate_blocks(net: DenseStages) -> Iterator[tuple[str, DenseBlock]]:
    """Yield the dense blocks of a net, by name."""
    for name, child in net.named_children():
        if isinstance(child, DenseBlock):
            yield name, child


def _count(sources: Sequence[_Sources]) -> int:
    return sum(len(read) for block in sources for read in block)


def _drop_layers(
    blocks: Sequence[BlockReuse], sources: Sequence[_Sources], count: int, scaled: bool
) -> list[str]:
    """Take the least used layers out of lists of sources; return their names."""
    usage: list[tuple[float, int, int]] = []
    for number, block in enumerate(blocks):
        by_source = measure_usage(block, scaled)
        present = [layer for layer, read in enumerate(sources[number], start=1) if read]
        usage += [(by_source.get(block.sources[layer], 0.0), number, layer) for layer in present]
    dropped: list[str] = []
    for _, number, layer in sorted(usage):
        if len(dropped) == count:
            break
        others = [read for n, read in enumerate(sources[number], start=1) if n != layer]
        # One layer stays in a block, and a layer keeps something to read.
        if not any(others) or [layer] in others:
            continue
        sources[number][layer - 1] = []
        for read in others:
            if layer in read:
                read.remove(layer)
        dropped.append(f"{blocks[number].name}.{blocks[number].sources[layer]}")
    if len(dropped) < count:
        raise ValueError(
            f"{count} of {len(usage)} layers cannot be taken out, but {len(dropped)}: each block "
            "keeps one, and each layer something to read"
        )
    return dropped


def _drop_connections(
    blocks: Sequence[BlockReuse], sources: Sequence[_Sources], count: int, scaled: bool
) -> None:
    """Take the connections of least weight out of lists of sources."""
    least = sum(bool(read) for block in sources for read in block)
    total = _count(sources)
    if total - count < least:
        raise ValueError(
            f"{total - count} of {total} connections cannot be all that is left of {least} layers, "
            f"each of which keeps one: keep a share of {least / total:.2f} or more"
        )
    ranked: list[tuple[float, int, int, int]] = []
    for number, block in enumerate(blocks):
        for reader in block.readers:
            if reader.kind != "layer":
                continue
            layer = block.sources.index(reader.name.rpartition(".")[2])
            weights = reader.scaled if scaled else reader.plain
            known = [w for w in weights if w is not None]
            average = sum(known) / max(len(known), 1) or 1.0
            for source in sources[number][layer - 1]:
                ranked.append(((weights[source] or 0.0) / average, number, layer, source))
    for _, number, layer, source in sorted(ranked):
        read = sources[number][layer - 1]
        if count > 0 and len(read) > 1:
            read.remove(source)
            count -= 1


def mask_weights(model: nn.Module, connections: Sequence[Connections]) -> nn.Module:
    """Return a copy of a model in which the weights of dropped connections and layers are zero."""
    model = copy.deepcopy(model)
    _, net = _find_net(model)
    with torch.no_grad():
        for _, layer, kept in _iterate_cuts(net, connections):
            if kept is None:
                last = layer.conv2 if layer.bottleneck else layer.conv1
                last.weight.zero_()
                if last.bias is not None:
                    last.bias.zero_()
            else:
                dropped = torch.ones(layer.conv1.in_channels, dtype=torch.bool)
                dropped[kept] = False
                layer.conv1.weight[:, dropped] = 0
    return model


def cut_weights(model: nn.Module, connections: Sequence[Connections]) -> dict[str, Tensor]:
    """Return the weights of a model as its pruned form takes them.

    Args:
        model: The model before.
        connections: Of the pruned form, as of `DenseNetSpec`.
    """
    prefix, net = _find_net(model)
    weights = dict(model.state_dict())
    for name, _, kept in _iterate_cuts(net, connections):
        path = f"{prefix}{name}."
        if kept is None:
            weights = {k: v for k, v in weights.items() if not k.startswith(path)}
            continue
        weights[f"{path}conv1.weight"] = weights[f"{path}conv1.weight"][:, kept]
        for entry in ("weight", "bias", "running_mean", "running_var"):
            if f"{path}norm1.{entry}" in weights:
                weights[f"{path}norm1.{entry}"] = weights[f"{path}norm1.{entry}"][kept]
    return weights


def _iterate_cuts(
    net: DenseStages, connections: Sequence[Connections]
) -> Iterator[tuple[str, DenseLayer, Tensor | None]]:
    """Yield present layers by name, and the channels of ``conv1`` to keep; None for no layer."""
    for plan, (name, block), kept in zip(
        net.spec.blocks, _iterate_blocks(net), connections, strict=True
    ):
        for number, layer in enumerate(block.values(), start=1):
            if not isinstance(layer, AbsentLayer):
                assert isinstance(layer, DenseLayer)
                channels = _list_channels(plan, list_sources(layer, number), kept[number - 1])
                yield f"{name}.denselayer{number}", layer, channels


def _list_channels(plan: BlockPlan, read: Sequence[int], kept: Sequence[int]) -> Tensor | None:
    """Return the channels, of those that some sources bring, which come from the kept ones."""
    if not kept:
        return None
    origin = [s for s in read for _ in range(plan.bounds[s], plan.bounds[s + 1])]
    return torch.tensor([s in kept for s in origin]).nonzero().flatten()
