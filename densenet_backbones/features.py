"""Multi-scale features of a DenseNet, and the value that describes a feature level.

Taps, for densenet121 (channels @ stride); ``c1`` is the stem's last ReLU and ``c5`` the final
BN-ReLU in every row:

==============  ===========================================  =======  =======  =========
tap             what c2, c3, c4 are                          c2       c3       c4
==============  ===========================================  =======  =======  =========
``raw``         the block's concatenation (timm's taps)      256 @ 4  512 @ 8  1024 @ 16
``norm``        BN-ReLU of it, from the transition: >= 0     256 @ 4  512 @ 8  1024 @ 16
``compressed``  after the transition's 1x1, before its pool  128 @ 4  256 @ 8  512 @ 16
``pooled``      what enters the next block                   128 @ 8  256 @ 16 512 @ 32
==============  ===========================================  =======  =======  =========

A net without final norm ends in the raw concatenation of its last block; a CIFAR stem's ``c1`` is
its convolution. An unpooled transition makes ``pooled`` equal to ``compressed``, stride included.

Shapes: N images, C channels, H and W pixels.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from timm.models._features import FeatureInfo
from torch import Tensor, nn

from densenet_backbones.densenet import DenseNet, take_indices

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
        if self.channels < 1 or self.stride < 1:
            raise ValueError(
                f"level {self.name!r} needs channels and stride >= 1, not {self.channels} and "
                f"{self.stride}"
            )


class DenseFeatureNet(nn.Module):
    """A DenseNet up to its last wanted tap; returns a list of maps (timm's ``feature_cls``).

    It shares the modules of ``model`` under the same names, so parameters keep their names.

    Args:
        model: The whole network.
        out_indices: Taps to return: None for all, n for the last n, or ascending positions (0 is
            the stem, i is block i, -1 the last).
        tap: Where each block is read; see the table above.
        output_fmt: Only ``NCHW``.

    Attributes:
        feature_info: timm's `FeatureInfo` of every tap; its module names are children's names
            (``transition1.relu`` and so on for the norm tap).
        return_layers: Module name to tap index of what `forward` returns. It may be replaced by
            another such dictionary, as transformers' TimmBackbone does.
        num_features: Channels of the last returned map.

    Raises:
        ValueError: ``tap``, ``output_fmt`` or ``out_indices`` is not legal.
    """

    num_classes = 0  # there is no classifier; timm asks

    def __init__(
        self,
        model: DenseNet,
        out_indices: int | Iterable[int] | None = None,
        tap: Tap = "raw",
        output_fmt: str = "NCHW",
    ) -> None:
        super().__init__()
        if tap not in get_args(Tap):
            raise ValueError(f"tap must be one of {get_args(Tap)}, not {tap!r}")
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        info = _tap_info(model, tap)
        self.spec = model.spec
        self.tap = tap
        self.output_fmt = output_fmt
        self.in_chans = model.in_chans
        self.feature_info = FeatureInfo(info, take_indices(len(info), out_indices))
        indices = self.feature_info.out_indices
        self.return_layers: dict[str, str] = {info[i]["module"]: str(i) for i in indices}
        self.num_features: int = info[indices[-1]]["num_chs"]
        self._add_stages(model, last=info[indices[-1]]["module"])

    def _add_stages(self, model: DenseNet, last: str) -> None:
        end, _, part = last.partition(".")
        for name in model.feature_names[: model.feature_names.index(end) + 1]:
            self.add_module(name, getattr(model, name))
        if part:
            # The 1x1 behind the last tap would be a parameter without a gradient.
            kept = OrderedDict((n, getattr(getattr(model, end), n)) for n in ("norm", "relu"))
            self.add_module(end, nn.Sequential(kept))

    @property
    def levels(self) -> tuple[FeatureLevel, ...]:
        """The returned maps, in order: ``c1`` the stem, ``c2`` block 1, ..."""
        info = self.feature_info
        return tuple(
            FeatureLevel(f"c{i + 1}", info[i]["num_chs"], info[i]["reduction"])
            for i in info.out_indices
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Image (N, in_chans, H, W) to one (N, C, H / stride, W / stride) map per level."""
        features = []
        for name, stage in self.named_children():
            if f"{name}.relu" in self.return_layers:
                *norm_relu, conv = _split(stage)
                for module in norm_relu:
                    x = module(x)
                features.append(x)
                x = conv(x)
            else:
                x = stage(x)
            if name in self.return_layers:
                features.append(x)
        return features


def _split(transition: nn.Module) -> Sequence[nn.Module]:
    """Norm, ReLU and convolution of a transition; an identity where the convolution is cut off."""
    modules = list(transition.children())
    return modules if len(modules) == 3 else [*modules, nn.Identity()]


def _tap_info(net: DenseNet, tap: Tap) -> list[dict[str, Any]]:
    """Timm's feature_info for a row of the tap table."""
    info = [dict(level) for level in net.feature_info]
    for i, plan in enumerate(net.spec.blocks[:-1], start=1):
        if tap == "norm":
            info[i]["module"] = f"transition{i}.relu"
        elif tap in ("compressed", "pooled"):
            info[i].update(num_chs=plan.transition_channels, module=f"transition{i}")
        if tap == "pooled" and plan.pooled:
            info[i].update(reduction=plan.stride * 2, module=f"pool{i}")
    return info


def feature_levels(net: nn.Module) -> tuple[FeatureLevel, ...]:
    """Levels of a multi-scale network: ours, or any timm model made with ``features_only=True``.

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
    indices = sorted(i % len(info) for i in info.out_indices)
    strides = [int(level["reduction"]) for level in info.info]
    by_stride = all(stride & (stride - 1) == 0 for stride in strides)
    by_stride = by_stride and all(a < b for a, b in pairwise(strides))
    numbers = [int(math.log2(s)) for s in strides] if by_stride else range(1, len(strides) + 1)
    return tuple(FeatureLevel(f"c{numbers[i]}", info[i]["num_chs"], strides[i]) for i in indices)
