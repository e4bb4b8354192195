"""Segmenting pictures from the command line: masks, overlays and a summary; see `predict`."""

from pathlib import Path
from typing import Any

import numpy as np

from densenet_backbones.inference.image_windows import ImageWindows
from densenet_backbones.inference.segmenter import Segmentation, SegmentationModel
from densenet_backbones.reporting.mask_pictures import draw_mask, save_index_mask
from densenet_backbones.reporting.pictures import save_picture

LARGEST_PICTURE = 4096
"""Pixels of the longer side of an overlay; masks have the image's own size."""

ENDINGS = (".png", "_mask.png")
"""Of an overlay and of a mask."""


def predict_mask(
    model: SegmentationModel,
    file: Path,
    stem: Path,
    *,
    tile: int,
    overlap: int | None,
    picture: bool,
) -> dict[str, Any]:
    """Segment one file and write what was found.

    Args:
        model: The model.
        file: The image.
        stem: Where results go: ``STEM_mask.png`` holds the labels as indices of a palette (one file
            a class for a multilabel model, ``STEM_mask_CLASSNUMBER.png``), ``STEM.png`` the mask
            over the image.
        tile: Images with a longer side than this are predicted in tiles of it.
        overlap: Of the tiles, in pixels; None takes a quarter.
        picture: Whether to draw the overlay.

    Returns:
        The image's entry of the summary.

    Raises:
        DataError: The file cannot be read.
        ValueError: Tiles are impossible.
    """
    source = ImageWindows(file)
    found = model.predict_windows(source, tile, overlap)
    if picture:
        step = -(-max(source.size) // LARGEST_PICTURE)
        labels = np.ascontiguousarray(found.labels[..., ::step, ::step])
        drawn = draw_mask(source.thinned(step), labels, found.colors)
        save_picture(f"{stem}.png", drawn)
    return {
        "file": str(file),
        "picture": f"{stem}.png" if picture else None,
        "width": source.size[1],
        "height": source.size[0],
        "masks": _save_masks(found, stem),
        "classes": [
            {
                "name": name,
                "label": label,
                "pixels": pixels,
                "share": round(found.share(label), 6),
                "score": round(found.score(label), 4),
            }
            for label, name in enumerate(found.names)
            if (pixels := found.pixels(label))
        ],
    }


def _save_masks(found: Segmentation, stem: Path) -> list[str]:
    if found.labels.ndim == 2:
        save_index_mask(f"{stem}_mask.png", found.labels, found.colors)
        return [f"{stem}_mask.png"]
    files = [f"{stem}_mask_{number}.png" for number in range(len(found.names))]
    for path, labels, color in zip(files, found.labels, found.colors, strict=True):
        save_index_mask(path, labels, [(0, 0, 0), color])
    return files
