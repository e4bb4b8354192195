"""Anchors and RoI pooling of torchvision's detectors, by the strides of their levels.

Legend: L levels, A anchors a cell, P anchors of all levels, H and W pixels. Boxes are xyxy in
pixels of the padded batch.

torchvision takes the anchors' sizes from a table for five levels, their distances from the sizes of
the maps (800 // 13 = 61 for a stride of 64), and the scales of RoI pooling from the size of the
first image. Here all of them come from the strides that the levels say.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from densenet_backbones.features import FeatureLevel

__all__ = ["PyramidAnchors", "build_roi_pool", "check_anchors"]

ASPECT_RATIOS = (0.5, 1.0, 2.0)


class PyramidAnchors(AnchorGenerator):
    """Anchors whose sizes and distances are multiples of their level's stride.

    Args:
        levels: L levels.
        scales: Square roots of the anchors' areas, in strides.
        aspect_ratios: Height : width of the anchors of each size.
        rounded: Round the sizes down to whole pixels, as torchvision's table of RetinaNet does.

    Raises:
        ValueError: A scale or a ratio is not above 0.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        scales: Sequence[float],
        aspect_ratios: Sequence[float] = ASPECT_RATIOS,
        rounded: bool = True,
    ) -> None:
        if not scales or not aspect_ratios or min(*scales, *aspect_ratios) <= 0:
            raise ValueError(
                f"anchors need scales and aspect ratios above 0, got {scales} and {aspect_ratios}"
            )
        sizes = tuple(tuple(level.stride * scale for scale in scales) for level in levels)
        if rounded:
            sizes = tuple(tuple(max(int(size), 1) for size in of_level) for of_level in sizes)
        super().__init__(sizes, (tuple(aspect_ratios),) * len(levels))
        self.strides = tuple(level.stride for level in levels)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return (P, 4) float32 anchors for each image, by level, row, column and shape.

        float32 whatever the maps hold: bfloat16 has 8 bits, so that its pixels above 256 are even.
        """
        # torchvision divides the batch's size by the map's; the strides are exact.
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(x.shape[-2:]) for x in feature_maps]
        strides = [[stride, stride] for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        # One tensor for all: the anchors of a batch differ from image to image in nothing.
        return [anchors for _ in image_list.image_sizes]


def check_anchors(
    anchors: AnchorGenerator, levels: Sequence[FeatureLevel], scale: float, tolerance: float = 1.8
) -> None:
    """Raises a ``ValueError`` unless anchors belong to the levels they will stand on.

    A detector whose anchors were made for other strides trains without an error, and badly.

    Args:
        anchors: Of the detector.
        levels: Of its backbone.
        scale: Size of a usual anchor of this detector, in strides.
        tolerance: A level's anchors must differ from that by less than this factor; below 2, by
            which they are off on the next level. Sizes that span the usual one are right as well.
    """
    sizes = anchors.sizes
    if len(sizes) != len(levels):
        raise ValueError(
            f"the anchor generator has sizes for {len(sizes)} levels and the backbone has "
            f"{len(levels)}, of strides {[level.stride for level in levels]}: give one entry a "
            "level, or leave it out"
        )
    for level, of_level in zip(levels, sizes, strict=True):
        # The geometric mean stands for the level's sizes, as they rise by factors.
        usual = scale * level.stride
        middle = math.prod(of_level) ** (1 / len(of_level))
        spans = len(of_level) > 1 and min(of_level) <= usual <= max(of_level)
        if not spans and not 1 / tolerance < middle / usual < tolerance:
            raise ValueError(
                f"anchors of level {level.name} have sizes {list(of_level)} on a stride of "
                f"{level.stride}, where {usual:g} is usual: they were made for other levels; give "
                "sizes by the strides, or leave the anchor generator out and choose anchor_scale"
            )


def build_roi_pool(
    levels: Sequence[FeatureLevel],
    output_size: int,
    sampling_ratio: int = 2,
    names: Sequence[str] | None = None,
) -> MultiScaleRoIAlign:
    """RoI pooling from levels by their strides: a box of 224 pixels is read at stride 16.

    Equation 1 of FPN (1612.03144), where 224 belongs to level 4.

    Args:
        levels: One or more, of strides that double.
        output_size: Cells on each side of what a box becomes.
        sampling_ratio: Samples on each side of a cell.
        names: Of their maps; None for those of the levels.

    Raises:
        ValueError: The strides do not double.
    """
    strides = [level.stride for level in levels]
    if any(later != 2 * earlier for earlier, later in pairwise(strides)):
        raise ValueError(
            f"RoI pooling needs levels whose strides double, got {strides}: choose another "
            "output_stride, or levels of the backbone without a repeated stride"
        )
    names = [level.name for level in levels] if names is None else list(names)
    pool = MultiScaleRoIAlign(names, output_size, sampling_ratio)
    pool.scales = [1 / stride for stride in strides]
    # torchvision would find them from the first batch, wrongly where padding is a large part of it.
    pool.map_levels = initLevelMapper(
        round(math.log2(strides[0])), round(math.log2(strides[-1])), canonical_level=4
    )
    return pool
