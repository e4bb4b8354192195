"""SSD on any backbone, by torchvision's class.

Legend: K classes including the background (class 0), L levels. Sources: SSD (Liu et al.,
1512.02325) and its Caffe code (weiliu89/caffe, ``examples/ssd/ssd_{pascal,coco}.py`` and
``ssd_pascal_512.py``); torchvision ``models/detection/ssd.py``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack

import torch
import torchvision.models.detection.ssd as tv
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from densenet_backbones.features import FeatureLevel
from densenet_backbones.fpn import Adapter, build_adapter
from densenet_backbones.heads.backbones import is_ours, run_on_meta
from densenet_backbones.heads.detection.backbone import (
    AdapterName,
    DetectionBackbone,
    count_stages_to_freeze,
)
from densenet_backbones.heads.detection.base import (
    DEFAULT_BACKBONE,
    TorchvisionDetector,
    keep_float32,
    make_transform,
)
from densenet_backbones.heads.detection.body import BodyOptions, build_body
from densenet_backbones.heads.detection.transform import DetectionTransform, build_transform
from densenet_backbones.heads.multibox.head import ChannelL2Norm
from densenet_backbones.heads.multibox.priors import compute_ratio_sizes
from densenet_backbones.heads.options import (
    ImageOptions,
    Keywords,
    Options,
    SelectionOptions,
    check_options,
    split_options,
)
from densenet_backbones.heads.weights import load_weights
from densenet_backbones.messages import check_interval

__all__ = ["SSD", "ExtraLevels", "SSDBackbone", "ScaledLevels", "ssd300", "ssd512"]

SSD300_CELLS = (38, 19, 10, 5, 3, 1)
SSD300_STEPS = (8, 16, 32, 64, 100, 300)
_FIRST_WIDTH, _WIDTH = 512, 256  # channels of the extra maps, section 2.1, figure 2


class ScaledLevels(Adapter):
    """A backbone's maps as they are, but for the length of each cell's vector.

    SSD brings the vectors of its first map to a learned length of 20, since they are longer than
    those of the others (section 3.1). A DenseNet's maps are concatenations whose lengths differ
    from block to block, so all of them are scaled.

    Args:
        levels_in: The maps.
    """

    def __init__(self, levels_in: Sequence[FeatureLevel]) -> None:
        super().__init__()
        self.levels_in = self.levels = tuple(levels_in)
        self.scales = nn.ModuleList(ChannelL2Norm(level.channels) for level in levels_in)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps of ``levels_in`` to the same ones scaled."""
        return [scale(x) for scale, x in zip(self.scales, features, strict=True)]


