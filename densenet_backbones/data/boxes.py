"""Box checks: clipping to the image, boxes around masks, and sentences about faulty boxes.

Legend: B boxes; sizes are (W, H) pixels of the image as shown; boxes are xyxy in absolute pixels.
"""

import cv2
import numpy as np

from densenet_backbones.untrusted.limits import MAX_SIDE as MAX_SIDE

OVERHANG = 1.0  # pixels: rounding, and counting from 0 or 1, reach this far; clipped silently
LEFT_OUT = "left out of training, still counted in evaluation"


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to their images.

    Args:
        boxes: (B, 4) float64, finite.
        sizes: (B, 2) or (2,) image sizes, sides in ``1 .. MAX_SIDE``.

    Returns:
        (B, 4) float32 clipped boxes, and (B,) bool, True for boxes that have an area after rounding
        to float32, so that training may use them.
    """
    clipped = np.clip(boxes, 0, _limits(boxes, sizes)).astype(np.float32)
    usable = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    return clipped, usable


def masks_to_boxes(masks: np.ndarray) -> np.ndarray:
    """Compute boxes that are tight around the pixels of masks.

    (torchvision's `masks_to_boxes` names the last pixel, where boxes here end behind it.)

    Args:
        masks: (B, H, W) uint8, 0 outside of an object.

    Returns:
        (B, 4) float32; 0, 0, 0, 0 where a mask is empty.
    """
    boxes = np.array([cv2.boundingRect(mask) for mask in masks], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # xywh to xyxy
    return boxes


def measure_overhang(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the (B,) pixels by which each box reaches beyond its image; negative if inside."""
    return np.asarray(np.maximum(-boxes, boxes - _limits(boxes, sizes)).max(axis=1))


def describe_box_fault(box: np.ndarray, size: tuple[int, int]) -> tuple[str, str]:
    """Describe the fault of a box that is unusable or reaches out, and what is done about it.

    Args:
        box: (4,) float64.
        size: (W, H) of the image.

    Returns:
        Two clauses, for `Problem.what` and `Problem.action`.
    """
    # From the most to the least certain fault.
    x1, y1, x2, y2 = (float(value) for value in box)
    width, height = size
    image = f"the image of {width}x{height} pixels"
    if x2 <= x1 or y2 <= y1:
        return f"the box has no area (width {x2 - x1:g}, height {y2 - y1:g})", LEFT_OUT
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return f"the box {x1:g}, {y1:g}, {x2:g}, {y2:g} (xyxy) lies outside {image}", LEFT_OUT
    if not clip_boxes(box[None], np.array(size))[1][0]:
        return f"the box is too thin (width {x2 - x1:g}, height {y2 - y1:g})", LEFT_OUT
    beyond = float(measure_overhang(box[None], np.array(size))[0])
    return f"the box reaches {beyond:g} pixels beyond {image}", "clipped for training"


def _limits(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.concatenate((sizes, sizes), axis=-1), boxes.shape)
