"""Bring images to the size of a classifier, without what augments them in training."""

import cv2
import numpy as np


def fit_image(image: np.ndarray, size: int, crop_pct: float) -> np.ndarray:
    """Bring an image to the network's size as in evaluation: resize, then crop the middle.

    Args:
        image: (H, W, 3) uint8.
        size: S.
        crop_pct: S as a share of the shorter side after resizing; at 1, all of it is seen.

    Returns:
        (S, S, 3) uint8.
    """
    height, width = image.shape[:2]
    side = round(size / crop_pct)
    scale = side / min(height, width)
    if scale != 1:
        new = max(side, round(width * scale)), max(side, round(height * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, new, interpolation=method)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size])
