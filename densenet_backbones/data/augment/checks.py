"""Checks of what augmentations are given: images, sizes and colors."""

from collections.abc import Sequence

import numpy as np


def check_image(image: np.ndarray) -> None:
    """Raise a ValueError if an image is not (H, W, 3) uint8 with at least one pixel."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """Return a size as whole numbers (H, W); raise a ValueError if a side is below 1."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (H, W), each at least 1, got {size}")
    return int(size[0]), int(size[1])


def check_fill(fill: Sequence[float]) -> None:
    """Raise a ValueError if a color is not three numbers in 0..255."""
    if len(fill) != 3 or not 0 <= min(fill) <= max(fill) <= 255:
        raise ValueError(f"fill must be three numbers in 0..255 (RGB), got {fill}")
