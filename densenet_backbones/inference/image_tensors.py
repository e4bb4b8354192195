"""Turn images of 8-bit pixels into the float tensors that models are given."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from densenet_backbones.data.images import read_image, read_image_size, read_reduced_image


class ReadImage(NamedTuple):
    """Image as it was read for a model, perhaps smaller than it is.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        size: (H, W) of the image at full size.
        factor: Pixels of the full image's sides that one of `pixels` stands for; at the edges
            perhaps fewer.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    factor: int = 1


def read_for_model(path: str | Path, at_least: tuple[int, int] | None) -> ReadImage:
    """Read an image no larger than a model can use.

    Args:
        path: The file.
        at_least: (H, W) that images need not exceed; None for their full size.

    Raises:
        DataError: The file is missing or cannot be decoded.
    """
    pixels, factor = read_reduced_image(path, at_least, in_any_format=True)
    if factor == 1:
        return ReadImage(pixels, (pixels.shape[0], pixels.shape[1]))
    width, height = read_image_size(path)
    return ReadImage(pixels, (height, width), factor)


def to_float(image: Tensor) -> Tensor:
    """Turn uint8 pixels in [0, 255] into float32 in [0, 1], as torchvision's models take them."""
    return image.to(torch.float32, copy=True).div_(255)


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
