"""Training augmentation of detection images, built on albumentations.

`Augmentation` is a function of (image, boxes, labels, key): the same key gives the same result in
any process, whatever was augmented before. Its "ssd" preset is the augmentation of SSD (Liu et
al., ECCV 2016, section 2.2 and its extension 3.6) with the numbers of DSOD
(szq0214/DSOD, DSOD300_pascal.py), as implemented in weiliu89/caffe.

Legend: B boxes, H x W pixels; boxes are xyxy in absolute pixels.
"""

import math
from typing import Literal, get_args

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.crops.transforms import BaseCrop

from densenet_backbones.data.augment.checks import check_fill, check_image, check_size
from densenet_backbones.data.augment.model_input import IMAGENET_MEAN
from densenet_backbones.data.augment.seeding import reseed
from densenet_backbones.data.augment.ssd import (
    Parameters,
    Patch,
    PhotometricDistort,
    SSDCrop,
    ZoomOut,
)
from densenet_backbones.data.boxes import clip_boxes
from densenet_backbones.messages import check_choice, check_interval, pluralize

Preset = Literal["ssd", "light", "none"]

# Each resize takes one at random (resize_param of DSOD300_pascal.py).
INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)


class Augmentation:
    """Augmentation of one image and its boxes, which resizes it to the model's size.

    Presets:

    - ``ssd``: zoom-out, seven-sampler crop, resize with a random interpolation, flip, photometric
      distortion. The distortion comes last here and first in Caffe: on the small image it costs a
      third or less, and differs only in that it also tints the zoom-out's border.
    - ``light``: half of the time a crop that keeps every box whole, resize, flip, mild colors.
    - ``none``: resize only.

    The resize does not keep the aspect ratio (SSD's `WARP`). Boxes follow; those narrower or
    lower than `min_side` pixels at the end are dropped, as are degenerate ones at the start.
    The object is picklable (workers may be started by spawn); it is not thread-safe.

    Attributes:
        source_size: (H, W) of an image from which no result is enlarged, so that more is no use.

    Args:
        preset: Name of a preset above.
        size: (H, W) of the result, each at least 1.
        fill: RGB of the zoom-out's border in 0..255, the mean that the model subtracts.
        min_side: Smallest side of a box in the result, pixels, at least 0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        preset: Preset = "ssd",
        size: tuple[int, int] = (300, 300),
        *,
        fill: tuple[float, float, float] = IMAGENET_MEAN,
        min_side: float = 1.0,
    ) -> None:
        check_choice("augmentation", preset, get_args(Preset))
        check_fill(fill)
        if not min_side >= 0:
            raise ValueError(f"min_side must be at least 0 pixels, got {min_side}")
        self.preset, self.min_side = preset, min_side
        self.size = check_size(size)
        steps = _list_steps(preset, self.size, fill)
        # The smallest crop says from which size on an image is never enlarged.
        crops = [step.least for step in steps if isinstance(step, WholeBoxCrop | SSDCrop)]
        height, width = (math.ceil(side / min(crops, default=1.0)) for side in self.size)
        self.source_size = height, width
        # Boxes carry their row number as label, so that labels and dtypes are ours to keep.
        boxes = A.BboxParams(
            format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True
        )
        self.pipeline = A.Compose(steps, bbox_params=boxes)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, key: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB; not changed.
            boxes: (B, 4) xyxy pixels, B may be 0; what lies outside the image is cut off.
            labels: (B,) integers.
            key: Whole numbers of at least 0, e.g. (seed, epoch, index): all that decides the
                random choices.

        Returns:
            (*size, 3) uint8 image; (B', 4) float32 boxes with ``B' <= B``, inside the image, in
            the given order; (B',) int64 labels.

        Raises:
            ValueError: If an argument has another shape or type, or the key a negative number.
        """
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        labels = np.asarray(labels, np.int64)
        check_image(image)
        if labels.shape != (len(boxes),):
            raise ValueError(
                f"{pluralize(len(boxes), 'box needs', 'boxes need')} as many labels, got "
                f"{labels.shape}"
            )
        # Boxes that are degenerate from the start never enter the pipeline.
        finite = np.asarray(np.isfinite(boxes).all(1))
        boxes, valid = clip_boxes(np.where(finite[:, None], boxes, 0), _get_width_height(image))
        rows = np.flatnonzero(valid & finite)
        # The pipeline, with the row number in the place of a label.
        reseed(self.pipeline, key)
        result = self.pipeline(image=image, bboxes=boxes[rows], rows=rows)
        image = np.ascontiguousarray(result["image"])
        rows = np.asarray(result["rows"], np.int64).reshape(-1)
        boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        boxes, valid = clip_boxes(boxes, _get_width_height(image))
        sides: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).min(1)
        valid &= sides >= self.min_side
        return image, boxes[valid], labels[rows[valid]]

    def __repr__(self) -> str:
        return f"Augmentation({self.preset!r}, size={self.size}, min_side={self.min_side})"


class WholeBoxCrop(BaseCrop):
    """Random crop that cuts no box.

    (albumentations' RandomSizedBBoxSafeCrop rounds its coordinates down, which cuts boxes and
    fails on very small images, and leaves images without boxes as they are.)

    Args:
        least: Smallest share of each of the image's sides that stays, in ``(0, 1]``.
        p: Probability.
    """

    def __init__(self, least: float = 0.5, p: float = 0.5) -> None:
        super().__init__(p=p)
        check_interval("least", least, "(0, 1]")
        self.least = least

    def get_params_dependent_on_data(self, params: Parameters, data: Parameters) -> Parameters:
        """Choose the patch, each of its axes by itself."""
        height, width = params["shape"][:2]
        boxes = np.asarray(data["bboxes"], np.float64)[:, :4] * [width, height, width, height]
        x1, x2 = self._choose_range(
            width, boxes[:, 0].min(initial=width), boxes[:, 2].max(initial=0)
        )
        y1, y2 = self._choose_range(
            height, boxes[:, 1].min(initial=height), boxes[:, 3].max(initial=0)
        )
        patch: Patch = (x1, y1, x2, y2)
        return {"crop_coords": patch}

    def _choose_range(self, length: int, low: float, high: float) -> tuple[int, int]:
        """Choose whole numbers start <= low and end >= high, far enough apart."""
        least = math.ceil(self.least * length)
        start = self.py_random.randint(0, min(math.floor(low), length - least))
        # float32 may put an end of a box just outside of the image.
        end = self.py_random.randint(min(max(math.ceil(high), start + least), length), length)
        return start, end


def _list_steps(
    preset: Preset, size: tuple[int, int], fill: tuple[float, float, float]
) -> list[A.BasicTransform]:
    height, width = size
    resize = A.Resize(height, width)
    if preset == "none":
        return [resize]
    if preset == "light":
        mild = PhotometricDistort(16.0, (0.8, 1.2), (0.8, 1.2), 6.0)
        return [WholeBoxCrop(), resize, A.HorizontalFlip(p=0.5), mild]
    resizes = [A.Resize(height, width, interpolation=i, p=1.0) for i in INTERPOLATIONS]
    return [
        ZoomOut(fill=fill),
        SSDCrop(),
        A.OneOf(resizes, p=1.0),
        A.HorizontalFlip(p=0.5),
        PhotometricDistort(),
    ]


def _get_width_height(image: np.ndarray) -> np.ndarray:
    return np.array((image.shape[1], image.shape[0]))
