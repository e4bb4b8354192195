"""Converts masks of instances to and from COCO's run-length codes: some hundred bytes each.

The codes are pycocotools' (``pycocotools/mask.py`` and ``common/maskApi.c`` of cocoapi).

Legend: n instances of one image of H x W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from densenet_backbones.data.samples import RunLengths

THRESHOLD = 0.5
"""Probability above which a pixel belongs to the object, as in torchvision's references."""

PIECE = 2**28
"""Most bytes of floats that an image's masks take at once: 200 masks of 640x480 pixels."""

Size = tuple[int, int]

Detections = dict[str, Any]
"""Detections of one image by name, as detectors of torchvision's interface give them."""


def encode_masks(masks: Tensor, threshold: float = THRESHOLD) -> list[RunLengths]:
    """Encode the masks of one image.

    Args:
        masks: (n, H, W) or, as torchvision's models return them, (n, 1, H, W): probabilities in
            [0, 1], or 0 and 1 as integers or booleans; on any device.
        threshold: Value above which a pixel is the object's.

    Returns:
        One code a mask, its `counts` as ASCII text, ready for JSON.

    Raises:
        ValueError: If `masks` has another shape.
    """
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim != 3:
        raise ValueError(f"masks must be (n, H, W) or (n, 1, H, W), got {tuple(masks.shape)}")
    if not len(masks):
        return []
    # Thresholded and turned where they are; one byte a pixel travels to the CPU, not four.
    columns = (masks > threshold).transpose(1, 2).to(torch.uint8).contiguous().cpu().numpy()
    codes = coco_mask.encode(columns.transpose(2, 1, 0))  # (H, W, n) in Fortran's order
    return [{"size": [int(s) for s in c["size"]], "counts": c["counts"].decode()} for c in codes]


def decode_mask(code: RunLengths) -> np.ndarray:
    """Decode one mask, (H, W) bool."""
    return np.asarray(coco_mask.decode(code), bool)


def mirror_code(code: RunLengths) -> RunLengths:
    """Swap left and right of a coded mask."""
    mask = torch.from_numpy(decode_mask(code)[:, ::-1].copy())
    return encode_masks(mask[None])[0]


def encode_detections(detections: Detections) -> Detections:
    """Encode the masks, if any, of one image's detections as run lengths."""
    if isinstance(detections.get("masks"), Tensor):
        detections = {**detections, "masks": encode_masks(detections.pop("masks"))}
    return detections


@contextmanager
def encode_predicted_masks(model: object) -> Iterator[None]:
    """Make a Mask R-CNN of torchvision's give run-length codes instead of masks.

    By itself it gives a float for each pixel of each mask of all images of a batch: hundreds of
    megabytes an image, gigabytes for a photograph. Here at most `PIECE` bytes exist at once.

    Args:
        model: Detector of any kind; those without masks stay as they are.
    """
    heads: Any = getattr(model, "roi_heads", None)
    transform: Any = getattr(model, "transform", None)
    if not (hasattr(heads, "has_mask") and hasattr(transform, "postprocess") and heads.has_mask()):
        yield
        return
    original = transform.postprocess

    def postprocess_in_pieces(
        results: list[Detections], resized: list[Size], originals: list[Size]
    ) -> list[Detections]:
        rows = zip(results, resized, originals, strict=True)
        return [_postprocess_image(original, *one) for one in rows]

    with patch.object(transform, "postprocess", postprocess_in_pieces):
        yield


def _postprocess_image(
    postprocess: Callable[..., list[Detections]],
    detections: Detections,
    resized: Size,
    original: Size,
) -> Detections:
    """Scale one image's detections back, some rows at a time, and encode their masks.

    Args:
        postprocess: The transform's own, of lists of images.
        detections: Detections in the image as the model saw it.
        resized: (H, W) of that image.
        original: (H, W) of the image as it was given.
    """
    # Masks are pasted into the image a few at a time, and coded at once.
    rows = max(1, PIECE // (4 * original[0] * original[1]))
    parts = [
        encode_detections(postprocess([piece], [resized], [original])[0])
        for start in range(0, max(1, len(detections["boxes"])), rows)
        for piece in [{name: values[start : start + rows] for name, values in detections.items()}]
    ]
    return {
        name: [mask for part in parts for mask in part[name]]
        if name == "masks"
        else torch.cat([part[name] for part in parts])
        for name in parts[0]
    }
