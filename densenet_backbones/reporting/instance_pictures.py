"""Draw instances: boxes with their masks and keypoints, annotated beside predicted ones.

Images are uint8 arrays (H, W, 3), RGB; boxes and keypoints are in pixels of their image. Boxes and
names have the color of the class; masks and keypoints one of the instance, so that neighbors of
one class can be told apart.

OpenCV draws masks and keypoints: torchvision's `draw_segmentation_masks` blackens what two masks
share, and its `draw_keypoints` joins them by white lines alone and knows no hidden ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from torch import Tensor

from densenet_backbones.data.masks.run_lengths import decode_mask
from densenet_backbones.data.samples import RunLengths
from densenet_backbones.messages import pluralize
from densenet_backbones.reporting.colors import RGB, get_instance_color
from densenet_backbones.reporting.pictures import (
    INK,
    LARGEST_CELL,
    PAPER,
    SMALLEST_CELL,
    draw_detections,
    make_sheet,
    scale_image,
)

_TINT = 0.45  # share of the instance's color inside its mask

DRAWN_SCORE = 0.5
"""Detections below this score are left out of pictures."""

Skeleton = Sequence[tuple[int, int]]
"""Pairs of keypoints, counted from 0, that are joined by lines."""


class Annotations(Protocol):
    """Annotated objects of an image: a `Sample`, or those that `read_instances` returns."""

    @property
    def boxes(self) -> Tensor | np.ndarray:
        """(n, 4) xyxy."""

    @property
    def labels(self) -> Tensor | np.ndarray:
        """(n,) in ``1 .. K - 1``."""

    @property
    def masks(self) -> Tensor | np.ndarray | None:
        """(n, H, W) of 0 and 1, if any."""

    @property
    def keypoints(self) -> Tensor | np.ndarray | None:
        """(n, Kp, 3) of x, y and COCO's visibility, if any."""


