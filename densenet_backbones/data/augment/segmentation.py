"""Training augmentation of images with masks, built on albumentations.

`SegmentationAugmentation` is a function of (image, mask, key): the same key gives the same result
in any process. Mask values are copied, never mixed: masks are resized to the nearest pixel, and
what lies outside the image becomes `IGNORED`.

Legend: H x W pixels, K channels of a multilabel mask.
"""

from typing import Literal, get_args

import albumentations as A
import cv2
import numpy as np

from densenet_backbones.data.augment.checks import check_fill, check_image, check_size
from densenet_backbones.data.augment.model_input import IMAGENET_MEAN
from densenet_backbones.data.augment.seeding import reseed
from densenet_backbones.data.augment.ssd import Parameters, PhotometricDistort
from densenet_backbones.data.mask_samples import IGNORED
from densenet_backbones.messages import check_choice

MaskPreset = Literal["light", "scale_crop", "fcdensenet_crop", "full_size", "none"]
Axis = tuple[int, int, int, int]  # start, pixels taken, pixels after scaling, border
CROPPING = ("light", "scale_crop", "fcdensenet_crop")  # presets whose images have one size


class SegmentationAugmentation:
    """Augmentation of one image and its mask.

    Presets:

    - ``light``: random scale 0.75 to 1.5, crop, flip, mild brightness, contrast and hue.
    - ``scale_crop``: random scale 0.5 to 2 (Chen et al., "DeepLab", TPAMI 2018, section 4.1), crop,
      flip, strong colors, now and then a blur.
    - ``fcdensenet_crop``: crop and flip (Jegou et al., CVPRW 2017, section 4: 224 x 224).
    - ``full_size``: flip (the fine-tuning of the same paper).
    - ``none``: the image as it is.

    Flips are horizontal, with probability 0.5. The first three give images of `size`; a smaller
    image lies in the middle of the mean color, which is ignored in the mask. The object is
    picklable (workers may be started by spawn); it is not thread-safe.

    Args:
        preset: Name of a preset above.
        size: (H, W) of crops, each at least 1.
        fill: RGB in 0..255 around images smaller than the crop, the mean that the model subtracts.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        preset: MaskPreset = "light",
        size: tuple[int, int] = (224, 224),
        *,
        fill: tuple[float, float, float] = IMAGENET_MEAN,
    ) -> None:
        check_choice("augmentation", preset, get_args(MaskPreset))
        check_fill(fill)
        self.preset, self.size = preset, check_size(size)
        self.pipeline = A.Compose(_list_steps(preset, self.size, fill))

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, key: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB; not changed.
            mask: (H, W) or (K, H, W) uint8; not changed.
            key: Whole numbers of at least 0, e.g. (seed, epoch, index): all that decides the
                random choices.

        Returns:
            The image and the mask, of `size` where the preset crops.

        Raises:
            ValueError: If an argument has another shape or type, or the key a negative number.
        """
        check_image(image)
        if mask.ndim not in (2, 3) or mask.dtype != np.uint8:
            raise ValueError(
                f"mask must be (H, W) or (K, H, W) uint8, got {mask.shape} {mask.dtype}"
            )
        if mask.shape[-2:] != image.shape[:2]:
            raise ValueError(f"mask {mask.shape} and image {image.shape} differ in size")
        reseed(self.pipeline, key)
        # Planes one by one: albumentations knows no masks with their channels first.
        planes = mask[None] if mask.ndim == 2 else mask
        result = self.pipeline(image=image, masks=list(planes))
        planes = np.stack(result["masks"])
        image = np.ascontiguousarray(result["image"])
        return image, planes[0] if mask.ndim == 2 else planes

    def __repr__(self) -> str:
        return f"SegmentationAugmentation({self.preset!r}, size={self.size})"


class ScaleCrop(A.DualTransform):
    """Random scale, then a random crop of one size, in one step.

    Only what the crop shows is resized. Images that are smaller than the crop after scaling lie in
    the middle of a border.

    Args:
        size: (H, W) of the crop.
        scale: Bounds of the scale, above 0; (1, 1) crops only.
        fill: RGB of the border; it is `IGNORED` in masks.
        p: Probability.
    """

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.MASK)

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (1.0, 1.0),
        fill: tuple[float, float, float] = IMAGENET_MEAN,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be rising bounds above 0, got {scale}")
        self.size, self.scale, self.fill = size, scale, fill

    def get_params_dependent_on_data(self, params: Parameters, data: Parameters) -> Parameters:
        """Choose the scale and the part of the image, and the border around it."""
        scale = self.py_random.uniform(*self.scale)
        axes = [
            self._choose_axis(side, length, scale)
            for side, length in zip(params["shape"][:2], self.size, strict=True)
        ]
        return {"axes": axes}

    def _choose_axis(self, side: int, length: int, scale: float) -> Axis:
        """Choose start and number of the pixels of one axis, their scaled length, the border."""
        # Only the pixels that the crop shows are cut out, and only they are resized.
        scaled = max(1, round(side * scale))
        visible = min(scaled, length)
        taken = side if visible == scaled else min(side, max(1, round(visible / scale)))
        start = self.py_random.randint(0, side - taken)
        return start, taken, visible, (length - visible) // 2

    def apply(self, img: np.ndarray, axes: list[Axis], **params: object) -> np.ndarray:
        """Cut, resize and frame (H, W, 3) uint8."""
        return self._apply(img, axes, cv2.INTER_LINEAR, self.fill)

    def apply_to_mask(self, mask: np.ndarray, axes: list[Axis], **params: object) -> np.ndarray:
        """Cut, resize and frame (H, W) uint8, to the nearest pixel."""
        # INTER_NEAREST of OpenCV takes pixel corners and would shift masks by half a pixel.
        return self._apply(mask, axes, cv2.INTER_NEAREST_EXACT, (IGNORED,) * 3)

    def _apply(
        self, values: np.ndarray, axes: list[Axis], interpolation: int, fill: tuple[float, ...]
    ) -> np.ndarray:
        (y, rows, height, top), (x, columns, width, left) = axes
        part = values[y : y + rows, x : x + columns]
        if part.shape[:2] != (height, width):
            part = cv2.resize(part, (width, height), interpolation=interpolation)
        if (height, width) == self.size:
            return np.ascontiguousarray(part)
        bottom, right = self.size[0] - height - top, self.size[1] - width - left
        border = (top, bottom, left, right)
        return cv2.copyMakeBorder(part, *border, cv2.BORDER_CONSTANT, value=fill)


def _list_steps(
    preset: MaskPreset, size: tuple[int, int], fill: tuple[float, float, float]
) -> list[A.BasicTransform]:
    flip = A.HorizontalFlip(p=0.5)
    if preset == "none":
        return []
    if preset == "full_size":
        return [flip]
    if preset == "fcdensenet_crop":
        return [ScaleCrop(size, fill=fill), flip]
    if preset == "light":
        mild = PhotometricDistort(16.0, (0.8, 1.2), (0.8, 1.2), 6.0)
        return [ScaleCrop(size, (0.75, 1.5), fill), flip, mild]
    blur = A.GaussianBlur(blur_limit=0, sigma_limit=(0.2, 1.5), p=0.2)
    return [ScaleCrop(size, (0.5, 2.0), fill), flip, PhotometricDistort(), blur]
