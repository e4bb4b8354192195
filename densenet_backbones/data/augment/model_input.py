"""Properties of a model that its images depend on, in training and in evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

from densenet_backbones.data.instances import TargetType

IMAGENET_MEAN = (123.0, 117.0, 104.0)
"""RGB in 0..255; DSOD's mean_value, in BGR there."""


@dataclass(frozen=True)
class ModelInput:
    """Properties of a model that its training images depend on.

    Attributes:
        size: (H, W) that every image is resized to; None where images keep their shapes.
        min_size: Where there is no size: pixels that evaluation scales the shorter side to.
        max_size: Where there is no size: most pixels of the longer side.
        fill_color: RGB in 0..255 for borders: the mean, which is 0 to the network.
        target_types: Annotations that it learns from; None for all that were read.
        largest_view: Largest factor on its size at which it is evaluated.
        crop_pct: Of a classifier: share of the shorter side that evaluation sees.
    """

    size: tuple[int, int] | None = None
    min_size: int = 800
    max_size: int = 1333
    fill_color: tuple[float, float, float] = IMAGENET_MEAN
    target_types: tuple[TargetType, ...] | None = None
    largest_view: float = 1.0
    crop_pct: float = 1.0

    def choose_read_size(self, target_types: Sequence[str]) -> tuple[int, int] | None:
        """Return (H, W) that images need not exceed to be evaluated; None for their full size.

        It is twice the size to which the model brings them. It sees about the same in an image of
        that size and in a larger one, which may take gigabytes. Masks are made at full size.

        Args:
            target_types: Annotations that are evaluated.
        """
        if "masks" in target_types:
            return None
        height, width = self.size or (self.min_size, self.min_size)
        factor = 2 * max(self.largest_view, 1)
        return round(factor * height), round(factor * width)
