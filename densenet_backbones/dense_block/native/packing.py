"""Packs weights as the C++ kernels read them: see ``cpp/products.h``."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.dense_block.native.library import load_library

__all__ = ["Packed", "choose_layout", "pack", "transform_winograd"]

# Lavin and Gray, CVPR 2016, arXiv:1509.09308, section 4.1: F(2x2, 3x3)
_WINOGRAD = torch.tensor(
    [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64, device="cpu"
)


class Packed(NamedTuple):
    """A matrix of weights and its bias.

    Attributes:
        weight: One after another: blocks of rows, of each its panels, of each its rows, in words of
            32 bits. Several matrices lie one behind another.
        bias: (panels * vectors * lanes,), zero where there is no column; float32.
        panels: Number of panels in a block of rows.
        vectors: Number of SIMD vectors in a row of a panel.
    """

    weight: Tensor
    bias: Tensor
    panels: int
    vectors: int

    @property
    def columns(self) -> int:
        """Number of columns, with those that were added."""
        return len(self.bias)


def pack(weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> Packed:
    """Pack matrices (..., K, N), and their bias (N,), for maps in float32 or bfloat16."""
    panels, vectors = choose_layout(len(bias))
    kernels = load_library()
    added = panels * vectors * kernels.lanes() - len(bias)
    weight, bias = F.pad(_pack_words(weight, dtype), (0, added)), F.pad(bias.float(), (0, added))
    blocks = [
        block.unflatten(-1, (panels, -1)).movedim(-2, -3).flatten(-3)
        for block in weight.split(kernels.depth(), dim=-2)
    ]
    return Packed(torch.cat(blocks, -1).contiguous(), bias.contiguous(), panels, vectors)


def _pack_words(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Make words of 32 bits, (..., K or K / 2, N): two neighboring rows' bfloat16 make one."""
    if dtype == torch.float32:
        return weight.float()
    rows = F.pad(weight.to(dtype), (0, 0, 0, weight.shape[-2] % 2))
    pairs = torch.stack((rows[..., ::2, :], rows[..., 1::2, :]), dim=-1)
    return pairs.view(torch.int32).squeeze(-1)


def choose_layout(columns: int) -> tuple[int, int]:
    """Choose the number of panels, and of SIMD vectors in a row of a panel, for so many columns."""
    kernels = load_library()
    needed = -(-columns // kernels.lanes())
    # Fewest added columns, then the fastest: wide panels, if there are registers for their rows.
    preferred = (4, 2, 3, 1) if kernels.registers() >= 32 else (2, 3, 1)
    vectors = min(preferred, key=lambda count: -needed % count)
    return -(-needed // vectors), vectors


def transform_winograd(weight: Tensor) -> Tensor:
    """Transform a 3x3 kernel, (N, K, 3, 3), to places of a 4x4 tile, (16, K, N), in float64."""
    by_place = torch.einsum("ia,nkab,jb->ijkn", _WINOGRAD, weight.double(), _WINOGRAD)
    return by_place.flatten(0, 1)
