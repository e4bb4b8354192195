"""Recognize the DenseNet that weights belong to, from their names and shapes alone.

Values are not looked at, so tensors on the meta device do. What weights cannot show (kind, ceil
mode and strides of the pools, output stride, activation, dropout, the norm's settings, whether
norms were frozen, a DSOD stem beside another deep one, the stride of a stem of one convolution, a
CondenseNet's factor) is the published network's where exactly one fits the whole of the weights,
and otherwise `DenseNetSpec`'s default.
"""

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.keys import CLASSIFIER, to_ours
from densenet_backbones.densenet_spec import DenseNetSpec, Norm, Stem
from densenet_backbones.layers import Transition, feature_modules
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_LAYERS
from densenet_backbones.variants import VARIANTS

__all__ = ["ROWS", "Recognized", "recognize"]

Shapes = Mapping[str, tuple[int, ...]]

ROWS = ("raw", "norm", "compressed", "pooled")  # features.py's table of taps
_LAYER = re.compile(r"denseblock(\d+)\.denselayer(\d+)\.")
# Widths are what the weights hold; these shares are the ones in use (papers; tenths in ablations).
_STEM = frozenset(f"{kind}{i}" for kind in ("conv", "norm") for i in range(3))
_SHARES = (0.5, 1.0, 0.25, 0.75, *(i / 10 for i in range(1, 10)))


@dataclass(frozen=True)
class Recognized:
    """Network that the names and shapes of weights describe.

    Attributes:
        spec: Architecture of the stages that are there.
        variants: Published networks (`densenet_backbones.variants`) that fit; for weights that end
            early, all that begin so.
        classes: Rows of the classifier; None without one.
        in_chans: Channels of the image; None without a stem.
        stages: Stages of which there are weights: ``stem``, ``denseblock1``, ``transition1``, ...
        levels: Levels ``c1``, ``c2``, ... for which all weights are there, by row of taps.
        statistics: Whether the norms have running statistics.
        missing: Entries the architecture needs and the weights lack; counters of batches aside.
        unexpected: Entries that do not belong to the architecture, or have another shape there.
    """

    spec: DenseNetSpec
    variants: tuple[str, ...]
    classes: int | None
    in_chans: int | None
    stages: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]
    statistics: bool
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def complete_to(self) -> str | None:
        """Last level of the ``raw`` row that the weights suffice for."""
        return self.levels["raw"][-1] if self.levels["raw"] else None

    def describe(self) -> str:
        """``densenet169 (growth rate 32, blocks 6-12-32-32)``."""
        name = " or ".join(self.variants) or "an unpublished DenseNet"
        growth = self.spec.growth_rate
        rates = "-".join(map(str, growth)) if isinstance(growth, tuple) else str(growth)
        blocks = "-".join(map(str, self.spec.block_config))
        return f"{name} (growth rate {rates}, blocks {blocks})"


@dataclass(frozen=True)
class _Block:
    layers: int
    growth_rate: int
    in_channels: int
    width: int | None  # of the bottleneck
    groups: int = 1  # of the 3x3 behind it

    @property
    def channels(self) -> int:
        return self.in_channels + self.layers * self.growth_rate


