"""Feature pyramid network, and the coarser levels that pyramids put on top."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from densenet_backbones.features import FeatureLevel
from densenet_backbones.fpn.adapter import Adapter, build_pyramid_levels, pad_narrow_maps
from densenet_backbones.messages import check_choice

__all__ = ["FPN"]


class FPN(Adapter):
    """Feature pyramid (Lin et al., arXiv:1612.03144), by torchvision's implementation.

    Args:
        levels_in: One or more levels, fine to coarse, each of twice the stride of the one before.
        out_channels: Channels of every output level.
        extra: Coarser levels on top: ``"pool"``, one level by sub-sampling the last output (Faster
            R-CNN); ``"p6p7"``, two levels by 3x3 convolutions of stride 2 (RetinaNet); None.
        p6p7_input: Map that ``"p6p7"`` convolves: ``"c5"``, the last input level (RetinaNet), or
            ``"p5"``, the last output level (FCOS).
        norm: ``"bn"`` for batch norm behind every convolution of the pyramid, as in torchvision's
            ``fasterrcnn_resnet50_fpn_v2``; None for biases.

    Raises:
        ValueError: If an argument is out of range, or strides do not double.
    """

    def __init__(
        self,
        levels_in: Sequence[FeatureLevel],
        out_channels: int = 256,
        extra: str | None = "pool",
        p6p7_input: str = "c5",
        norm: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("bn", None))
        self.levels = build_pyramid_levels(levels_in, out_channels, extra)
        self.levels_in = tuple(levels_in)
        self.pyramid = FeaturePyramidNetwork(
            [level.channels for level in levels_in],
            out_channels,
            build_extra_blocks(extra, self.levels_in[-1].channels, out_channels, p6p7_input),
            norm_layer=nn.BatchNorm2d if norm == "bn" else None,
        )
        pad_narrow_maps(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Turn maps of ``levels_in`` into maps of ``levels``."""
        self._check_number(features)
        return run_pyramid(self.pyramid, features)


def run_pyramid(pyramid: FeaturePyramidNetwork, features: list[Tensor]) -> list[Tensor]:
    """Run torchvision's pyramid, which takes and gives dictionaries, from list to list."""
    named = OrderedDict((str(index), x) for index, x in enumerate(features))
    return list(pyramid(named).values())


def build_extra_blocks(
    extra: str | None, c5_channels: int, out_channels: int, p6p7_input: str
) -> ExtraFPNBlock | None:
    """Build torchvision's module for the levels of ``extra``; arguments as in `FPN`."""
    check_choice("p6p7_input", p6p7_input, ("c5", "p5"))
    if extra is None:
        return None
    if extra == "pool":
        return LastLevelMaxPool()
    block = LastLevelP6P7(c5_channels if p6p7_input == "c5" else out_channels, out_channels)
    # torchvision guesses from the channels, wrongly where c5 and p5 have the same number.
    block.use_P5 = p6p7_input == "p5"
    return block
