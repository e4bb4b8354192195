"""Masks of instances as COCO's compressed run-length codes: some hundred bytes, not an image.

Legend: n instances of one image of H x W pixels.
"""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

RunLengths = dict[str, Any]
"""``{"size": [H, W], "counts": text}``: pycocotools' code, its bytes as ASCII, ready for JSON."""

THRESHOLD = 0.5
"""Pixels of a predicted mask above it belong to the object, as torchvision's references say."""


def encode_masks(masks: Tensor, threshold: float = THRESHOLD) -> list[RunLengths]:
    """Codes of the masks of one image.

    Args:
        masks: (n, H, W) or, as torchvision's models return them, (n, 1, H, W): probabilities in
            [0, 1], or 0 and 1 as integers or booleans; on any device.
        threshold: A pixel above it is the object's.

    Raises:
        ValueError: `masks` has another shape.
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
    """One mask, (H, W) bool."""
    return np.asarray(coco_mask.decode(code), bool)
