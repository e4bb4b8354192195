"""Augmentation by a list of transforms in place of a preset, for images with masks.

Legend: H x W pixels, K channels of a multilabel mask.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from densenet_backbones.data.augment.checks import check_image, check_size
from densenet_backbones.data.augment.listing import MOSAIC, Entries, MixUp, build_steps, uses_mosaic
from densenet_backbones.data.augment.model_input import IMAGENET_MEAN
from densenet_backbones.data.augment.pipelines import Key, Others, compose, run
from densenet_backbones.data.augment.segmentation import ScaleCrop
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import IGNORED

# Reads another image of the data set, which random numbers choose.
DrawMask = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
MOSAIC_PART = 1  # last part of keys: which images a mosaic takes


class ListedMaskAugmentation:
    """Augmentation of one image and its mask by the transforms of a list, then a crop.

    What lies beyond the image is `IGNORED` in masks, unless an entry says another `fill_mask`.
    The object is picklable (workers may be started by spawn); it is not thread-safe.

    Args:
        entries: What `build_steps` takes, without `MixUp`.
        size: (H, W) of the random crop at the end; smaller images get a border.
        fill: RGB of that border.
        has_planes: True for multilabel masks, which `A.Mosaic` cannot carry.

    Raises:
        DataError: If the list cannot be built, or does not fit the masks.
    """

    def __init__(
        self,
        entries: Entries,
        size: tuple[int, int],
        *,
        fill: tuple[float, float, float] = IMAGENET_MEAN,
        has_planes: bool = False,
    ) -> None:
        steps = build_steps(entries, outside=IGNORED)
        if any(isinstance(step, MixUp) for step in steps):
            raise DataError(
                "data.augmentation: MixUp needs boxes, classes of pixels cannot be mixed; "
                "leave it out"
            )
        if has_planes and uses_mosaic(steps):
            raise DataError(
                "data.augmentation: Mosaic carries masks of one class a pixel only, but "
                "data.task is 'multilabel'; leave it out"
            )
        self.pipeline = compose([*steps, ScaleCrop(check_size(size), fill=fill)])

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, key: Key, draw: DrawMask, name: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB; not changed.
            mask: (H, W) or (K, H, W) uint8; not changed.
            key: As of `ListedAugmentation`.
            draw: Reads another image and its mask.
            name: Of the image, for errors.

        Returns:
            The image and the mask, of the crop's size.

        Raises:
            DataError: If a transform fails on this image, or another cannot be read.
        """
        check_image(image)
        data: dict[str, Any] = {"image": image}
        # Planes one by one: albumentations knows no masks with their channels first.
        data |= {"mask": mask} if mask.ndim == 2 else {"masks": list(mask)}
        if uses_mosaic(self.pipeline.transforms):

            def read(rng: np.random.Generator) -> dict[str, Any]:
                return dict(zip(("image", "mask"), draw(rng), strict=True))

            data[MOSAIC] = Others(read, self.pipeline, (*key, MOSAIC_PART))
        result = run(self.pipeline, data, key, name)
        moved = result["mask"] if mask.ndim == 2 else np.stack(result["masks"])
        return np.ascontiguousarray(result["image"]), np.ascontiguousarray(moved)
