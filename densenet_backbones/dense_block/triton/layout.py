"""Checks of the tensors that kernels get, and what a launch needs to know of their memory."""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "block_size",
    "convolution_precision",
    "pixel_stride",
    "product_precision",
    "require",
    "require_dtype",
    "size_class",
]


def require(fits: bool, name: str, legal: str, tensor: Tensor) -> None:
    """Raises a `ValueError` that says what shape is legal."""
    if not fits:
        raise ValueError(f"{name} must have {legal}, not shape {tuple(tensor.shape)}")


def require_dtype(x: Tensor, weight: Tensor) -> None:
    """Raises a `ValueError` where weights are of another type than the maps they make."""
    if weight.dtype != x.dtype:
        raise ValueError(f"maps are {x.dtype} and weights {weight.dtype}; give both one type")


def pixel_stride(x: Tensor, name: str) -> int:
    """Elements from one pixel to the next, in the order of rows, columns and images.

    Raises:
        ValueError: Pixels do not lie at equal distances, or channels not side by side.
    """
    images, channels, height, width = x.shape
    # Where there is one pixel only, its stride says nothing and is not used.
    steps = [(width, x.stride(3), 1), (height, x.stride(2), width)]
    steps.append((images, x.stride(0), width * height))
    counted = [(stride, pixels) for size, stride, pixels in steps if size > 1]
    stride = counted[0][0] // counted[0][1] if counted else channels
    regular = all(step == stride * pixels for step, pixels in counted)
    if not regular or (channels > 1 and x.stride(1) != 1):
        raise ValueError(
            f"{name} must be channels-last, or a slice of the channels of such a tensor; its shape "
            f"is {tuple(x.shape)} and its strides are {x.stride()}"
        )
    return stride


def product_precision() -> str:
    """What float32 products may be rounded to; other types are not concerned."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def convolution_precision() -> str:
    """What PyTorch rounds float32 to in convolutions, which is set apart from other products."""
    convolutions: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009, which mypy cannot see
    return "tf32" if convolutions.fp32_precision == "tf32" else "ieee"


def size_class(size: int) -> int:
    """Sizes that share a choice of tiles."""
    return int(size).bit_length()


def block_size(size: int) -> int:
    """The block that holds ``size``; products of fewer than 16 columns have no instruction."""
    return max(16, 1 << (size - 1).bit_length())
