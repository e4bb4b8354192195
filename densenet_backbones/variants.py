"""Published members of the family: `VARIANTS`, from name to architecture.

ImageNet nets: Huang et al. (1608.06993), table 1, and the authors' repository (161, 232, 264 with
k=48); ``264d`` and ``blur121d`` are timm's. CIFAR nets: table 2 and the README of
liuzhuang13/DenseNet, ``densenet<L>[b|c|bc]_k<k>``: L layers, growth rate k, with bottleneck (b)
and compression 0.5 (c). DSOD bases: Shen et al. (1708.01241). CondenseNets: Huang et al.
(1711.09224) and ShichenLiu/CondenseNet, ``condensenet<L>[_c8][_cifar]``: L layers, with 4 groups
and condensation factor 4, or 8 of both.
"""

from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.messages import check_choice

__all__ = ["SUFFIX", "VARIANTS", "cifar_spec", "condensenet_spec", "dsod_spec"]

SUFFIX = "_features"
"""Ending of the names of feature nets in timm's registry: ``densenet121_features``."""


def cifar_spec(depth: int, growth_rate: int, kind: str = "") -> DenseNetSpec:
    """Return a CIFAR net: a 3x3 stem and three blocks of (L - 4) / 3 layers, halved with 1x1s.

    Args:
        depth: L, convolutions and classifier counted.
        growth_rate: New channels of each layer, k.
        kind: ``""``, ``"b"`` (bottleneck 4k), ``"c"`` (compression 0.5) or ``"bc"``. The stem has
            16 channels, and 2k for ``"bc"`` (section 3, implementation details).

    Raises:
        ValueError: ``kind`` is none of these, or ``depth`` leaves no whole number of layers.
    """
    check_choice("kind", kind, ("", "b", "c", "bc"))
    step = 6 if "b" in kind else 3
    if depth <= 4 or (depth - 4) % step:
        raise ValueError(f"depth must be 4 plus a multiple of {step}, got {depth}")
    return DenseNetSpec(
        growth_rate=growth_rate,
        block_config=((depth - 4) // step,) * 3,
        num_init_features=2 * growth_rate if kind == "bc" else 16,
        bn_size=4 if "b" in kind else None,
        compression=0.5 if "c" in kind else 1.0,
        stem="cifar",
    )


def dsod_spec(growth_rate: int = 48) -> DenseNetSpec:
    """Return a DSOD base, DS/64-4k-k-1: 6-8-8-8 layers, no compression, third transition unpooled.

    Its pools round up, so a 300 pixel image gives maps of 150, 75, 38, 19 and 19 (1708.01241,
    table 1; szq0214/DSOD, ``model_libs.py``, ``DSOD300_V3_Body``). The 1x1 behind block 4 belongs
    to the dense prediction that follows.

    Args:
        growth_rate: New channels of each layer: 48, or 16 in the smallest published net.
    """
    return DenseNetSpec(
        growth_rate=growth_rate,
        block_config=(6, 8, 8, 8),
        num_init_features=128,
        compression=1.0,
        transition_pool=(True, True, False),
        pool="max",
        ceil_mode=True,
        stem="dsod",
        final_norm=False,
        init="xavier_caffe",
    )


def condensenet_spec(
    *blocks: int, growth_rate: int = 8, factor: int = 4, cifar: bool = False
) -> DenseNetSpec:
    """Return a CondenseNet: learned groups, growth doubled from block to block, pools in between.

    The 1x1s condense by C = G (1711.09224, section 4). An ImageNet net's classifier drops half of
    its inputs besides; the authors' code does so when it converts a net, and their published
    parameters count it for ImageNet and not for CIFAR.

    Args:
        blocks: Layers of each block.
        growth_rate: New channels of each layer of the first block; the stem has twice as many.
        factor: Groups G and condensation factor C.
        cifar: True for a stem of stride 1, for images of 32 pixels; False for one of stride 2.
    """
    return DenseNetSpec(
        growth_rate=tuple(growth_rate * 2**i for i in range(len(blocks))),
        block_config=blocks,
        num_init_features=2 * growth_rate,
        compression=1.0,
        transition_conv=False,
        stem="cifar" if cifar else "conv",
        groups=factor,
        condense_factor=factor,
        classifier_condense_factor=1 if cifar else 2,
        init="he_fan_out",
    )


def _k48(*blocks: int, stem: str = "imagenet") -> DenseNetSpec:
    fields = {"growth_rate": 48, "block_config": blocks, "num_init_features": 96, "stem": stem}
    return DenseNetSpec.from_dict(fields)


VARIANTS = {
    "densenet121": DenseNetSpec(),
    "densenet169": DenseNetSpec(block_config=(6, 12, 32, 32)),
    "densenet201": DenseNetSpec(block_config=(6, 12, 48, 32)),
    "densenet264": DenseNetSpec(block_config=(6, 12, 64, 48)),
    "densenet161": _k48(6, 12, 36, 24),
    "densenet232_k48": _k48(6, 12, 48, 48),
    "densenet264_k48": _k48(6, 12, 64, 48),
    "densenet264d": _k48(6, 12, 64, 48, stem="deep"),
    "densenetblur121d": DenseNetSpec(stem="deep", stem_pool="blur"),
    "densenet40_k12": cifar_spec(40, 12),
    "densenet100_k12": cifar_spec(100, 12),
    "densenet100_k24": cifar_spec(100, 24),
    "densenet40b_k12": cifar_spec(40, 12, "b"),
    "densenet40c_k12": cifar_spec(40, 12, "c"),
    "densenet40bc_k12": cifar_spec(40, 12, "bc"),
    "densenet100bc_k12": cifar_spec(100, 12, "bc"),
    "densenet250bc_k24": cifar_spec(250, 24, "bc"),
    "densenet190bc_k40": cifar_spec(190, 40, "bc"),
    "densenet40bc_k36": cifar_spec(40, 36, "bc"),
    "densenet40bc_k48": cifar_spec(40, 48, "bc"),
    "densenet40bc_k60": cifar_spec(40, 60, "bc"),
    "dsod": dsod_spec(48),
    "dsod_smallest": dsod_spec(16),
    "condensenet74": condensenet_spec(4, 6, 8, 10, 8),
    "condensenet74_c8": condensenet_spec(4, 6, 8, 10, 8, factor=8),
    "condensenet50_cifar": condensenet_spec(8, 8, 8, cifar=True),
    "condensenet74_cifar": condensenet_spec(12, 12, 12, cifar=True),
    "condensenet86_cifar": condensenet_spec(14, 14, 14, cifar=True),
    "condensenet98_cifar": condensenet_spec(16, 16, 16, cifar=True),
    "condensenet110_cifar": condensenet_spec(18, 18, 18, cifar=True),
    "condensenet122_cifar": condensenet_spec(20, 20, 20, cifar=True),
    "condensenet182_cifar": condensenet_spec(30, 30, 30, growth_rate=12, cifar=True),
}
