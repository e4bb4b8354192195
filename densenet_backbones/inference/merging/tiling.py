"""Predict images that are larger than a model or a memory can take at once: by blended tiles.

Legend: H x W pixels of the image, C channels of scores.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Window = tuple[int, int, int, int]
"""Top, left, bottom and right edge, in pixels."""


@dataclass(frozen=True)
class Tiling:
    """Sizes of the tiles that an image is cut into.

    Neighboring tiles share `overlap` pixels. Of these a tile's outer `margin` does not count, as
    the model lacks what lies beyond the tile there; between the margins the weight rises in a line
    from 0 to 1 while the neighbor's falls. Where the margin covers the model's receptive field,
    the result is that of the whole image.

    Tiles begin at multiples of the model's stride, so that its maps lie on one grid.

    Args:
        tile: Side of a tile in pixels; rounded up to a multiple of `stride`.
        overlap: Pixels; rounded up likewise; None takes a quarter of the tile.
        margin: Pixels, at most half of the overlap; None takes a quarter of the overlap.
        stride: Pixels that one cell of the model's coarsest map stands for.

    Raises:
        ValueError: A number is out of range, or the overlap is more than half of a tile.
    """

    tile: int = 1024
    overlap: int | None = None
    margin: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or self.tile < 2:
            raise ValueError(
                f"tile must be at least 2 and stride at least 1, got {self.tile} and {self.stride}"
            )
        tile = _round_up(self.tile, self.stride)
        overlap = tile // 4 if self.overlap is None else self.overlap
        overlap = max(_round_up(overlap, self.stride), 0)
        if (self.overlap or 0) < 0 or 2 * overlap > tile:
            raise ValueError(
                f"overlap must lie in [0, {tile // 2}], half of the tile of {tile} pixels, in "
                f"steps of the model's stride of {self.stride}; got {overlap}"
            )
        margin = overlap // 4 if self.margin is None else self.margin
        if not 0 <= 2 * margin <= overlap:
            raise ValueError(
                f"margin must lie in [0, {overlap // 2}], half of the overlap, got {margin}"
            )
        for name, value in (("tile", tile), ("overlap", overlap), ("margin", margin)):
            object.__setattr__(self, name, value)

    def split(self, length: int) -> list[tuple[int, int]]:
        """Return begin and end of the tiles along one axis; only the last may be shorter."""
        assert self.overlap is not None
        step = self.tile - self.overlap
        spans: list[tuple[int, int]] = []
        while not spans or spans[-1][1] < length:
            start = len(spans) * step
            spans.append((start, min(start + self.tile, length)))
        return spans

    def compute_weights(self, span: tuple[int, int], length: int) -> Tensor:
        """Return the weight of each pixel of a tile along one axis; all tiles add up to 1."""
        assert self.overlap is not None and self.margin is not None
        start, end = span
        position = torch.arange(start, end) + 0.5
        weights = torch.ones(end - start)
        for inside, distance in ((start > 0, position - start), (end < length, end - position)):
            if inside:
                rise = max(self.overlap - 2 * self.margin, 0)
                ramp = (distance - self.margin) / rise if rise else (distance > self.margin).float()
                weights *= ramp.clamp(0, 1)
        return weights


def blend_tiles(
    read: Callable[[Window], np.ndarray],
    size: tuple[int, int],
    predict: Callable[[np.ndarray], Tensor],
    tiling: Tiling,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the scores of an image, from its top to its bottom.

    At any time one row of tiles is in memory: C x tile x W numbers of 4 bytes.

    Args:
        read: Returns the pixels of a window, (h, w, 3) uint8.
        size: (H, W).
        predict: The model: takes the pixels of a window and returns (C, h, w) scores.
        tiling: Sizes of the tiles.

    Yields:
        The first row and its scores, (C, rows, W) float32 on the CPU; rows follow each other
        without gaps.
    """
    height, width = size
    rows, columns = tiling.split(height), tiling.split(width)
    carried: Tensor | None = None  # share of the tiles above in the next row's first pixels
    for number, (top, bottom) in enumerate(rows):
        band: Tensor | None = None
        down = tiling.compute_weights((top, bottom), height)[:, None]
        # One row of tiles, each weighted in both directions, is summed up in `band`.
        for left, right in columns:
            scores = predict(read((top, left, bottom, right))).float().cpu()
            if band is None:
                band = torch.zeros(len(scores), bottom - top, width)
            across = tiling.compute_weights((left, right), width)
            band[:, :, left:right] += scores * (down * across)
        assert band is not None
        if carried is not None:
            band[:, : carried.shape[1]] += carried
        # Pixels that no tile of the next row reaches are ready; the others are carried on.
        ready = (rows[number + 1][0] if number + 1 < len(rows) else bottom) - top
        yield top, band[:, :ready]
        carried = band[:, ready:]


def _round_up(value: int, stride: int) -> int:
    return -(-value // stride) * stride