def recognize(weights: Mapping[str, Tensor], prefix: str | None = None) -> Recognized:
    """Infer the architecture of a DenseNet's weights.

    Args:
        weights: Weights under any name that `to_ours` reads.
        prefix: As in `to_ours`.

    Raises:
        CheckpointError: As `to_ours`; the weights hold no dense block; or shapes contradict each
            other so that no `DenseNetSpec` describes them.
    """
    shapes = {key: tuple(value.shape) for key, value in to_ours(weights, prefix).items()}
    # Names tell the blocks and their layers, shapes the widths.
    blocks = _read_blocks(shapes)
    conv0 = shapes.get("conv0.weight", ())
    in_chans = conv0[1] if len(conv0) == 4 else None
    statistics = any(key.endswith(".running_mean") for key in shapes)
    variants = _find_variants(shapes, blocks)
    spec = _infer_spec(shapes, blocks, variants, "bn" if statistics else "group")
    # What the network so described would hold, compared with what the file does.
    expected = _build_expected_shapes(spec, in_chans or 3, shapes)
    missing, unexpected = _compare_shapes(shapes, expected)
    at_end = _find_rows_at_end(spec, variants)
    classifier = shapes.get(f"{CLASSIFIER}weight", ())
    return Recognized(
        spec=spec,
        variants=variants,
        classes=classifier[0] if classifier else None,
        in_chans=in_chans,
        stages=_list_stages(shapes, expected),
        levels=_find_complete_levels(
            shapes, expected, {*missing, *unexpected}, len(blocks), at_end
        ),
        statistics=statistics,
        missing=missing,
        unexpected=unexpected,
    )


# ------------------------------------------------------------------------------ blocks


def _read_blocks(shapes: Shapes) -> tuple[_Block, ...]:
    layers: dict[int, int] = {}
    for key in shapes:
        if match := _LAYER.match(key):
            layers[int(match[1])] = max(layers.get(int(match[1]), 0), int(match[2]))
    if 1 not in layers:
        raise CheckpointError("they hold no denseblock1")
    # The network is built below: a damaged name must not make it endless.
    if max(layers.values()) > len(shapes):
        raise CheckpointError(f"they name a layer {max(layers.values())}, more than they hold")
    if sum(layers.values()) > MAX_LAYERS:
        raise CheckpointError(
            f"they have {pluralize(sum(layers.values()), 'layer')} of {MAX_LAYERS} at most"
        )
    last = next(i for i in range(1, len(layers) + 2) if i + 1 not in layers)
    return tuple(_read_block(shapes, i, layers[i]) for i in range(1, last + 1))


