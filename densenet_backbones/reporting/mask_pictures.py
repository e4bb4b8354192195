"""Draw masks: over the image, beside the annotation, and as files of class indices.

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
from densenet_backbones.reporting.pictures import make_sheet, scale_image

OPACITY = 0.55
_IGNORED_COLOR = (224, 224, 192)  # VOC's, of index 255
_WRONG_COLOR = (213, 40, 0)
_LONGEST, _SHORTEST = 480, 160  # pixels of the longer side of a picture in a sheet


def draw_mask(
    image: np.ndarray, mask: np.ndarray, colors: Sequence[Color], opacity: float = OPACITY
) -> np.ndarray:
    """Lay a mask over a copy of an image; borders are drawn in full color.

    Black classes (VOC's background) and ignored pixels leave the image as it is, but for the
    border. (Colors are looked up for all labels at once: torchvision's `draw_segmentation_masks`
    takes a mask a label, three times as long and gigabytes for a picture of 4096 x 4096 pixels.)

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: Of the same height and width.
        colors: RGB of each class.
        opacity: Share of the color in an area, in [0, 1].

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: Image and mask differ in size, or a label has no color.
    """
    if image.shape[:2] != mask.shape[-2:]:
        raise ValueError(
            f"the mask is {mask.shape[-1]}x{mask.shape[-2]} pixels, its image {image.shape[1]}x"
            f"{image.shape[0]}; give a mask of the image's size"
        )
    highest = int(mask[mask != IGNORED].max(initial=0))
    if highest >= (len(colors) if mask.ndim == 2 else 2):
        raise ValueError(f"the mask holds label {highest}, colors are {len(colors)}")
    picture = image.copy()
    if mask.ndim == 2:
        _paint(picture, mask, colors, opacity)
    else:
        for layer, color in zip(mask, colors, strict=True):
            _paint(picture, layer, [(0, 0, 0), color], opacity)
    return picture


def _paint(
    picture: np.ndarray, labels: np.ndarray, colors: Sequence[Color], opacity: float
) -> None:
    """Lay (H, W) labels over the picture itself."""
    palette = np.zeros((IGNORED + 1, 3), np.uint8)
    palette[: len(colors)] = colors
    ink = palette[labels]
    painted = ink.any(axis=2)
    # A pixel is on a border if its 3x3 neighbors have a lower or a higher label.
    square = np.ones((3, 3), np.uint8)
    border = (cv2.erode(labels, square) != labels) | (cv2.dilate(labels, square) != labels)
    tinted = cv2.addWeighted(picture, 1 - opacity, ink, opacity, 0)
    picture[painted] = tinted[painted]
    picture[painted & border] = ink[painted & border]


def draw_masks_side_by_side(
    images: Sequence[np.ndarray],
    annotated: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    colors: Sequence[Color],
    titles: Sequence[tuple[str, str]] | None = None,
) -> np.ndarray:
    """Draw a sheet with three pictures an image: the image, its annotation, the prediction.

    The title of a prediction gives the share of the known pixels that are right. With titles there
    is a fourth picture, of the wrong pixels.

    Args:
        images: (H, W, 3) uint8 each.
        annotated: Label mask of each image, (H, W) uint8.
        predicted: Predicted labels of each image, (H, W) uint8, without ignored pixels.
        colors: RGB of each class.
        titles: Title of each image, and of its wrong pixels.

    Returns:
        (H, W, 3) uint8.
    """
    drawn, heads = [], []
    names = titles if titles is not None else [("image", "")] * len(images)
    for image, truth, labels, (name, score) in zip(
        images, annotated, predicted, names, strict=True
    ):
        counted = truth != IGNORED
        right = f" {(truth == labels)[counted].mean():.1%}" if counted.any() else ""
        drawn.append(_fit(image))
        drawn += [_fit(draw_mask(image, mask, colors)) for mask in (truth, labels)]
        heads += [name, "annotated", f"predicted{right}"]
        if titles is not None:
            drawn.append(_fit(draw_mask_errors(image, truth, labels)))
            heads.append(score)
    kinds = 3 if titles is None else 4
    return make_sheet(drawn, kinds if len(images) <= 4 else 2 * kinds, heads)


def draw_mask_errors(image: np.ndarray, annotated: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Draw the wrong pixels of a prediction in red over a pale gray copy of its image.

    Args:
        image: (H, W, 3) uint8 RGB.
        annotated: Label mask of the image; ignored pixels are drawn dark.
        predicted: Predicted labels, of the same shape.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    wrong, ignored = annotated != predicted, annotated == IGNORED
    wrong &= ~ignored
    if annotated.ndim == 3:  # a layer a label: wrong in one of them, ignored in all
        wrong, ignored = wrong.any(axis=0), ignored.all(axis=0)
    picture = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    pale = picture // 3 + 150
    pale[ignored] = picture[ignored] // 3
    pale[wrong] = pale[wrong] // 4 + np.array([c * 3 // 4 for c in _WRONG_COLOR], np.uint8)
    return np.asarray(pale, np.uint8)


def draw_masks_sheet(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], colors: Sequence[Color]
) -> np.ndarray:
    """Draw images with their masks on one sheet, (H, W, 3) uint8."""
    pairs = zip(images, masks, strict=True)
    return make_sheet([_fit(draw_mask(image, mask, colors)) for image, mask in pairs])


def save_index_mask(path: str | Path, labels: np.ndarray, colors: Sequence[Color]) -> None:
    """Write labels as a PNG of indices with a palette, as VOC keeps its masks.

    Args:
        path: The file; see `replace_file`.
        labels: (H, W) uint8.
        colors: RGB of each label; 255 gets VOC's color of ignored pixels.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORED] = _IGNORED_COLOR
    picture = Image.fromarray(labels)  # mode L, whose values become indices
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    save_bytes(path, buffer.getvalue())


def _fit(image: np.ndarray) -> np.ndarray:
    """Shrink large pictures; enlarge small ones, over which titles would be cut."""
    longest = max(image.shape[:2])
    if longest < _SHORTEST:
        times = -(-_SHORTEST // longest)
        return np.asarray(image.repeat(times, axis=0).repeat(times, axis=1))
    return scale_image(image, min(1.0, _LONGEST / longest))
