"""Packs weights as the C++ kernels read them: see ``cpp/products.h``."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.dense_block.native.library import load_library

__all__ = ["Packed", "choose_layout", "choose_tile", "pack", "transform_winograd"]

# Finite interpolation points of Winograd's transforms, by the cells of a tile's side (Lavin and
# Gray, CVPR 2016, arXiv:1509.09308, section 4): see ``cpp/winograd.h``. The last one is infinity.
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))}

# Where the larger tile is faster, as measured with AVX2: from 11x11 cells on.
_FEWEST_TILES = 9
_GAIN = 0.75


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


def choose_tile(height: int, width: int, dtype: torch.dtype) -> int:
    """Choose the side of Winograd's tiles for maps of a size: 2 or 4 cells.

    It does not depend on the number of images, so that one has the same result in any batch.
    """
    tiles = {side: -(-height // side) * -(-width // side) for side in _POINTS}
    # The larger tile reads more weights, and loses at the edges of small maps; in bfloat16 its
    # errors would be seen.
    pays = tiles[4] >= _FEWEST_TILES and 36 * tiles[4] < _GAIN * 16 * tiles[2]
    return 4 if pays and dtype == torch.float32 else 2


def transform_winograd(weight: Tensor, tile: int) -> Tensor:
    """Transform 3x3 kernels, (N, K, 3, 3), to a tile's places, ((tile + 2)^2, K, N), float64."""
    points = torch.tensor(_POINTS[tile], dtype=torch.float64, device="cpu")
    apart = (points[:, None] - points).fill_diagonal_(1.0).prod(dim=1)
    apart[0] = 1.0  # its sign is that of what is read
    powers = torch.linalg.vander(points, N=3) / apart[:, None]
    transform = torch.cat([powers, powers.new_tensor([[0.0, 0.0, 1.0]])])
    by_place = torch.einsum("ia,nkab,jb->ijkn", transform, weight.double(), transform)
    return by_place.flatten(0, 1)
