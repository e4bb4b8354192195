"""FC-DenseNet, the "One Hundred Layers Tiramisu": a U-Net of dense blocks.

Jégou et al., "The One Hundred Layers Tiramisu: Fully Convolutional DenseNets for Semantic
Segmentation" (1611.09326), section 3 and tables 1 and 2.

Legend: N images, K classes, C channels, H and W pixels, k growth rate.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.dense_block import Memory
from densenet_backbones.densenet import DenseNet
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.options import (
    ImageOptions,
    Options,
    check_names,
    drop_none,
    split_options,
)
from densenet_backbones.heads.parameter_groups import LayerGroups, prefix_groups
from densenet_backbones.heads.segmentation.segmenter import Segmenter
from densenet_backbones.heads.validation import PythonModule
from densenet_backbones.heads.weights import load_weights
from densenet_backbones.layers import DenseBlock, set_memory
from densenet_backbones.messages import check_whole

__all__ = [
    "BatchStatisticsNorm2d",
    "FCDenseNet",
    "FCDenseNetOptions",
    "TransitionUp",
    "fcdensenet56",
    "fcdensenet67",
    "fcdensenet103",
]


class BatchStatisticsNorm2d(nn.BatchNorm2d):
    """Batch norm that takes the statistics of the batch in evaluation as well.

    In training it is `nn.BatchNorm2d`, running statistics included, so that weights fit either; in
    evaluation it neither reads nor changes them.
    """

    batch_statistics_in_eval = True

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if self.training:
            return super().forward(input)
        return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


class TransitionUp(nn.Module):
    """A 3x3 transposed convolution of stride 2 without padding, joined with the skip.

    Args:
        channels: Maps to bring up: those which the block below made.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """The block below, (N, C, h, w), and the skip, (N, C', H, W), to (N, channels + C', H, W).

        Of the block below, the last ``channels`` maps are read: the concatenation holds its input
        before them, which the paper does not bring up, as it would grow without end (section 3.2).
        The result is 2h+1 rows high, the skip 2h or 2h+1. Its center, which the paper keeps, is
        what lies at the top left: there are less than two rows to leave out.
        """
        up = self.conv(x[:, -self.conv.in_channels :])
        height, width = skip.shape[-2:]
        return torch.cat((up[..., :height, :width], skip), dim=1)


