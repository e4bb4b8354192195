"""Feature reuse: how much weight each layer puts on the maps of every earlier one.

The heat map of Huang et al., "Densely Connected Convolutional Networks" (1608.06993), section 5 and
figure 5, for every dense block of a model: layers, the transition behind the block, the classifier,
and convolutions of a detector's or segmenter's head that read the block's maps.

Legend: S sources of a block (its input, then its layers), R readers, C channels.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from densenet_backbones.condensenet import CondensedLinear
from densenet_backbones.dense_block.interfaces import read_weight
from densenet_backbones.densenet import DenseNet
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.heads.multibox.head import ChannelL2Norm
from densenet_backbones.layers import AbsentLayer, DenseBlock, SelectiveLayer
from densenet_backbones.stages import DenseStages

__all__ = ["BlockReuse", "Reader", "find_head_readers", "list_sources", "measure_reuse"]

INPUT = "input"
"""Name of a block's first source: the stem's maps, or the transition's before it."""


@dataclass(frozen=True)
class Reader:
    """A convolution, or the classifier, that reads the maps of a dense block.

    Attributes:
        name: Name below the model.
        kind: ``layer``, ``transition``, ``classifier`` or ``head``.
        plain: For each source the mean of ``|w|`` over the weights on its channels; None where it
            is not read, as a later layer's.
        scaled: Likewise of ``|w * gamma / sigma|``, with the norm between the maps and the
            convolution; equal to ``plain`` without one.
    """

    name: str
    kind: str
    plain: tuple[float | None, ...]
    scaled: tuple[float | None, ...]


@dataclass(frozen=True)
class BlockReuse:
    """Feature reuse within and behind one dense block.

    Attributes:
        name: Name of the block below the model.
        sources: S names: ``input``, ``denselayer1``, ...
        widths: Channels of each source.
        readers: In the order they run.
    """

    name: str
    sources: tuple[str, ...]
    widths: tuple[int, ...]
    readers: tuple[Reader, ...]

    def values(self, scaled: bool = False) -> Tensor:
        """Return (S, R) float64 mean absolute weights; NaN where a source is not read."""
        columns = [reader.scaled if scaled else reader.plain for reader in self.readers]
        rows = [[float("nan") if v is None else v for v in column] for column in columns]
        return torch.tensor(rows, dtype=torch.float64).T


@dataclass(frozen=True)
class _Part:
    """A weight that reads a block's maps, with the norm before it."""

    name: str
    kind: str
    weight: Tensor  # (out, C, ...)
    norm: nn.Module | None
    sources: tuple[int, ...]  # of the block, in the order of the weight's channels


def measure_reuse(
    model: nn.Module, head_readers: Sequence[tuple[str, str, nn.Module | None]] = ()
) -> tuple[BlockReuse, ...]:
    """Measure the feature reuse of every dense block in a model.

    A layer's first convolution is read: the 1x1 with a bottleneck, the 3x3 without.

    Args:
        model: A net, or a detector or segmenter that holds one.
        head_readers: Further readers, as `find_head_readers` gives them.

    Returns:
        One entry a block, in the order of the model's modules.

    Raises:
        ValueError: The model has no dense block, or one with layers of another kind.
    """
    modules = dict(model.named_modules())
    blocks = {name: m for name, m in modules.items() if isinstance(m, DenseBlock)}
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no dense block, so no layer reuses the maps of another; "
            "give a DenseNet, or a detector or segmenter on one"
        )
    behind: dict[str, list[_Part]] = {name: [] for name in blocks}
    for name, net in modules.items():
        if isinstance(net, DenseStages):
            for block, part in _list_parts_behind(f"{name}.".lstrip("."), net):
                behind[block].append(part)
    for block, name, norm in head_readers:
        weight = cast(Tensor, modules[name].weight)
        behind[block].append(_Part(name, "head", weight, norm, ()))
    with torch.no_grad():
        return tuple(_measure_block(name, b, behind[name]) for name, b in blocks.items())


