"""From images of any size to the batch a network wants, and from its boxes back to the images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import clip_boxes_to_image

CHANNEL_ORDERS = ("rgb", "bgr")


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
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"mean and std need three numbers, std above 0; got {mean!r} and {std!r}"
            )
        if channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order must be in {CHANNEL_ORDERS}, got {channel_order!r}")
        if value_range not in (1, 255):
            raise ValueError(f"value_range must be 1 or 255, got {value_range!r}")
        height, width = (int(side) for side in image_size)
        super().__init__(
            min_size=min(height, width),
            max_size=max(height, width),
            image_mean=[float(value) for value in mean],
            image_std=[float(value) for value in std],
            size_divisible=1,
            fixed_size=(width, height),  # torchvision's order
        )
        self.image_size = (height, width)
        self.channel_order = channel_order
        self.value_range = int(value_range)

    @property
    def fill_color(self) -> tuple[float, float, float]:
        """The mean as an RGB colour in 0..255, for borders that should mean nothing."""
        scaled = [value * 255 / self.value_range for value in self.image_mean]
        red, green, blue = scaled if self.channel_order == "rgb" else reversed(scaled)
        return red, green, blue

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON types."""
        return {
            "image_size": list(self.image_size),
            "mean": list(self.image_mean),
            "std": list(self.image_std),
            "channel_order": self.channel_order,
            "value_range": self.value_range,
        }

    def normalize(self, image: Tensor) -> Tensor:
        """(3, H, W) RGB 0..1 to the network's channel order, range, mean and deviation."""
        if self.channel_order == "bgr":
            image = image.flip(0)
        mean = torch.tensor(self.image_mean, dtype=image.dtype, device=image.device)
        std = torch.tensor(self.image_std, dtype=image.dtype, device=image.device)
        return (image * self.value_range - mean[:, None, None]) / std[:, None, None]

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
