"""Passes over whole maps in the C++ kernels, one where PyTorch takes several.

Maps are (N, C, H, W), float32, of `interfaces.is_in_rows`; vectors are (C,) without gaps.
"""

import torch
from torch import Tensor

from densenet_backbones.dense_block.native.library import library

__all__ = ["add_scaled", "affine_difference", "masked_sums", "scale_shift_relu"]


def _shape(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def _rows(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.stride(3)


def scale_shift_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``relu(scale * x + shift)``, dense."""
    out = _like(x)
    library().scale_shift_relu(
        *(*_rows(x), scale.data_ptr(), shift.data_ptr(), *_shape(x), out.data_ptr()),
        torch.get_num_threads(),
    )
    return out


def masked_sums(
    gradient: Tensor,
    active: Tensor,
    x: Tensor,
    into: tuple[Tensor, Tensor] | None = None,
    overwrite: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``gradient`` where ``active`` is positive, its sum and its sum weighted by ``x``.

    With ``into``, a map and a scale, scaled values are added to that map and None is returned in
    their place. ``overwrite`` allows to write them into ``gradient``.
    """
    sums, threads = x.new_empty(2, x.shape[1]), torch.get_num_threads()
    partial = x.new_empty(threads, 2, x.shape[1], dtype=torch.float64)
    masked = None
    if into is None:
        masked = gradient if overwrite else _like(x)
        target = (masked.data_ptr(), 0, 0, 0)
    else:
        target = (0, *_rows(into[0]), into[1].data_ptr())
    library().masked_sums(
        *(gradient.data_ptr(), active.data_ptr(), *_rows(x), *_shape(x), *target),
        *(sums.data_ptr(), partial.data_ptr(), threads),
    )
    return masked, sums[0], sums[1]


def affine_difference(
    y: Tensor, x: Tensor, scale: Tensor | None, constant: Tensor, slope: Tensor
) -> Tensor:
    """``scale * y - constant - slope * x``, dense; without a scale it is 1."""
    out = _like(x)
    library().affine_difference(
        *(*_rows(y), *_rows(x), 0 if scale is None else scale.data_ptr()),
        *(constant.data_ptr(), slope.data_ptr(), *_shape(x), out.data_ptr()),
        torch.get_num_threads(),
    )
    return out


def add_scaled(total: Tensor, x: Tensor, scale: Tensor) -> None:
    """Adds ``scale * x`` to ``total``."""
    library().add_scaled(
        *(*_rows(total), x.data_ptr(), scale.data_ptr(), *_shape(x)), torch.get_num_threads()
    )


def _like(x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    return x.new_empty(images, height, width, channels).permute(0, 3, 1, 2)
