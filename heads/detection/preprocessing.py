"""From images of any size to the batch a network wants, and from its boxes back to the images."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import clip_boxes_to_image

from densenet_backbones.heads.normalization import ImageNormalization


class Preprocessing(GeneralizedRCNNTransform):
    """Resizing to one fixed size, channel order, value range, mean and standard deviation.

    Takes RGB images with values 0..1. The parent class resizes (bilinear) and scales the targets'
    boxes; images that have the network's size already are not touched by the resizing.

    Args:
        image_size: (H, W) of the network's input in pixels.
        mean: of the three channels, in the order of ``channel_order`` and units of ``value_range``.
        std: likewise.
        channel_order: ``"rgb"`` or ``"bgr"``, the order the network was made for.
        value_range: 1 or 255, the upper end of the values the network was made for.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        channel_order: str = "rgb",
        value_range: float = 1,
    ) -> None:
        if len(image_size) != 2 or min(image_size) < 1:
            raise ValueError(f"image_size must be (H, W) in pixels, got {image_size!r}")
        normalization = ImageNormalization(mean, std, channel_order, value_range)
        height, width = (int(side) for side in image_size)
        super().__init__(
            min_size=min(height, width),
            max_size=max(height, width),
            image_mean=normalization.mean,
            image_std=normalization.std,
            size_divisible=1,
            fixed_size=(width, height),  # torchvision's order
        )
        self.image_size = (height, width)
        self.normalization = normalization

    @property
    def channel_order(self) -> str:
        """``"rgb"`` or ``"bgr"``."""
        return self.normalization.channel_order

    @property
    def value_range(self) -> int:
        """1 or 255."""
        return self.normalization.value_range

    @property
    def fill_color(self) -> tuple[float, float, float]:
        """The mean as an RGB colour in 0..255, for borders that should mean nothing."""
        return self.normalization.fill_color

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON types."""
        return {"image_size": list(self.image_size), **self.normalization.to_dict()}

    def normalize(self, image: Tensor) -> Tensor:
        """(3, H, W) RGB 0..1 to the network's channel order, range, mean and deviation."""
        return self.normalization(image)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Image and boxes at the network's size; unchanged where the image has it already."""
        if tuple(image.shape[-2:]) == self.image_size:
            return image, target
        return super().resize(image, target)

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes from the network's frame to the frame of each original image, in place.

        Args:
            result: detections, ``boxes`` (D, 4) xyxy in the network's frame.
            image_shapes: (H, W) of each image as the network saw it.
            original_image_sizes: (H, W) of each image as it was given.
        """
        for detections, seen, given in zip(result, image_shapes, original_image_sizes, strict=True):
            boxes = resize_boxes(detections["boxes"], seen, given)
            # 300 * float32(w / 300) may exceed w by a rounding error.
            detections["boxes"] = clip_boxes_to_image(boxes, given)
        return result

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.to_dict().items())
        return f"{type(self).__name__}({arguments})"
