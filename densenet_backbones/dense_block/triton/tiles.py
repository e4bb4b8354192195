"""How `layer_kernel` cuts maps into tiles; imports nothing but the standard library."""

from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Tile", "best_tile"]


@dataclass(frozen=True)
class Tile:
    """Output pixels of one program.

    Attributes:
        height: Rows, counted over all images.
        width: Columns; the width of the map for tiles without a halo to the sides.
        count: Tiles that cover all rows.
        recompute: Pixels whose bottleneck is computed, the idle places of a program included, over
            pixels there are.
    """

    height: int
    width: int
    count: int
    recompute: float


@lru_cache(maxsize=1024)
def best_tile(rows: int, width: int, dilation: int, pixels: int) -> Tile | None:
    """The tile that covers the maps with the fewest programs.

    Args:
        rows: Rows of all images, N * H.
        width: Columns.
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
