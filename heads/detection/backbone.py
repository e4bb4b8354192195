"""Backbones of torchvision's detectors: a feature network and an adapter, by published levels.

Legend: N images, C channels, H and W pixels.
"""

from collections import OrderedDict
from functools import partial
from typing import Any, Literal, Unpack

from torch import Tensor, nn
from torchvision.models import WeightsEnum

from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.fpn import Adapter, build_adapter
from densenet_backbones.heads.detection.body import (
    Body,
    BodyOptions,
    build_body,
)
from densenet_backbones.heads.freezing import FreezableModule, count_frozen_stages
from densenet_backbones.heads.options import Keywords, check_names
from densenet_backbones.heads.parameter_groups import LayerGroups, prefix_groups, prefix_names

__all__ = [
    "AdapterName",
    "BackboneOptions",
    "DetectionBackbone",
    "Extra",
    "count_stages_to_freeze",
    "densenet_fpn_backbone",
]

AdapterName = Literal["fpn", "pan", "bifpn", "dense_prediction"]
Extra = Literal["pool", "p6p7"]

PRETRAINED_LAYERS = 3  # torchvision trains all five of a ResNet, or three of a pretrained one


class DetectionBackbone(FreezableModule):
    """Backbone of torchvision's detectors: a dictionary of maps of one width.

    Args:
        body: Gives a list of maps that `feature_levels` describes.
        adapter: Reads some of these levels.
        extra_levels: How many of the adapter's last levels lie beyond the body's; RoI pooling
            leaves them out (FPN, 1612.03144, section 4.1).

    Attributes:
        levels: The adapter's levels, in the order of the maps.
        map_names: Names of the maps as torchvision's detectors and RoI pooling expect them
            (``ops/feature_pyramid_network.py``): the body's are numbered from "0", what lies
            beyond is "pool", or "p6" and "p7".
        out_channels: Channels of each map.
        in_chans: Channels of the images.
        frozen_stages: Stages without training, of those that `freeze` counts.

    Raises:
        ValueError: The adapter reads levels that the body does not give, or its levels differ in
            their channels.
    """

    out_channels: Any

    def __init__(self, body: nn.Module, adapter: Adapter, extra_levels: int = 0) -> None:
        super().__init__()
        # Levels are matched as values, so that a wrong stride cannot pass for a right position.
        published = feature_levels(body)
        missing = [level for level in adapter.levels_in if level not in published]
        if missing:
            raise ValueError(
                f"the adapter reads {missing}, the body gives {list(published)}: build the adapter "
                "from levels of this body"
            )
        self.body = body
        self.adapter = adapter
        self.levels = adapter.levels
        self.extra_levels = extra_levels
        # `extra` is "pool" for one level more, or "p6p7".
        beyond = ("pool",) if extra_levels == 1 else ("p6", "p7")[:extra_levels]
        self.map_names = (*map(str, range(len(self.levels) - extra_levels)), *beyond)
        self.out_channels = self._take_widths()
        self.in_chans = _read_in_chans(body)
        self._positions = tuple(published.index(level) for level in adapter.levels_in)

    def _take_widths(self) -> int | list[int]:
        widths = {level.channels for level in self.levels}
        if len(widths) != 1:
            raise ValueError(
                "the detector shares one head among all levels, so they need the same number of "
                f"channels, got {[(level.name, level.channels) for level in self.levels]}"
            )
        return widths.pop()

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Images (N, C, H, W) to the maps of ``levels``, by ``map_names``."""
        features = self.body(x)
        maps = self.adapter([features[position] for position in self._positions])
        return OrderedDict(zip(self.map_names, maps, strict=True))

    @property
    def roi_levels(self) -> tuple[FeatureLevel, ...]:
        """Levels to pool boxes from."""
        return self.levels[: len(self.levels) - self.extra_levels]

    @property
    def feature_net(self) -> nn.Module:
        """Feature network whose stages are frozen: the body."""
        return self.body

    def no_weight_decay(self) -> set[str]:
        """Parameters to train without weight decay, where body or adapter name some."""
        body = prefix_names(self.body, "body.")
        return body | prefix_names(self.adapter, "adapter.")

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Timm's layer groups of the body; the adapter belongs to the last group of all."""
        return prefix_groups(self.body, "body.", coarse)


def _read_in_chans(body: nn.Module) -> int:
    # Ours say it; of timm's networks the first convolution does.
    known = getattr(body, "in_chans", None)
    if isinstance(known, int):
        return known
    return next(m.in_channels for m in body.modules() if isinstance(m, nn.Conv2d))


class BackboneOptions(BodyOptions, total=False):
    """Keyword arguments of `densenet_fpn_backbone`, explained there."""

    trainable_backbone_layers: int | None
    adapter: AdapterName
    adapter_kwargs: Keywords | None
    out_channels: int
    extra: Extra | None


def densenet_fpn_backbone(
    name: str = "densenet121_features",
    *,
    trainable_backbone_layers: int | None = None,
    adapter: AdapterName = "fpn",
    adapter_kwargs: Keywords | None = None,
    out_channels: int = 256,
    extra: Extra | None = "pool",
    **options: Unpack[BodyOptions],
) -> DetectionBackbone:
    """A backbone for torchvision's detectors on the levels of any timm feature network.

    It fits torchvision's own classes as it stands::

        torchvision.models.detection.FasterRCNN(densenet_fpn_backbone(), num_classes=2)

    Args:
        name: timm's, ours or any other that has ``features_only``: ``rdnet_tiny``, ``resnet50``.
        trainable_backbone_layers: How many of the last stages are trained, as torchvision counts
            them: 0 for none up to 5 for all of a DenseNet, four blocks and the stem. Left out: all,
            or 3 with ``weights_backbone``.
        adapter: ``fpn``, ``pan``, ``bifpn`` or ``dense_prediction``, see `build_adapter`.
        adapter_kwargs: Further arguments of the adapter.
        out_channels: Of every map.
        extra: Coarser levels: ``pool`` for one, ``p6p7`` for two, or None.
        **options: About the network: ``weights_backbone`` and ``progress``, see `create_features`;
            ``norm``,
            ``bn``, ``frozen``, ``sync`` or ``group`` (left out ``frozen`` with weights, else
            ``bn``); ``min_stride``, the finest level read (4); ``output_stride``, where the maps
            stop to shrink (32; 16 for DC5); ``in_chans`` of the images (3); ``backbone_kwargs``
            for ``timm.create_model``.

    Raises:
        TypeError: An argument is unknown.
        ValueError: An argument is out of range, or does not fit the network.
    """
    check_names(options, BodyOptions.__optional_keys__)
    # The adapter is built once the network's levels are known.
    make = partial(
        build_adapter, adapter, out_channels=out_channels, extra=extra, **(adapter_kwargs or {})
    )
    body = build_body(name, make, **options)
    backbone = DetectionBackbone(body.net, body.adapter, body.extra_levels)
    # Counted from the end of the whole network, as torchvision does, not from where this ends.
    backbone.freeze(
        count_stages_to_freeze(body, trainable_backbone_layers, options.get("weights_backbone"))
    )
    return backbone


def count_stages_to_freeze(
    body: Body, layers: int | None, weights: str | WeightsEnum | None
) -> int:
    """Return how many of a body's first stages are not trained; see `densenet_fpn_backbone`.

    Raises:
        ValueError: ``layers`` is out of range.
    """
    if layers is None:
        if not weights:
            return 0
        layers = PRETRAINED_LAYERS
    return count_frozen_stages(body.net, body.whole, layers)
