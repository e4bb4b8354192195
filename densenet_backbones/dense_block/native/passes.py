"""Passes over whole maps in the C++ kernels, one where PyTorch takes several.

The formulas are those of batch norm and its gradient (Ioffe and Szegedy, 1502.03167, section 3).

Maps are (N, C, H, W), of `interfaces.is_in_rows`, all float32 or all bfloat16, and computed with in
float32; vectors are (C,), float32, without gaps.
"""

import torch
from torch import Tensor

from densenet_backbones.dense_block.native.library import load_library

__all__ = ["add_scaled", "compute_affine_difference", "mask_and_sum", "scale_shift_relu"]


def _get_shape(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def _get_rows(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.stride(3)


def scale_shift_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute ``relu(scale * x + shift)``, dense."""
    out = _allocate_like(x)
    load_library().scale_shift_relu(
        x.element_size(),
        *(*_get_rows(x), scale.data_ptr(), shift.data_ptr(), *_get_shape(x), out.data_ptr()),
        torch.get_num_threads(),
    )
    return out


def mask_and_sum(
    gradient: Tensor,
    active: Tensor,
    x: Tensor,
    into: tuple[Tensor, Tensor] | None = None,
    overwrite: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return ``gradient`` where ``active`` is positive, its sum, and its sum weighted by ``x``.

    With ``into``, a map and a scale, scaled values are added to that map and None is returned in
    their place. ``overwrite`` allows to write them into ``gradient``.
    """
    sums = x.new_empty(2, x.shape[1], dtype=torch.float32)
    threads = torch.get_num_threads()
    partial = x.new_empty(threads, 2, x.shape[1], dtype=torch.float64)
    masked = None
    if into is None:
        masked = gradient if overwrite else _allocate_like(x)
        target = (masked.data_ptr(), 0, 0, 0)
    else:
        target = (0, *_get_rows(into[0]), into[1].data_ptr())
    load_library().masked_sums(
        x.element_size(),
        *(gradient.data_ptr(), active.data_ptr(), *_get_rows(x), *_get_shape(x), *target),
        *(sums.data_ptr(), partial.data_ptr(), threads),
    )
    return masked, sums[0], sums[1]


def compute_affine_difference(
    y: Tensor, x: Tensor, scale: Tensor | None, constant: Tensor, slope: Tensor
) -> Tensor:
    """Compute ``scale * y - constant - slope * x``, dense; without a scale it is 1."""
    out = _allocate_like(x)
    load_library().affine_difference(
        x.element_size(),
        *(*_get_rows(y), *_get_rows(x), 0 if scale is None else scale.data_ptr()),
        *(constant.data_ptr(), slope.data_ptr(), *_get_shape(x), out.data_ptr()),
        torch.get_num_threads(),
    )
    return out


def add_scaled(total: Tensor, x: Tensor, scale: Tensor) -> None:
    """Add ``scale * x`` to ``total``, in place."""
    load_library().add_scaled(
        x.element_size(),
        *(*_get_rows(total), x.data_ptr(), scale.data_ptr(), *_get_shape(x)),
        torch.get_num_threads(),
    )


def _allocate_like(x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    return x.new_empty(images, height, width, channels).permute(0, 3, 1, 2)