def _measure_block(name: str, block: DenseBlock, behind: Sequence[_Part]) -> BlockReuse:
    try:
        layers: list[Any] = list(block.values())
        ends = [end for _, end in block.widths()]
        first = layers[0]
        entry = (first if isinstance(first, AbsentLayer) else first.conv1).in_channels
        widths = tuple(end - start for start, end in pairwise([0, entry, *ends]))
        parts = [
            _Part(f"{name}.denselayer{n}", "layer", read_weight(m.conv1), m.norm1, sources)
            for n, m in enumerate(layers, start=1)
            if (sources := list_sources(m, n))
        ]
    except AttributeError as error:
        raise ValueError(f"{name} has layers of another kind ({error})") from error
    everything = tuple(range(len(widths)))
    absent = {n for n, layer in enumerate(layers, start=1) if isinstance(layer, AbsentLayer)}
    readers = [
        _measure_reader(p, widths, p.sources or everything, absent) for p in (*parts, *behind)
    ]
    for n in sorted(absent):
        nothing = (None,) * len(widths)
        readers.insert(n - 1, Reader(f"{name}.denselayer{n}", "layer", nothing, nothing))
    return BlockReuse(name, (INPUT, *block), widths, tuple(readers))


def list_sources(layer: nn.Module, number: int) -> tuple[int, ...]:
    """Return the sources that a block's layer reads; none of a layer that was pruned away.

    Args:
        layer: The layer.
        number: Its number in the block, from 1.
    """
    if isinstance(layer, AbsentLayer):
        return ()
    return layer.sources if isinstance(layer, SelectiveLayer) else tuple(range(number))


def _measure_reader(
    part: _Part, widths: Sequence[int], sources: Sequence[int], absent: Collection[int]
) -> Reader:
    # (out, C, kernel): a classifier's weight has no kernel.
    weight = part.weight.detach().double().abs().cpu().reshape(*part.weight.shape[:2], -1)
    by_channel = weight.mean(dim=(0, 2))
    factors = _read_factors(part.norm, len(by_channel))
    ends = [widths[source] for source in sources]
    if sum(ends) != len(by_channel):
        raise ValueError(
            f"{part.name} reads {len(by_channel)} channels, where its block has {sum(ends)}"
        )

    def average(values: Tensor) -> tuple[float | None, ...]:
        row: list[float | None] = [None] * len(widths)
        for source, piece in zip(sources, values.split(ends), strict=True):
            # The maps of an absent layer are zeros, whatever their weights are.
            row[source] = None if source in absent else float(piece.mean())
        return tuple(row)

    return Reader(part.name, part.kind, average(by_channel), average(by_channel * factors))


def _read_factors(norm: nn.Module | None, channels: int) -> Tensor:
    """Return ``|gamma / sigma|`` of each channel; group norm's statistics are those of an image."""
    factors = torch.ones(channels, dtype=torch.float64)
    gamma, variance = getattr(norm, "weight", None), getattr(norm, "running_var", None)
    if isinstance(gamma, Tensor):
        factors = gamma.detach().double().abs().cpu()
    if isinstance(variance, Tensor):
        factors = factors / (variance.double().cpu() + float(norm.eps)).sqrt()  # type: ignore[union-attr,arg-type]
    return factors


def _list_parts_behind(prefix: str, net: DenseStages) -> Iterator[tuple[str, _Part]]:
    """Yield what reads the output of each block within a net: transitions and the classifier."""
    names = net.feature_names
    last = max((i for i, n in enumerate(names) if n.startswith("denseblock")), default=None)
    for index, name in enumerate(names):
        follows = names[index + 1] if index + 1 < len(names) else ""
        stage = getattr(net, follows, None)
        if not name.startswith("denseblock"):
            continue
        if follows.startswith("transition") and isinstance(stage, nn.Module):
            conv = getattr(stage, "conv", None)  # absent where a net ends in its norm tap
            if isinstance(conv, nn.Conv2d):
                norm = cast(nn.Module, stage.norm)
                part = _Part(f"{prefix}{follows}", "transition", conv.weight, norm, ())
                yield f"{prefix}{name}", part
        elif index == last and isinstance(net, DenseNet) and _has_plain_classifier(net):
            weight = read_weight(cast(nn.Conv2d, net.classifier))  # masked or not, as of those
            norm5 = getattr(net, "norm5", None)
            part = _Part(f"{prefix}classifier", "classifier", weight, norm5, ())
            yield f"{prefix}{name}", part


