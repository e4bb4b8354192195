"""A U-Net decoder over the feature levels of any backbone.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation" (1505.04597):
coarse maps are brought up, joined with the finer map of the way down, and convolved twice.

Legend: N images, K classes, C channels, H and W pixels, h and w cells of a coarser map.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.heads.backbones import (
    collect_network,
    create_features,
    read_normalization,
)
from densenet_backbones.heads.freezing import FreezableModule, freeze_layers
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.options import (
    BackboneWeights,
    ImageOptions,
    check_names,
    drop_none,
    split_options,
)
from densenet_backbones.heads.parameter_groups import LayerGroups, prefix_groups, prefix_names
from densenet_backbones.heads.segmentation.segmenter import Segmenter, SegmenterOutput
from densenet_backbones.heads.weights import load_weights
from densenet_backbones.messages import check_choice, check_whole

__all__ = ["AttentionGate", "DecoderStage", "UNet", "unet"]

Upsampling = Literal["bilinear", "transposed", "nearest"]
DecoderNorm = Literal["bn", "group"]


class AttentionGate(nn.Module):
    """Additive attention: weighs each cell of a skip by what the coarser map sees there.

    Oktay et al., "Attention U-Net" (1804.03999), section 2.2: skip and gate meet at the gate's
    size, and the weights are brought back to the skip's.

    Args:
        skip_channels: C of the skip; half as many are used inside.
        gate_channels: C' of the coarser map.
    """

    def __init__(self, skip_channels: int, gate_channels: int) -> None:
        super().__init__()
        inner = max(skip_channels // 2, 1)
        self.theta = nn.Conv2d(skip_channels, inner, kernel_size=2, stride=2, bias=False)
        self.phi = nn.Conv2d(gate_channels, inner, kernel_size=1)
        self.psi = nn.Conv2d(inner, 1, kernel_size=1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Skip (N, C, 2h, 2w), gated by (N, C', h, w); same shape as the skip."""
        weights = torch.sigmoid(self.psi(F.relu(self.theta(skip) + self.phi(gate))))  # (N, 1, h, w)
        return skip * F.interpolate(weights, scale_factor=2, mode="bilinear", align_corners=False)


