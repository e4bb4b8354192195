"""Turn images of any size into a detector's batch, and map its detections back to the images.

One class for all detectors, at ``model.transform`` as in torchvision
(``models/detection/transform.py``), whose resizing and padding it uses.

Legend: H and W pixels, D detections, C channels.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import (
    GeneralizedRCNNTransform,
    resize_boxes,
    resize_keypoints,
)
from torchvision.ops import clip_boxes_to_image

from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.options import Keywords, Options, drop_none
from densenet_backbones.messages import check_whole, to_plain
from densenet_backbones.untrusted.limits import MAX_PIXELS

__all__ = ["DetectionTransform", "build_transform"]


class DetectionTransform(GeneralizedRCNNTransform):
    """Normalization, resizing and padding to a batch, by torchvision's class.

    Images keep their aspect ratio: the shorter side becomes ``min_size``, unless the longer would
    exceed ``max_size``; no side becomes less than a pixel. Or all of them become ``image_size``.
    Boxes, masks and keypoints of targets move with them.

    Args:
        min_size: Pixels of the shorter side. Of a list, one is drawn for each image in training,
            and the last one holds otherwise.
        max_size: Most pixels of the longer side.
        image_mean: Mean of each of the C channels, as `ImageNormalization` takes it.
        image_std: Standard deviation of each channel.
        channel_order: ``"rgb"`` or ``"bgr"``, the order the network was made for.
        value_range: 1 or 255, the upper end of the values the network was made for.
        size_divisible: H and W of a batch are padded to multiples of it; left out 32, or 1 with
            ``image_size``.
        image_size: (H, W) of every image in place of ``min_size`` and ``max_size``, the aspect
            ratio lost.
        resize_in_training: False where an augmentation has brought training images to their size
            already. With ``image_size`` images of another size are resized all the same.

    Attributes:
        image_size: (H, W), or None.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        channel_order: str = "rgb",
        value_range: float = 1,
        size_divisible: int | None = None,
        image_size: Sequence[int] | None = None,
        resize_in_training: bool = True,
    ) -> None:
        if image_size is not None:
            if len(image_size) != 2 or min(image_size) < 1:
                raise ValueError(f"image_size must be (H, W) in pixels, got {image_size!r}")
            min_size, max_size = min(image_size), max(image_size)
        # With a fixed size the limits are its sides, so that one check holds for both rules.
        min_size = to_plain(min_size)
        sides = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        if not sides or min(sides) < 1 or max(sides) > max_size:
            raise ValueError(
                f"min_size must be 1 or more and at most max_size, got {min_size!r} and {max_size}"
            )
        # The shorter side times the longer: pixels that an image may be enlarged to.
        if max(sides) * max_size > MAX_PIXELS:
            raise ValueError(
                f"min_size times max_size must be at most {MAX_PIXELS} pixels, to protect the "
                f"memory; got {max(sides)} and {max_size}"
            )
        # A fixed size is the network's own, to which padding would add.
        if size_divisible is None:
            size_divisible = 32 if image_size is None else 1
        check_whole("size_divisible", size_divisible)
        normalization = ImageNormalization(
            image_mean, image_std, channel_order, value_range, len(image_mean)
        )
        super().__init__(
            min_size=sides,
            max_size=max_size,
            image_mean=normalization.image_mean,
            image_std=normalization.image_std,
            size_divisible=size_divisible,
            # torchvision's order is (W, H).
            fixed_size=None if image_size is None else (int(image_size[1]), int(image_size[0])),
        )
        self.image_size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
        self.normalization = normalization
        self.resize_in_training = resize_in_training

    @property
    def resize_in_training(self) -> bool:
        """True if training images are resized; may be set."""
        return not self._skip_resize

    @resize_in_training.setter
    def resize_in_training(self, value: bool) -> None:
        self._skip_resize = not value and self.image_size is None

    @property
    def fill_color(self) -> tuple[float, float, float]:
        """Mean as an RGB color in 0..255, for borders that should mean nothing."""
        return self.normalization.fill_color

    def to_dict(self) -> Keywords:
        """Return the constructor's arguments as plain JSON types, for `build_transform`."""
        sides = list(self.min_size)
        return {
            "min_size": sides if len(sides) > 1 else sides[0],
            "max_size": self.max_size,
            "size_divisible": self.size_divisible,
            "image_size": None if self.image_size is None else list(self.image_size),
            **self.normalization.to_dict(),
        }

    def normalize(self, image: Tensor) -> Tensor:
        """(C, H, W) 0..1 to the network's channel order, range, mean and deviation."""
        normalized: Tensor = self.normalization(image)
        return normalized

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Image and target at the network's size; untouched where the image has it already."""
        if tuple(image.shape[-2:]) == self.image_size:
            return image, target
        short, long = sorted(image.shape[-2:])
        keeps_size = self.training and not self.resize_in_training
        if self.image_size is None and not keeps_size and short * self.max_size <= long:
            return self._resize_thin(image, target)
        resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
        return resized

    def _resize_thin(
        self, image: Tensor, target: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image of which torchvision would leave less than a pixel: it becomes one."""
        before = image.shape[-2:]
        size = [max(1, side * self.max_size // max(before)) for side in before]
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], before, size)
            if "masks" in target:
                masks = F.interpolate(target["masks"][:, None].float(), size=size)
                target["masks"] = masks[:, 0].byte()
            if "keypoints" in target:
                target["keypoints"] = resize_keypoints(target["keypoints"], before, size)
        return image, target

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
        detections: list[dict[str, Tensor]] = super().postprocess(
            result, image_shapes, original_image_sizes
        )
        for index, size in enumerate(original_image_sizes):
            # 300 * float32(w / 300) may exceed w by a rounding error.
            boxes = clip_boxes_to_image(detections[index]["boxes"], size)
            has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            detections[index]["boxes"] = boxes
            if not has_area.all():
                detections[index] = {
                    name: values[has_area] for name, values in detections[index].items()
                }
        return detections

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.to_dict().items())
        return f"{type(self).__name__}({arguments})"


def build_transform(
    described: Options, in_chans: int, image_size: tuple[int, int] | None = None
) -> DetectionTransform:
    """Build a transform for a network from arguments that may come from a file.

    Args:
        described: Arguments of `DetectionTransform`, such as its ``to_dict()``; None stands for an
            argument left out.
        in_chans: Channels of the network's images.
        image_size: (H, W) of images that the network is made for, or None for any.

    Raises:
        ValueError: An argument is unknown or out of range, or does not fit the network.
    """
    # A file's description is checked against what this version can say, not against a table.
    known = DetectionTransform().to_dict()
    if unknown := sorted(described.keys() - known.keys() - {"resize_in_training"}):
        raise ValueError(f"the transform takes {', '.join(known)}, not {', '.join(unknown)}")
    transform = DetectionTransform(**drop_none(described))
    if len(transform.image_mean) != in_chans:
        raise ValueError(
            f"the transform has {len(transform.image_mean)} numbers in image_mean and image_std, "
            f"the backbone takes images of {in_chans} channels"
        )
    if image_size not in (None, transform.image_size):
        raise ValueError(
            f"this detector is made for images of {image_size}, the transform has image_size "
            f"{described.get('image_size')}: build it with that image_size"
        )
    return transform
