"""SSD's augmentation as albumentations transforms: zoom-out, seven-sampler crop, color distortion.

Sources: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, sections 2.2 and 3.6;
weiliu89/caffe, src/caffe/layers/annotated_data_layer.cpp, src/caffe/util/sampler.cpp and
im_transforms.cpp; numbers of szq0214/DSOD, DSOD300_pascal.py.

Legend: B boxes, P patches, H x W pixels; boxes and patches are xyxy in absolute pixels where
nothing else is said. Inside a pipeline albumentations hands boxes over in shares of the image's
sides, (B, 4 + fields), and the fields (labels) follow the rows.
"""

from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.crops import functional as crops
from albumentations.augmentations.crops.transforms import BaseCrop

from densenet_backbones.data.augment.model_input import IMAGENET_MEAN
from densenet_backbones.messages import check_interval, check_whole

Patch = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels
Parameters = dict[str, Any]  # of a transform, by the names that albumentations gives or we do

# Least overlap (IoU) of the patch with some object, one a sampler; None: the whole image. The
# last one is DSOD's `max_jaccard_overlap: 1`: any patch, as long as the image has an object.
SAMPLERS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)


class ZoomOut(A.DualTransform):
    """Puts the image at a random place of a larger canvas of one color.

    SSD's "expansion" (section 3.6), which makes objects smaller: the canvas is `ratio` times as
    high and wide, `ratio` uniform in 1 to `max_ratio`.

    Args:
        max_ratio: Largest ratio of the canvas's sides to the image's, at least 1.
        fill: RGB of the canvas, in 0..255.
        p: Probability.
    """

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.BBOXES)

    def __init__(
        self,
        max_ratio: float = 4.0,
        fill: tuple[float, float, float] = IMAGENET_MEAN,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        check_interval("max_ratio", max_ratio, "[1, inf)")
        self.max_ratio, self.fill = max_ratio, fill

    def get_params_dependent_on_data(self, params: Parameters, data: Parameters) -> Parameters:
        """Draw the border's widths: (top, bottom, left, right) pixels."""
        height, width = params["shape"][:2]
        ratio = self.py_random.uniform(1.0, self.max_ratio)
        more_rows, more_columns = int(height * ratio) - height, int(width * ratio) - width
        top = self.py_random.randint(0, more_rows)
        left = self.py_random.randint(0, more_columns)
        return {"border": (top, more_rows - top, left, more_columns - left)}

    def apply(self, img: np.ndarray, border: Patch, **params: object) -> np.ndarray:
        """Draw the canvas around (H, W, 3) uint8."""
        # Twice as fast as filling an array and copying into it.
        return cv2.copyMakeBorder(img, *border, cv2.BORDER_CONSTANT, value=self.fill)

    def apply_to_bboxes(
        self, bboxes: np.ndarray, border: Patch, shape: tuple[int, ...], **params: object
    ) -> np.ndarray:
        """Move (B, 4 + fields) boxes; here and below they are in shares of the image's sides."""
        height, width = shape[:2]
        top, bottom, left, right = border
        sides = np.array([width, height] * 2, np.float64)
        larger = sides + np.array([left + right, top + bottom] * 2)
        moved = np.array(bboxes, copy=True)
        moved[:, :4] = (bboxes[:, :4] * sides + [left, top, left, top]) / larger
        return moved


class SSDCrop(BaseCrop):
    """SSD's crop: one of seven samplers proposes a patch.

    The first sampler is the whole image. Each other one tries up to `trials` random patches until
    one overlaps some object as much as it demands (`SAMPLERS`); one of the samplers that found a
    patch is taken, all with equal chance. A patch is `scale` of the image's sides (the root of its
    share of the area), its aspect ratio in shares of the sides is drawn from `ratio` and limited
    so that it fits. Boxes whose center lies in the patch are kept and cut at its border; that may
    be none.

    (Section 2.2 of the paper says patches of 0.1 to 1 of the image; the released code, SSD's and
    DSOD's, uses 0.3. The rules are those of src/caffe/util/sampler.cpp.)

    Args:
        scale: Bounds of a patch's scale, in ``(0, 1]``.
        ratio: Bounds of its aspect ratio, above 0.
        trials: Number of random patches that a sampler tries, at least 1.
        p: Probability; 1 as in SSD, where the first sampler leaves the image whole.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: tuple[float, float] = (0.5, 2.0),
        trials: int = 50,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be rising bounds in (0, 1], got {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be rising bounds above 0, got {ratio}")
        check_whole("trials", trials)
        self.scale, self.ratio, self.trials = scale, ratio, trials

    @property
    def least(self) -> float:
        """Smallest share of an image's side that a patch has."""
        return float(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1]) ** 0.5)

    def get_params_dependent_on_data(self, params: Parameters, data: Parameters) -> Parameters:
        """Choose the patch."""
        height, width = params["shape"][:2]
        boxes = np.asarray(data["bboxes"], np.float64)[:, :4] * [width, height, width, height]
        # The first of a random order that finds a patch: any of those that do, equally likely.
        for sampler in self.random_generator.permutation(len(SAMPLERS)):
            patch = self.sample(int(sampler), boxes, height, width)
            if patch is not None:
                return {"crop_coords": patch}
        raise AssertionError("the whole image is always found")

    def sample(self, sampler: int, boxes: np.ndarray, height: int, width: int) -> Patch | None:
        """Let one sampler look for a patch.

        Args:
            sampler: Position in `SAMPLERS`.
            boxes: (B, 4) xyxy pixels.
            height: Height of the image, pixels.
            width: Width of the image, pixels.

        Returns:
            The patch, or None where no trial met the demand (never for sampler 0).
        """
        least = SAMPLERS[sampler]
        if least is None:
            return (0, 0, width, height)
        if not len(boxes):
            return None
        patches = self._draw_patches(height, width)
        meeting = np.flatnonzero((compute_iou(patches, boxes) >= least).any(1))
        if not meeting.size:
            return None
        x1, y1, x2, y2 = patches[meeting[0]].tolist()
        return x1, y1, x2, y2

    def _draw_patches(self, height: int, width: int) -> np.ndarray:
        """Draw (trials, 4) int64 xyxy patches, all trials of one sampler at once."""
        rng, n = self.random_generator, self.trials
        scale = rng.uniform(*self.scale, n)
        ratio = np.clip(rng.uniform(*self.ratio, n), scale**2, scale**-2)
        shares = np.stack((scale * np.sqrt(ratio), scale / np.sqrt(ratio)), 1)
        image = np.array((width, height))
        sides = np.clip((shares * image).astype(np.int64), 1, image)
        corner = rng.integers(0, image - sides, endpoint=True)
        return np.concatenate((corner, corner + sides), 1)

    def apply_to_bboxes(
        self, bboxes: np.ndarray, crop_coords: Patch, shape: tuple[int, ...], **params: object
    ) -> np.ndarray:
        """Keep the boxes whose center lies in the patch, cut at its border."""
        height, width = shape[:2]
        boxes = bboxes[:, :4].astype(np.float64) * [width, height, width, height]
        inside = bboxes[has_center_inside(boxes, crop_coords)]
        cut = crops.crop_bboxes_by_coords(inside, crop_coords, (height, width))
        highest = [1, 1, 1, 1] + [np.inf] * (bboxes.shape[1] - 4)
        return np.asarray(np.clip(cut, 0, highest))


