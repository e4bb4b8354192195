"""Training augmentation of boxes, masks and keypoints: flips, scales, large-scale jitter.

Sources: Ghiasi et al., "Simple Copy-Paste", CVPR 2021 (arXiv 2012.07177), section 3, for jitter;
pytorch/vision, references/detection/presets.py and transforms.py (`ScaleJitter`,
`FixedSizeCrop`), for its steps; detectron2, configs/Base-RCNN-FPN.yaml, for the scales.

Everything here is one `Placement` of the image's pixels on a canvas, so that boxes, masks and
keypoints go where the pixels go. `InstanceAugmentation` is a function of (image, objects, key).

Legend: B objects, H x W pixels, Kp keypoints. Coordinates are continuous: the pixel in column x
covers x to x + 1, so that a mirrored point is at W - x.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from densenet_backbones.data.augment.checks import check_image, check_size
from densenet_backbones.data.augment.model_input import IMAGENET_MEAN
from densenet_backbones.data.augment.seeding import make_generator
from densenet_backbones.data.boxes import clip_boxes, masks_to_boxes
from densenet_backbones.data.instances import Instances, unlabel_outside

InstancePreset = Literal["flip", "multiscale", "lsj"]
Size = tuple[int, int]  # (H, W)
# Of the shortest side that the model itself scales to: 640 to 800 in steps of 32 are detectron2's
# training scales (configs/Base-RCNN-FPN.yaml, MIN_SIZE_TRAIN).
SCALES = tuple((640 + 32 * step) / 800 for step in range(6))
JITTER = (0.1, 2.0)  # Ghiasi et al., "Simple Copy-Paste", CVPR 2021, section 3: "LSJ"


@dataclass(frozen=True)
class Placement:
    """Place of an image's pixels on a canvas.

    The image is scaled; a window as large as the canvas is laid on it; what the window shows
    beyond the image, at the right and at the bottom, is border; the whole is mirrored at last.

    Attributes:
        source: (H, W) of the image.
        scaled: (H, W) of the image after scaling.
        corner: (top, left) of the window in the scaled image.
        canvas: (H, W) of the window.
        mirrored: True if left and right are swapped.
    """

    source: Size
    scaled: Size
    corner: Size
    canvas: Size
    mirrored: bool

    @property
    def visible_size(self) -> Size:
        """Part of the canvas that the image covers, (H, W)."""
        (top, left), (height, width) = self.corner, self.scaled
        return min(self.canvas[0], height - top), min(self.canvas[1], width - left)

    def place_image(self, image: np.ndarray, fill: tuple[float, float, float]) -> np.ndarray:
        """Place (H, W, 3) uint8 on the canvas, surrounded by the RGB color `fill`."""
        if self.scaled != self.source:
            # Linear interpolation is what detectors use in evaluation; below a half it would skip
            # pixels.
            small = 2 * self.scaled[0] < self.source[0]
            how = cv2.INTER_AREA if small else cv2.INTER_LINEAR
            image = cv2.resize(image, self.scaled[::-1], interpolation=how)
        image = self._window(image)
        below, beside = (
            side - seen for side, seen in zip(self.canvas, self.visible_size, strict=True)
        )
        if below or beside:
            border = (0, below, 0, beside)
            image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=fill)
        return np.ascontiguousarray(image[:, ::-1] if self.mirrored else image)

    def place_masks(self, masks: np.ndarray) -> np.ndarray:
        """Place (B, H, W) uint8 on the canvas, to the nearest pixel; 0 around them."""
        placed = np.zeros((len(masks), *self.canvas), np.uint8)
        height, width = self.visible_size
        for mask, target in zip(masks, placed, strict=True):
            if self.scaled != self.source:
                # INTER_NEAREST of OpenCV takes pixel corners and would shift masks.
                mask = cv2.resize(mask, self.scaled[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            target[:height, :width] = self._window(mask)
        return np.ascontiguousarray(placed[:, :, ::-1]) if self.mirrored else placed

    def place_points(self, points: np.ndarray) -> np.ndarray:
        """Place (..., 2) float64 of x and y on the canvas; not clipped to it."""
        scale = np.divide(self.scaled[::-1], self.source[::-1])
        placed = points * scale - self.corner[::-1]
        if self.mirrored:
            placed[..., 0] = self.canvas[1] - placed[..., 0]
        return np.asarray(placed)

    def place_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Place (B, 4) float64 xyxy, clipped to what the canvas shows of the image."""
        corners = self.place_points(boxes.astype(np.float64).reshape(-1, 2, 2))
        low, high = corners.min(1), corners.max(1)
        height, width = self.visible_size
        start = self.canvas[1] - width if self.mirrored else 0
        limits = np.array([(start, 0), (start + width, height)], np.float64)
        return np.concatenate((np.clip(low, *limits), np.clip(high, *limits)), 1)

    def place_keypoints(self, keypoints: np.ndarray, other_side: tuple[int, ...]) -> np.ndarray:
        """Place (B, Kp, 3) float32; those outside of the canvas are not labeled any more.

        Args:
            keypoints: (B, Kp, 3): x, y and visibility.
            other_side: Kp positions, those that keypoints have in a mirror.
        """
        placed = keypoints.astype(np.float64)
        placed[..., :2] = self.place_points(placed[..., :2])
        if self.mirrored:
            placed = placed[:, list(other_side)]
        return unlabel_outside(placed.astype(np.float32), self.canvas)

    def place(self, objects: Instances, other_side: tuple[int, ...] = ()) -> Instances:
        """Place boxes, masks and keypoints of all objects; see the functions above."""
        boxes, _ = clip_boxes(self.place_boxes(objects.boxes), np.array(self.canvas[::-1]))
        placed = Instances(boxes, objects.labels)
        if objects.masks is not None:
            placed.masks = self.place_masks(objects.masks)
        if objects.keypoints is not None:
            placed.keypoints = self.place_keypoints(objects.keypoints, other_side)
        return placed

    def _window(self, pixels: np.ndarray) -> np.ndarray:
        (top, left), (height, width) = self.corner, self.visible_size
        return pixels[top : top + height, left : left + width]


