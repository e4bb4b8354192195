"""The DenseNet family: stem, dense layer, dense block, transition, network.

Huang et al., "Densely Connected Convolutional Networks" (1608.06993), and the DSOD bases (Shen et
al., 1708.01241). Parameters are named as in torchvision/models/densenet.py without its
``features.`` prefix. Every norm is a plain `nn.BatchNorm2d` with a ReLU module of its own behind
it, so converters that swap the norm (SyncBN, frozen BN) keep the activation.

Shapes: N images, C channels, H and W pixels, k growth rate.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from timm.layers.classifier import create_classifier
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from densenet_backbones.dense_block import run_plain
from densenet_backbones.densenet_spec import BlockPlan, DenseNetSpec

__all__ = ["DenseBlock", "DenseLayer", "DenseNet", "DenseNetSpec", "Transition", "take_indices"]


def _norm(channels: int, spec: DenseNetSpec) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=spec.norm_eps, momentum=spec.norm_momentum)


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )


class DenseLayer(nn.Module):
    """One layer H of a block: BN-ReLU-1x1-BN-ReLU-3x3, or BN-ReLU-3x3 without bottleneck.

    Args:
        in_channels: Channels of the concatenation it reads.
        growth_rate: New channels (k).
        spec: Bottleneck, dropout and norm settings.
    """

    def __init__(self, in_channels: int, growth_rate: int, spec: DenseNetSpec) -> None:
        super().__init__()
        self.drop_rate = float(spec.proj_drop_rate)
        self.bottleneck = spec.bn_size is not None
        width = growth_rate * spec.bn_size if spec.bn_size is not None else growth_rate
        self.norm1 = _norm(in_channels, spec)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = _conv(in_channels, width, kernel_size=1 if self.bottleneck else 3)
        if self.bottleneck:
            self.norm2 = _norm(width, spec)
            self.relu2 = nn.ReLU(inplace=True)
            self.conv2 = _conv(width, growth_rate, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """New maps, (N, k, H, W), from the concatenation of all earlier ones, (N, C, H, W)."""
        x = self.conv1(self.relu1(self.norm1(x)))
        if self.bottleneck:
            x = self.conv2(self.relu2(self.norm2(x)))
        if self.drop_rate > 0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x


class DenseBlock(nn.ModuleDict):
    """Dense layers ``denselayer1``, ``denselayer2``, ... over one growing concatenation.

    Args:
        plan: Number of layers, their growth rate and the channels that enter.
        spec: Settings of the layers.
    """

    def __init__(self, plan: BlockPlan, spec: DenseNetSpec) -> None:
        super().__init__()
        for i in range(plan.layers):
            channels = plan.in_channels + i * plan.growth_rate
            self[f"denselayer{i + 1}"] = DenseLayer(channels, plan.growth_rate, spec)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenation of the input and all new maps, (N, C + layers * k, H, W)."""
        return run_plain(x, tuple(self.values()))


class Transition(nn.Sequential):
    """BN-ReLU-1x1 between two blocks; the pool behind it is the network's own child.

    Args:
        in_channels: Channels of the block before it.
        out_channels: Channels handed to the next block.
        spec: Norm settings.
    """

    def __init__(self, in_channels: int, out_channels: int, spec: DenseNetSpec) -> None:
        super().__init__()
        self.norm = _norm(in_channels, spec)
        self.relu = nn.ReLU(inplace=True)
        self.conv = _conv(in_channels, out_channels, kernel_size=1)


def _stem(spec: DenseNetSpec, in_chans: int) -> Iterator[tuple[str, nn.Module]]:
    width = spec.num_init_features
    if spec.stem == "cifar":
        yield "conv0", _conv(in_chans, width, kernel_size=3)
        return
    if spec.stem == "imagenet":
        convs = [_conv(in_chans, width, kernel_size=7, stride=2)]
    else:
        half = width // 2
        convs = [_conv(in_chans, half, 3, stride=2), _conv(half, half, 3), _conv(half, width, 3)]
    for i, conv in enumerate(convs):
        yield f"conv{i}", conv
        yield f"norm{i}", _norm(conv.out_channels, spec)
        # Not in place: a tap on the norm would otherwise read values the ReLU changed later.
        yield f"relu{i}", nn.ReLU()
    if spec.stem == "dsod":
        yield "pool0", nn.MaxPool2d(2, stride=2, ceil_mode=True)
    else:
        # Its padding keeps the odd last row already; ceil mode would add a row to even maps.
        yield "pool0", nn.MaxPool2d(3, stride=2, padding=1)


