"""Builders of DSOD: DSOD300, DSOD300_smallest, DSOD512, and one for first steps on a CPU.

Architecture and numbers follow szq0214/DSOD (``model_libs.py``, ``DSOD300_pascal.py``,
``DSOD300_coco.py``). K counts classes, the background included.
"""

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from densenet_backbones.features import feature_levels
from densenet_backbones.fpn import DensePrediction
from densenet_backbones.heads.backbones import (
    collect_network,
    create_base_network,
    find_base_positions,
    read_normalization,
)
from densenet_backbones.heads.detection.dsod import DSOD
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.heads.freezing import freeze_layers
from densenet_backbones.heads.multibox.priors import dsod_priors
from densenet_backbones.heads.multibox.selection import Selection
from densenet_backbones.heads.options import (
    BackboneWeights,
    ImageOptions,
    NetworkOptions,
    SelectionOptions,
    check_options,
    drop_none,
    split_options,
)
from densenet_backbones.heads.weights import load_weights
from densenet_backbones.messages import to_plain


class _SelectionOptions(SelectionOptions, total=False):
    vote_thresh: float


class _SharedOptions(ImageOptions, _SelectionOptions, BackboneWeights, total=False):
    _skip_resize: bool


class DSODOptions(_SharedOptions, total=False):
    """Keyword arguments of `dsod300`, explained there."""

    num_classes: int
    image_size: int | Sequence[int]
    backbone: str | nn.Module | None
    adapter_channels: Sequence[int]
    dense_prediction: bool
    prior_sizes: str | Sequence[float]
    faithful_priors: bool
    head_norm: bool
    prior_probability: float | None
    smooth_l1_beta: float
    bn_momentum: float
    weights: str | None


def dsod300(
    *,
    num_classes: int = 21,
    image_size: int | Sequence[int] = 300,
    backbone: str | nn.Module | None = None,
    adapter_channels: Sequence[int] = (256, 256, 128, 128, 128),
    dense_prediction: bool = True,
    prior_sizes: str | Sequence[float] = "voc",
    faithful_priors: bool = False,
    head_norm: bool = True,
    prior_probability: float | None = None,
    smooth_l1_beta: float = 1.0,
    bn_momentum: float = 0.1,
    weights: str | None = None,
    **options: Unpack[_SharedOptions],
) -> DSOD:
    """DSOD300, DS/64-192-48-1: 14.72 M parameters and 15.08 GMAC for the 20 classes of VOC.

    Published with 77.7 mAP on VOC07 test (78.9 with 12 images a GPU) and 29.3 AP on COCO test-dev,
    trained from scratch. All arguments but a module as backbone are JSON types.

    Args:
        num_classes: K, with the background.
        image_size: Size of the network's input in pixels, one number or (H, W).
        backbone: timm name of a feature network with strides 8 and 16, or such a module; None for
            ``dsod_features``.
        adapter_channels: Half the channels of each prediction map but the first; their number makes
            the number of maps.
        dense_prediction: Half of each of these maps is reused from a finer one, as published; False
            learns all of them, as SSD does (see `DensePrediction`).
        prior_sizes: ``"voc"`` or ``"coco"`` (SSD's rule), or with ``512`` at the end SSD512's;
            ``"large"`` for images of few and large objects; or one size in pixels for each map and
            the upper end.
        faithful_priors: Keep the published step of 300 on the last map (see `dsod_priors`).
        head_norm: Batch norms in the head, as published; False gives its convolutions biases.
        prior_probability: Share of priors that show objects, as the head takes it before training;
            None as published, all classes alike. For short trainings ``head_norm=False`` and 0.01
            are better, above all for scores (see `MultiBoxHead`).
        smooth_l1_beta: Of the boxes' loss, 0 or more: SSD's 1; 0.25 makes boxes tighter after short
            trainings (see `multibox_loss`).
        bn_momentum: Momentum of every batch norm. Caffe's moving average of 0.001 corrects its bias
            and torch's does not: at 0.001 torch needs thousands of steps until evaluation is right.
        weights: File of a detector's weights, of which is taken what fits.
        **options: With a named backbone those of `BackboneWeights`, of whose layers all are trained
            unless ``trainable_backbone_layers`` says otherwise; ``image_mean``, ``image_std``,
            ``channel_order`` and ``value_range`` (left out, DSOD's for its own backbones and the
            pretrained configuration's for others); ``score_thresh``, ``nms_thresh``,
            ``topk_candidates``, ``detections_per_img`` and ``vote_thresh`` as of `Selection`;
            ``vote_thresh=0.65`` makes boxes tighter, for 0.01 to 0.02 of AP after short trainings.

    Raises:
        TypeError: An option is unknown.
        ValueError: An argument is out of range, or the backbone lacks one of the two strides.
    """
    check_options(num_classes, options, _SharedOptions.__optional_keys__)
    images, limits, weighted, _ = split_options(
        options, (ImageOptions, _SelectionOptions, BackboneWeights)
    )
    # The feature network: built by name with its weights, or a module that comes with its own.
    name = "dsod_features" if backbone is None else backbone
    layers = weighted.pop("trainable_backbone_layers", None)
    kwargs = collect_network(name, weighted)
    if isinstance(name, str):
        net = create_base_network(name, **weighted, **kwargs)
    elif kwargs or weighted.get("weights_backbone") or layers is not None:
        raise ValueError(
            "backbone_kwargs (and growth_rate and the like), weights_backbone and "
            "trainable_backbone_layers need a backbone given by name"
        )
    else:
        net = name
    # Adapter and priors follow the network's levels: any with strides 8 and 16 will do.
    size = _parse_size(image_size)
    levels = feature_levels(net)
    base = [levels[i] for i in find_base_positions(levels)]
    adapter = DensePrediction(base, adapter_channels, reuse=dense_prediction)
    strides = [level.stride for level in adapter.levels]
    # What the caller says about images goes before what the weights expect.
    facts = read_normalization(net, name if isinstance(name, str) else None)
    model = DSOD(
        net,
        adapter,
        dsod_priors(size, strides, prior_sizes, faithful=faithful_priors),
        DetectionTransform(**{**facts, **drop_none(images), "image_size": size}),
        num_classes,
        Selection(**limits),
        head_norm,
        prior_probability,
        smooth_l1_beta,
    )
    # Norms of the backbone, the adapter and the head alike, so only the whole model will do.
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = bn_momentum
    if isinstance(name, str):
        freeze_layers(model, name, kwargs, layers)
    return load_weights(model, weights)


