"""Draw legends: of a picture, its classes with a number or a share each; of a sheet, below it."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from densenet_backbones.messages import pluralize, show_controls
from densenet_backbones.reporting.colors import RGB
from densenet_backbones.reporting.pictures import (
    GAP,
    INK,
    PAPER,
    TITLE_FONT,
    draw_title,
    load_font,
)

MOST_LINES = 12
"""Classes that a legend lists; the others are counted in its last line."""

_LARGEST_PART = 0.3
"""Part of the picture that a legend may cover; it is left out where it would cover more."""


def draw_legend(
    picture: np.ndarray, counts: Mapping[str, str], colors: Mapping[str, RGB]
) -> np.ndarray:
    """Return a picture with a legend in the corner that is least busy.

    Args:
        picture: (H, W, 3) uint8 RGB.
        counts: Text about each class that is listed, in order; none for no legend.
        colors: Color of each class.
    """
    lines = [(colors[name], f"{show_controls(name)[:30]}  {n}") for name, n in counts.items()]
    if len(lines) > MOST_LINES:
        lines = [
            *lines[: MOST_LINES - 1],
            (PAPER, pluralize(len(lines) - MOST_LINES + 1, "more class")),
        ]
    height, width = picture.shape[:2]
    font = load_font(max(9, round(0.016 * (height * width) ** 0.5 + 4)))
    row = sum(font.getmetrics()) + 2
    wide = round(max((font.getlength(text) for _, text in lines), default=0)) + 2 * row
    high = row * len(lines) + row // 2
    if not lines or wide > width or high > height or wide * high > _LARGEST_PART * height * width:
        return picture
    left, top = _find_calm_corner(picture, wide, high)
    drawn = Image.fromarray(picture)
    overlay = ImageDraw.Draw(drawn, "RGBA")
    overlay.rounded_rectangle((left, top, left + wide - 1, top + high - 1), 4, (*INK, 190))
    for number, (color, text) in enumerate(lines):
        middle = top + row // 4 + row * number + row / 2
        square = (left + row // 3, middle - row / 3, left + row, middle + row / 3)
        overlay.rectangle(square, fill=color)
        overlay.text((left + 4 * row // 3, middle), text, fill=PAPER, font=font, anchor="lm")
    return np.array(drawn)


def append_legend(sheet: np.ndarray, entries: Sequence[tuple[str, RGB]]) -> np.ndarray:
    """Return a sheet with a line below it that says what each color stands for.

    Args:
        sheet: (H, W, 3) uint8.
        entries: Name and color; names that find no room in a line go to the next one.
    """
    height = TITLE_FONT + 10
    lines: list[np.ndarray] = []
    x = sheet.shape[1]
    for name, color in entries:
        patch = draw_title(name, int(load_font(TITLE_FONT).getlength(name)) + 4, height)
        if x + height + patch.shape[1] > sheet.shape[1]:
            lines.append(np.full((height, sheet.shape[1], 3), PAPER, np.uint8))
            x = GAP
        room = lines[-1][:, x + height : x + height + patch.shape[1]]
        room[:] = patch[:, : room.shape[1]]
        lines[-1][5:-5, x : x + height - 8] = color
        x += height + patch.shape[1] + 2 * GAP
    return np.concatenate([sheet, *lines])


def _find_calm_corner(picture: np.ndarray, wide: int, high: int) -> tuple[int, int]:
    """Return left and top edge of the corner whose pixels differ least; the top right if equal."""
    height, width = picture.shape[:2]
    places = [(x, y) for y in (0, height - high) for x in (width - wide, 0)]
    return min(places, key=lambda p: picture[p[1] : p[1] + high, p[0] : p[0] + wide].std())
