"""Cuts maps into tiles for `layer_kernel`; imports nothing but the standard library."""

from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Tile", "find_best_tile"]


@dataclass(frozen=True)
class Tile:
    """Output pixels of one program.

    Attributes:
        height: Number of rows, counted over all images.
        width: Number of columns; the width of the map for tiles without a halo to the sides.
        count: Number of tiles that cover all rows.
        recompute: Pixels whose bottleneck is computed, the idle places of a program included, over
            pixels there are.
    """

    height: int
    width: int
    count: int
    recompute: float


@lru_cache(maxsize=1024)
def find_best_tile(rows: int, width: int, dilation: int, pixels: int) -> Tile | None:
    """Find the tile that covers the maps with the fewest programs.

    Args:
        rows: Number of rows of all images, N * H.
        width: Number of columns.
        dilation: Rows and columns of halo on each side.
        pixels: Places of a program, halo included.

    Returns:
        The tile; None where not even one output and its halo fit.
    """
    best = None
    for tile_width in range(1, min(width, pixels) + 1):
        pitch = tile_width if tile_width == width else tile_width + 2 * dilation
        height = min(pixels // pitch - 2 * dilation, rows)
        if height < 1:
            continue
        count = -(-rows // height) * -(-width // tile_width)
        # Wider tiles of the same number read longer runs of memory.
        if best is None or count <= best.count:
            best = Tile(height, tile_width, count, count * pixels / (rows * width))
    return best
