"""Pictures of instances: boxes with their masks and keypoints, annotated beside predicted ones.

Images are uint8 arrays (H, W, 3), RGB; boxes and keypoints are in pixels of their image. Boxes and
names have the colour of the class; masks and keypoints one of the instance, so that neighbours of
one class can be told apart.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from torch import Tensor

from densenet_backbones.data.run_lengths import decode_mask
from densenet_backbones.data.samples import RunLengths
from densenet_backbones.reporting.pictures import (
    LARGEST_CELL,
    SMALLEST_CELL,
    draw_detections,
    make_sheet,
    scaled,
)
from densenet_backbones.reporting.plots import get_class_color

_TINT = 0.45  # share of the instance's colour inside its mask
_DARK = (24, 26, 32)

SHOWN_SCORE = 0.5
"""Detections below this score are left out of pictures."""

Skeleton = Sequence[tuple[int, int]]
"""Pairs of keypoints, counted from 0, that are joined by lines."""


class DrawnInstances(NamedTuple):
    """What is drawn on one image; a plain tuple of boxes, labels and scores does as well.

    Attributes:
        boxes: (n, 4) xyxy.
        labels: (n,) in ``1 .. K - 1``.
        scores: (n,) in [0, 1], or None for annotations.
        masks: n masks, (H, W) arrays of 0 and 1 or run-length codes, or None.
        keypoints: (n, Kp, 3) of x, y and visibility (0: not drawn, 1: hidden, 2: visible), or None.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: Sequence[np.ndarray | RunLengths] | None = None
    keypoints: np.ndarray | None = None

    def at(self, scale: float) -> "DrawnInstances":
        """The same on the image scaled by a factor; masks are scaled when they are drawn."""
        points = self.keypoints
        if points is not None:
            points = np.asarray(points, float) * [scale, scale, 1]
        return self._replace(boxes=np.asarray(self.boxes) * scale, keypoints=points)


def collect_annotations(objects: Any) -> DrawnInstances:
    """What to draw of a sample's objects, or of those that `read_instances` gives."""
    found: dict[str, Any] = {
        name: np.asarray(values.cpu() if isinstance(values, Tensor) else values)
        for name in ("boxes", "labels", "masks", "keypoints")
        if (values := getattr(objects, name)) is not None
    }
    return DrawnInstances(**found)


def select_confident(prediction: dict[str, Any], score: float = SHOWN_SCORE) -> DrawnInstances:
    """The detections of an image that are worth drawing."""
    arrays = {
        k: v.detach().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v)
        for k, v in prediction.items()
        if k in ("boxes", "labels", "scores", "keypoints")
    }
    keep = arrays["scores"] >= score
    shown = DrawnInstances(arrays["boxes"][keep], arrays["labels"][keep], arrays["scores"][keep])
    if "masks" in prediction:
        masks = [prediction["masks"][i] for i in np.flatnonzero(keep)]
        shown = shown._replace(masks=masks)
    if "keypoints" in arrays:
        shown = shown._replace(keypoints=mark_visible(arrays["keypoints"][keep]))
    return shown


def mark_visible(points: np.ndarray) -> np.ndarray:
    """Predicted keypoints (n, Kp, 3): detectors give each a place, hidden or not."""
    return np.concatenate([points[..., :2], np.full_like(points[..., :1], 2)], axis=-1)


def draw_instances(
    image: np.ndarray, shown: DrawnInstances, names: Sequence[str], skeleton: Skeleton = ()
) -> np.ndarray:
    """Draw masks, then boxes with their class, then keypoints, on a copy of an image.

    Masks are tinted and outlined; keypoints are dots, hollow where hidden, joined by the skeleton.

    Args:
        image: (H, W, 3) uint8 RGB.
        shown: What to draw; masks of another size are scaled to the image.
        names: Class names in label order.
        skeleton: Which keypoints belong together.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: As `draw_detections`.
    """
    number = len(shown.labels)
    strongest_last = list(range(number))[::-1]
    if shown.scores is not None:
        order = np.argsort(np.asarray(shown.scores, float), kind="stable")
        strongest_last = order.tolist()
    picture = image
    if shown.masks is not None and number:
        picture = _tinted(image, shown.masks, strongest_last)
    picture = draw_detections(picture, shown.boxes, shown.labels, names, shown.scores)
    if shown.keypoints is not None:
        for i in strongest_last:
            _draw_keypoints(picture, np.asarray(shown.keypoints[i]), skeleton, _colour(i))
    return picture


