"""Keyword arguments that builders of detectors and segmenters share, under torchvision's names.

Each builder takes the typed dictionaries of this file by ``Unpack``, so that an option has one
name, one type and one explanation (torchvision ``models/detection/*.py``).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypedDict

from torchvision.models import WeightsEnum

from densenet_backbones.dense_block import Memory
from densenet_backbones.messages import check_interval, check_whole, nearest, to_plain

__all__ = [
    "BackboneWeights",
    "ChannelOrder",
    "ImageOptions",
    "Keywords",
    "NetworkOptions",
    "Options",
    "SelectionOptions",
    "SizeOptions",
    "check_names",
    "check_options",
    "drop_none",
    "split_options",
]

ChannelOrder = Literal["rgb", "bgr"]

Keywords = dict[str, Any]
"""Keyword arguments of a function that checks them itself: timm's, torchvision's or ours."""

Options = Mapping[str, Any]
"""Keyword arguments of a builder, or a description of some from a file."""

# Options whose value must lie in 0..1, and those that count something, by the ends of their names.
_FRACTIONS = ("_thresh", "_fraction")
_COUNTS = ("detections_per_img", "topk_candidates", "_top_n_train", "_top_n_test", "_per_image")


class NetworkOptions(TypedDict, total=False):
    """Architecture of a DenseNet below a detector or segmenter, under one name in all builders.

    They join ``backbone_kwargs``; what they say is explained at `DenseNetSpec`.

    Attributes:
        drop_rate: Dropout in every dense layer, ``proj_drop_rate`` there.
        memory: What training keeps for the backward pass; see `dense_block.modes`.
    """

    growth_rate: int | Sequence[int]
    block_config: Sequence[int]
    num_init_features: int
    bn_size: int | None
    compression: float | Sequence[float]
    transition_channels: Sequence[int | None] | None
    transition_pool: bool | Sequence[bool]
    connections: Sequence[Sequence[Sequence[int]]] | None
    drop_rate: float
    memory: Memory


class BackboneWeights(NetworkOptions, total=False):
    """Backbone of a builder, beside its name.

    Attributes:
        backbone_kwargs: Further keyword arguments for ``timm.create_model``: ``tap``,
            ``act_layer``, ...
        weights_backbone: None for random weights, ``timm`` for those that timm publishes, a name or
            member of torchvision's (``IMAGENET1K_V1``), or a file; see `create_features`.
        trainable_backbone_layers: How many of the last stages are trained, as torchvision counts
            them: 0 for none up to 5 for all of a DenseNet, four blocks and the stem.
        progress: Show a bar while torchvision's weights are fetched.
    """

    backbone_kwargs: Keywords | None
    weights_backbone: str | WeightsEnum | None
    trainable_backbone_layers: int | None
    progress: bool


class ImageOptions(TypedDict, total=False):
    """Values of images as a network's weights expect them; see `ImageNormalization`.

    What is left out, or None, is that of the backbone's weights.
    """

    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    channel_order: ChannelOrder | None
    value_range: float | None


class SizeOptions(TypedDict, total=False):
    """Sizes of images; see `DetectionTransform`.

    ``_skip_resize`` is what torchvision's ``references/detection/train.py`` gives to all builders
    for augmentations that scale images: ``resize_in_training`` turned off.
    """

    min_size: int | Sequence[int]
    max_size: int
    size_divisible: int
    image_size: Sequence[int] | None
    _skip_resize: bool


class SelectionOptions(TypedDict, total=False):
    """Limits of the detections of an image; see `Selection`."""

    score_thresh: float
    nms_thresh: float
    topk_candidates: int
    detections_per_img: int


def split_options(options: Options, parts: Sequence[Any]) -> list[Keywords]:
    """Split options by the typed dictionaries they belong to.

    Args:
        options: Keyword arguments of a builder.
        parts: Typed dictionaries; an option belongs to the first one that has it.

    Returns:
        The options of each part, then those that belong to none.
    """
    rest = to_plain(options)
    split = [{k: rest.pop(k) for k in part.__optional_keys__ if k in rest} for part in parts]
    return [*split, rest]


def drop_none(options: Options) -> Keywords:
    """Return the options whose value is not None: None stands for an option left out."""
    return {name: value for name, value in options.items() if value is not None}


def check_names(options: Options, known: Collection[str]) -> None:
    """Refuse keyword arguments that a builder does not take.

    Raises:
        TypeError: One is unknown; the sentence has the nearest and all that are known.
    """
    for name in sorted(options.keys() - set(known)):
        hint = nearest(name, known)
        if name == "pretrained" and "weights_backbone" in known:  # torchvision before 0.13
            hint = "; weights_backbone='timm' begins with published weights"
        raise TypeError(f"unexpected keyword argument {name!r}{hint} (known: {sorted(known)})")


def check_options(num_classes: int, options: Options, known: frozenset[str]) -> None:
    """Refuse a detector's options that are unknown, and numbers outside their range.

    Args:
        num_classes: K, with the background.
        options: Keyword arguments of a builder.
        known: Names that the builder takes.

    Raises:
        TypeError: An option is unknown.
        ValueError: A number is outside its range.
    """
    # torchvision's classes would take an unknown option without a word.
    check_names(options, known)
    if num_classes < 2:
        raise ValueError(f"num_classes counts the background: 2 or more, got {num_classes}")
    for name, value in options.items():
        if name.endswith(_FRACTIONS):
            check_interval(name, value, "[0, 1]")
        if name.endswith(_COUNTS):
            check_whole(name, value)
