"""Prior boxes of SSD and DSOD, which the paper calls default boxes.

Legend: L levels, A priors a cell, P priors of all levels. Boxes are xyxy in pixels of the network's
input; a prior may reach beyond the image, as in SSD without clipping.

Sources: SSD (arXiv:1512.02325) section 2.2 and Caffe's ``prior_box_layer.cpp``; sizes and steps of
DSOD from szq0214/DSOD, ``DSOD300_pascal.py`` and ``DSOD300_coco.py``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from densenet_backbones.messages import check_choice

# Percent of the image's shorter side: size of the first level, of the second, and the upper end.
# The second pair is of weiliu89/caffe, ``examples/ssd/ssd_{pascal,coco}_512.py``.
# "large" is ours: of few large objects more priors match, those of finer maps.
SIZE_RATIOS = {
    "voc": (10, 20, 90),
    "coco": (7, 15, 90),
    "large": (16, 25, 90),
    "voc512": (7, 15, 90),
    "coco512": (4, 10, 90),
}

# Prior steps of SSD300, which DSOD300 took over although its last map has 2x2 cells, not one.
DSOD300_STRIDES = (8, 16, 32, 64, 128, 256)
DSOD300_STEPS = (8.0, 16.0, 32.0, 64.0, 100.0, 150.0)
DSOD300_STEPS_AS_PUBLISHED = (8.0, 16.0, 32.0, 64.0, 100.0, 300.0)


@dataclass(frozen=True)
class PriorSpec:
    """Prior boxes of every level of a network with one fixed input size.

    A cell of level ``l`` carries, in this order, a square of ``min_sizes[l]``, a square of
    ``sqrt(min_sizes[l] * max_sizes[l])``, and for each aspect ratio ``r`` the boxes of area
    ``min_sizes[l]**2`` with width : height of ``r`` and ``1 / r``.

    Attributes:
        image_size: (H, W) of the network's input in pixels.
        min_sizes: L sizes in pixels.
        max_sizes: L sizes in pixels, each above its min size.
        aspect_ratios: L tuples of ratios above 1.
        steps: L distances in pixels between the centers of neighboring cells; None spreads the
            centers evenly: image size / number of cells, for each axis.
    """

    image_size: tuple[int, int]
    min_sizes: tuple[float, ...]
    max_sizes: tuple[float, ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    steps: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        counts = {len(self.min_sizes), len(self.max_sizes), len(self.aspect_ratios)}
        counts |= {len(self.steps)} if self.steps is not None else set()
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                "min_sizes, max_sizes, aspect_ratios and steps need one entry a level, got "
                f"{len(self.min_sizes)}, {len(self.max_sizes)}, {len(self.aspect_ratios)} and "
                f"{'none' if self.steps is None else len(self.steps)}"
            )
        for level, (low, high) in enumerate(zip(self.min_sizes, self.max_sizes, strict=True)):
            if not 0 < low < high:
                raise ValueError(
                    f"prior sizes of level {level} must satisfy 0 < min size < max size, "
                    f"got {low} and {high}"
                )

    @property
    def priors_per_cell(self) -> tuple[int, ...]:
        """A for each level: two squares and two boxes an aspect ratio."""
        return tuple(2 + 2 * len(ratios) for ratios in self.aspect_ratios)

    def shapes(self, level: int) -> list[tuple[float, float]]:
        """(width, height) in pixels of the A priors of a cell of ``level``."""
        low, high = self.min_sizes[level], self.max_sizes[level]
        middle = math.sqrt(low * high)
        shapes = [(low, low), (middle, middle)]
        for ratio in self.aspect_ratios[level]:
            wide, narrow = low * math.sqrt(ratio), low / math.sqrt(ratio)
            shapes += [(wide, narrow), (narrow, wide)]
        return shapes

    def boxes(self, grid_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Priors of all levels.

        Args:
            grid_sizes: (rows, columns) of the feature map of each level.

        Returns:
            (P, 4) float32, xyxy in pixels of the network's input, ordered by level, row, column and
            shape: the order in which a head's (N, A * C, H, W) output is flattened.
        """
        if len(grid_sizes) != len(self.min_sizes):
            raise ValueError(
                f"{len(self.min_sizes)} levels of priors, {len(grid_sizes)} maps: give a grid size "
                "for each level"
            )
        return torch.cat([self._build_level_boxes(i, *grid) for i, grid in enumerate(grid_sizes)])

    def _build_level_boxes(self, level: int, rows: int, columns: int) -> Tensor:
        height, width = self.image_size
        if self.steps is None:
            step_y, step_x = height / rows, width / columns
        else:
            step_y = step_x = self.steps[level]
        # float64 until the end: centers such as 7.5 * 32 stay exact, and so do symmetric corners.
        ys = (torch.arange(rows, dtype=torch.float64, device="cpu") + 0.5) * step_y
        xs = (torch.arange(columns, dtype=torch.float64, device="cpu") + 0.5) * step_x
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        # Centers (cells, 1, 4) and corners (A, 4) around 0: their sum has a row for each prior.
        centers = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        size = torch.tensor(self.shapes(level), dtype=torch.float64, device="cpu")
        corners = torch.cat((-size, size), dim=1) / 2  # (A, 4)
        return (centers + corners).reshape(-1, 4).float()


