"""Masks of instances as COCO's compressed run-length codes: some hundred bytes, not an image.

Legend: n instances of one image of H x W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

RunLengths = dict[str, Any]
"""``{"size": [H, W], "counts": text}``: pycocotools' code, its bytes as ASCII, ready for JSON."""

THRESHOLD = 0.5
"""Pixels of a predicted mask above it belong to the object, as torchvision's references say."""

PIECE = 2**28
"""Bytes of floats that are made of an image's masks at once: 200 masks of 640x480 pixels."""

Detections = dict[str, Any]
"""Detections of one image, as detectors of torchvision's interface give them."""


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


def mirror_code(code: RunLengths) -> RunLengths:
    """The code of a mask with left and right swapped."""
    mask = torch.from_numpy(decode_mask(code)[:, ::-1].copy())
    return encode_masks(mask[None])[0]


def encode_detections(found: Detections) -> Detections:
    """Detections of one image with their masks, if any, as run-length codes."""
    if isinstance(found.get("masks"), Tensor):
        found = {**found, "masks": encode_masks(found.pop("masks"))}
    return found


@contextmanager
def encode_predicted_masks(model: Any) -> Iterator[None]:
    """A Mask R-CNN of torchvision's that gives run-length codes instead of masks.

    By itself it gives a float for each pixel of each mask of all images of a batch: hundreds of
    megabytes an image, gigabytes for a photograph. Here at most `PIECE` bytes exist at once.

    Args:
        model: Any detector; those without masks stay as they are.
    """
    heads: Any = getattr(model, "roi_heads", None)
    transform: Any = getattr(model, "transform", None)
    if not (hasattr(heads, "has_mask") and hasattr(transform, "postprocess") and heads.has_mask()):
        yield
        return
    original = transform.postprocess

    def in_pieces(results: list[Detections], seen: list[Any], given: list[Any]) -> list[Detections]:
        return [_coded(original, *one) for one in zip(results, seen, given, strict=True)]

    transform.postprocess = in_pieces
    try:
        yield
    finally:
        del transform.postprocess


def _coded(
    postprocess: Callable[..., list[Detections]], found: Detections, seen: Any, given: Any
) -> Detections:
    """One image's detections in the image as given, (H, W); of at least one mask at a time."""
    rows = max(1, PIECE // (4 * given[0] * given[1]))
    parts = [
        encode_detections(postprocess([piece], [seen], [given])[0])
        for start in range(0, max(1, len(found["boxes"])), rows)
        for piece in [{name: values[start : start + rows] for name, values in found.items()}]
    ]
    return {
        name: [mask for part in parts for mask in part[name]]
        if name == "masks"
        else torch.cat([part[name] for part in parts])
        for name in parts[0]
    }
