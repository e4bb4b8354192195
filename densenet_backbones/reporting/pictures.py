"""Draw what goes into a detector and what comes out of it, and lay images out on sheets.

Images are uint8 arrays (H, W, 3), RGB; boxes are xyxy in pixels of their image. Curves and
matrices are drawn in `plots`, masks and keypoints in `instance_pictures`.
"""

import functools
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

from densenet_backbones.file_writing import save_bytes
from densenet_backbones.messages import pluralize, show_controls
from densenet_backbones.reporting.colors import RGB, get_class_color
from densenet_backbones.reporting.png import PNG_LEVEL

PAPER, INK = (255, 255, 255), (24, 26, 32)
LARGEST_CELL, SMALLEST_CELL = 480, 320
"""Pixels of the longer side of an image in a sheet."""

GAP = 8
"""Pixels between the images of a sheet."""
_LONGEST_NAME = 100  # letters of a tag
TITLE_FONT = 14
"""Pixels of the letters of titles."""

Rectangle = tuple[float, float, float, float]


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    colors: Sequence[RGB] | None = None,
) -> np.ndarray:
    """Draw boxes with their class, and score if there is one, on a copy of an image.

    Line and letters grow with the image, so that it can be read at 160 and at 2000 pixels. Labels
    stay inside the image and avoid each other; in a crowd, where a label would be half hidden under
    those of higher scores, the box is drawn without it (its color still tells the class).

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) xyxy in pixels; parts outside the image are not drawn.
        labels: (n,) in ``1 .. len(names)``.
        names: Class names in label order.
        scores: (n,) in [0, 1], or None for ground truth.
        colors: RGB of each box; None takes those of the classes.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: If the image is of another type, or a label has no name.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"the image must be uint8 of shape (H, W, 3), got {image.dtype} {image.shape}"
        )
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    labels = np.asarray(labels, int).reshape(-1)
    if len(labels) and not 1 <= labels.min() <= labels.max() <= len(names):
        raise ValueError(
            f"labels must lie in [1, {len(names)}], the names given, got {labels.min()} to "
            f"{labels.max()}"
        )
    side = math.sqrt(image.shape[0] * image.shape[1])
    font = load_font(max(9, round(0.018 * side + 5)))
    falling = np.arange(len(boxes))
    if scores is not None:
        falling = np.argsort(-np.asarray(scores, float), kind="stable")

    # The surest detections choose the place of their label first, and are drawn last, on top.
    tags: dict[int, _Tag] = {}
    for i in falling.tolist():
        score = "" if scores is None else f" {float(scores[i]):.2f}"
        tag = _place_tag(
            names[labels[i] - 1], score, boxes[i], font, image.shape[:2], list(tags.values())
        )
        if tag is not None:
            tags[i] = tag
    rising = falling[::-1]
    if colors is None:
        colors = [get_class_color(int(label)) for label in labels]
    picture = Image.fromarray(
        _draw_boxes(image, boxes[rising], [colors[i] for i in rising], max(1, round(side / 240)))
    )
    overlay = ImageDraw.Draw(picture, "RGBA")
    for i, tag in reversed(tags.items()):
        _draw_tag(overlay, tag, colors[i], font)
    return np.array(picture)


def make_sheet(
    images: Sequence[np.ndarray],
    columns: int | None = None,
    titles: Sequence[str] | None = None,
) -> np.ndarray:
    """Lay images of any sizes out on one sheet, row by row.

    Each image is scaled, with its proportions kept, to fit into the largest width and height among
    them, at most 480 pixels each.

    Args:
        images: (H, W, 3) uint8 each.
        columns: Images in a row; None makes the sheet about as wide as it is high.
        titles: One line above each image, shortened to fit; None for no titles.

    Returns:
        (H, W, 3) uint8; a small blank sheet when there are no images.

    Raises:
        ValueError: If `columns` is below 1 or the numbers of titles and images differ.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if titles is not None and len(titles) != len(images):
        raise ValueError(
            f"{pluralize(len(images), 'image')} but {len(titles)} titles; give one an image"
        )
    if not images:
        return np.full((2 * GAP, 2 * GAP, 3), PAPER, np.uint8)
    width = min(LARGEST_CELL, max(image.shape[1] for image in images))
    height = min(LARGEST_CELL, max(image.shape[0] for image in images))
    fitted = [scale_image(i, min(height / i.shape[0], width / i.shape[1])) for i in images]
    columns = min(len(images), columns or max(1, round(math.sqrt(len(images) * height / width))))
    size = (max(image.shape[0] for image in fitted), width)
    cells = [
        _make_cell(image, None if titles is None else titles[i], size)
        for i, image in enumerate(fitted)
    ]
    # Each cell has its gap at the left and the top: `make_grid` gives a single image no padding.
    grid = to_pixels(make_grid([to_tensor(cell) for cell in cells], columns, 0, pad_value=255))
    return np.pad(grid, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def _make_cell(image: np.ndarray, title: str | None, size: tuple[int, int]) -> np.ndarray:
    """Return an image of a sheet with its gap and title, in a cell for images of `size` (H, W)."""
    height, width = size
    head = 0 if title is None else TITLE_FONT + 8
    cell = np.full((GAP + head + height, GAP + width, 3), PAPER, np.uint8)
    # Right under its title if it has one.
    top = GAP + head if title is not None else GAP + (height - image.shape[0]) // 2
    left = GAP + (width - image.shape[1]) // 2
    cell[top : top + image.shape[0], left : left + image.shape[1]] = image
    if title is not None:
        cell[GAP : GAP + head, GAP:] = draw_title(title, width, head)
    return cell


def to_pixels(image: Tensor) -> np.ndarray:
    """Turn a (3, H, W) uint8 tensor, as models are given it, into the array of a picture."""
    return image.permute(1, 2, 0).cpu().numpy()


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn the array of a picture into a (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def save_picture(path: str | Path, image: np.ndarray) -> None:
    """Write an image as a PNG file in one step; makes its folder.

    Args:
        path: The file.
        image: (H, W, 3) or (H, W) uint8.
    """
    save_bytes(path, _pack(image))


def _pack(image: np.ndarray) -> bytes:
    """Return an image as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Tag:
    """A label's text and the rectangle it fills."""

    text: str
    place: Rectangle


@functools.lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all pictures, at a size in pixels."""
    # DejaVu comes with matplotlib, which takes long to import, and knows Latin, Greek, Cyrillic,
    # Arabic and more.
    package = find_spec("matplotlib")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pictures need matplotlib's font", name="matplotlib")
    folder = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / "DejaVuSans-Bold.ttf"), size)


def _place_tag(
    name: str,
    score: str,
    box: np.ndarray,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: Sequence[_Tag],
) -> "_Tag | None":
    """Find room for a label at its box, inside an image of `size` (H, W); None if there is none."""
    height, width = size
    pad = max(1, font.size // 5)
    text = _shorten(name, score, font, width - 2 * pad)
    w = font.getlength(text) + 2 * pad
    h = sum(font.getmetrics()) + max(0, pad - 1)
    x1, y1, x2, y2 = (float(v) for v in box)
    # Above, inside at the top, below, inside at the bottom; at the left edge, then at the right.
    corners = np.array([(x, y) for x in (x1, x2 - w) for y in (y1 - h, y1, y2, y2 - h)])
    inside = corners.clip(0, (max(0.0, width - w), max(0.0, height - h)))
    places = np.hstack((inside, inside + np.array((w, h))))  # (8, 4)
    covered = _measure_covered(places, np.array([tag.place for tag in taken]).reshape(-1, 4))
    moved = abs(corners - inside).sum(1)  # by the edge of the image, away from the box
    best = np.lexsort((moved, covered))[0]
    if covered[best] >= 0.5 * w * h:
        return None
    left, top, right, bottom = places[best].tolist()
    return _Tag(text, (left, top, right, bottom))


def _measure_covered(places: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Return the area of each rectangle of `places` (P, 4) that those of `taken` (T, 4) cover."""
    ends = np.minimum(places[:, 2:], taken[:, None, 2:])  # (T, P, 2)
    begins = np.maximum(places[:, :2], taken[:, None, :2])
    area: np.ndarray = (ends - begins).clip(0).prod(axis=2).sum(axis=0)
    return area


def _shorten(name: str, score: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Fit name and score into `room` pixels; the name gives way first."""
    name = show_controls(name)[:_LONGEST_NAME]  # a line break would spoil the measure
    text = name + score
    while name and font.getlength(text) > room:
        name = name[:-1]
        text = f"{name.rstrip()}…{score}" if name else score.strip()
    return text


def _draw_boxes(
    image: np.ndarray, boxes: np.ndarray, colors: Sequence[RGB], thickness: int
) -> np.ndarray:
    """Return an image with boxes in their colors between dark edges, the last one on top."""
    if not len(boxes):
        return image
    corners = np.round(boxes).astype(np.int64)
    corners[:, 2:] = np.maximum(corners[:, :2], corners[:, 2:] - 1)  # the last pixel is x2 - 1
    sides = (corners[:, 2:] - corners[:, :2]).min(axis=1)
    widths = np.clip(sides // 5, 1, thickness)  # a box thinner than its line still shows
    rims = np.where(sides > 4 * widths, 2, 1)  # small boxes have a dark edge outside only
    picture = to_tensor(image)
    lines = list(zip(widths.tolist(), rims.tolist(), strict=True))
    for (width, rim), group in itertools.groupby(range(len(boxes)), key=lines.__getitem__):
        rows = list(group)
        places = torch.from_numpy(corners[rows])
        around = places + torch.tensor([-1, -1, 1, 1])
        picture = draw_bounding_boxes(picture, around, colors=INK, width=width + rim)
        inks = [colors[i] for i in rows]
        picture = draw_bounding_boxes(picture, places, colors=inks, width=width)
    return to_pixels(picture)


def _draw_tag(
    overlay: ImageDraw.ImageDraw, tag: _Tag, color: RGB, font: ImageFont.FreeTypeFont
) -> None:
    left, top, right, bottom = (round(v) for v in tag.place)
    pad = max(1, font.size // 5)
    overlay.rounded_rectangle(
        (left, top, right - 1, bottom - 1), radius=font.size // 5, fill=(*color, 235)
    )
    # Relative luminance of ITU-R BT.601: dark letters on light colors.
    light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    ink = INK if light else PAPER
    overlay.text((left + pad, (top + bottom) / 2), tag.text, fill=ink, font=font, anchor="lm")


def draw_title(text: str, width: int, height: int) -> np.ndarray:
    """Return one line of text, shortened to fit, as a strip (height, width, 3) uint8."""
    strip = Image.new("RGB", (width, height), PAPER)
    font = load_font(TITLE_FONT)
    text = _shorten(text, "", font, width)
    ImageDraw.Draw(strip).text((0, height / 2), text, fill=INK, font=font, anchor="lm")
    return np.array(strip)


def scale_image(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an (H, W, 3) uint8 image to a multiple of its size; itself where that is the same."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=method))
