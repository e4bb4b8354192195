"""From images of any size to a detector's batch, and from its findings back to the images.

Legend: H and W pixels, D detections, C channels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import clip_boxes_to_image

from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.messages import check_whole

__all__ = ["DetectionTransform"]


class DetectionTransform(GeneralizedRCNNTransform):
    """Normalisation, resizing and padding to a batch, by torchvision's class.

    Images keep their aspect ratio: the shorter side becomes ``min_size``, unless the longer would
    exceed ``max_size``. Boxes, masks and keypoints of targets move with them.

    Args:
        min_size: Pixels of the shorter side. Of a list, one is drawn for each image in training,
            and the last one holds otherwise.
        max_size: Most pixels of the longer side.
        mean: Of each channel, as `ImageNormalization` takes it; their number is C.
        std: Likewise.
        channel_order: ``"rgb"`` or ``"bgr"``, the order the network was made for.
        value_range: 1 or 255, the upper end of the values the network was made for.
        size_divisible: H and W of a batch are padded to multiples of it.
        fixed_size: (H, W) of every image in place of ``min_size`` and ``max_size``, the aspect
            ratio lost.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        channel_order: str = "rgb",
        value_range: float = 1,
        size_divisible: int = 32,
        fixed_size: Sequence[int] | None = None,
    ) -> None:
        sides = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        if not sides or min(sides) < 1 or max(sides) > max_size:
            raise ValueError(
                f"min_size must be 1 or more and at most max_size, got {min_size!r} and {max_size}"
            )
        check_whole("size_divisible", size_divisible)
        if fixed_size is not None and (len(fixed_size) != 2 or min(fixed_size) < 1):
            raise ValueError(f"fixed_size must be (H, W) in pixels, got {fixed_size!r}")
        normalization = ImageNormalization(mean, std, channel_order, value_range, len(mean))
        super().__init__(
            min_size=sides,
            max_size=max_size,
            image_mean=normalization.mean,
            image_std=normalization.std,
            size_divisible=size_divisible,
            # torchvision's order is (W, H).
            fixed_size=(fixed_size[1], fixed_size[0]) if fixed_size is not None else None,
        )
        self.normalization = normalization

    @property
    def fill_color(self) -> tuple[float, float, float]:
        """The mean as an RGB colour in 0..255, for borders that should mean nothing."""
        return self.normalization.fill_color

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON types."""
        sides = list(self.min_size)
        return {
            "min_size": sides if len(sides) > 1 else sides[0],
            "max_size": self.max_size,
            "size_divisible": self.size_divisible,
            "fixed_size": list(self.fixed_size[::-1]) if self.fixed_size else None,
            **self.normalization.to_dict(),
        }

    def normalize(self, image: Tensor) -> Tensor:
        """(C, H, W) 0..1 to the network's channel order, range, mean and deviation."""
        return self.normalization(image)

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections in the frame of each original image, in evaluation mode.

        Boxes end at the image's borders, which torchvision's exceed by rounding errors, and those
        without area inside it are left out.

        Args:
            result: For each image a dict of ``boxes`` (D, 4) xyxy in the network's frame,
                ``scores``, ``labels`` and perhaps ``masks`` and ``keypoints``.
            image_shapes: (H, W) of each image as the network saw it, without padding.
            original_image_sizes: (H, W) of each image as it was given.
        """
        if self.training:
            return result
        found = super().postprocess(result, image_shapes, original_image_sizes)
        for index, size in enumerate(original_image_sizes):
            boxes = clip_boxes_to_image(found[index]["boxes"], size)
            kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            found[index]["boxes"] = boxes
            if not kept.all():
                found[index] = {name: values[kept] for name, values in found[index].items()}
        return found

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.to_dict().items())
        return f"{type(self).__name__}({arguments})"