def dsod300_smallest(**options: Unpack[DSODOptions]) -> DSOD:
    """DSOD300_smallest, DS/64-64-16-1: 5.83 M parameters, 5.29 GMAC, published with 73.6 mAP.

    Args:
        **options: As of `dsod300`; the backbone is ``dsod_smallest_features``.
    """
    options.setdefault("backbone", "dsod_smallest_features")
    return dsod300(**options)


def dsod512(**options: Unpack[DSODOptions]) -> DSOD:
    """DSOD512: DSOD300 with one more stage, for seven maps of 64 to 1 cells.

    The body is that of szq0214/DSOD, ``model_libs.py``, ``DSOD512_V3_Body``, published without
    numbers; the prior sizes are SSD512's.

    Args:
        **options: As of `dsod300`; other defaults are ``image_size=512``, six ``adapter_channels``
            and ``prior_sizes="voc512"`` (``"coco512"`` for COCO).
    """
    options.setdefault("image_size", 512)
    options.setdefault("adapter_channels", (256, 256, 128, 128, 128, 128))
    options.setdefault("prior_sizes", "voc512")
    return dsod300(**options)


def dsod_tiny(**options: Unpack[DSODOptions]) -> DSOD:
    """A DSOD of 160 pixels that trains in minutes on a CPU, for first steps and tests.

    Not a published variant: DSOD's structure with growth 16 to 48, two or three layers a block and
    five maps; about 0.25 GMAC.

    Args:
        **options: As of `dsod300`; other defaults are ``image_size=160``, small
            ``adapter_channels`` and a small base by ``growth_rate``, ``block_config`` and
            ``num_init_features``.
    """
    options.setdefault("image_size", 160)
    options.setdefault("adapter_channels", (64, 64, 64, 64))
    if options.get("backbone") is None:
        options["backbone"] = "dsod_smallest_features"
        # Narrow where maps are large and memory-bound, wide where they are small: that is where a
        # CPU gets most learning for its time.
        tiny: NetworkOptions = {
            "growth_rate": [16, 32, 48, 48],
            "block_config": [2, 3, 3, 3],
            "num_init_features": 16,
        }
        given = options.keys() | (options.get("backbone_kwargs") or {}).keys()
        options |= {k: v for k, v in tiny.items() if k not in given}  # type: ignore[typeddict-item]
    return dsod300(**options)


def _parse_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    image_size = to_plain(image_size)
    if isinstance(image_size, int):
        return image_size, image_size
    if len(image_size) != 2:
        raise ValueError(f"image_size must be one number or (H, W), got {image_size!r}")
    return int(image_size[0]), int(image_size[1])