class PhotometricDistort(A.ImageOnlyTransform):
    """SSD's distortion of colors: each part with probability 0.5, in one of two orders.

    Brightness, contrast, saturation, hue, or contrast last. Numbers are `distort_param` of
    DSOD300_pascal.py; hue wraps around here (Caffe's sticks at the end of uint8).

    Args:
        brightness: Largest number added or subtracted, of 255.
        contrast: Bounds of the factor on pixel values.
        saturation: Bounds of the factor on the HSV saturation.
        hue: Largest change, in steps of 2 degrees (OpenCV's 0..179).
        shuffle: Probability of a random channel order; 0 in SSD's and DSOD's settings
            (`random_order_prob`).
        p: Probability of distorting at all.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
        shuffle: float = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.shuffle = hue, shuffle

    def get_params(self) -> Parameters:
        """Draw the amounts; 0 or 1 where a part is left out."""
        rng = self.random_generator
        on = rng.random(5) < (0.5, 0.5, 0.5, 0.5, self.shuffle)
        drawn = {
            "brightness": rng.uniform(-self.brightness, self.brightness) if on[0] else 0.0,
            "contrast": rng.uniform(*self.contrast) if on[1] else 1.0,
            "saturation": rng.uniform(*self.saturation) if on[2] else 1.0,
            "hue": rng.uniform(-self.hue, self.hue) if on[3] else 0.0,
        }
        order = rng.permutation(3) if on[4] else np.arange(3)
        return {"amounts": drawn, "contrast_last": rng.random() < 0.5, "order": order}

    def apply(
        self,
        img: np.ndarray,
        amounts: dict[str, float],
        contrast_last: bool,
        order: np.ndarray,
        **params: object,
    ) -> np.ndarray:
        """Distort (H, W, 3) uint8 RGB through tables of 256 values."""
        # Brightness, and contrast before or after what follows.
        level = np.arange(256, dtype=np.float64)
        first = _to_uint8(level + amounts["brightness"])
        contrast = _to_uint8(level * amounts["contrast"])
        img = cv2.LUT(img, first if contrast_last else contrast[first])
        if amounts["saturation"] != 1 or amounts["hue"] != 0:
            turned = np.mod(np.rint(level + amounts["hue"]), 180)
            table = np.stack((turned, level * amounts["saturation"], level), 1)
            hsv = cv2.LUT(cv2.cvtColor(img, cv2.COLOR_RGB2HSV), _to_uint8(table)[None])
            img = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if contrast_last:
            img = cv2.LUT(img, contrast)
        return img if (order == np.arange(3)).all() else img[..., order]


def has_center_inside(boxes: np.ndarray, patch: Patch) -> np.ndarray:
    """(B,) bool, True if a box's center lies in the patch, border included (`emit_constraint`)."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(((centers >= patch[:2]) & (centers <= patch[2:])).all(1))


def compute_iou(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Compute the (P, B) IoU of (P, 4) with (B, 4) xyxy boxes of positive area.

    (In numpy like all of a pipeline; torchvision's `box_iou` takes tensors of one type.)
    """
    low = np.maximum(patches[:, None, :2], boxes[None, :, :2])
    high = np.minimum(patches[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (patches, boxes)]
    return np.asarray(shared / (areas[0][:, None] + areas[1] - shared))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
