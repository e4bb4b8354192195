"""Detect in images that are larger than a detector's own: tile by tile, merged across the tiles.

Each tile is an image of its own to the detector, so that small objects are as large to it as in
training. Neighboring tiles overlap, and what several see goes through non-maximum suppression once
more (Akyon et al., "Slicing Aided Hyper Inference", arXiv:2202.06934, section 3).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area

from densenet_backbones.data.masks.run_lengths import Detections as RawDetections
from densenet_backbones.data.masks.run_lengths import decode_mask, encode_masks
from densenet_backbones.data.samples import RunLengths
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.inputs.image_tensors import to_image_tensor
from densenet_backbones.inference.inputs.image_windows import ImageWindows
from densenet_backbones.inference.merging.detection_views import detect, find_limits, select_rows
from densenet_backbones.inference.merging.tiling import Tiling, Window
from densenet_backbones.inference.results.base import LARGEST_PICTURE
from densenet_backbones.inference.results.detections import Detections

_NMS_THRESH = 0.5
"""For detectors that do not say theirs, such as exported ones."""

_INSIDE = 0.7
"""Part of a cut box that lies in a better one of its class when it is a part of that object."""

_AT_EDGE = 2.0
"""Pixels from the edge of a tile at which a box counts as cut."""


@torch.inference_mode()
def detect_in_tiles(
    detector: Detector,
    source: ImageWindows,
    tiling: Tiling,
    score_thresh: float | None = None,
    batch_size: int = 1,
) -> Detections:
    """Detect objects in an image by tiles; one tile that covers it gives what `predict` gives.

    Objects should be smaller than the overlap, so that one tile sees all of them.

    Args:
        detector: The detector.
        source: The image.
        tiling: Sizes of the tiles.
        score_thresh: As `Detector.predict`.
        batch_size: Tiles that the detector takes at once.
    """
    height, width = source.size
    windows = [
        (top, left, bottom, right)
        for top, bottom in tiling.split(height)
        for left, right in tiling.split(width)
    ]
    parts: list[RawDetections] = []
    for first in range(0, len(windows), batch_size):
        group = windows[first : first + batch_size]
        tiles = [to_image_tensor(source.read(window), detector.device) for window in group]
        with detector.running:
            found = detect(detector.model, tiles, detector.views)
        parts += [
            _place(rows, window, source.size) for rows, window in zip(found, group, strict=True)
        ]
    try:
        nms_thresh = find_limits(detector.model).nms_thresh
    except ValueError:
        nms_thresh = _NMS_THRESH
    thresh = detector.score_thresh if score_thresh is None else score_thresh
    return detector.select(_merge(parts, nms_thresh), source.shrink(LARGEST_PICTURE), thresh)


def _place(detections: RawDetections, window: Window, size: tuple[int, int]) -> RawDetections:
    """Return the detections of a tile in the frame of the image, and which of them it cuts."""
    top, left, bottom, right = window
    boxes: Tensor = detections["boxes"]
    inner = [left > 0, top > 0, right < size[1], bottom < size[0]]
    edges = boxes.new_tensor([0, 0, right - left, bottom - top])
    cut = ((boxes - edges).abs() < _AT_EDGE) & torch.tensor(inner, device=boxes.device)
    placed = {**detections, "boxes": boxes + boxes.new_tensor([left, top, left, top])}
    if "masks" in detections and any(inner):
        placed["masks"] = [_place_mask(code, window, size) for code in detections["masks"]]
    if "keypoints" in detections:
        shift = boxes.new_tensor([left, top, 0])
        placed["keypoints"] = detections["keypoints"] + shift
    return {**placed, "cut": cut.any(1)}


def _place_mask(code: RunLengths, window: Window, size: tuple[int, int]) -> RunLengths:
    top, left, bottom, right = window
    whole = np.zeros(size, np.uint8)
    whole[top:bottom, left:right] = decode_mask(code)
    return encode_masks(torch.from_numpy(whole)[None])[0]


def _merge(parts: Sequence[RawDetections], nms_thresh: float) -> RawDetections:
    """Join the detections of all tiles, each object once."""
    joined: RawDetections = {
        name: [mask for part in parts for mask in part[name]]
        if name == "masks"
        else torch.cat([part[name] for part in parts])
        for name in parts[0]
    }
    boxes, scores, labels = (joined[name] for name in ("boxes", "scores", "labels"))
    rows = select_rows(joined, batched_nms(boxes.float(), scores.float(), labels, nms_thresh))
    # The part of an object that a tile cut off overlaps the whole of it too little for that.
    boxes, labels, cut = (rows.pop(name) if name == "cut" else rows[name] for name in _OF_PARTS)
    keep = torch.ones_like(cut)
    areas = box_area(boxes)
    for number in torch.nonzero(cut)[:, 0].tolist():
        others = (labels == labels[number]) & keep & (areas > areas[number])
        corners = torch.cat([
            torch.maximum(boxes[:, :2], boxes[number, :2]),
            torch.minimum(boxes[:, 2:], boxes[number, 2:]),
        ], 1)  # fmt: skip
        shared = (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)
        keep[number] = not bool((others & (shared >= _INSIDE * areas[number])).any())
    return select_rows(rows, torch.nonzero(keep)[:, 0])


_OF_PARTS = ("boxes", "labels", "cut")