class DrawnInstances(NamedTuple):
    """Instances to draw on one image; a plain tuple of boxes, labels and scores does as well.

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

    def scale(self, factor: float) -> "DrawnInstances":
        """Return the same on a resized image; masks are resized when they are drawn."""
        points = self.keypoints
        if points is not None:
            points = np.asarray(points, float) * [factor, factor, 1]
        return self._replace(boxes=np.asarray(self.boxes) * factor, keypoints=points)


def collect_annotations(objects: Annotations) -> DrawnInstances:
    """Return what to draw of the annotated objects of an image."""
    masks, keypoints = objects.masks, objects.keypoints
    return DrawnInstances(
        _to_array(objects.boxes),
        _to_array(objects.labels),
        masks=None if masks is None else list(_to_array(masks)),
        keypoints=None if keypoints is None else _to_array(keypoints),
    )


def select_confident(
    prediction: Mapping[str, object], min_score: float = DRAWN_SCORE
) -> DrawnInstances:
    """Return the detections of an image that are worth drawing.

    Args:
        prediction: ``boxes``, ``labels`` and ``scores``, perhaps ``masks`` and ``keypoints``, as
            detectors of torchvision return them; tensors or arrays.
        min_score: Detections below it are left out, in [0, 1].
    """
    boxes, labels, scores = (_to_array(prediction[k]) for k in ("boxes", "labels", "scores"))
    selected = scores >= min_score
    drawn = DrawnInstances(boxes[selected], labels[selected], scores[selected])
    if isinstance(masks := prediction.get("masks"), Sequence):
        drawn = drawn._replace(masks=[masks[i] for i in np.flatnonzero(selected).tolist()])
    elif masks is not None:
        drawn = drawn._replace(masks=list(_to_array(masks)[selected]))
    if "keypoints" in prediction:
        points = _to_array(prediction["keypoints"])[selected]
        drawn = drawn._replace(keypoints=mark_visible(points))
    return drawn


def mark_visible(points: np.ndarray) -> np.ndarray:
    """Give predicted keypoints (n, Kp, 3) the visibility 2: detectors place hidden ones too."""
    return np.concatenate([points[..., :2], np.full_like(points[..., :1], 2)], axis=-1)


def draw_instances(
    image: np.ndarray, instances: DrawnInstances, names: Sequence[str], skeleton: Skeleton = ()
) -> np.ndarray:
    """Draw masks, then boxes with their class, then keypoints, on a copy of an image.

    Masks are tinted and outlined; keypoints are dots, hollow where hidden, joined by the skeleton.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: What to draw; masks of another size are resized to the image.
        names: Class names in label order.
        skeleton: Pairs of keypoints to join.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: As `draw_detections`.
    """
    number = len(instances.labels)
    strongest_last = list(range(number))[::-1]
    if instances.scores is not None:
        order = np.argsort(np.asarray(instances.scores, float), kind="stable")
        strongest_last = order.tolist()
    picture = image
    if instances.masks is not None and number:
        picture = _draw_masks(image, instances.masks, strongest_last)
    boxes, labels, scores = instances[:3]
    picture = draw_detections(picture, boxes, labels, names, scores)
    if instances.keypoints is not None:
        for i in strongest_last:
            points = np.asarray(instances.keypoints[i])
            _draw_keypoints(picture, points, skeleton, get_instance_color(i))
    return picture


def draw_beside_ground_truth(
    images: Sequence[np.ndarray],
    ground_truth: Sequence[tuple[object, ...]],
    predictions: Sequence[tuple[object, ...]],
    names: Sequence[str],
    pairs: int | None = None,
    skeleton: Skeleton = (),
) -> np.ndarray:
    """Draw a sheet of pairs: the annotated objects on the left, the detected ones on the right.

    Args:
        images: (H, W, 3) uint8 each.
        ground_truth: `DrawnInstances` of each image, without scores; or tuples of boxes and labels.
        predictions: `DrawnInstances` of each image, weak ones already left out; or tuples of boxes,
            labels and scores.
        names: Class names in label order.
        pairs: Pairs in a row; None makes the sheet about as wide as it is high.
        skeleton: Pairs of keypoints to join.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: If the three lists differ in length.
    """
    if not len(images) == len(ground_truth) == len(predictions):
        raise ValueError(
            f"{pluralize(len(images), 'image')}, {len(ground_truth)} ground truths and "
            f"{len(predictions)} predictions; give one of each an image"
        )
    drawn, titles = [], []
    for image, *both in zip(images, ground_truth, predictions, strict=True):
        # Resized before drawing, so that lines and letters are sharp at the size shown.
        longer = max(image.shape[:2])
        factor = min(max(longer, SMALLEST_CELL), LARGEST_CELL) / longer
        canvas = scale_image(image, factor)
        for source, fields in zip(("annotated", "detected"), both, strict=True):
            instances = DrawnInstances._make((*fields, None, None, None)[:5])
            drawn.append(draw_instances(canvas, instances.scale(factor), names, skeleton))
            titles.append(f"{source}: {len(instances.labels)}")
    if pairs is None and images:
        height = max(image.shape[0] for image in drawn)
        width = max(image.shape[1] for image in drawn)
        pairs = max(1, round(math.sqrt(len(images) * height / (2 * width))))
    return make_sheet(drawn, 2 * (pairs or 1), titles)


def _to_array(values: object) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _draw_masks(
    image: np.ndarray, masks: Sequence[np.ndarray | RunLengths], order: Sequence[int]
) -> np.ndarray:
    """Return an image with masks over it, the last of the order on top."""
    picture = image.copy()
    thickness = max(1, round(math.sqrt(image.shape[0] * image.shape[1]) / 300))
    for i in order:
        inside = _fit_mask(masks[i], image.shape[:2])
        if not inside.any():
            continue
        color = np.array(get_instance_color(i))
        picture[inside] = np.round(picture[inside] * (1 - _TINT) + color * _TINT).astype(np.uint8)
        outline, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outline, -1, color.tolist(), thickness)
    return picture


def _fit_mask(mask: np.ndarray | RunLengths, size: tuple[int, ...]) -> np.ndarray:
    """Return a mask as (H, W) bool of the picture's size."""
    pixels = decode_mask(mask) if isinstance(mask, dict) else np.asarray(mask) > 0
    if pixels.shape == size:
        return np.ascontiguousarray(pixels)
    height, width = size
    resized = cv2.resize(pixels.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized > 0.5)


def _draw_keypoints(
    picture: np.ndarray, points: np.ndarray, skeleton: Skeleton, color: RGB
) -> None:
    """Draw the keypoints (Kp, 3) of one instance on the picture itself."""
    side = math.sqrt(picture.shape[0] * picture.shape[1])
    line, radius = max(1, round(side / 250)), max(2, round(side / 130))
    labeled = points[:, 2] > 0
    # OpenCV fails on coordinates beyond 16 bits; far outside nothing is to be seen anyway.
    places = np.clip(np.round(points[:, :2]), -16000, 16000).astype(int).tolist()
    # Dark lines under the colored ones keep both readable on any ground.
    for thickness, shade in ((line + 2, INK), (line, color)):
        for a, b in skeleton:
            if labeled[a] and labeled[b]:
                cv2.line(picture, places[a], places[b], shade, thickness, cv2.LINE_AA)
    for place, visibility in zip(places, points[:, 2].tolist(), strict=True):
        if visibility > 0:
            fill = color if visibility >= 2 else PAPER
            cv2.circle(picture, place, radius + 1, INK, -1, cv2.LINE_AA)
            cv2.circle(picture, place, radius, color, -1, cv2.LINE_AA)
            cv2.circle(picture, place, max(1, radius - line), fill, -1, cv2.LINE_AA)