def _has_plain_classifier(net: DenseNet) -> bool:
    """Return True if there is a classifier that reads each channel once."""
    known = isinstance(net.classifier, nn.Linear | CondensedLinear)
    return known and net.head_hidden_size == net.num_features


# Modules that keep channels apart, so that what they return still holds the block's maps.
_CHANNELWISE = (
    *(nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Identity),
    ChannelL2Norm,
)


def find_head_readers(model: nn.Module, images: object) -> list[tuple[str, str, nn.Module | None]]:
    """Find the convolutions of a head that read a block's concatenation, by running it once.

    A map is followed through norms, activations, pools and SSD's scaling of lengths. Heads that
    join maps before their first convolution, as U-Nets do, have no such convolution.

    Args:
        model: Detector or segmenter with a `DenseFeatureNet`.
        images: Argument of its forward, in evaluation mode.

    Returns:
        Name of the block, name of the convolution, and the last norm between the two, or None.
    """
    names = {module: name for name, module in model.named_modules()}
    nets = [m for m in names if isinstance(m, DenseFeatureNet)]
    inner = {part for net in nets for part in net.modules()}
    follows: dict[int, tuple[Tensor, str, nn.Module | None]] = {}
    readers: list[tuple[str, str, nn.Module | None]] = []

    def note_levels(net: nn.Module, inputs: object, maps: list[Tensor]) -> None:
        assert isinstance(net, DenseFeatureNet)
        for point, x in zip(net.return_layers, maps, strict=True):
            tapped = _find_tapped_block(net, point)
            if tapped is not None:
                follows[id(x)] = (x, f"{names[net]}.{tapped[0]}".lstrip("."), tapped[1])

    def note_block(block: nn.Module, inputs: object, x: Tensor) -> None:
        follows[id(x)] = (x, names[block], None)

    def note_part(part: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        known = follows.get(id(inputs[0])) if inputs else None
        if known is None:
            return
        if isinstance(part, nn.Conv2d) and part.groups == 1:
            readers.append((known[1], names[part], known[2]))
        elif isinstance(output, Tensor):
            norm = part if isinstance(part, nn.BatchNorm2d) else known[2]
            follows[id(output)] = (output, known[1], norm)

    def is_followed(part: nn.Module) -> bool:
        return part not in inner and isinstance(part, (nn.Conv2d, *_CHANNELWISE))

    hooks = [net.register_forward_hook(note_levels) for net in nets]
    loose = [m for m in names if isinstance(m, DenseBlock) and m not in inner]
    hooks += [block.register_forward_hook(note_block) for block in loose]
    hooks += [m.register_forward_hook(note_part) for m in names if is_followed(m)]
    training = {module: module.training for module in names}
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, flag in training.items():
            module.training = flag
    return list(dict.fromkeys(readers))


def _find_tapped_block(net: DenseFeatureNet, point: str) -> tuple[str, nn.Module | None] | None:
    """Return the block whose concatenation a tap gives, and the norm passed on the way."""
    if point.startswith("denseblock") and "." not in point:
        return point, None
    blocks = [name for name in net.feature_names if name.startswith("denseblock")]
    if point == "relu5":
        return blocks[-1], cast(nn.Module, net.norm5)
    if point.endswith(".relu") and point.startswith("transition"):
        transition = point.partition(".")[0]
        norm = net.get_submodule(f"{transition}.norm")
        return f"denseblock{transition.removeprefix('transition')}", norm
    return None
