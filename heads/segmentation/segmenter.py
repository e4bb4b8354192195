"""A segmentation model: images of any size in, logits of the same size out.

Legend: N images, K classes, H and W pixels.
"""

from collections import OrderedDict
from typing import TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.parameter_groups import LayerGroups, prefix_groups, prefix_names
from densenet_backbones.heads.validation import PythonModule, check_images, has_values

__all__ = ["Segmenter", "SegmenterOutput", "SupervisedLogits", "TorchvisionSegmenter"]


class SupervisedLogits(TypedDict):
    """Logits of a network with deep supervision, in training.

    Attributes:
        logits: (N, K, H, W).
        aux: Logits of the coarser maps.
    """

    logits: Tensor
    aux: list[Tensor]


SegmenterOutput = Tensor | SupervisedLogits


class Segmenter(PythonModule):
    """Normalization, a network, and the padding that brings any image to a size it can see.

    Images are padded at the right and the bottom with the mean, which is 0 to the network, and the
    logits are cropped back, so that pixels keep their places.

    Args:
        net: Maps normalized images (N, 3, H, W), H and W multiples of ``stride`` and ``smallest``
            or more, to logits (N, K, H, W); in training with deep supervision to a dictionary of
            ``logits`` and ``aux``, a list of logits (N, K, h, w) of coarser maps.
        stride: What H and W must be multiples of; 1 for a network that takes any size.
        normalization: What the network's weights were made for; ImageNet's when left out.
        smallest: Pixels on each side below which the network cannot see an image.

    Raises:
        ValueError: ``stride`` or ``smallest`` is below 1.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        stride: int,
        normalization: ImageNormalization | None = None,
        smallest: int = 1,
    ) -> None:
        super().__init__()
        if stride < 1 or smallest < 1:
            raise ValueError(f"stride and smallest must be 1 or more, got {stride} and {smallest}")
        self.net = net
        self.normalization = normalization or ImageNormalization()
        self.stride = stride
        self.smallest = smallest

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Logits of every pixel.

        Args:
            images: (N, 3, H, W), RGB floats 0..1.

        Returns:
            Logits (N, K, H, W); in training with deep supervision a dictionary of ``logits`` and
            ``aux``, a list of the coarser maps' logits, each brought to (N, K, H, W) as well.

        Raises:
            ValueError: The images have another shape or range, or one image is too small for batch
                norm.
        """
        # Checks read values and sizes, which a graph would hold as constants.
        if has_values(images):
            self._check(images)
            check_images(images.unbind())
        return self.segment(self.normalization(images))

    def segment(self, x: Tensor) -> SegmenterOutput:
        """Normalized images (N, 3, H, W) to what `forward` returns."""
        height, width = x.shape[-2:]
        x = self.padded(x)
        output: SegmenterOutput = self.net(x)
        if not isinstance(output, dict):
            return output[..., :height, :width]
        # At the padded size first: the coarser maps lie on its grid.
        aux = [
            F.interpolate(a, size=x.shape[-2:], mode="bilinear", align_corners=False)
            for a in output["aux"]
        ]
        return {
            "logits": output["logits"][..., :height, :width],
            "aux": [a[..., :height, :width] for a in aux],
        }

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4:
            raise ValueError(f"images must be a (N, 3, H, W) tensor, got {tuple(images.shape)}")
        # Two cells on one side of the coarsest map are enough for a deviation.
        side = 2 * max(self.stride, self.smallest)
        if (
            len(images) == 1
            and max(self._compute_sides(images)) < side
            and self._uses_batch_statistics()
        ):
            raise ValueError(
                "batch norm cannot take its statistics from one image whose coarsest map has a "
                f"single cell: use a batch of 2 or more, or images of {side} pixels or more, not "
                f"{images.shape[-2]}x{images.shape[-1]}"
            )

    def _uses_batch_statistics(self) -> bool:
        norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return any(n.training or getattr(n, "batch_statistics_in_eval", False) for n in norms)

    def _compute_sides(self, x: Tensor) -> tuple[int, int]:
        """Height and width that the network is to see."""
        # Sides by their index, and no Python condition on them or on a map: FX traces this.
        height, width = (
            cast(int, torch.sym_max(side + -side % self.stride, self.smallest))
            for side in (x.shape[-2], x.shape[-1])
        )
        return height, width

    def padded(self, x: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) at the size that the network sees."""
        height, width = self._compute_sides(x)
        return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))

    def no_weight_decay(self) -> set[str]:
        """Parameters to train without weight decay, where the network names some."""
        return prefix_names(self.net, "net.")

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Patterns by which timm's optimizers give layers their own learning rate."""
        return prefix_groups(self.net, "net.", coarse)


class TorchvisionSegmenter(Segmenter):
    """Segmenter behind torchvision's interface, for its ``references/segmentation/train.py``.

    Images are normalized by the caller. The result is a dictionary of ``out`` and, in training with
    deep supervision, ``aux``, the mean of the coarser maps' logits. Parameters have the names of a
    `Segmenter`, so that weights fit either.

    Source: torchvision ``models/segmentation/_utils.py``, ``_SimpleSegmentationModel``.
    """

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:  # type: ignore[override]
        """Normalized images (N, 3, H, W) to ``out`` and perhaps ``aux``, (N, K, H, W) each."""
        if has_values(images):
            self._check(images)
        output = self.segment(images)
        if not isinstance(output, dict):
            return OrderedDict(out=output)
        return OrderedDict(out=output["logits"], aux=torch.stack(output["aux"]).mean(dim=0))

    @property
    def backbone(self) -> nn.Module:
        """Feature network."""
        net: nn.Module = self.net.feature_net  # type: ignore[assignment]
        return net

    @property
    def classifier(self) -> nn.ModuleList:
        """All but the backbone and the auxiliary classifiers: the decoder, the last layer."""
        others = (self.backbone, self.aux_classifier)
        return nn.ModuleList(m for m in self.net.children() if not any(m is o for o in others))

    @property
    def aux_classifier(self) -> nn.Module | None:
        """Auxiliary classifiers, or None."""
        return getattr(self.net, "aux_classifiers", None)
