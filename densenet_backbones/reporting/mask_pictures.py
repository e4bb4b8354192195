"""Pictures of masks: over the image, beside the annotation, and as files of indices.

Images are uint8 arrays (H, W, 3), RGB; masks uint8 (H, W) with labels ``0 .. K - 1`` and `IGNORED`,
or (K, H, W) with 0, 1 and `IGNORED`.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from densenet_backbones.data.mask_samples import IGNORED, Color
from densenet_backbones.file_writing import save_bytes
from densenet_backbones.reporting.pictures import make_sheet

OPACITY = 0.55
_IGNORED_COLOR = (224, 224, 192)  # VOC's, of index 255
_LONGEST = 480  # pixels of a picture in a sheet


def draw_mask(
    image: np.ndarray, mask: np.ndarray, colors: Sequence[Color], opacity: float = OPACITY
) -> np.ndarray:
    """Lay a mask over a copy of an image; borders are drawn in full colour.

    Black classes (VOC's background) and ignored pixels leave the image as it is, but for the
    border.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: Of the same height and width.
        colors: RGB of each class.
        opacity: Share of the colour in an area, in [0, 1].

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: Image and mask differ in size, or a label has no colour.
    """
    if image.shape[:2] != mask.shape[-2:]:
        raise ValueError(
            f"the mask is {mask.shape[-1]}x{mask.shape[-2]} pixels, its image {image.shape[1]}x"
            f"{image.shape[0]}; give a mask of the image's size"
        )
    picture = image.astype(np.float32)
    layers = mask[None] if mask.ndim == 2 else mask
    for number, layer in enumerate(layers):
        labels = np.unique(layer[layer != IGNORED])
        highest = int(labels.max(initial=0))
        if highest >= (len(colors) if mask.ndim == 2 else 2):
            raise ValueError(f"the mask holds label {highest}, colours are {len(colors)}")
        for label in labels.tolist():
            color = colors[label if mask.ndim == 2 else number]
            if any(color) and (mask.ndim == 2 or label == 1):
                _paint(picture, layer == label, color, opacity)
    return np.clip(picture.round(), 0, 255).astype(np.uint8)


def _paint(picture: np.ndarray, area: np.ndarray, color: Color, opacity: float) -> None:
    inner = cv2.erode(area.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(bool)
    ink = np.array(color, np.float32)
    picture[area] = (1 - opacity) * picture[area] + opacity * ink
    picture[area & ~inner] = ink


def draw_masks_side_by_side(
    images: Sequence[np.ndarray],
    annotated: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    colors: Sequence[Color],
) -> np.ndarray:
    """A sheet with three pictures an image: the image, its annotation, the prediction.

    The title of a prediction says which share of the known pixels is right.

    Args:
        images: (H, W, 3) uint8 each.
        annotated: The mask of each.
        predicted: Likewise, without ignored pixels.
        colors: RGB of each class.

    Returns:
        (H, W, 3) uint8.
    """
    drawn, titles = [], []
    for image, truth, found in zip(images, annotated, predicted, strict=True):
        counted = truth != IGNORED
        right = f" {(truth == found)[counted].mean():.1%}" if counted.any() else ""
        for mask, title in ((None, "image"), (truth, "annotated"), (found, f"predicted{right}")):
            drawn.append(_shrunk(image if mask is None else draw_mask(image, mask, colors)))
            titles.append(title)
    in_a_row = 3 if len(images) <= 4 else 6
    return make_sheet(drawn, in_a_row, titles)


def draw_masks_sheet(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], colors: Sequence[Color]
) -> np.ndarray:
    """Images with their masks on one sheet, (H, W, 3) uint8."""
    pairs = zip(images, masks, strict=True)
    return make_sheet([_shrunk(draw_mask(image, mask, colors)) for image, mask in pairs])


def save_index_mask(path: str | Path, labels: np.ndarray, colors: Sequence[Color]) -> None:
    """Write labels as a PNG of indices with a palette, as VOC keeps its masks.

    Args:
        path: The file; replaced in one step.
        labels: (H, W) uint8.
        colors: RGB of each label; 255 gets VOC's colour of ignored pixels.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORED] = _IGNORED_COLOR
    picture = Image.fromarray(labels)  # mode L, whose values become indices
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    save_bytes(path, buffer.getvalue())


def _shrunk(image: np.ndarray) -> np.ndarray:
    scale = _LONGEST / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
