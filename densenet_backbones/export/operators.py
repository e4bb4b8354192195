"""Operators of exported graphs whose sizes are values: resizing by limits, and cropping.

ONNX needs them as operators of their own, which its export translates. Where torch itself runs the
graph, in files of `torch.export`, torch's own operators do (`use_plain_operators`), so that such a
file asks for nothing of this package.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CROP",
    "RESIZE",
    "crop_to",
    "limit_size",
    "resize_to_limits",
    "use_plain_operators",
]

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def use_plain_operators() -> Iterator[None]:
    """Make graphs that are traced inside of this context of torch's own operators."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def limit_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Return (H, W) after resizing by torchvision's rule, computed as there, in float64.

    Args:
        height: Height of the image, a number or a symbol.
        width: Width of the image, likewise.
        min_size: Pixels of the shorter side after resizing,
        max_size: unless the longer would exceed this.
    """
    shorter, longer = torch.sym_min(height, width), torch.sym_max(height, width)
    scale = torch.sym_min(min_size / shorter, max_size / longer)
    return torch.sym_int(height * scale), torch.sym_int(width * scale)


def resize_to_limits(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """Resize (1, C, H, W) to (1, C, H', W') of `limit_size`, bilinearly.

    An operator for ONNX, whose translation of symbolic sizes divides in float32, which is off by a
    pixel for some sizes; the exporter gives this operator a translation in float64.

    Args:
        image: (1, C, H, W).
        min_size: Argument of `limit_size`.
        max_size: Argument of `limit_size`.
    """
    resize = _resize if _plain.get() else _resize_operator
    return resize(image, min_size, max_size)


def _resize(image: Tensor, min_size: int, max_size: int) -> Tensor:
    height, width = image.shape[-2:]
    size = limit_size(height, width, min_size, max_size)
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


@torch.library.custom_op("densenet_backbones::resize_to_limits", mutates_args=())
def _resize_operator(image: Tensor, min_size: int, max_size: int) -> Tensor:
    return _resize(image, min_size, max_size)


@_resize_operator.register_fake
def _(image: Tensor, min_size: int, max_size: int) -> Tensor:
    height, width = image.shape[-2:]
    size = limit_size(height, width, min_size, max_size)
    return image.new_empty(*image.shape[:2], *size)


def crop_to(x: Tensor, size: Tensor) -> Tensor:
    """Crop (..., H', W') to its first (..., H, W).

    An operator for ONNX, because sizes that are values have no name in what its export can follow;
    the exporter gives this operator a translation.

    Args:
        x: Tensor to crop.
        size: (2,) int64 H and W.
    """
    return _crop(x, size) if _plain.get() else _crop_operator(x, size)


def _crop(x: Tensor, size: Tensor) -> Tensor:
    height, width = size.tolist()
    # Said to `torch.export`, which cannot look at the values.
    for side, most in ((height, x.shape[-2]), (width, x.shape[-1])):
        torch._check(side >= 1)
        torch._check(side <= most)
    return x[..., :height, :width].clone()


@torch.library.custom_op("densenet_backbones::crop_to", mutates_args=())
def _crop_operator(x: Tensor, size: Tensor) -> Tensor:
    height, width = size.tolist()
    return x[..., :height, :width].clone()


@_crop_operator.register_fake
def _(x: Tensor, size: Tensor) -> Tensor:
    context = torch.library.get_ctx()
    return x.new_empty(*x.shape[:-2], context.new_dynamic_size(), context.new_dynamic_size())


RESIZE, CROP = _resize_operator._opoverload, _crop_operator._opoverload
"""The two in graphs that are translated to ONNX."""