class InstanceAugmentation:
    """Augmentation of one image and its objects.

    Presets:

    - ``flip``: half of the time mirrored.
    - ``multiscale``: the shortest side one of six lengths (`SCALES`) up to `shortest`, or less
      where the longest would be more than `longest`; flip.
    - ``lsj``: large-scale jitter: scaled so that it fits into `size`, times 0.1 to 2; where it is
      larger a random window of it, where it is smaller a border; flip. Boxes are tight around the
      rest of the masks, where there are masks; objects of which less than `min_side` pixels remain
      are left out.

    The object is picklable (workers may be started by spawn).

    Args:
        preset: Name of a preset above.
        shortest: Shortest side that the model scales images to, pixels, at least 1.
        longest: Limit of the longest side, pixels, at least 1.
        size: (H, W) of the result of "lsj", each at least 1.
        other_side: Kp positions, those that keypoints have in a mirror; see
            `Categories.mirrored_keypoints`.
        fill: RGB of the border in 0..255, the mean that the model subtracts.
        min_side: Smallest side of a box in the result of "lsj", pixels, at least 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        preset: InstancePreset,
        *,
        shortest: int = 800,
        longest: int = 1333,
        size: Size = (1024, 1024),
        other_side: tuple[int, ...] = (),
        fill: tuple[float, float, float] = IMAGENET_MEAN,
        min_side: float = 1.0,
    ) -> None:
        if preset not in get_args(InstancePreset):
            known = get_args(InstancePreset)
            raise ValueError(f"augmentation must be one of {known}, got {preset!r}")
        if min(shortest, longest) < 1:
            raise ValueError(f"sides must be at least 1 pixel, got {shortest} and {longest}")
        if not min_side >= 0:
            raise ValueError(f"min_side must be at least 0 pixels, got {min_side}")
        self.preset, self.shortest, self.longest = preset, shortest, longest
        self.size, self.other_side = check_size(size), other_side
        self.fill, self.min_side = fill, min_side

    def __call__(
        self, image: np.ndarray, objects: Instances, key: tuple[int, ...]
    ) -> tuple[np.ndarray, Instances]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB; not changed.
            objects: Objects of the image; not changed.
            key: Whole numbers of at least 0, e.g. (seed, epoch, index): all that decides the
                random choices.

        Returns:
            (H', W', 3) uint8 image, and the objects that remain, in the given order.

        Raises:
            ValueError: If the image has another shape or type, or the key a negative number.
        """
        check_image(image)
        placement = self.draw_placement((image.shape[0], image.shape[1]), make_generator(key))
        placed = placement.place(objects, self.other_side)
        if self.preset == "lsj":
            placed = keep_visible(placed, self.min_side)
        return placement.place_image(image, self.fill), placed

    def draw_placement(self, source: Size, rng: np.random.Generator) -> Placement:
        """Draw where an image of `source` (H, W) pixels comes to lie."""
        mirrored = bool(rng.random() < 0.5)
        if self.preset == "flip":
            return Placement(source, source, (0, 0), source, mirrored)
        if self.preset == "multiscale":
            side = self.shortest * SCALES[rng.integers(len(SCALES))]
            scaled = _scale_size(source, min(side / min(source), self.longest / max(source)))
            return Placement(source, scaled, (0, 0), scaled, mirrored)
        height, width = self.size
        fitting = min(height / source[0], width / source[1])
        scaled = _scale_size(source, fitting * rng.uniform(*JITTER))
        top = int(rng.integers(max(scaled[0] - height, 0), endpoint=True))
        left = int(rng.integers(max(scaled[1] - width, 0), endpoint=True))
        return Placement(source, scaled, (top, left), self.size, mirrored)

    def __repr__(self) -> str:
        return f"InstanceAugmentation({self.preset!r})"


def keep_visible(objects: Instances, min_side: float) -> Instances:
    """Keep the objects whose boxes, tight around the masks if there are any, are large enough.

    Args:
        objects: Objects of one image; not changed.
        min_side: Smallest side of a box, pixels; boxes without area never stay.
    """
    boxes = objects.boxes if objects.masks is None else masks_to_boxes(objects.masks)
    sides: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf)
    tight = Instances(boxes, objects.labels, objects.masks, objects.keypoints)
    return tight.select((sides > 0) & (sides >= min_side))


def _scale_size(size: Size, factor: float) -> Size:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