def _pool(spec: DenseNetSpec) -> nn.Module:
    if spec.pool == "max":
        return nn.MaxPool2d(2, stride=2, ceil_mode=spec.ceil_mode)
    return nn.AvgPool2d(2, stride=2, ceil_mode=spec.ceil_mode)


def _feature_modules(spec: DenseNetSpec, in_chans: int) -> Iterator[tuple[str, nn.Module]]:
    """Everything before the classifier, by name and in the order it runs."""
    yield from _stem(spec, in_chans)
    for i, plan in enumerate(spec.blocks, start=1):
        yield f"denseblock{i}", DenseBlock(plan, spec)
        if plan.transition_channels is not None:
            yield f"transition{i}", Transition(plan.channels, plan.transition_channels, spec)
        if plan.pooled:
            yield f"pool{i}", _pool(spec)
    if spec.final_norm:
        # These names hold for any number of blocks, as in torchvision and timm.
        yield "norm5", _norm(spec.blocks[-1].channels, spec)
        yield "relu5", nn.ReLU()


class DenseNet(nn.Module):
    """A DenseNet classifier whose children are its stages, flat and in the order they run.

    Children: ``conv0, norm0, relu0, pool0, denseblock1, transition1, pool1, ..., norm5, relu5``,
    then ``global_pool, head_drop, classifier``. Deep stems add ``conv1 ... relu2``; a CIFAR stem
    is ``conv0`` alone; an unpooled transition has no pool behind it.

    Args:
        spec: Architecture; DenseNet-121 when left out.
        num_classes: Classes of the classifier; 0 for none (it passes its input on).
        in_chans: Channels of the image.
        global_pool: timm's pooling name: ``avg``, ``max``, ``avgmax``, ``catavgmax``; ``''`` only
            with ``num_classes=0``.
        drop_rate: Dropout before the classifier (timm's meaning); see `DenseNetSpec` for the
            dropout inside the blocks.

    Attributes:
        num_features: Channels of the last feature map.
        feature_info: timm's description of the raw taps: channels, stride and module of each.

    Raises:
        ValueError: ``num_classes``, ``in_chans`` or ``drop_rate`` is out of range.
    """

    def __init__(
        self,
        spec: DenseNetSpec | None = None,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 0 or in_chans < 1 or not 0 <= drop_rate < 1:
            raise ValueError(
                "DenseNet needs num_classes >= 0, in_chans >= 1 and drop_rate in [0, 1), not "
                f"{num_classes}, {in_chans} and {drop_rate}"
            )
        self.spec = spec = DenseNetSpec() if spec is None else spec
        self.in_chans = in_chans
        for name, module in _feature_modules(spec, in_chans):
            self.add_module(name, module)
        self.feature_names = tuple(name for name, _ in self.named_children())
        self.feature_info = _raw_taps(spec, self.feature_names)
        self.num_features: int = self.feature_info[-1]["num_chs"]
        self.global_pool: nn.Module
        self.head_drop: nn.Module
        self._set_head(num_classes, global_pool, drop_rate)
        _initialise(self, spec)

    def _set_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        pool, classifier = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * pool.feat_mult()
        self.global_pool, self.head_drop, self.classifier = pool, nn.Dropout(drop_rate), classifier

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (N, in_chans, H, W) to the last feature map, (N, num_features, H', W')."""
        for name in self.feature_names:
            x = getattr(self, name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits, (N, num_classes), or to what the classifier reads."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The raw taps of `feature_info` beside the last feature map, as timm's models give them.

        Args:
            x: Image, (N, in_chans, H, W).
            indices: Taps to return: all when None, the last n for an int.
            norm: Without effect; the last tap is the normed one.
            stop_early: End after the last wanted tap.
            output_fmt: Only ``NCHW``.
            intermediates_only: Return the list of taps alone.

        Raises:
            ValueError: ``output_fmt`` is not ``NCHW``, or an index is refused by `take_indices`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        wanted = take_indices(len(self.feature_info), indices)
        taps = {info["module"]: i for i, info in enumerate(self.feature_info)}
        intermediates = []
        for name in self.feature_names:
            x = getattr(self, name)(x)
            index = taps.get(name)
            if index in wanted:
                intermediates.append(x)
            if stop_early and index == wanted[-1]:
                break
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the stages behind the last wanted tap, and the classifier; returns the indices.

        Args:
            indices: Taps to keep, as in `forward_intermediates`.
            prune_norm: Without effect; the final norm is the last tap.
            prune_head: Also drop the classifier when nothing else is dropped.
        """
        wanted = take_indices(len(self.feature_info), indices)
        last = self.feature_info[wanted[-1]]
        end = self.feature_names.index(last["module"]) + 1
        for name in self.feature_names[end:]:
            delattr(self, name)
        shorter = end < len(self.feature_names)
        self.feature_names = self.feature_names[:end]
        self.num_features = last["num_chs"]
        if shorter or prune_head:
            self.reset_classifier(0, "")
        return list(wanted)

    def get_classifier(self) -> nn.Module:
        """The linear layer that makes the logits."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new one; ``global_pool=None`` keeps the pooling."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        reference = next(self.parameters())
        self._set_head(num_classes, str(pool_type), float(getattr(self.head_drop, "p", 0.0)))
        for module in (self.global_pool, self.head_drop, self.classifier):
            module.to(reference.device, reference.dtype).train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm's optimisers give layers their own learning rate."""
        layers: Any = [
            (r"^denseblock(\d+)\.denselayer(\d+)", None),
            (r"^transition(\d+)", MATCH_PREV_GROUP),
        ]
        blocks = r"^(?:denseblock|transition)(\d+)" if coarse else layers
        return {"stem": r"^(?:conv|norm)[012]\.", "blocks": blocks}


def take_indices(count: int, indices: int | Iterable[int] | None) -> tuple[int, ...]:
    """Positions meant by timm's ``out_indices``.

    Args:
        count: Number of taps there are.
        indices: None for all taps, n >= 1 for the last n, or positions in ascending order, where
            -1 is the last tap.

    Returns:
        Positions in 0..count-1, ascending.

    Raises:
        ValueError: There is nothing to take, a position does not exist, or the order is not
            ascending (features come in the order of the network, so another order would put
            channels and strides beside the wrong maps).
    """
    if indices is None:
        return tuple(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise ValueError(
                f"out_indices={indices} asks for the last {indices} of {count} taps; give 1 to "
                f"{count}, or a tuple such as ({indices},) for a single position"
            )
        return tuple(range(count - indices, count))
    given = tuple(indices)
    if not given:
        raise ValueError(f"out_indices is empty; give positions from 0 to {count - 1}")
    for index in given:
        if not -count <= index < count:
            raise ValueError(
                f"out_indices={given}: there is no tap {index}; give positions from 0 to "
                f"{count - 1}, or -1 for the last"
            )
    taken = tuple(index % count for index in given)
    if any(later <= earlier for earlier, later in pairwise(taken)):
        raise ValueError(f"out_indices={given} must ascend without repeats, as the taps come")
    return taken


def _raw_taps(spec: DenseNetSpec, names: Sequence[str]) -> list[dict[str, Any]]:
    """The stem's last activation, each block, and relu5 in the end, as timm's feature_info."""
    stem_end = names[names.index("denseblock1") - (1 if spec.stem == "cifar" else 2)]
    taps = [(spec.num_init_features, spec.stem_stride, stem_end)]
    taps += [
        (plan.channels, plan.stride, f"denseblock{i}") for i, plan in enumerate(spec.blocks, 1)
    ]
    if spec.final_norm:
        taps[-1] = (*taps[-1][:2], "relu5")
    return [{"num_chs": c, "reduction": s, "module": module} for c, s, module in taps]


def _initialise(net: nn.Module, spec: DenseNetSpec) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            if spec.init == "he":
                nn.init.kaiming_normal_(module.weight)
            else:  # Caffe's "xavier" looks at fan_in only; torch's xavier_uniform_ does not
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
