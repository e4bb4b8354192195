"""Augmentation of labelled images, and the way in which evaluation brings images to their size.

Sources: "cifar" is that of the DenseNet paper (1608.06993, section 4.1: 4 pixels of zeros, a crop,
a flip; facebook/fb.resnet.torch, ``datasets/cifar10.lua``); "imagenet" is torchvision's and timm's
random resized crop of 8 to 100 % of the area, aspect 3/4 to 4/3, with a flip.

Legend: H x W pixels, S the side that the network sees.
"""

from collections.abc import Sequence
from typing import Any, Literal

import albumentations as A
import numpy as np

from densenet_backbones.data.augment.listing import MixUp, build_steps, uses_mosaic
from densenet_backbones.data.augment.pipelines import Key, compose, run
from densenet_backbones.data.classification.fitting import fit_image
from densenet_backbones.data.faults import DataError

ClassPreset = Literal["cifar", "light", "imagenet", "none"]
CIFAR_PAD = 4 / 32  # of the side, on each edge


class ClassAugmentation:
    """Augmentation of one image to a square that the network sees.

    Args:
        preset: "cifar" (zeros around, crop, flip), "light" (crop of half the area or more, flip,
            light and color a little), "imagenet" (crop of 8 % of the area or more, flip) or "none";
            or a list of transforms of albumentations, after which images are resized.
        size: Pixels of the square's side, S.
        crop_pct: Share of the shorter side that evaluation sees; "none" sees the same.

    Raises:
        DataError: A list cannot be built, or mixes images: `mixup` and `cutmix` of the model do.
    """

    def __init__(
        self, preset: ClassPreset | Sequence[dict[str, Any]], size: int, crop_pct: float
    ) -> None:
        self.size, self.crop_pct, self.preset = size, crop_pct, preset
        self.pipeline = compose(_list_steps(preset, size))

    def __call__(self, image: np.ndarray, key: Key, name: str = "") -> np.ndarray:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            key: Whole numbers of at least 0: all that decides the random choices.
            name: Of the image, for errors.

        Returns:
            (S, S, 3) uint8.
        """
        if self.preset in ("cifar", "none"):
            image = fit_image(image, self.size, self.crop_pct)
        result: np.ndarray = run(self.pipeline, {"image": image}, key, name)["image"]
        if result.shape[:2] != (self.size, self.size):
            result = fit_image(result, self.size, self.crop_pct)
        return result


def _list_steps(preset: ClassPreset | Sequence[dict[str, Any]], size: int) -> list[Any]:
    if not isinstance(preset, str):
        steps = build_steps(list(preset))
        if uses_mosaic(steps) or any(isinstance(step, MixUp) for step in steps):
            raise DataError(
                "data.augmentation: images are mixed by model.regularization.mixup and cutmix of a "
                "classifier; leave Mosaic and MixUp out"
            )
        return steps
    flip = A.HorizontalFlip(p=0.5)
    if preset == "none":
        return []
    if preset == "cifar":
        pad = round(CIFAR_PAD * size)
        padded = A.PadIfNeeded(size + 2 * pad, size + 2 * pad, fill=0)
        return [padded, A.RandomCrop(size, size), flip]
    least = 0.08 if preset == "imagenet" else 0.5
    crop = A.RandomResizedCrop((size, size), scale=(least, 1.0), ratio=(3 / 4, 4 / 3))
    if preset == "imagenet":
        return [crop, flip]
    return [crop, flip, A.ColorJitter(0.2, 0.2, 0.2, 0.02, p=0.8)]