class ExtraLevels(Adapter):
    """An adapter's maps, and SSD's further ones down to a single cell.

    Each is made from the one before by a 1x1 convolution to half its channels and a 3x3 one of
    stride 2; three cells become one by a 3x3 without padding (figure 2: 10, 5, 3, 1).

    Args:
        base: The adapter.
        cells: Cells on each side of its maps.
        image_size: Pixels on each side of the image.

    Attributes:
        cells: Cells on each side of every map.
    """

    def __init__(self, base: Adapter, cells: Sequence[int], image_size: int) -> None:
        super().__init__()
        self.base = base
        self.levels_in = base.levels_in
        self.extra = nn.ModuleList()
        # Halve until a single cell is left, which sees the whole image.
        levels, sides = list(base.levels), list(cells)
        while sides[-1] > 1:
            last = levels[-1]
            width = _WIDTH if self.extra else _FIRST_WIDTH
            to_one = sides[-1] == 3
            self.extra.append(_build_extra(last.channels, width, to_one))
            stride = image_size if to_one else 2 * last.stride
            levels.append(FeatureLevel(f"{last.name[0]}{int(last.name[1:]) + 1}", width, stride))
            sides.append(1 if to_one else (sides[-1] + 1) // 2)
        self.levels, self.cells = tuple(levels), tuple(sides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps of ``levels_in`` to maps of ``levels``."""
        # Each further map is made from the last one, so they run in turn.
        maps = list(self.base(features))
        for extra in self.extra:
            maps.append(extra(maps[-1]))
        return maps

    def no_weight_decay(self) -> set[str]:
        """Parameters to train without weight decay, where the base names some."""
        return {f"base.{name}" for name in self.base.no_weight_decay()}


def _build_extra(in_channels: int, out_channels: int, to_one: bool) -> nn.Sequential:
    stride, padding = (1, 0) if to_one else (2, 1)
    block = nn.Sequential(
        nn.Conv2d(in_channels, out_channels // 2, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(out_channels // 2, out_channels, kernel_size=3, stride=stride, padding=padding),
        nn.ReLU(),
    )
    return block.apply(_init_xavier)


def _init_xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class SSDBackbone(DetectionBackbone):
    """Backbone whose maps may differ in width: ``out_channels`` is the list of them."""

    adapter: Any

    def _take_widths(self) -> list[int]:
        return [level.channels for level in self.levels]


class SSDPriors(DefaultBoxGenerator):
    """SSD's priors in float32, whatever the maps hold: bfloat16 would move them."""

    def _grid_default_boxes(
        self, grid_sizes: list[list[int]], image_size: list[int], dtype: torch.dtype
    ) -> Tensor:
        boxes: Tensor = super()._grid_default_boxes(grid_sizes, image_size, torch.float32)
        return boxes


class SSDOptions(ImageOptions, SelectionOptions, BodyOptions, total=False):
    """Keyword arguments of `ssd300`, explained there."""

    backbone: str
    weights: str | None
    image_size: int
    prior_sizes: Literal["coco", "voc"] | Sequence[float]
    trainable_backbone_layers: int | None
    adapter: AdapterName | None
    adapter_kwargs: Keywords | None
    out_channels: int
    iou_thresh: float
    positive_fraction: float
    _skip_resize: bool


class SSD(TorchvisionDetector, tv.SSD):
    """Single shot detector (Liu et al., 1512.02325) on any backbone.

    Args:
        backbone: Gives L maps of a square image; its adapter is `ExtraLevels`.
        num_classes: K.
        transform: From images to the network's batch, of a fixed square size.
        prior_sizes: Sizes of the priors by SSD's rule for ``coco`` or ``voc``, or L + 1 rising
            sizes in pixels: the min size of each level, then the last level's max size.
        anchor_generator: In place of priors by the levels.
        **settings: torchvision's own of the class, and its head.

    Raises:
        ValueError: A custom generator does not belong to the backbone's levels.
    """

    option_names = SSDOptions.__optional_keys__

    def __init__(
        self,
        backbone: SSDBackbone,
        num_classes: int,
        transform: DetectionTransform,
        *,
        prior_sizes: str | Sequence[float] = "coco",
        anchor_generator: DefaultBoxGenerator | None = None,
        **settings: Any,
    ) -> None:
        check_interval("positive_fraction", settings.get("positive_fraction", 0.25), "(0, 1]")
        # Priors are fixed boxes: they need the one size of all images and the cells of every map.
        assert transform.image_size is not None
        size = transform.image_size
        cells = backbone.adapter.cells
        generator = anchor_generator or build_ssd_priors(size[0], cells, prior_sizes)
        _check_priors(generator, size[0], cells)
        super().__init__(backbone, generator, size, num_classes, **settings)
        self.num_classes = num_classes
        self.transform = transform
        keep_float32(self.head)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the network's input in pixels."""
        assert self.transform.image_size is not None
        return self.transform.image_size

    def set_transform(self, described: Options) -> None:
        """Take the transform that ``transform.to_dict()`` of a like detector describes.

        Raises:
            ValueError: It is of another image size or other channels, or not such a description.
        """
        transform = build_transform(described, self.backbone.in_chans, self.image_size)
        self.transform = transform.train(self.training)


def build_ssd_priors(
    image_size: int, cells: Sequence[int], prior_sizes: str | Sequence[float]
) -> SSDPriors:
    """Priors of SSD: four a cell on the first and the last two maps, six on the others.

    At 300 pixels and SSD's own maps they are SSD300's; elsewhere centers spread evenly, which at
    512 are SSD512's as well.

    Args:
        image_size: Pixels on each side.
        cells: Cells on each side of L maps, 3 or more.
        prior_sizes: ``coco`` or ``voc``, from 512 pixels on by SSD512's rule; or L + 1 rising sizes
            in pixels.

    Raises:
        ValueError: The sizes are not L + 1, do not rise, or the rule is unknown.
    """
    if isinstance(prior_sizes, str):
        rule = f"{prior_sizes}512" if image_size >= 512 else prior_sizes
        sizes = compute_ratio_sizes(image_size, len(cells), rule)
    else:
        sizes = tuple(map(float, prior_sizes))
        if len(sizes) != len(cells) + 1 or sizes[0] <= 0 or list(sizes) != sorted(set(sizes)):
            raise ValueError(
                f"prior_sizes needs {len(cells) + 1} rising sizes in pixels for {len(cells)} maps, "
                f"got {list(sizes)}"
            )
    published = image_size == 300 and tuple(cells) == SSD300_CELLS
    return SSDPriors(
        [[2, 3] if 0 < index < len(cells) - 2 else [2] for index in range(len(cells))],
        scales=[size / image_size for size in sizes],
        steps=list(SSD300_STEPS) if published else [image_size / side for side in cells],
    )


def _check_priors(generator: DefaultBoxGenerator, image_size: int, cells: Sequence[int]) -> None:
    if len(generator.aspect_ratios) != len(cells):
        raise ValueError(
            f"the priors are for {len(generator.aspect_ratios)} levels and the backbone has "
            f"{len(cells)}, of {list(cells)} cells: give one entry a level, or leave them out"
        )
    for index, (step, side) in enumerate(zip(generator.steps or (), cells, strict=False)):
        if not 0.5 < step * side / image_size < 2:
            raise ValueError(
                f"priors of level {index} have a step of {step} pixels, where its {side} "
                f"cells are {image_size / side:g} apart: give steps by the levels, or None"
            )


def ssd300(*, num_classes: int = 91, **options: Unpack[SSDOptions]) -> SSD:
    """SSD300 on any backbone: maps of 38, 19, 10, 5, 3 and 1 cells; arguments are JSON types.

    Args:
        num_classes: K, with the background.
        **options: ``image_size``, pixels on each side (300); ``prior_sizes`` of the priors,
            SSD's for ``coco`` or ``voc``, or one in pixels for each map and the upper end;
            ``backbone``, a timm name (``densenet121_features``,
            whose pools then round up); ``adapter``, of which ``adapter_kwargs`` and
            ``out_channels`` are, or None for the backbone's own maps; the further arguments of
            `densenet_fpn_backbone` but ``extra``, where ``min_stride`` is 8; ``weights``, a file
            of a detector, ours or torchvision's, of which is taken what fits; ``image_mean``,
            ``image_std``, ``channel_order`` and ``value_range`` of `DetectionTransform`;
            torchvision's settings under its own names: ``score_thresh``, ``nms_thresh``,
            ``detections_per_img``, ``topk_candidates``, ``iou_thresh``, ``positive_fraction``.

    Raises:
        ValueError: An argument is out of range, or does not fit the backbone.
    """
    return _build(num_classes, {"image_size": 300, **options})


def ssd512(*, num_classes: int = 91, **options: Unpack[SSDOptions]) -> SSD:
    """SSD512 on any backbone: maps of 64, 32, 16, 8, 4, 2 and 1 cells.

    Args:
        num_classes: K, with the background.
        **options: As of `ssd300`.
    """
    return _build(num_classes, {"image_size": 512, **options})


def _build(num_classes: int, options: Options) -> SSD:
    check_options(num_classes, options, SSD.option_names)
    images, body, rest = split_options(options, (ImageOptions, BodyOptions))
    name, image_size = rest.pop("backbone", DEFAULT_BACKBONE), rest.pop("image_size")
    weights, layers = rest.pop("weights", None), rest.pop("trainable_backbone_layers", None)
    rest.pop("_skip_resize", None)  # images of another size than the priors' are always resized
    # The body ends at its coarsest map; ``ExtraLevels`` goes on from there to a single cell.
    own = {key: rest.pop(key) for key in _ADAPTER_OPTIONS if key in rest}
    body = {"min_stride": 8, **body}
    if is_ours(name):  # as SSD's third pool: 300 pixels give 38 cells
        body["backbone_kwargs"] = {"ceil_mode": True, **(body.get("backbone_kwargs") or {})}
    base = build_body(name, partial(_build_base_adapter, own), **body)
    # Counted rather than computed from strides, since pools may round up or down.
    cells = _count_cells(SSDBackbone(base.net, base.adapter), image_size)
    backbone = SSDBackbone(base.net, ExtraLevels(base.adapter, cells, image_size))
    backbone.freeze(count_stages_to_freeze(base, layers, body.get("weights_backbone")))
    # Squares of one size need no padding to multiples of a stride.
    sizes = {"image_size": (image_size, image_size), "size_divisible": 1}
    transform = make_transform(backbone, name, images, sizes)
    return load_weights(SSD(backbone, num_classes, transform, **rest), weights)


_ADAPTER_OPTIONS = ("adapter", "adapter_kwargs", "out_channels")


def _build_base_adapter(options: Options, levels: Sequence[FeatureLevel]) -> Adapter:
    name = options.get("adapter")
    if name is None:
        return ScaledLevels(levels)
    width, further = options.get("out_channels", 256), options.get("adapter_kwargs") or {}
    return build_adapter(name, levels, width, extra=None, **further)


def _count_cells(backbone: DetectionBackbone, image_size: int) -> list[int]:
    """Cells on each side of the maps, by running the network on shapes without data."""
    batch = torch.empty(2, backbone.in_chans, image_size, image_size, device="meta")
    with torch.no_grad():
        maps = run_on_meta(backbone, batch, (image_size, image_size))
    return [x.shape[-1] for x in maps.values()]
