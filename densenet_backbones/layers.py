"""Parts of a DenseNet: norm, dense layer, dense block, transition and stem.

Huang et al., "Densely Connected Convolutional Networks" (1608.06993). Every norm is followed by an
activation module of its own, so converters that swap the norm (SyncBN, frozen BN) keep it.

Shapes: N images, C channels, H and W pixels, k growth rate.
"""

from collections.abc import Iterable, Iterator
from typing import Final, cast

import torch
import torch.nn.functional as F
from timm.layers.create_act import create_act_layer
from timm.layers.drop import drop_path
from torch import Tensor, fx, nn
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]
from torchvision.ops import FrozenBatchNorm2d as _FrozenBatchNorm2d

from densenet_backbones.condensenet import LearnedGroupConv2d
from densenet_backbones.dense_block import Memory, check_memory, run_block, run_plain
from densenet_backbones.densenet_spec import BlockPlan, DenseNetSpec
from densenet_backbones.pooling import make_pool, make_stem_pool

__all__ = [
    "AbsentLayer",
    "DenseBlock",
    "DenseLayer",
    "FrozenBatchNorm2d",
    "SelectiveLayer",
    "Transition",
    "feature_modules",
    "get_memory",
    "is_traced",
    "set_memory",
]


class FrozenBatchNorm2d(_FrozenBatchNorm2d):
    """Batch norm whose statistics and affine map are buffers: nothing is learned or updated.

    torchvision's multiplies and adds by itself; this calls batch norm's own kernel, so that values
    equal an evaluated `nn.BatchNorm2d`'s to the bit and keep their precision under autocast.
    """

    evaluates_as_batch_norm = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalize maps (N, C, H, W)."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def _make_norm(channels: int, spec: DenseNetSpec) -> nn.Module:
    if spec.norm == "group":
        return nn.GroupNorm(channels // spec.group_size, channels, eps=spec.norm_eps)
    if spec.norm == "frozen":
        return FrozenBatchNorm2d(channels, eps=spec.norm_eps)
    kind = nn.SyncBatchNorm if spec.norm == "sync" else nn.BatchNorm2d
    return kind(channels, eps=spec.norm_eps, momentum=spec.norm_momentum)


def _make_act(spec: DenseNetSpec) -> nn.Module:
    # Not in place, though a norm keeps its input alone and training would keep no less: hooks and
    # extracted features at the norm would see the values behind the activation, and full backward
    # hooks would raise.
    act: nn.Module = create_act_layer(spec.act_layer, inplace=False)
    return act


def _make_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
    )


def is_traced(x: Tensor) -> bool:
    """Return True while ``torch.fx`` or ``torch.jit.trace`` records what a module does."""
    return isinstance(x, fx.Proxy) or bool(is_tracing())


