"""Segmenters as one graph: from images of any size to results of the same size.

Legend: N images, K channels of logits, H and W pixels, H' and W' after padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from densenet_backbones.export.operators import crop_to
from densenet_backbones.heads.segmentation.segmenter import Segmenter

__all__ = ["SegmenterForm"]


class SegmenterForm(nn.Module):
    """Segmenter from images to results that are made of its logits.

    ``form(images)`` is ``form.segment(*form.prepare(images))``. The sizes of all maps would be
    functions of H and W that `torch.export` cannot solve, so that an exporter takes the two one by
    one, the second with sizes that are multiples of ``stride``.

    Args:
        model: The segmenter; it is used, not copied, and set to evaluation mode.
        finish: Turns logits (N, K, H, W) into the results, (N, ..., H, W) each, pixel by pixel.

    Attributes:
        stride: Number that H' and W' are multiples of.
        smallest: Least H' and W'.
    """

    def __init__(self, model: Segmenter, finish: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = model
        self.finish = finish
        self.stride = model.stride
        self.smallest = model.smallest
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Turn images (N, 3, H, W), RGB floats 0..1, into the results."""
        logits = self.model(images)
        return self.finish(logits)

    def prepare(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network reads, (N, 3, H', W'), and (2,) int64 H and W."""
        height, width = images.shape[-2:]
        sides = [torch.scalar_tensor(side, dtype=torch.int64) for side in (height, width)]
        return self.model.padded(self.model.normalization(images)), torch.stack(sides)

    def segment(self, x: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Compute the results from what `prepare` returns."""
        return tuple(crop_to(part, size) for part in self.finish(self.model.net(x)))
