"""`DenseNetSpec`: the architecture of any member of the DenseNet family, as one checked value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar, get_args

from densenet_backbones.messages import check_choice, pluralize, to_plain
from densenet_backbones.untrusted.limits import MAX_LAYERS

__all__ = ["Act", "BlockPlan", "DenseNetSpec", "Init", "Norm", "Pool", "Stem", "StemPool"]

Stem = Literal["imagenet", "cifar", "deep", "dsod", "conv"]
StemPool = Literal["max", "blur"]
Pool = Literal["avg", "max", "blur"]
Act = Literal["relu", "relu6", "leaky_relu", "elu", "silu", "gelu", "hard_swish", "mish"]
Norm = Literal["bn", "frozen", "sync", "group"]
Init = Literal["he", "he_fan_out", "xavier_caffe"]

_CHOICES = {
    "pool": Pool,
    "stem": Stem,
    "stem_pool": StemPool,
    "act_layer": Act,
    "norm": Norm,
    "init": Init,
}
Connections = tuple[tuple[int, ...], ...]
"""Sources that each layer of a block reads, see `BlockPlan`."""

_T = TypeVar("_T")
_WHY_COMMON = "so that no group lies across the maps of two layers"
# Wu & He, 1803.08494, table 3: 16 channels a group are as good as their 32 groups.
_GROUP_SIZE = 16


@dataclass(frozen=True)
class BlockPlan:
    """Channels, stride and dilation of one dense block and of the transition behind it.

    Attributes:
        layers: Dense layers in the block.
        growth_rate: New channels of each layer.
        in_channels: Channels that enter the block.
        channels: Channels of the block's concatenation.
        stride: Input pixels per cell of the block's maps.
        dilation: Dilation of the block's 3x3 convolutions.
        drop_path: Probability of each layer to be dropped (stochastic depth).
        transition_channels: Channels that leave the transition: of its 1x1, or the block's own
            where there is none (``transition_conv``); None behind the last block.
        pooled: Whether a pool follows the transition. It halves the map, or, where
            ``output_stride`` is reached, keeps its size and dilates what follows.
        exit_stride: Input pixels per cell of what enters the next block.
        sources: Sources that each layer reads: 0 the block's input, l its layer l; empty for a
            layer that was pruned away. None where each reads all before it.
    """

    layers: int
    growth_rate: int
    in_channels: int
    channels: int
    stride: int
    dilation: int
    drop_path: tuple[float, ...]
    transition_channels: int | None
    pooled: bool
    exit_stride: int
    sources: Connections | None = None

    @property
    def bounds(self) -> tuple[int, ...]:
        """First channel of each source in the concatenation, and the end of the last source."""
        return (0, *range(self.in_channels, self.channels + 1, self.growth_rate))


@dataclass(frozen=True)
class DenseNetSpec:
    """Architecture of a DenseNet; the default is DenseNet-121.

    Every field is a JSON value (lists become tuples), so a spec travels in a checkpoint or a
    config: ``DenseNetSpec.from_dict(spec.to_dict()) == spec``.

    Attributes:
        growth_rate: New channels of each dense layer (k), one number or one per block.
        block_config: Dense layers of each block.
        num_init_features: Channels of the stem.
        bn_size: Width of the 1x1 bottleneck in multiples of k; None or 0 for layers without one.
        compression: Channels kept by a transition (theta), in (0, 1], one number or one per
            transition; the product is rounded down.
        transition_channels: Fixed output width of each transition; None where theta decides.
        transition_conv: Whether norm, activation and a 1x1 stand between blocks. CondenseNets have
            a pool alone there, so every layer reads all earlier maps of all blocks (1711.09224,
            section 3.2); compression is 1 then.
        transition_pool: Whether a pool follows the transition, one answer or one per transition.
        pool: Kind of the stride-2 pools behind the transitions: 2x2 ``avg`` or ``max``, or ``blur``
            (3x3 binomial; Zhang, 1904.11486).
        ceil_mode: Whether those pools keep the odd last row and column; blur pools always do.
        output_stride: Input pixels per cell of the last map; None for the nominal one (32 with an
            ImageNet stem). Transition pools beyond it run at stride 1, and what follows them is
            dilated (a trous), so every nominal cell keeps its value; see `DilatedPool`.
        stem: ``imagenet`` (7x7/2, BN, ReLU, 3x3/2 max pool), ``cifar`` (one 3x3), ``conv`` (one
            3x3/2, CondenseNet's), ``deep`` (three 3x3, the first of stride 2, and a 3x3/2 max pool;
            timm's densenet264d) or ``dsod`` (the same three with a 2x2/2 ceil-mode max pool;
            1708.01241, section 3.1).
        stem_pool: ``max``, or ``blur``: a max pool of stride 1, then a blur pool (timm's
            densenetblur121d).
        final_norm: Whether BN-ReLU (``norm5``, ``relu5``) follows the last block.
        groups: Groups G of each layer's two convolutions, a divisor of every growth rate: learned
            ones in the 1x1 (see `condensenet.learned_groups`), fixed ones in the 3x3; 1 for
            DenseNet's own layers.
        condense_factor: C of the 1x1s: their groups drop inputs in C - 1 stages of a training,
            until each reads 1 / C of them; 1 to keep all.
        classifier_condense_factor: The same of the classifier, which has one group.
        connections: For each block the sources that each of its layers reads: 0 the block's input,
            l its layer l, rising; an empty list for a layer that is absent, whose maps are zeros.
            None where each reads all before it. ``densenet prune`` writes it.
        act_layer: The activation, by timm's name: one of `Act`.
        proj_drop_rate: Dropout on the new maps of every dense layer (timm's name for it).
        drop_path_rate: Probability that a sample goes without a dense layer's new maps (stochastic
            depth; Huang et al., 1603.09382): from 0 at the first layer up to this at the last.
        norm: ``bn``; ``frozen`` (statistics and affine map are buffers, torchvision's
            ``FrozenBatchNorm2d``); ``sync`` (statistics over all processes); ``group``.
        norm_group_size: Channels of each group of ``norm="group"``; None for the largest number up
            to 16 that divides every width, so that no group lies across two layers' maps.
        norm_eps: Epsilon of every norm.
        norm_momentum: Weight of the newest batch in the running statistics.
        init: ``he`` as torchvision; ``he_fan_out``, CondenseNet's N(0, 2 / (outputs * kernel
            cells)); or ``xavier_caffe``, Caffe's U(+-sqrt(3 / fan_in)).

    Raises:
        ValueError: A field is outside its range or does not fit the number of blocks.
    """

    growth_rate: int | tuple[int, ...] = 32
    block_config: tuple[int, ...] = (6, 12, 24, 16)
    num_init_features: int = 64
    bn_size: int | None = 4
    compression: float | tuple[float, ...] = 0.5
    transition_channels: tuple[int | None, ...] | None = None
    transition_conv: bool = True
    transition_pool: bool | tuple[bool, ...] = True
    pool: Pool = "avg"
    ceil_mode: bool = False
    output_stride: int | None = None
    stem: Stem = "imagenet"
    stem_pool: StemPool = "max"
    final_norm: bool = True
    groups: int = 1
    condense_factor: int = 1
    classifier_condense_factor: int = 1
    connections: tuple[Connections, ...] | None = None
    act_layer: Act = "relu"
    proj_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    norm: Norm = "bn"
    norm_group_size: int | None = None
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    init: Init = "he"

    def __post_init__(self) -> None:
        # JSON and YAML have lists only; a frozen value needs tuples, to be hashed and compared.
        for field in dataclasses.fields(self):
            value = _to_tuples(to_plain(getattr(self, field.name)))
            object.__setattr__(self, field.name, value)
        if self.bn_size == 0:  # timm.create_model drops arguments that are None
            object.__setattr__(self, "bn_size", None)
        self._check_numbers()
        for name, legal in _CHOICES.items():
            check_choice(f"DenseNetSpec: {name}", getattr(self, name), get_args(legal))
        for name in ("ceil_mode", "final_norm", "transition_conv"):
            _require(isinstance(getattr(self, name), bool), self, name, "true or false")
        self._check_strides()
        self._check_condensation()
        self._check_connections()
        for block in self.blocks:
            if block.transition_channels is not None and block.transition_channels < 1:
                raise ValueError(
                    f"compression {self.compression} leaves no channel of {block.channels}; "
                    "raise compression or give transition_channels"
                )
        self._check_groups()

    def _check_numbers(self) -> None:
        # The number of blocks first: the lengths of other fields are checked against it.
        blocks = self.block_config
        fits = isinstance(blocks, tuple) and len(blocks) > 0 and all(map(_is_positive, blocks))
        _require(fits, self, "block_config", "one or more layer counts, each an integer >= 1")
        _require(sum(blocks) <= MAX_LAYERS, self, "block_config", f"{MAX_LAYERS} layers at most")
        transitions = len(blocks) - 1
        _check_each(self, "growth_rate", len(blocks), _is_positive, "an integer >= 1")
        _check_each(self, "compression", transitions, _is_share, "a number in (0, 1]")
        _check_each(
            self, "transition_pool", transitions, lambda v: isinstance(v, bool), "true or false"
        )
        if self.transition_channels is not None:
            fixed = self.transition_channels
            fits = isinstance(fixed, tuple) and len(fixed) == transitions
            fits = fits and all(v is None or _is_positive(v) for v in fixed)
            legal = f"{pluralize(transitions, 'entry')}, each None or an integer >= 1"
            _require(fits, self, "transition_channels", legal)
        _require(_is_positive(self.num_init_features), self, "num_init_features", "an integer >= 1")
        if self.stem in ("deep", "dsod"):
            even = self.num_init_features % 2 == 0
            _require(even, self, "num_init_features", f"even with stem={self.stem!r}")
        fits = self.bn_size is None or _is_positive(self.bn_size)
        _require(fits, self, "bn_size", "an integer >= 1, or None (0) for no bottleneck")
        for name in ("proj_drop_rate", "drop_path_rate"):
            rate = getattr(self, name)
            _require(_is_number(rate) and 0 <= rate < 1, self, name, "in [0, 1)")
        _require(_is_number(self.norm_eps) and self.norm_eps > 0, self, "norm_eps", "above 0")
        _require(_is_share(self.norm_momentum), self, "norm_momentum", "in (0, 1]")

    def _check_strides(self) -> None:
        if self.output_stride is not None:
            entry = self._entry_stride
            halvings = (self.nominal_stride // entry).bit_length()
            legal = [entry * 2**i for i in range(halvings)]
            fits = self.output_stride in legal and not isinstance(self.output_stride, bool)
            _require(fits, self, "output_stride", f"None or one of {legal}")

    def _check_condensation(self) -> None:
        for name in ("groups", "condense_factor", "classifier_condense_factor"):
            _require(_is_positive(getattr(self, name)), self, name, "an integer >= 1")
        if self.is_condensed and self.bn_size is None:
            raise ValueError(
                "DenseNetSpec: groups and condense_factor above 1 need the 1x1 of a bottleneck; "
                f"give bn_size, not {self.bn_size}"
            )
        growth = _repeat(self.growth_rate, len(self.block_config))
        fits = all(rate % self.groups == 0 for rate in growth)
        _require(fits, self, "groups", f"a divisor of the growth rates {sorted(set(growth))}")
        inputs = self.num_init_features  # the fewest that any layer reads
        fits = self.condense_factor <= inputs
        _require(fits, self, "condense_factor", f"at most num_init_features, {inputs}")
        if not self.transition_conv:
            widths = self.transition_channels or (None,)
            whole = all(theta == 1 for theta in _repeat(self.compression, 1))
            if not whole or any(widths):
                raise ValueError(
                    "DenseNetSpec: transition_conv=False leaves nothing to compress; give "
                    f"compression=1.0, not {self.compression}, and no transition_channels"
                )

    def _check_connections(self) -> None:
        if self.connections is None:
            return
        blocks = self.connections
        lengths = tuple(len(b) if isinstance(b, tuple) else 0 for b in _as_tuple(blocks))
        legal = f"for each block a list of sources for each layer, {self.block_config} of them"
        _require(lengths == self.block_config, self, "connections", legal)
        if self.is_condensed:
            raise ValueError("DenseNetSpec: connections are for nets without groups")
        for number, block in enumerate(blocks, start=1):
            present = [0]
            for layer, sources in enumerate(block, start=1):
                fits = isinstance(sources, tuple) and all(s in present for s in sources)
                if not fits or list(sources) != sorted(set(sources)):
                    raise ValueError(
                        f"DenseNetSpec: connections of layer {layer} in block {number} must be "
                        f"rising and among the sources {present} that are there, got {sources!r}"
                    )
                present += [layer] if sources else []

    def _check_groups(self) -> None:
        size, common = self.norm_group_size, math.gcd(*self._widths)
        if size is not None:
            fits = _is_positive(size) and common % size == 0
            _require(fits, self, "norm_group_size", f"None or a divisor of {common}, {_WHY_COMMON}")
        elif self.norm == "group" and common == 1:
            raise ValueError(
                f"DenseNetSpec: norm='group' finds no number of channels that divides all of "
                f"{sorted(set(self._widths))}, {_WHY_COMMON}; choose other widths, or "
                "norm_group_size=1 to norm each channel by itself"
            )

    @property
    def _widths(self) -> tuple[int, ...]:
        """Widths of everything a norm may read in one piece: stem, transitions, new maps."""
        half = (self.num_init_features // 2,) if self.stem in ("deep", "dsod") else ()
        growth = _repeat(self.growth_rate, len(self.block_config))
        return (*half, *(plan.in_channels for plan in self.blocks), *growth)

    @property
    def group_size(self) -> int:
        """Channels of each group of ``norm="group"``: the same in every norm of the network."""
        common = math.gcd(*self._widths)
        fitting = [size for size in range(1, _GROUP_SIZE + 1) if common % size == 0]
        return self.norm_group_size or fitting[-1]

    @property
    def stem_stride(self) -> int:
        """Stride of the stem's last activation, before its pool."""
        return 1 if self.stem == "cifar" else 2

    @property
    def is_condensed(self) -> bool:
        """True for CondenseNet's layers, whose 1x1s have learned groups."""
        return max(self.groups, self.condense_factor) > 1

    @property
    def stem_is_conv(self) -> bool:
        """True for a stem of one convolution, without norm and pool."""
        return self.stem in ("cifar", "conv")

    @property
    def _entry_stride(self) -> int:
        return self.stem_stride if self.stem_is_conv else 4

    @property
    def nominal_stride(self) -> int:
        """Input pixels per cell of the last map without ``output_stride``."""
        pooled = _repeat(self.transition_pool, len(self.block_config) - 1)
        return self._entry_stride * int(2 ** sum(pooled))

    @property
    def blocks(self) -> tuple[BlockPlan, ...]:
        """Channels, strides and dilations of all blocks, in order."""
        count = len(self.block_config)
        growth = _repeat(self.growth_rate, count)
        theta = _repeat(self.compression, count - 1)
        pooled = _repeat(self.transition_pool, count - 1)
        fixed: tuple[int | None, ...] = _repeat(self.transition_channels, count - 1)
        channels, stride, dilation = self.num_init_features, self._entry_stride, 1
        plans = []
        for i, layers in enumerate(self.block_config):
            entry, channels = channels, channels + layers * growth[i]
            last = i == count - 1
            # 1e-6: 0.29 * 100 is 28.999999999999996 in binary and means 29
            exit_channels = None if last else fixed[i] or math.floor(channels * theta[i] + 1e-6)
            # Past `output_stride` a transition dilates the blocks behind it instead of halving.
            pool = not last and pooled[i]
            halves = pool and stride != self.output_stride
            plan = BlockPlan(
                layers=layers,
                growth_rate=growth[i],
                in_channels=entry,
                channels=channels,
                stride=stride,
                dilation=dilation,
                drop_path=self._drop_path(i),
                transition_channels=exit_channels,
                pooled=pool,
                exit_stride=stride * 2 if halves else stride,
                sources=None if self.connections is None else self.connections[i],
            )
            plans.append(plan)
            channels, stride = exit_channels or channels, plan.exit_stride
            dilation *= 2 if pool and not halves else 1
        return tuple(plans)

    def _drop_path(self, block: int) -> tuple[float, ...]:
        before, total = sum(self.block_config[:block]), sum(self.block_config)
        layers = range(before, before + self.block_config[block])
        return tuple(self.drop_path_rate * layer / max(total - 1, 1) for layer in layers)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON or a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DenseNetSpec:
        """Build a spec from the entries that `to_dict` wrote.

        Raises:
            ValueError: A key is unknown, or a value is outside its range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"DenseNetSpec has no field {unknown[0]!r}; its fields are {known}")
        return cls(**values)


def _repeat(value: _T | tuple[_T, ...], count: int) -> tuple[_T, ...]:
    return value if isinstance(value, tuple) else (value,) * count


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list | tuple) else value


def _as_tuple(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 < value <= 1


def _require(fits: bool, spec: DenseNetSpec, name: str, legal: str) -> None:
    if not fits:
        raise ValueError(f"DenseNetSpec: {name} must be {legal}, got {getattr(spec, name)!r}")


def _check_each(
    spec: DenseNetSpec, name: str, count: int, fits: Callable[[object], bool], legal: str
) -> None:
    value = getattr(spec, name)
    values = value if isinstance(value, tuple) else (value,)
    right = all(map(fits, values)) and (values is not value or len(values) == count)
    _require(
        right, spec, name, f"{legal}, one for all or {count} for block_config {spec.block_config}"
    )