class DenseLayer(nn.Module):
    """One layer H of a block: norm-act-1x1-norm-act-3x3, or norm-act-3x3 without bottleneck.

    In CondenseNets the 1x1 is a `LearnedGroupConv2d`, and the 3x3 has groups.

    Args:
        in_channels: Channels of the concatenation it reads.
        plan: Growth rate and dilation.
        spec: Bottleneck, activation, dropout and norm settings.
        drop_path_rate: Probability that a sample goes without this layer's maps in training.
    """

    runs_squeeze_and_expand = True  # not said of heirs: see `dense_block.interfaces`
    bottleneck: Final[bool]
    drop_rate: Final[float]
    drop_path_rate: Final[float]

    def __init__(
        self, in_channels: int, plan: BlockPlan, spec: DenseNetSpec, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        growth_rate, dilation = plan.growth_rate, plan.dilation
        self.bottleneck = spec.bn_size is not None
        self.norm1 = _make_norm(in_channels, spec)
        self.relu1 = _make_act(spec)
        if spec.bn_size is None:
            self.conv1 = _make_conv(in_channels, growth_rate, kernel_size=3, dilation=dilation)
        else:
            width = growth_rate * spec.bn_size
            self.conv1 = (
                LearnedGroupConv2d(in_channels, width, spec.groups, spec.condense_factor)
                if spec.is_condensed
                else _make_conv(in_channels, width, kernel_size=1)
            )
            self.norm2 = _make_norm(width, spec)
            self.relu2 = _make_act(spec)
            self.conv2 = _make_conv(
                width, growth_rate, kernel_size=3, dilation=dilation, groups=spec.groups
            )
        self.drop_rate = float(spec.proj_drop_rate)
        self.drop_path_rate = float(drop_path_rate)

    def squeeze(self, x: Tensor) -> Tensor:
        """Map the concatenation, (N, C, H, W), to the bottleneck, or to the new maps without."""
        maps: Tensor = self.conv1(self.relu1(self.norm1(x)))
        return maps

    def expand(self, x: Tensor) -> Tensor:
        """Map the bottleneck, (N, bn_size * k, H, W), to the new maps, (N, k, H, W)."""
        if self.bottleneck:
            x = self.conv2(self.relu2(self.norm2(x)))
        if self.drop_rate > 0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        if self.drop_path_rate > 0:
            x = drop_path(x, self.drop_path_rate, self.training)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map the concatenation of all earlier maps, (N, C, H, W), to new maps, (N, k, H, W)."""
        return self.expand(self.squeeze(x))

    def count_width(self) -> int:
        """Return the channels of the concatenation with its maps."""
        return self.conv1.in_channels + (self.conv2 if self.bottleneck else self.conv1).out_channels


class SelectiveLayer(DenseLayer):
    """A dense layer that reads the maps of some earlier layers, as pruning leaves it.

    Memory modes with one buffer know layers that read all of it: they run its block plain, and say
    so. The deployed form reads all of it too, and has zeros for what this layer does not read.

    Args:
        sources: Sources that it reads: see `BlockPlan`.
        in_channels: Channels of the concatenation that it is called with.
        plan: As of `DenseLayer`.
        spec: As of `DenseLayer`.
        drop_path_rate: As of `DenseLayer`.

    Attributes:
        runs: First channel, and the one behind the last, of each run of channels that it reads.
    """

    runs_in_halves = True  # not said of heirs: see `dense_block.interfaces`
    runs: list[tuple[int, int]]
    width: Final[int]

    def __init__(
        self,
        sources: tuple[int, ...],
        in_channels: int,
        plan: BlockPlan,
        spec: DenseNetSpec,
        drop_path_rate: float = 0.0,
    ) -> None:
        runs = _list_runs(plan, sources)
        super().__init__(sum(end - start for start, end in runs), plan, spec, drop_path_rate)
        self.sources, self.runs = sources, runs
        self.width = in_channels + plan.growth_rate

    def squeeze(self, x: Tensor) -> Tensor:
        """Map what it reads of the concatenation, (N, C, H, W), as `DenseLayer` does."""
        parts: list[Tensor] = []
        for start, end in self.runs:
            parts.append(x[:, start:end])
        maps: Tensor = self.conv1(self.relu1(self.norm1(torch.cat(parts, dim=1))))
        return maps

    def count_width(self) -> int:
        """Return the channels of the concatenation with its maps."""
        return self.width


class AbsentLayer(nn.Module):
    """Zeros in the place of a layer that was pruned away, so that all others keep their channels.

    Args:
        in_channels: Channels of the concatenation that it is called with.
        growth_rate: Number of its maps, k.
    """

    runs_in_halves = True
    bottleneck: Final[bool] = False
    growth_rate: Final[int]

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        self.in_channels, self.growth_rate = in_channels, growth_rate

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros, (N, k, H, W), for a concatenation (N, C, H, W)."""
        return x.new_zeros((x.shape[0], self.growth_rate, x.shape[2], x.shape[3]))

    def count_width(self) -> int:
        """Return the channels of the concatenation with its maps."""
        return self.in_channels + self.growth_rate


def _list_runs(plan: BlockPlan, sources: Iterable[int]) -> list[tuple[int, int]]:
    """List runs of channels that some rising sources of a block fill: start, end of each."""
    runs: list[tuple[int, int]] = []
    for source in sources:
        start, end = plan.bounds[source : source + 2]
        if runs and runs[-1][1] == start:
            start = runs.pop()[0]
        runs.append((start, end))
    return runs


def _build_layers(plan: BlockPlan, spec: DenseNetSpec) -> Iterator[nn.Module]:
    """Build the layers of a block: whole ones, or what pruning has left of them."""
    for number, rate in enumerate(plan.drop_path, start=1):
        width = plan.bounds[number]
        sources = tuple(range(number)) if plan.sources is None else plan.sources[number - 1]
        if not sources:
            yield AbsentLayer(width, plan.growth_rate)
        elif len(sources) == number:
            yield DenseLayer(width, plan, spec, rate)
        else:
            yield SelectiveLayer(sources, width, plan, spec, rate)


class DenseBlock(nn.ModuleDict):
    """Dense layers ``denselayer1``, ``denselayer2``, ... over one growing concatenation.

    Args:
        layers: The layers, in order.
        memory: What training keeps for the backward pass; see `dense_block.modes`. Without effect
            in eval mode, without gradients, and in scripted, traced and exported nets.
        name: Name for warnings.
    """

    concatenates_layers = True  # not said of heirs: see `dense_block.interfaces`

    def __init__(
        self, layers: Iterable[nn.Module], memory: Memory = "none", name: str = "a dense block"
    ) -> None:
        super().__init__()
        self.memory: Memory = memory
        self.name = name
        for i, layer in enumerate(layers, start=1):
            self[f"denselayer{i}"] = layer

    @classmethod
    def from_plan(cls, plan: BlockPlan, spec: DenseNetSpec, name: str) -> "DenseBlock":
        """Build a new block of that name as ``plan`` says."""
        return cls(_build_layers(plan, spec), name=name)

    def first(self, count: int) -> "DenseBlock":
        """Return a block of the first ``count`` layers, which it shares."""
        return DenseBlock(self._layers()[:count], self.memory, self.name)

    def widths(self) -> Iterator[tuple[str, int]]:
        """Yield each layer's name, and the channels of the concatenation with its maps."""
        for name, layer in zip(self, self._layers(), strict=True):
            yield name, layer.count_width()

    def _layers(self) -> list[DenseLayer]:
        return cast("list[DenseLayer]", list(self.values()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the concatenation of the input and all new maps, (N, C + layers * k, H, W)."""
        if is_scripting():
            for layer in self.values():
                x = torch.cat((x, layer(x)), dim=1)
            return x
        return self._run(x)

    @torch.jit.unused
    def _run(self, x: Tensor) -> Tensor:
        layers = self._layers()
        if not self.training or not torch.is_grad_enabled():
            return run_plain(x, layers)
        if is_traced(x) or torch.compiler.is_exporting():
            return run_plain(x, layers)
        return run_block(x, layers, self.memory, self.name)


class Transition(nn.Sequential):
    """Norm-act-1x1 between two blocks; the pool behind it is the network's own child.

    Args:
        plan: The block before it.
        spec: Norm and activation.
    """

    def __init__(self, plan: BlockPlan, spec: DenseNetSpec) -> None:
        super().__init__()
        assert plan.transition_channels is not None
        self.norm = _make_norm(plan.channels, spec)
        self.relu = _make_act(spec)
        self.conv = _make_conv(plan.channels, plan.transition_channels, kernel_size=1)


def _build_stem(spec: DenseNetSpec, in_chans: int) -> Iterator[tuple[str, nn.Module]]:
    width = spec.num_init_features
    if spec.stem_is_conv:
        yield "conv0", _make_conv(in_chans, width, kernel_size=3, stride=spec.stem_stride)
        return
    if spec.stem == "imagenet":
        convs = [_make_conv(in_chans, width, kernel_size=7, stride=2)]
    else:
        half = width // 2
        convs = [
            _make_conv(in_chans, half, 3, stride=2),
            _make_conv(half, half, 3),
            _make_conv(half, width, 3),
        ]
    for i, conv in enumerate(convs):
        yield f"conv{i}", conv
        yield f"norm{i}", _make_norm(conv.out_channels, spec)
        yield f"relu{i}", _make_act(spec)
    yield "pool0", make_stem_pool(spec)


def feature_modules(spec: DenseNetSpec, in_chans: int) -> Iterator[tuple[str, nn.Module]]:
    """Build everything before the classifier, by torchvision's names, in the order it runs."""
    yield from _build_stem(spec, in_chans)
    for i, plan in enumerate(spec.blocks, start=1):
        yield f"denseblock{i}", DenseBlock.from_plan(plan, spec, f"denseblock{i}")
        if plan.transition_channels is None:
            continue
        if spec.transition_conv:
            yield f"transition{i}", Transition(plan, spec)
        if plan.pooled:
            dilated = plan.exit_stride == plan.stride
            yield (
                f"pool{i}",
                make_pool(spec, plan.transition_channels, plan.dilation if dilated else None),
            )
    if spec.final_norm:
        # These names hold for any number of blocks, as in torchvision and timm.
        yield "norm5", _make_norm(spec.blocks[-1].channels, spec)
        yield "relu5", _make_act(spec)


def set_memory(model: nn.Module, memory: Memory) -> None:
    """Give all dense blocks of a model a memory mode; results stay the same.

    Args:
        model: A net, or what holds one.
        memory: One of `dense_block.MEMORY_MODES`; `dense_block.modes` says what each keeps. Modes
            with one buffer also keep less of what stands between blocks: see
            `dense_block.join_lean_steps`.

    Raises:
        ValueError: ``memory`` is none of these.
    """
    check_memory(memory)
    for module in model.modules():
        if isinstance(module, DenseBlock):
            module.memory = memory


def get_memory(model: nn.Module) -> Memory | None:
    """Return the memory mode of a model's first dense block; None for a model without any."""
    return next((m.memory for m in model.modules() if isinstance(m, DenseBlock)), None)
