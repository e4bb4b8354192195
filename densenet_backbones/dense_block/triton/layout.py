"""Checks of the tensors that kernels get, and what a launch needs to know of their memory."""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "choose_block_size",
    "get_convolution_precision",
    "get_product_precision",
    "get_size_class",
    "read_pixel_stride",
    "require",
    "require_dtype",
]


def require(fits: bool, name: str, legal: str, tensor: Tensor) -> None:
    """Raise a `ValueError` that says what shape is legal, unless a tensor fits."""
    if not fits:
        raise ValueError(f"{name} must have {legal}, not shape {tuple(tensor.shape)}")


def require_dtype(x: Tensor, weight: Tensor) -> None:
    """Raise a `ValueError` where weights are of another type than the maps they make."""
    if weight.dtype != x.dtype:
        raise ValueError(f"maps are {x.dtype} and weights {weight.dtype}; give both one type")


def read_pixel_stride(x: Tensor, name: str) -> int:
    """Read the elements from one pixel to the next, in the order of rows, columns and images.

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


def get_product_precision() -> str:
    """Return what float32 products may be rounded to; other types are not concerned."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def get_convolution_precision() -> str:
    """Return what PyTorch rounds float32 to in convolutions, set apart from other products."""
    convolutions: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009, which mypy cannot see
    return "tf32" if convolutions.fp32_precision == "tf32" else "ieee"


def get_size_class(size: int) -> int:
    """Return the class of sizes that share a choice of tiles."""
    return int(size).bit_length()


def choose_block_size(size: int) -> int:
    """Choose the block that holds ``size``, at least 16: the fewest columns of a product."""
    return max(16, 1 << (size - 1).bit_length())
