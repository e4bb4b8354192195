"""Feature nets: a DenseNet that returns multi-scale maps, and `FeatureLevel`, which describes one.

Taps, for densenet121 (channels @ stride); ``c1`` is the stem's last ReLU and ``c5`` the final
BN-ReLU in every row:

==============  ===========================================  =======  =======  =========
tap             what c2, c3, c4 are                          c2       c3       c4
==============  ===========================================  =======  =======  =========
``raw``         the block's concatenation (timm's taps)      256 @ 4  512 @ 8  1024 @ 16
``norm``        BN-ReLU of it, from the transition: >= 0     256 @ 4  512 @ 8  1024 @ 16
``compressed``  after the transition's 1x1, before its pool  128 @ 4  256 @ 8  512 @ 16
``pooled``      what enters the next block                   128 @ 8  256@16   512 @ 32
==============  ===========================================  =======  =======  =========

Besides, ``layer_taps`` reads blocks after any of their layers. A net without final norm ends in the
raw concatenation of its last block; a stem of one convolution (CIFAR nets, CondenseNets) has that
as ``c1``. CondenseNets have pools alone between blocks, no norm and no 1x1, so ``norm`` and
``compressed`` read what ``raw`` reads. An unpooled
transition makes ``pooled`` equal to ``compressed``, stride included. With ``output_stride`` the
later strides stop growing; channels stay.

Shapes: N images, C channels, H and W pixels.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from timm.models._features import FeatureInfo
from torch import Tensor, nn

from densenet_backbones.dense_block import calls_children_in_turn, list_children
from densenet_backbones.densenet import DenseNet
from densenet_backbones.layers import DenseBlock
from densenet_backbones.messages import check_choice, check_whole
from densenet_backbones.stages import DenseStages, take_indices

__all__ = ["DenseFeatureNet", "FeatureLevel", "Tap", "feature_levels"]

Tap = Literal["raw", "norm", "compressed", "pooled"]


@dataclass(frozen=True)
class FeatureLevel:
    """One map of a feature pyramid.

    Attributes:
        name: Stage: ``c1`` the stem, ``c2`` after block 1, ...; ``p3`` ... for adapters.
        channels: Channels of the map.
        stride: Input pixels per cell. Levels may share a stride, and it need not be a power of 2.

    Raises:
        ValueError: ``channels`` or ``stride`` is below 1.
    """

    name: str
    channels: int
    stride: int

    def __post_init__(self) -> None:
        check_whole(f"channels of level {self.name!r}", self.channels)
        check_whole(f"stride of level {self.name!r}", self.stride)


class DenseFeatureNet(DenseStages):
    """A DenseNet up to its last tap; returns a list of maps (timm's ``feature_cls``).

    It shares the modules of ``model`` under the same names, so parameters keep their names.

    Args:
        model: The whole network.
        out_indices: Taps to return: None for all, n for the last n, or ascending positions (0 is
            the stem, i is block i, -1 the last; ``layer_taps`` count where they stand).
        tap: Where each block is read; see the table above.
        layer_taps: Further taps inside blocks, such as ``denseblock3.denselayer12``: what the block
            holds after that layer, of which the last k channels are the layer's own.
        output_fmt: Only ``NCHW``.

    Attributes:
        feature_info: timm's `FeatureInfo` of every tap; its module names are children's names
            (``transition1.relu`` and so on for the norm tap).
        return_layers: Module name to tap index of what `forward` returns. It may be replaced by
            another such dictionary, as transformers' TimmBackbone does.
        num_features: Channels of the last returned map.

    Raises:
        ValueError: ``tap``, ``layer_taps``, ``output_fmt`` or ``out_indices`` is not legal.
    """

    num_classes = 0  # there is no classifier; timm asks

    def __init__(
        self,
        model: DenseNet,
        out_indices: int | Iterable[int] | None = None,
        tap: Tap = "raw",
        layer_taps: Sequence[str] = (),
        output_fmt: str = "NCHW",
    ) -> None:
        super().__init__(model.spec, model.in_chans)
        check_choice("tap", tap, get_args(Tap))
        check_choice("output_fmt", output_fmt, ("NCHW",))
        info = _describe_taps(model, tap, layer_taps)
        self.tap = tap
        self.output_fmt = output_fmt
        self.feature_info = FeatureInfo(info, take_indices(len(info), out_indices))
        indices = self.feature_info.out_indices
        self.return_layers: dict[str, str] = {info[i]["module"]: str(i) for i in indices}
        self.num_features: int = info[indices[-1]]["num_chs"]
        self._add_stages(model, last=info[indices[-1]]["module"])
        self._weights_beyond = frozenset(model.state_dict()) - frozenset(self.state_dict())

    def _add_stages(self, model: DenseNet, last: str) -> None:
        end, _, part = last.partition(".")
        self.feature_names = model.feature_names[: model.feature_names.index(end) + 1]
        for name in self.feature_names:
            self.add_module(name, getattr(model, name))
        # What stands behind the last tap would be parameters without a gradient.
        stage = getattr(model, end)
        if part == "relu":
            norm_and_relu = OrderedDict((name, getattr(stage, name)) for name in ("norm", "relu"))
            self.add_module(end, nn.Sequential(norm_and_relu))
        elif part:
            self.add_module(end, stage.first(list(stage).index(part) + 1))

    @property
    def levels(self) -> tuple[FeatureLevel, ...]:
        """The returned maps, in order: ``c1`` stem, ``c2`` block 1 (``c2.3`` its layer 3), ..."""
        info = self.feature_info
        return tuple(
            FeatureLevel(info[i]["stage"], info[i]["num_chs"], info[i]["reduction"])
            for i in info.out_indices
        )

    @property
    def out_channels(self) -> list[int]:
        """Channels of the returned maps."""
        return [level.channels for level in self.levels]

    def _smallest_image(self) -> int:
        return int(self.feature_info[self.feature_info.out_indices[-1]]["nominal"])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image (N, in_chans, H, W) to one (N, C, H / stride, W / stride) map per level.

        Raises:
            ValueError: The image is smaller than one cell of the last map, or has other channels.
        """
        return list(self._run_to_points(x, self.return_layers, stop_early=False)[1].values())

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the stages between one tap and the next, for ``torch.jit.script``.

        Scripting a model that holds this net puts it in the net's place: script a deep copy of the
        model to go on with the model itself.
        """
        return _ScriptableStages(self).train(self.training)


class _Segment(nn.Module):
    """Stages up to the next point where something is tapped, written for TorchScript."""

    widths: list[int]  # TorchScript cannot tell the type of an empty list

    def __init__(self, stages: Sequence[nn.Module], widths: Sequence[int], tapped: bool) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.widths = list(widths)
        self.tapped = tapped

    def forward(self, x: Tensor, features: list[Tensor]) -> Tensor:
        """Return the next map; append its first ``widths`` channels and itself to ``features``."""
        x = self.stages(x)
        for width in self.widths:
            features.append(x[:, :width].clone())
        if self.tapped:
            features.append(x)
        return x


class _ScriptableStages(nn.Module):
    """A feature net as a list of segments, since TorchScript knows no modules by name."""

    def __init__(self, net: DenseFeatureNet) -> None:
        super().__init__()
        self.segments = nn.ModuleList()
        tapped_names = net.return_layers
        # Stages wait until something is tapped, then become one segment.
        waiting: list[nn.Module] = []
        for name in net.feature_names:
            stage = getattr(net, name)
            inner = stage.widths() if isinstance(stage, DenseBlock) else ()
            widths = [width for layer, width in inner if f"{name}.{layer}" in tapped_names]
            # A tap inside a transition cuts it behind its ReLU; its convolution waits for the next.
            if f"{name}.relu" in tapped_names:
                if not calls_children_in_turn(stage):
                    raise ValueError(
                        f"{name} has a forward of its own, which TorchScript cannot cut at the "
                        "norm tap; use torch.export, or choose another tap"
                    )
                norm, relu, *conv = (part for _, part in list_children(stage))
                self.segments.append(_Segment([*waiting, norm, relu], [], tapped=True))
                waiting = conv
            else:
                waiting.append(stage)
            if widths or name in tapped_names:
                self.segments.append(_Segment(waiting, widths, tapped=name in tapped_names))
                waiting = []

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image (N, C, H, W) to the feature net's maps."""
        features: list[Tensor] = []
        for segment in self.segments:
            x = segment(x, features)
        return features


def _describe_taps(net: DenseNet, tap: Tap, layer_taps: Sequence[str]) -> list[dict[str, Any]]:
    """Describe a row of the tap table and the taps inside blocks, as timm's feature_info.

    Beside timm's entries: ``stage``, the level's name, and ``nominal``, the stride without
    ``output_stride``.
    """
    blocks = net.spec.blocks
    info = [dict(level, stage=f"c{i + 1}") for i, level in enumerate(net.feature_info)]
    # Start from the raw taps; the other rows of the table move each block's tap further back.
    info[0]["nominal"] = net.spec.stem_stride
    for i, plan in enumerate(blocks, start=1):
        info[i]["nominal"] = plan.stride * plan.dilation
        if i == len(blocks):
            continue
        if tap == "norm" and net.spec.transition_conv:
            info[i]["module"] = f"transition{i}.relu"
        elif tap in ("compressed", "pooled"):
            module = f"transition{i}" if net.spec.transition_conv else f"denseblock{i}"
            info[i].update(num_chs=plan.transition_channels, module=module)
        if tap == "pooled" and plan.pooled:
            nominal = plan.exit_stride * blocks[i].dilation
            info[i].update(reduction=plan.exit_stride, module=f"pool{i}", nominal=nominal)
    inner = [_describe_layer_tap(net, name, info) for name in layer_taps]
    if len({level["module"] for level in inner}) < len(inner):
        raise ValueError(f"layer_taps must not repeat, got {tuple(layer_taps)}")
    return sorted((*info, *inner), key=_order_taps)


def _describe_layer_tap(net: DenseNet, name: str, info: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Describe the concatenation after one layer of a block, as timm's feature_info."""
    match = re.fullmatch(r"denseblock([1-9]\d*)\.denselayer([1-9]\d*)", str(name))
    blocks = net.spec.blocks
    if not match or int(match[1]) > len(blocks) or int(match[2]) > blocks[int(match[1]) - 1].layers:
        raise ValueError(
            f"layer_taps: there is no {name!r}; write 'denseblock<i>.denselayer<l>', with as many "
            f"layers as block_config={net.spec.block_config} says"
        )
    block, layer = int(match[1]), int(match[2])
    plan = blocks[block - 1]
    return {
        "num_chs": plan.in_channels + layer * plan.growth_rate,
        "reduction": plan.stride,
        "module": name,
        "stage": f"c{block + 1}.{layer}",
        "nominal": plan.stride * plan.dilation,
    }


def _order_taps(level: Mapping[str, Any]) -> tuple[int, float]:
    """Sort key of taps as they come: a block's layers by number, then the block's own tap."""
    stage, _, layer = level["stage"].partition(".")
    return int(stage[1:]), float(layer or "inf")


def feature_levels(net: nn.Module) -> tuple[FeatureLevel, ...]:
    """Return the levels of a multi-scale network: ours, or timm's with ``features_only=True``.

    timm's levels are named by stage: ``c<log2 of the stride>`` where every stride is another power
    of two (a ResNet's are c1..c5, a ConvNeXt's c2..c5), else ``c<position + 1>``.

    Args:
        net: A network with ``levels``, or with timm's ``feature_info`` and maps in NCHW.

    Returns:
        One level per returned map, in the order the maps come.

    Raises:
        ValueError: ``net`` returns no list of maps in NCHW, or does not describe it.
    """
    levels = getattr(net, "levels", None)
    if isinstance(levels, tuple) and all(isinstance(level, FeatureLevel) for level in levels):
        return levels
    info = getattr(net, "feature_info", None)
    if not isinstance(info, FeatureInfo):
        raise ValueError(
            f"{type(net).__name__} does not describe its feature maps; build it with "
            "timm.create_model(name, features_only=True)"
        )
    output_fmt = str(getattr(net, "output_fmt", "NCHW")).rpartition(".")[2]
    if output_fmt != "NCHW":
        raise ValueError(f"{type(net).__name__} returns {output_fmt} maps; NCHW maps are needed")
    # Names by stride if strides only ever double or more, else by position.
    indices = sorted(i % len(info) for i in info.out_indices)
    strides = [int(level["reduction"]) for level in info.info]
    by_stride = all(stride & (stride - 1) == 0 for stride in strides)
    by_stride = by_stride and all(a < b for a, b in pairwise(strides))
    numbers = [int(math.log2(s)) for s in strides] if by_stride else range(1, len(strides) + 1)
    return tuple(FeatureLevel(f"c{numbers[i]}", info[i]["num_chs"], strides[i]) for i in indices)
