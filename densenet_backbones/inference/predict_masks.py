"""Segment pictures from the command line: masks, overlays and a summary; see `predict`."""

from pathlib import Path

import numpy as np

from densenet_backbones.inference.image_windows import ImageWindows
from densenet_backbones.inference.model_file import JsonDict
from densenet_backbones.inference.segmenter import Segmentation, SegmentationModel
from densenet_backbones.reporting.mask_pictures import draw_mask, save_index_mask
from densenet_backbones.reporting.pictures import save_picture

LARGEST_PICTURE = 4096
"""Most pixels of the longer side of an overlay; masks have the image's own size."""

ENDINGS = (".png", "_mask.png")
"""Endings of an overlay and of a mask."""


def predict_mask(
    model: SegmentationModel,
    file: Path,
    stem: Path,
    *,
    tile: int,
    overlap: int | None,
    picture: bool,
) -> JsonDict:
    """Segment one file, and write its mask and perhaps an overlay.

    Args:
        model: The segmenter.
        file: The image.
        stem: Path of the results without endings. ``STEM_mask.png`` holds the labels as indices of
            a palette (one file a class for a multilabel model, ``STEM_mask_CLASSNUMBER.png``),
            ``STEM.png`` the mask over the image.
        tile: Images with a longer side than this are predicted in tiles of it.
        overlap: Pixels that tiles share; None takes a quarter of a tile.
        picture: Draw the overlay.

    Returns:
        Entry of the image in the summary.

    Raises:
        DataError: The file cannot be read.
        ValueError: Tiles are impossible.
    """
    source = ImageWindows(file)
    segmentation = model.predict_windows(source, tile, overlap)
    # Pictures of huge images are drawn small, from every step-th pixel.
    if picture:
        step = -(-max(source.size) // LARGEST_PICTURE)
        labels = np.ascontiguousarray(segmentation.labels[..., ::step, ::step])
        drawn = draw_mask(source.subsample(step), labels, segmentation.colors)
        save_picture(f"{stem}.png", drawn)
    return {
        "file": str(file),
        "picture": f"{stem}.png" if picture else None,
        "width": source.size[1],
        "height": source.size[0],
        "masks": _save_masks(segmentation, stem),
        "classes": [
            {
                "name": name,
                "label": label,
                "pixels": pixels,
                "share": round(segmentation.measure_share(label), 6),
                "score": round(segmentation.mean_score(label), 4),
            }
            for label, name in enumerate(segmentation.names)
            if (pixels := segmentation.count_pixels(label))
        ],
    }


def _save_masks(segmentation: Segmentation, stem: Path) -> list[str]:
    """Write the labels as one file, or one a class where classes overlap; return the names."""
    labels, colors = segmentation.labels, segmentation.colors
    if labels.ndim == 2:
        save_index_mask(f"{stem}_mask.png", labels, colors)
        return [f"{stem}_mask.png"]
    files = [f"{stem}_mask_{number}.png" for number in range(len(segmentation.names))]
    for path, layer, color in zip(files, labels, colors, strict=True):
        save_index_mask(path, layer, [(0, 0, 0), color])
    return files