def _read_block(shapes: Shapes, block: int, layers: int) -> _Block:
    """Read a block off the first of its layers whose convolutions are there."""
    bottleneck = any(".conv2.weight" in key for key in shapes if key.startswith("denseblock"))
    for layer in range(1, layers + 1):
        name = f"denseblock{block}.denselayer{layer}"
        first = shapes.get(f"{name}.conv1.weight", ())
        last = shapes.get(f"{name}.conv{2 if bottleneck else 1}.weight", ())
        if len(first) == len(last) == 4:
            entry = first[1] - (layer - 1) * last[0]
            if not bottleneck:
                return _Block(layers, last[0], entry, None)
            return _Block(layers, last[0], entry, first[0], first[0] // max(last[1], 1))
    raise CheckpointError(
        f"they hold no convolutions of denseblock{block}, which would show its growth rate"
    )


def _read_bn_size(blocks: tuple[_Block, ...]) -> int | None:
    sizes = {None if b.width is None else b.width / b.growth_rate for b in blocks}
    size = sizes.pop()
    if sizes or (size is not None and not (size >= 1 and size.is_integer())):
        widths = ", ".join(f"{block.width} to {block.growth_rate}" for block in blocks)
        raise CheckpointError(
            f"the bottlenecks of the weights are no common multiple of the growth rates ({widths})"
        )
    return None if size is None else int(size)


# ------------------------------------------------------------------------------ architecture


def _read_stem(shapes: Shapes) -> Stem:
    if "conv1.weight" in shapes:
        return "deep"
    return "cifar" if shapes.get("conv0.weight", ())[2:] == (3, 3) else "imagenet"


def _infer_spec(
    shapes: Shapes, blocks: tuple[_Block, ...], variants: tuple[str, ...], norm: Norm
) -> DenseNetSpec:
    final_norm = any(key.startswith("norm5.") for key in shapes)
    whole = [v for v in variants if _is_whole(VARIANTS[v], len(blocks), final_norm)]
    rates = {block.growth_rate for block in blocks}
    fields: dict[str, Any] = {
        "growth_rate": rates.pop() if len(rates) == 1 else tuple(b.growth_rate for b in blocks),
        "block_config": tuple(block.layers for block in blocks),
        "num_init_features": blocks[0].in_channels,
        "bn_size": _read_bn_size(blocks),
        "stem": _read_stem(shapes),
        "final_norm": final_norm,
        **_infer_compression(blocks),
        **_infer_condensation(shapes, blocks),
    }
    try:
        spec = DenseNetSpec(**fields) if len(whole) != 1 else VARIANTS[whole[0]]
    except ValueError as error:
        raise CheckpointError(f"the weights fit no network of this package: {error}") from error
    try:
        return dataclasses.replace(spec, norm=norm)
    except ValueError:  # groups of channels that no group norm of ours has
        return dataclasses.replace(spec, norm="group", norm_group_size=1)


def _infer_compression(blocks: tuple[_Block, ...]) -> dict[str, float | tuple[int, ...]]:
    """Infer the common share of channels that transitions keep, or else their widths."""
    widths = [(b.channels, after.in_channels) for b, after in pairwise(blocks)]
    for share in _SHARES:
        if all(int(channels * share + 1e-6) == width for channels, width in widths):
            return {"compression": share}
    return {"transition_channels": tuple(width for _, width in widths)}


def _infer_condensation(shapes: Shapes, blocks: tuple[_Block, ...]) -> dict[str, Any]:
    """Infer a CondenseNet's groups; its factor, which shapes do not show, is the authors', C = G.

    Masks show that it is one. Its blocks have no transitions between them, which compress nothing.
    """
    if not any(key.endswith(".conv1.mask") for key in shapes):
        return {}
    groups = blocks[0].groups
    fields: dict[str, Any] = {"groups": groups, "condense_factor": groups}
    if "classifier.mask" in shapes:
        fields["classifier_condense_factor"] = 2
    if not any(key.startswith("transition") for key in shapes):
        fields |= {"transition_conv": False, "compression": 1.0}
    return fields


def _is_whole(spec: DenseNetSpec, blocks: int, final_norm: bool) -> bool:
    return len(spec.block_config) == blocks and spec.final_norm == final_norm


def _find_variants(shapes: Shapes, blocks: tuple[_Block, ...]) -> tuple[str, ...]:
    """Find published networks that fit the weights as a whole, or else those that begin so."""
    fitting = {name: spec for name, spec in VARIANTS.items() if _can_begin(spec, shapes, blocks)}
    final_norm = any(key.startswith("norm5.") for key in shapes)
    whole = [name for name, spec in fitting.items() if _is_whole(spec, len(blocks), final_norm)]
    if f"transition{len(blocks)}.norm.weight" in shapes:
        return tuple(n for n, spec in fitting.items() if len(spec.block_config) > len(blocks))
    return tuple(whole) if whole or final_norm else tuple(fitting)


def _can_begin(spec: DenseNetSpec, shapes: Shapes, blocks: tuple[_Block, ...]) -> bool:
    own = tuple(
        _Block(p.layers, p.growth_rate, p.in_channels, p.growth_rate * spec.bn_size, spec.groups)
        if spec.bn_size is not None
        else _Block(p.layers, p.growth_rate, p.in_channels, None)
        for p in spec.blocks
    )
    stem = {"dsod": "deep", "conv": "cifar"}.get(spec.stem, spec.stem)
    stems_fit = "conv0.weight" not in shapes or stem == _read_stem(shapes)
    trailing = shapes.get(f"transition{len(blocks)}.conv.weight", ())
    if trailing and len(blocks) < len(own) and own[len(blocks)].in_channels != trailing[0]:
        return False
    return stems_fit and own[: len(blocks)] == blocks


# ------------------------------------------------------------------------------ completeness


def _build_expected_shapes(spec: DenseNetSpec, in_chans: int, shapes: Shapes) -> Shapes:
    """Build the network of ``spec`` without values; return its entries but the classifier's.

    Those of a transition behind the last block belong to it where the weights have some: a
    features net may end in it.
    """
    with torch.device("meta"):  # shapes without values: nothing is allocated
        net = nn.Sequential(OrderedDict(feature_modules(spec, in_chans)))
        expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        expected.update(_build_trailing_shapes(spec, shapes))
    return expected


def _build_trailing_shapes(spec: DenseNetSpec, shapes: Shapes) -> Shapes:
    name = f"transition{len(spec.block_config)}."
    conv = shapes.get(f"{name}conv.weight", ())
    width = conv[0] if len(conv) == 4 else 1
    plan = dataclasses.replace(spec.blocks[-1], transition_channels=width or 1)
    groups = 1 if spec.norm == "group" else None  # no shape depends on their size
    transition = Transition(plan, dataclasses.replace(spec, norm_group_size=groups))
    entries = {f"{name}{key}": tuple(v.shape) for key, v in transition.state_dict().items()}
    has_norm = any(key.startswith(f"{name}norm.") for key in shapes)
    return {
        key: shape
        for key, shape in entries.items()
        if (len(conv) == 4 if key == f"{name}conv.weight" else has_norm)
    }


def _compare_shapes(shapes: Shapes, expected: Shapes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    missing = (key for key in expected if key not in shapes)
    own = (key for key in shapes if not key.startswith(CLASSIFIER))
    return (
        tuple(key for key in missing if not key.endswith(".num_batches_tracked")),
        tuple(key for key in own if shapes[key] != expected.get(key)),
    )


def _name_stage(name: str) -> str:
    """Name an entry's stage: ``stem``, ``denseblock1``, ..., ``norm5`` or ``classifier``."""
    first = name.partition(".")[0]
    return "stem" if first in _STEM else first


def _list_stages(shapes: Shapes, expected: Shapes) -> tuple[str, ...]:
    present = {_name_stage(key) for key in shapes}
    order = dict.fromkeys(map(_name_stage, expected))
    return tuple(stage for stage in (*order, "classifier") if stage in present)


def _find_rows_at_end(spec: DenseNetSpec, variants: tuple[str, ...]) -> tuple[str, ...]:
    """Find the rows of taps that the last block ends when no transition follows it.

    Without a final norm its concatenation is the last level of every row, unless the networks that
    fit have more behind it: a transition, then it is a raw tap only, or the norm.
    """
    blocks = len(spec.block_config)
    known = [VARIANTS[name] for name in variants]
    if not known or any(_is_whole(variant, blocks, spec.final_norm) for variant in known):
        return ROWS
    return ROWS[:1] if any(len(variant.block_config) > blocks for variant in known) else ()


def _find_complete_levels(
    shapes: Shapes, expected: Shapes, wrong: set[str], blocks: int, at_end: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    broken = {_name_stage(key) for key in wrong}
    levels: dict[str, tuple[str, ...]] = dict.fromkeys(ROWS, ())
    if "stem" in broken:
        return levels
    levels = dict.fromkeys(ROWS, ("c1",))
    has_transitions = any(key.startswith("transition") for key in expected) or not any(
        key.endswith(".conv1.mask") for key in expected
    )
    for i in range(1, blocks + 1):
        name, transition = f"c{i + 1}", f"transition{i}"
        if f"denseblock{i}" in broken:
            break
        if i == blocks and transition not in map(_name_stage, expected):
            for row in at_end if "norm5" not in broken else ():
                levels[row] += (name,)
            break
        levels["raw"] += (name,)
        if not has_transitions:
            for row in ROWS[1:]:
                levels[row] += (name,)
            continue
        # A features net of the norm tap ends in the transition's norm, without its 1x1.
        if not any(key.startswith(f"{transition}.norm.") for key in wrong) and any(
            key.startswith(f"{transition}.norm.") for key in shapes
        ):
            levels["norm"] += (name,)
        if transition in broken or f"{transition}.conv.weight" not in shapes:
            break
        levels["compressed"] += (name,)
        levels["pooled"] += (name,)
    return levels