class FCDenseNet(PythonModule):
    """Dense blocks on the way down and, with the skips joined in, on the way up.

    The way down is a `DenseNet` with a CIFAR stem, no bottlenecks, no compression and max pools,
    whose convolutions have biases and whose transitions drop out before they pool. Odd maps lose
    their last row or column in a pool; `TransitionUp` makes it again, so the logits have the
    image's size, whatever that is.

    Args:
        num_classes: K.
        growth_rate: K.
        block_config: Layers of each block on the way down, the bottleneck last; the way up mirrors
            the others.
        num_init_features: Channels of the first convolution.
        drop_rate: Dropout, of single values, behind every convolution of blocks and transitions
            down.
        batch_statistics_in_eval: Norm by the statistics of the batch in evaluation as well, as the
            authors' published numbers were made (SimJeg/FC-DenseNet#8). Predictions then depend
            on what else is in the batch.
        memory: What training keeps for the backward pass; see `dense_block.modes`.
        connections: Of a pruned way down, as of `DenseNetSpec`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        growth_rate: int = 16,
        block_config: Sequence[int] = (4, 5, 7, 10, 12, 15),
        num_init_features: int = 48,
        drop_rate: float = 0.2,
        batch_statistics_in_eval: bool = False,
        memory: Memory = "none",
        connections: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> None:
        super().__init__()
        check_whole("num_classes", num_classes)
        spec = _plan_way_down(growth_rate, block_config, num_init_features, drop_rate)
        if connections is not None:
            spec = DenseNetSpec.from_dict({**spec.to_dict(), "connections": connections})
        self.num_classes = num_classes
        self.batch_statistics_in_eval = batch_statistics_in_eval
        self.encoder = _build_encoder(spec)
        self.transitions_up = nn.ModuleList()
        self.blocks_up = nn.ModuleList()
        # From the bottleneck up: a block takes what the one below made, and the skip of its size.
        *plans, below = spec.blocks
        for skip in reversed(plans):
            new = below.layers * growth_rate
            entry = new + skip.channels
            exit = entry + skip.layers * growth_rate
            below = dataclasses.replace(skip, in_channels=entry, channels=exit, sources=None)
            self.transitions_up.append(TransitionUp(new))
            self.blocks_up.append(
                DenseBlock.from_plan(below, spec, f"blocks_up.{len(self.blocks_up)}")
            )
        # Biases before the initialization, which sets them, and the norms' kind once all exist.
        self.classifier = nn.Conv2d(below.channels, num_classes, kernel_size=1)
        self.apply(_add_bias)
        if batch_statistics_in_eval:
            _replace_norms(self)
        self.apply(_init_weights)
        self.set_memory(memory)

    @property
    def smallest(self) -> int:
        """Pixels on each side below which the coarsest map would be empty."""
        return self.encoder.levels[-1].stride

    @property
    def feature_net(self) -> nn.Module:
        """Feature network: the way down."""
        return self.encoder

    def set_memory(self, memory: Memory) -> None:
        """Chooses what training keeps for the backward pass: see `layers.set_memory`."""
        set_memory(self, memory)

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Timm's layer groups of the way down; the way up is the last group of all."""
        return prefix_groups(self.encoder, "encoder.", coarse)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) to logits (N, K, H, W).

        Raises:
            ValueError: The images are smaller than ``smallest``; or a converter has replaced the
                norms that ``batch_statistics_in_eval`` needs.
        """
        self._check_norms()
        # The coarsest map is the bottleneck; the others are the skips, read from coarse to fine.
        *skips, x = self.encoder(x)
        for up, block, skip in zip(
            self.transitions_up, self.blocks_up, reversed(skips), strict=True
        ):
            x = block(up(x, skip))
        logits: Tensor = self.classifier(x)
        return logits

    def _check_norms(self) -> None:
        if self.training or not self.batch_statistics_in_eval:
            return
        norm = next(m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        if not isinstance(norm, BatchStatisticsNorm2d):
            raise ValueError(
                f"batch_statistics_in_eval works with its own norms, not {type(norm).__name__}, "
                "which evaluates by running statistics: leave out the conversion (such as "
                "sync_batchnorm=True), or build the network with batch_statistics_in_eval=False"
            )


def _plan_way_down(
    growth_rate: int, block_config: Sequence[int], num_init_features: int, drop_rate: float
) -> DenseNetSpec:
    return DenseNetSpec(
        growth_rate=growth_rate,
        block_config=tuple(block_config),
        num_init_features=num_init_features,
        bn_size=None,
        compression=1.0,
        pool="max",
        stem="cifar",
        final_norm=False,
        proj_drop_rate=drop_rate,
        norm_eps=1e-4,  # Lasagne's
        norm_momentum=0.1,  # likewise, where it is called alpha
    )


def _build_encoder(spec: DenseNetSpec) -> DenseFeatureNet:
    blocks = range(1, len(spec.blocks) + 1)
    encoder = DenseFeatureNet(DenseNet(spec, num_classes=0), out_indices=blocks)
    # A transition down drops out before it pools (table 1); a `DenseNet`'s has no dropout.
    for name, pool in list(encoder.named_children()):
        if isinstance(pool, nn.MaxPool2d):
            dropout = nn.Dropout(spec.proj_drop_rate)
            setattr(encoder, name, nn.Sequential(OrderedDict(drop=dropout, pool=pool)))
    return encoder


def _add_bias(module: nn.Module) -> None:
    # A `DenseNet`'s convolutions have none; the published counts of parameters hold them.
    if isinstance(module, nn.Conv2d) and module.bias is None:
        module.bias = nn.Parameter(torch.zeros(module.out_channels))


def _replace_norms(net: nn.Module) -> None:
    # Replaced while all weights are fresh, so that there is no state to carry over.
    for parent in list(net.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                own = BatchStatisticsNorm2d(norm.num_features, norm.eps, norm.momentum)
                setattr(parent, name, own)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)


class FCDenseNetOptions(ImageOptions, total=False):
    """Keyword arguments of `fcdensenet103`, explained there."""

    growth_rate: int
    block_config: Sequence[int]
    num_init_features: int
    drop_rate: float
    batch_statistics_in_eval: bool
    memory: Memory
    connections: Sequence[Sequence[Sequence[int]]] | None
    weights: str | None
    weights_backbone: str | None
    progress: bool


def fcdensenet103(*, num_classes: int, **options: Unpack[FCDenseNetOptions]) -> Segmenter:
    """FC-DenseNet103: 9,322,091 parameters for the 11 classes of CamVid, published with 66.9 mIoU.

    Blocks of 4, 5, 7, 10 and 12 layers down, a bottleneck of 15, and the same up (table 2).
    All arguments are JSON types.

    Args:
        num_classes: K; the background is a class like others where the data has one.
        **options: ``growth_rate`` (16), ``block_config``, ``num_init_features``, ``drop_rate``,
            ``batch_statistics_in_eval``, ``memory`` and ``connections`` as of `FCDenseNet`;
            ``image_mean``, ``image_std``, ``channel_order`` and ``value_range`` of
            `ImageNormalization`, ImageNet's when left out, as the paper names none; ``weights``, a
            file of a segmenter, of which is taken what fits; ``weights_backbone``, None alone, and
            ``progress``, as all builders have them.

    Raises:
        TypeError: An option is unknown.
        ValueError: An argument is out of range.
    """
    return _build(num_classes, {"block_config": (4, 5, 7, 10, 12, 15), **options})


def fcdensenet67(*, num_classes: int, **options: Unpack[FCDenseNetOptions]) -> Segmenter:
    """FC-DenseNet67: 3,463,243 parameters for 11 classes; 5 layers in each of its 11 blocks.

    Args:
        num_classes: As of `fcdensenet103`.
        **options: As of `fcdensenet103`.
    """
    return _build(num_classes, {"block_config": (5,) * 6, **options})


def fcdensenet56(*, num_classes: int, **options: Unpack[FCDenseNetOptions]) -> Segmenter:
    """FC-DenseNet56: 1,376,795 parameters for 11 classes; 4 layers in each of its 11 blocks.

    Args:
        num_classes: As of `fcdensenet103`.
        **options: As of `fcdensenet103`; ``growth_rate`` is 12.
    """
    return _build(num_classes, {"block_config": (4,) * 6, "growth_rate": 12, **options})


def _build(num_classes: int, options: Options) -> Segmenter:
    check_names(options, FCDenseNetOptions.__optional_keys__)
    images, network = split_options(options, (ImageOptions,))
    weights, published = network.pop("weights", None), network.pop("weights_backbone", None)
    network.pop("progress", None)  # there is nothing to fetch
    if published:
        raise ValueError(
            "FC-DenseNet has no backbone of its own whose weights are published: leave out "
            f"weights_backbone {published!r}, or give a segmenter's file as weights"
        )
    net = FCDenseNet(num_classes, **network)
    model = Segmenter(
        net, stride=1, smallest=net.smallest, normalization=ImageNormalization(**drop_none(images))
    )
    return load_weights(model, weights)
