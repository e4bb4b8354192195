"""Files of segmentations: masks as PNG of class indices, and entries of `predictions.json`."""

from pathlib import Path
from typing import Any

from densenet_backbones.inference.results.segmentation import Segmentation, describe_regions
from densenet_backbones.reporting.mask_pictures import save_index_mask


def describe_segmentation(
    segmentation: Segmentation, picture: str | None, masks: list[str], frame: int | None
) -> dict[str, Any]:
    """Return the entry of the JSON file.

    Args:
        segmentation: The result.
        picture: File of its picture, or of the video that shows it.
        masks: Files of its masks.
        frame: Number of the frame in its video.
    """
    height, width = segmentation.size
    return {
        "file": segmentation.file,
        **({} if frame is None else {"frame": frame}),
        "picture": picture,
        "width": width,
        "height": height,
        "masks": masks,
        "classes": describe_regions(segmentation),
    }


def save_masks(segmentation: Segmentation, stem: Path) -> list[str]:
    """Write the labels as one file, or one a class where classes overlap; return the names.

    Args:
        segmentation: The result.
        stem: Path of the results without endings. ``STEM_mask.png`` holds the labels as indices of
            a palette (one file a class for a multilabel model, ``STEM_mask_CLASSNUMBER.png``).
    """
    labels, colors = segmentation.labels, segmentation.colors
    if labels.ndim == 2:
        save_index_mask(f"{stem}_mask.png", labels, colors)
        return [f"{stem}_mask.png"]
    files = [f"{stem}_mask_{number}.png" for number in range(len(segmentation.names))]
    for path, layer, color in zip(files, labels, colors, strict=True):
        save_index_mask(path, layer, [(0, 0, 0), color])
    return files