def draw_beside_ground_truth(
    images: Sequence[np.ndarray],
    ground_truth: Sequence[tuple[Any, ...]],
    predictions: Sequence[tuple[Any, ...]],
    names: Sequence[str],
    pairs: int | None = None,
    skeleton: Skeleton = (),
) -> np.ndarray:
    """A sheet of pairs: what is annotated on the left, what was detected on the right.

    Args:
        images: (H, W, 3) uint8 each.
        ground_truth: `DrawnInstances` of each image, without scores; or tuples of boxes and labels.
        predictions: `DrawnInstances` of each image, weak ones already left out; or tuples of boxes,
            labels and scores.
        names: Class names in label order.
        pairs: Pairs in a row; None makes the sheet about as wide as it is high.
        skeleton: Which keypoints belong together.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: If the three lists differ in length.
    """
    if not len(images) == len(ground_truth) == len(predictions):
        raise ValueError(
            f"{len(images)} images, {len(ground_truth)} ground truths and {len(predictions)} "
            "predictions; give one of each an image"
        )
    drawn, titles = [], []
    for image, *both in zip(images, ground_truth, predictions, strict=True):
        # Scaled before drawing, so that lines and letters are sharp at the size shown.
        longer = max(image.shape[:2])
        scale = min(max(longer, SMALLEST_CELL), LARGEST_CELL) / longer
        canvas = scaled(image, scale)
        for what, given in zip(("annotated", "detected"), both, strict=True):
            shown = DrawnInstances(*given)
            drawn.append(draw_instances(canvas, shown.at(scale), names, skeleton))
            titles.append(f"{what}: {len(shown.labels)}")
    if pairs is None and images:
        height = max(image.shape[0] for image in drawn)
        width = max(image.shape[1] for image in drawn)
        pairs = max(1, round(math.sqrt(len(images) * height / (2 * width))))
    return make_sheet(drawn, 2 * (pairs or 1), titles)


def _colour(instance: int) -> tuple[int, int, int]:
    return get_class_color(instance + 1)


def _tinted(
    image: np.ndarray, masks: Sequence[np.ndarray | RunLengths], order: Sequence[int]
) -> np.ndarray:
    """Masks over an image, the last of the order on top."""
    picture = image.copy()
    thickness = max(1, round(math.sqrt(image.shape[0] * image.shape[1]) / 300))
    for i in order:
        inside = _fitting(masks[i], image.shape[:2])
        if not inside.any():
            continue
        colour = np.array(_colour(i))
        picture[inside] = np.round(picture[inside] * (1 - _TINT) + colour * _TINT).astype(np.uint8)
        outline, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outline, -1, colour.tolist(), thickness)
    return picture


def _fitting(mask: np.ndarray | RunLengths, size: tuple[int, ...]) -> np.ndarray:
    """A mask as (H, W) bool of the picture's size."""
    pixels = decode_mask(mask) if isinstance(mask, dict) else np.asarray(mask) > 0
    if pixels.shape == size:
        return np.ascontiguousarray(pixels)
    height, width = size
    grown = cv2.resize(pixels.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(grown > 0.5)


def _draw_keypoints(
    picture: np.ndarray, points: np.ndarray, skeleton: Skeleton, colour: tuple[int, int, int]
) -> None:
    """One instance's keypoints (Kp, 3), drawn on the picture itself."""
    side = math.sqrt(picture.shape[0] * picture.shape[1])
    line, radius = max(1, round(side / 250)), max(2, round(side / 130))
    there = points[:, 2] > 0
    # OpenCV fails on coordinates beyond 16 bits; far outside nothing is to be seen anyway.
    places = np.clip(np.round(points[:, :2]), -16000, 16000).astype(int).tolist()
    for thickness, shade in ((line + 2, _DARK), (line, colour)):
        for a, b in skeleton:
            if there[a] and there[b]:
                cv2.line(picture, places[a], places[b], shade, thickness, cv2.LINE_AA)
    for place, seen in zip(places, points[:, 2].tolist(), strict=True):
        if seen > 0:
            fill = colour if seen >= 2 else (255, 255, 255)
            cv2.circle(picture, place, radius + 1, _DARK, -1, cv2.LINE_AA)
            cv2.circle(picture, place, radius, colour, -1, cv2.LINE_AA)
            cv2.circle(picture, place, max(1, radius - line), fill, -1, cv2.LINE_AA)
