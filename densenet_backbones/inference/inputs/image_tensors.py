"""Turn images of every kind into 8-bit pixels, and these into the tensors that models are given."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from densenet_backbones.data.images import (
    convert_picture,
    read_image,
    read_image_size,
    read_reduced_image,
)
from densenet_backbones.inference.inputs.downloads import fetch, is_url

ImageInput = str | Path | Image.Image | np.ndarray | Tensor
"""Image to predict: a file or its http(s) address, a picture of Pillow, (H, W, 3) uint8 RGB pixels,
or a tensor (3, H, W) RGB of uint8 or of floats in [0, 1]; gray ones are (H, W),
(H, W, 1) or (1, H, W)."""


class ReadImage(NamedTuple):
    """Image as it was read for a model, perhaps smaller than it is.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        size: (H, W) of the image at full size.
        factor: Pixels of the full image's sides that one of `pixels` stands for; at the edges
            perhaps fewer.
        name: File or address that it is from; empty where there is none.
        content: Bytes of the file, where they were fetched.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    factor: int = 1
    name: str = ""
    content: bytes | None = None

    def read_for_picture(self, largest: int) -> "ReadImage":
        """Return the image to draw on: its longer side has at most `largest` pixels.

        Raises:
            DataError: The file has gone, or has changed.
        """
        # The model's own reading may be smaller than a picture should be.
        shrink = 1
        while max(self.size) > largest * shrink:
            shrink *= 2
        if shrink < self.factor and self.name:
            at_least = (self.size[0] // shrink or 1, self.size[1] // shrink or 1)
            return read_for_model(self.name, at_least, self.content)
        step = max(shrink // self.factor, 1)
        return self._replace(pixels=self.pixels[::step, ::step], factor=self.factor * step)

    def read_whole(self) -> np.ndarray:
        """Return the pixels at full size, (H, W, 3) uint8; errors as `read_for_picture`."""
        return self.pixels if self.factor == 1 else read_image(self.name, content=self.content)


def read_for_model(
    path: str | Path, at_least: tuple[int, int] | None, content: bytes | None = None
) -> ReadImage:
    """Read an image no larger than a model can use.

    Args:
        path: The file, or an http(s) address, which is fetched.
        at_least: (H, W) that images need not exceed; None for their full size.
        content: The file's bytes where they are at hand.

    Raises:
        DataError: The file is missing or cannot be decoded.
    """
    if content is None and is_url(path):
        content = fetch(str(path))
    pixels, factor = read_reduced_image(path, at_least, in_any_format=True, content=content)
    size = (pixels.shape[0], pixels.shape[1])
    if factor != 1:
        width, height = read_image_size(path, content=content)
        size = (height, width)
    return ReadImage(pixels, size, factor, str(path), content)


def convert_image(image: Image.Image | np.ndarray | Tensor) -> ReadImage:
    """Return an image of a program as one that was read.

    Raises:
        DataError: Pillow cannot decode the picture.
        ValueError: An array or a tensor of another shape, type or range than `ImageInput`'s.
    """
    if isinstance(image, Image.Image):
        pixels = convert_picture(image)
    elif isinstance(image, Tensor):
        pixels = _convert_tensor(image)
    elif isinstance(image, np.ndarray):
        pixels = image[:, :, None] if image.ndim == 2 else image
        if pixels.ndim == 3 and pixels.shape[2] == 1:  # gray, as files of it are read
            pixels = pixels.repeat(3, axis=2)
    else:
        raise ValueError(
            "an image must be a file, an address, a picture of Pillow, an array (H, W, 3) or a "
            f"tensor (3, H, W), got {type(image).__name__}"
        )
    _check_pixels(pixels)
    return ReadImage(pixels, (pixels.shape[0], pixels.shape[1]))


def _convert_tensor(image: Tensor) -> np.ndarray:
    """Return a tensor (3, H, W), or a gray one (1, H, W), as 8-bit pixels."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"a tensor must be one image (3, H, W), got {tuple(image.shape)}")
    values = image.detach().cpu()
    if values.is_floating_point():
        if not (values.numel() and 0 <= float(values.min()) <= float(values.max()) <= 1):
            raise ValueError(
                "a tensor of floats must hold values in [0, 1], not normalized; give uint8, or "
                "divide 8-bit values by 255"
            )
        values = (values.float() * 255).round()
    elif values.dtype != torch.uint8:
        raise ValueError(f"a tensor must be uint8 or floats in [0, 1], got {image.dtype}")
    return np.ascontiguousarray(values.to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy())


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
    _check_pixels(array)
    chw = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
    return to_float(chw.to(device))


def _check_pixels(array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an image must be (H, W, 3) uint8 RGB, got {array.shape} {array.dtype}")
