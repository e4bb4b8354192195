"""Turn images of 8-bit pixels into the float tensors that models are given."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densenet_backbones.data.images import read_image


def to_float(image: Tensor) -> Tensor:
    """Turn uint8 pixels in [0, 255] into float32 in [0, 1], as torchvision's models take them."""
    return image.float() / 255


def to_image_tensor(image: str | Path | np.ndarray, device: torch.device) -> Tensor:
    """Return an image as (3, H, W) float32 in [0, 1].

    Args:
        image: A file, or (H, W, 3) uint8 RGB pixels.
        device: Device of the result.

    Raises:
        DataError: The file is missing or cannot be decoded.
        ValueError: The array is not (H, W, 3) uint8.
    """
    array = image if isinstance(image, np.ndarray) else read_image(Path(image))
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an image must be (H, W, 3) uint8 RGB, got {array.shape} {array.dtype}")
    chw = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
    return to_float(chw.to(device))