def compute_ratio_sizes(shorter_side: int, num_levels: int, sizes: str) -> tuple[float, ...]:
    """Prior sizes by SSD's rule, in percent of the image's shorter side.

    The first level has a size of its own; the others rise from the second level's in equal steps
    of whole percents to about 90 %. At 300 pixels and six levels this gives SSD's and DSOD's own
    tables: 30, 60, 111, ..., 315 for ``"voc"`` and 21, 45, 99, ..., 315 for ``"coco"``; at 512
    pixels and seven levels SSD512's: 35.84, 76.8, ..., 537.6 for ``"voc512"`` and 20.48, 51.2, ...,
    542.72 for ``"coco512"``.

    Args:
        shorter_side: Of the network's input, in pixels.
        num_levels: L, at least 3.
        sizes: A key of `SIZE_RATIOS`.

    Returns:
        L + 1 sizes in pixels: the min size of each level, then the last level's max size (the max
        size of any other level is the min size of the next).
    """
    check_choice("prior_sizes", sizes, SIZE_RATIOS)
    if num_levels < 3:
        raise ValueError(
            f"SSD's ratio rule needs 3 or more levels, got {num_levels}: give sizes in pixels"
        )
    # Whole percents as in SSD's Caffe scripts, whose last size therefore ends above 100 percent.
    first, low, high = SIZE_RATIOS[sizes]
    step = (high - low) // (num_levels - 2)
    percents = [first, *(low + step * index for index in range(num_levels))]
    return tuple(shorter_side * percent / 100 for percent in percents)


def dsod_priors(
    image_size: tuple[int, int],
    strides: Sequence[int],
    sizes: str | Sequence[float] = "voc",
    *,
    faithful: bool = False,
) -> PriorSpec:
    """Priors of DSOD for an input size and the strides of its prediction maps.

    At 300x300 with DSOD's six maps these are the published ones (8 744 priors), save for the last
    map: its published step of 300 puts the centers of a 2x2 map at 150 and 450, so that 12 of its
    16 priors lie off the image. At other sizes the centers are spread evenly.

    Args:
        image_size: (H, W) of the network's input in pixels.
        strides: Of the L prediction maps, in pixels.
        sizes: A key of `SIZE_RATIOS` (SSD's rule, see `compute_ratio_sizes`), or L + 1 rising
            sizes in pixels: the min size of each level, then the last level's max size.
        faithful: Keep the published step of 300 on the last map (only for 300x300 and six maps).

    Returns:
        The specification; 4 priors a cell on the first and the last two maps, 6 on the others.
    """
    levels = len(strides)
    if isinstance(sizes, str):
        sizes = compute_ratio_sizes(min(image_size), levels, sizes)
    elif len(sizes) != levels + 1:
        raise ValueError(
            f"prior_sizes needs {levels + 1} sizes in pixels for {levels} maps, got {len(sizes)}"
        )
    # The published steps hold for DSOD300 alone: elsewhere they would miss the cells' centers.
    published = tuple(image_size) == (300, 300) and tuple(strides) == DSOD300_STRIDES
    if faithful and not published:
        raise ValueError(
            "faithful_priors needs image_size 300 and maps of strides "
            f"{DSOD300_STRIDES}, got {tuple(image_size)} and {tuple(strides)}"
        )
    steps = DSOD300_STEPS_AS_PUBLISHED if faithful else DSOD300_STEPS
    # The first and the last two maps go without ratio 3 (SSD, section 3.1).
    four, six = (2.0,), (2.0, 3.0)
    return PriorSpec(
        image_size=(image_size[0], image_size[1]),
        min_sizes=tuple(float(size) for size in sizes[:-1]),
        max_sizes=tuple(float(size) for size in sizes[1:]),
        aspect_ratios=tuple(six if 0 < i < levels - 2 else four for i in range(levels)),
        steps=steps if published else None,
    )