class DecoderStage(nn.Module):
    """Brings a map to twice its size, joins it with a skip, and convolves 3x3 twice.

    Args:
        in_channels: C of the coarser map.
        skip: The finer level; None where the backbone has none of that stride.
        out_channels: C' of the result.
        upsampling: ``bilinear``, ``nearest``, or ``transposed``, the paper's 2x2 of stride 2.
        attention: Gate the skip.
        norm: ``bn``, or ``group`` of up to 16 channels a group.
    """

    def __init__(
        self,
        in_channels: int,
        skip: FeatureLevel | None,
        out_channels: int,
        upsampling: Upsampling,
        attention: bool,
        norm: DecoderNorm,
    ) -> None:
        super().__init__()
        # Only the transposed convolution changes the width while it brings the map up.
        up_channels = in_channels
        self.up: nn.Module
        if upsampling == "transposed":
            up_channels = out_channels
            self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        elif upsampling == "bilinear":
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        else:
            self.up = nn.Upsample(scale_factor=2, mode="nearest")
        gated = attention and skip is not None
        self.gate = AttentionGate(skip.channels, in_channels) if skip and gated else None
        joined = up_channels + (skip.channels if skip else 0)
        self.convs = nn.Sequential(
            _build_conv_norm_relu(joined, out_channels, norm),
            _build_conv_norm_relu(out_channels, out_channels, norm),
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(N, C, h, w), and the skip at (2h, 2w) or None, to (N, C', 2h, 2w)."""
        up = self.up(x)
        if skip is not None:
            skip = skip if self.gate is None else self.gate(skip, x)
            up = torch.cat((up, skip), dim=1)
        convolved: Tensor = self.convs(up)
        return convolved


class UNet(FreezableModule):
    """A backbone and a decoder that brings its maps back to the image's size.

    Args:
        backbone: Gives a list of maps that `feature_levels` describes, of strides that double.
        num_classes: K.
        decoder_channels: Widths of the decoder at strides ..., 4, 2 and 1: the last is that of the
            image's own size, and as many from the end are used as there are strides below the
            backbone's coarsest.
        logits_stride: Stride of the map that is classified, a power of 2 below the backbone's
            coarsest; its logits are brought to the image's size bilinearly. 4, as in SegFormer
            (Xie et al., 2105.15203, section 3.2), leaves out the decoder's stages of strides 2 and
            1, which take most of a CPU's time.
        upsampling: ``bilinear``, ``transposed`` or ``nearest``; see `DecoderStage`.
        attention: Gate every skip; see `AttentionGate`.
        deep_supervision: In training, logits from every coarser map of the decoder as well.
        norm: Of the decoder, ``bn`` or ``group``; the backbone has its own.

    Raises:
        ValueError: An argument is out of range, or the backbone's strides do not double.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        logits_stride: int = 1,
        upsampling: Upsampling = "bilinear",
        attention: bool = False,
        deep_supervision: bool = False,
        norm: DecoderNorm = "bn",
    ) -> None:
        super().__init__()
        check_whole("num_classes", num_classes)
        for name, value, legal in (
            ("upsampling", upsampling, get_args(Upsampling)),
            ("norm", norm, get_args(DecoderNorm)),
        ):
            check_choice(name, value, legal)
        # Everything about sizes is read from the backbone's levels.
        levels = feature_levels(backbone)
        self.stride = _read_stride(levels)
        self.num_classes = num_classes
        self.backbone = backbone
        self.logits_stride = _check_logits_stride(logits_stride, self.stride)
        widths = _take_widths(decoder_channels, self.stride, self.logits_stride)
        # Skips from coarse to fine; above the backbone's finest level there is none to join.
        skips: list[FeatureLevel | None] = [*levels[-2::-1], *[None] * len(widths)]
        self.stages = nn.ModuleList()
        channels = levels[-1].channels
        for skip, width in zip(skips[: len(widths)], widths, strict=True):
            self.stages.append(DecoderStage(channels, skip, width, upsampling, attention, norm))
            channels = width
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        coarser = widths[:-1] if deep_supervision else []
        self.aux_classifiers = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in coarser)
        self.stages.apply(_init_weights)

    @property
    def feature_net(self) -> nn.Module:
        """Feature network whose stages are frozen: the backbone."""
        return self.backbone

    def forward(self, x: Tensor) -> SegmenterOutput:
        """Normalized images (N, 3, H, W), H and W multiples of ``stride``, to logits (N, K, H, W).

        In training with deep supervision: a dictionary of ``logits`` and ``aux``, a list of logits
        (N, K, h, w) of the decoder's coarser maps, coarse to fine.
        """
        # From the coarsest map up to the image's size; the maps on the way feed deep supervision.
        *skips, x = self.backbone(x)
        maps = []
        for stage in self.stages:
            x = stage(x, skips.pop() if skips else None)
            maps.append(x)
        logits: Tensor = self.classifier(x)
        if self.logits_stride > 1:
            logits = F.interpolate(
                logits, scale_factor=self.logits_stride, mode="bilinear", align_corners=False
            )
        if not self.training or not self.aux_classifiers:
            return logits
        pairs = zip(self.aux_classifiers, maps, strict=False)  # the last map has the classifier
        return {"logits": logits, "aux": [classify(m) for classify, m in pairs]}

    def no_weight_decay(self) -> set[str]:
        """The backbone's parameters to train without weight decay, where it names some."""
        return prefix_names(self.backbone, "backbone.")

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Timm's layer groups of the backbone; the decoder is the last group of all."""
        return prefix_groups(self.backbone, "backbone.", coarse)


class UNetOptions(ImageOptions, BackboneWeights, total=False):
    """Keyword arguments of `unet` beside those of `UNet`."""


def unet(
    *,
    num_classes: int,
    backbone: str = "densenet121_features",
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    logits_stride: int = 1,
    upsampling: Upsampling = "bilinear",
    attention: bool = False,
    deep_supervision: bool = False,
    norm: DecoderNorm = "bn",
    weights: str | None = None,
    **options: Unpack[UNetOptions],
) -> Segmenter:
    """U-Net over any timm backbone; all arguments are JSON types.

    Args:
        num_classes: K; the background is a class like others where the data has one.
        backbone: timm name, ours or any other that has ``features_only``.
        decoder_channels: As of `UNet`, and so are the next five.
        logits_stride: Stride of the map that is classified, a power of 2.
        upsampling: ``bilinear``, ``transposed`` or ``nearest``.
        attention: Gate every skip.
        deep_supervision: In training, logits from the decoder's coarser maps as well.
        norm: ``bn`` or ``group``.
        weights: File of a segmenter's weights, of which is taken what fits.
        **options: Those of `BackboneWeights`, of whose layers all are trained unless
            ``trainable_backbone_layers`` says otherwise; ``image_mean``, ``image_std``,
            ``channel_order`` and ``value_range`` of `ImageNormalization`, left out those of the
            backbone's weights.

    Raises:
        TypeError: An option is unknown.
        ValueError: An argument is out of range, or the backbone's strides do not double.
    """
    images, weighted, unknown = split_options(options, (ImageOptions, BackboneWeights))
    check_names(unknown, (unet.__kwdefaults__ or {}).keys() | UNetOptions.__optional_keys__)
    # The backbone with its weights, then the decoder on its levels.
    layers = weighted.pop("trainable_backbone_layers", None)
    kwargs = collect_network(backbone, weighted)
    features = create_features(backbone, **weighted, **kwargs)
    strides = [level.stride for level in feature_levels(features)]
    if "out_indices" not in kwargs and strides[:2] == [2, 2]:
        # A CondenseNet's first block has its stem's stride, and holds the stem's map.
        kwargs["out_indices"] = tuple(range(1, len(strides)))
        features = create_features(backbone, **weighted, **kwargs)
    net = UNet(
        features,
        num_classes,
        decoder_channels=decoder_channels,
        logits_stride=logits_stride,
        upsampling=upsampling,
        attention=attention,
        deep_supervision=deep_supervision,
        norm=norm,
    )
    freeze_layers(net, backbone, kwargs, layers)
    # What the caller says about images goes before what the backbone's weights expect.
    normalization = ImageNormalization(
        **{**read_normalization(features, backbone), **drop_none(images)}
    )
    return load_weights(Segmenter(net, stride=net.stride, normalization=normalization), weights)


def _read_stride(levels: Sequence[FeatureLevel]) -> int:
    """Stride of the coarsest level, where every step from 1 to it is a factor of 2."""
    strides = [level.stride for level in levels]
    first = strides[0] if strides else 0
    doubling = first & (first - 1) == 0 and strides == [first << i for i in range(len(strides))]
    if not doubling or not strides or strides[-1] < 2:
        raise ValueError(
            "a U-Net needs levels whose strides double, from a power of 2 up to 2 or more, got "
            f"{strides}: choose other out_indices or output_stride of the backbone"
        )
    return strides[-1]


def _check_logits_stride(logits_stride: int, stride: int) -> int:
    check_whole("logits_stride", logits_stride)
    if logits_stride & (logits_stride - 1) or logits_stride >= stride:
        raise ValueError(
            f"logits_stride must be a power of 2 below the backbone's stride of {stride}, got "
            f"{logits_stride}"
        )
    return logits_stride


def _take_widths(decoder_channels: Sequence[int], stride: int, logits_stride: int) -> list[int]:
    """Widths at the strides from half of ``stride`` to ``logits_stride``."""
    below = int(math.log2(stride))
    if len(decoder_channels) < below or min(decoder_channels) < 1:
        raise ValueError(
            f"decoder_channels must be {below} or more numbers of 1 or more, one for each factor "
            f"of 2 up to the backbone's stride of {stride}, got {list(decoder_channels)}"
        )
    return list(decoder_channels[-below:])[: below - int(math.log2(logits_stride))]


def _build_conv_norm_relu(in_channels: int, out_channels: int, norm: DecoderNorm) -> nn.Sequential:
    size = math.gcd(out_channels, 16)  # channels a group: Wu & He, 1803.08494, table 3
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            norm=nn.BatchNorm2d(out_channels)
            if norm == "bn"
            else nn.GroupNorm(out_channels // size, out_channels),
            relu=nn.ReLU(),
        )
    )


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
