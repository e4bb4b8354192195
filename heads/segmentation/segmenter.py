"""A segmentation model: images of any size in, logits of the same size out.

Legend: N images, K classes, H and W pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.parameter_groups import prefixed_groups, prefixed_names
from densenet_backbones.heads.validation import check_images
from densenet_backbones.layers import is_traced

__all__ = ["Segmenter", "SegmenterOutput"]

SegmenterOutput = Tensor | dict[str, Any]


class Segmenter(nn.Module):
    """Normalisation, a network, and the padding that brings any image to a size it can see.

    Images are padded at the right and the bottom with the mean, which is 0 to the network, and the
    logits are cropped back, so that pixels keep their places.

    Args:
        net: Maps normalised images (N, 3, H, W), H and W multiples of ``stride`` and ``smallest``
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

    @property
    def preprocessing(self) -> ImageNormalization:
        """What is done to images before the network; ``to_dict()`` is for checkpoints."""
        return self.normalization

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Logits of every pixel.

        Args:
            images: (N, 3, H, W), RGB floats 0..1.

        Returns:
            Logits (N, K, H, W); in training with deep supervision a dictionary of ``logits`` and
            ``aux``, a list of the coarser maps' logits, each brought to (N, K, H, W) as well.

        Raises:
            ValueError: The images are not as said, or one image is too small for batch norm.
        """
        height, width = images.shape[-2:]
        if not torch.compiler.is_compiling() and not is_traced(images):
            self._check(images)
        x = self.padded(self.normalization(images))
        output = self.net(x)
        if isinstance(output, Tensor):
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
        check_images(images.unbind())
        side = 2 * max(self.stride, self.smallest)
        if len(images) == 1 and max(self._sides(images)) < side and self._sees_the_batch():
            raise ValueError(
                "batch norm cannot take its statistics from one image whose coarsest map has a "
                f"single cell: use a batch of 2 or more, or images of {side} pixels or more, not "
                f"{images.shape[-2]}x{images.shape[-1]}"
            )

    def _sees_the_batch(self) -> bool:
        norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return any(n.training or getattr(n, "batch_statistics_in_eval", False) for n in norms)

    def _sides(self, x: Tensor) -> tuple[int, int]:
        """Height and width that the network is to see."""
        height, width = (
            max(side + -side % self.stride, self.smallest) for side in tuple(x.shape[-2:])
        )
        return height, width

    def padded(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) at the size that the network sees."""
        height, width = self._sides(x)
        return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))

    def no_weight_decay(self) -> set[str]:
        """Parameters to train without weight decay, where the network names some."""
        return prefixed_names(self.net, "net.")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm's optimisers give layers their own learning rate."""
        return prefixed_groups(self.net, "net.", coarse)
