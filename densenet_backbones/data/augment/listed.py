"""Augmentation by a list of transforms in place of a preset, for images with objects.

Every choice is a function of the key, as in the presets. `A.Mosaic` and `MixUp` take other images
of the data set, which are read only when they are used.

Sources: as `listing` says; the mosaic is albumentations' (Bochkovskiy et al., "YOLOv4", 2020,
arXiv 2004.10934, section 3.4).

Legend: B objects, H x W pixels, Kp keypoints.
"""

from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A
import numpy as np

from densenet_backbones.data.augment.checks import check_image, check_size
from densenet_backbones.data.augment.copy_paste import concatenate_objects
from densenet_backbones.data.augment.instances import Placement, keep_visible
from densenet_backbones.data.augment.listing import MOSAIC, Entries, MixUp, build_steps, uses_mosaic
from densenet_backbones.data.augment.model_input import IMAGENET_MEAN
from densenet_backbones.data.augment.pipelines import Key, Others, compose, run
from densenet_backbones.data.augment.seeding import make_generator
from densenet_backbones.data.boxes import clip_boxes
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.instances import Instances, unlabel_outside

# Reads another image of the data set, which random numbers choose.
DrawObjects = Callable[[np.random.Generator], tuple[np.ndarray, Instances]]
# Last parts of keys: independent choices of one sample.
MIXING, MIXED, AFTER, MOSAIC_PART = 1, 2, 3, 4
HALF = 0.5  # pixels: albumentations' keypoints count from the middle of the first pixel


class ListedAugmentation:
    """Augmentation of one image and its objects by the transforms of a list.

    Boxes are tight around masks where there are masks, and objects of which less than `min_side`
    pixels remain are left out. Where a list mirrors, keypoints get the names of the other side.
    The object is picklable (workers may be started by spawn); it is not thread-safe.

    Args:
        entries: What `build_steps` takes, with at most one `MixUp`.
        target_types: Annotations that must follow the pixels; `A.Mosaic` carries boxes only.
        size: (H, W) to which results are resized, as the detector would; None keeps theirs.
        other_side: See `Categories.mirrored_keypoints`.
        fill: RGB beside the smaller of two mixed images.
        min_side: Smallest side of a box in the result, pixels.

    Raises:
        DataError: If the list cannot be built, or does not fit what is learned.
    """

    def __init__(
        self,
        entries: Entries,
        *,
        target_types: Sequence[str] = ("boxes",),
        size: tuple[int, int] | None = None,
        other_side: tuple[int, ...] = (),
        fill: tuple[float, float, float] = IMAGENET_MEAN,
        min_side: float = 1.0,
    ) -> None:
        steps = build_steps(entries)
        mixing = [n for n, step in enumerate(steps) if isinstance(step, MixUp)]
        more = sorted({"masks", "keypoints"} & set(target_types))
        if uses_mosaic(steps) and more:
            raise DataError(
                "data.augmentation: Mosaic carries boxes only, but the detector learns "
                f"{' and '.join(more)}; leave it out"
            )
        if len(mixing) > 1:
            raise DataError("data.augmentation: MixUp may be there once; leave the others out")
        end = mixing[0] if mixing else len(steps)
        self.before = compose(steps[:end], has_objects=True)
        self.mixup = steps[end] if mixing else None
        self.after = compose(steps[end + 1 :], has_objects=True) if mixing else None
        self.size = None if size is None else check_size(size)
        self.other_side, self.fill, self.min_side = other_side, fill, min_side

    def __call__(
        self, image: np.ndarray, objects: Instances, key: Key, draw: DrawObjects, name: str = ""
    ) -> tuple[np.ndarray, Instances]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB; not changed.
            objects: Objects of the image; not changed.
            key: Whole numbers of at least 0, e.g. (seed, epoch, index): all that decides the
                random choices.
            draw: Reads another image and its objects.
            name: Of the image, for errors.

        Returns:
            (H', W', 3) uint8 image, of `size` if there is one, and the objects that remain.

        Raises:
            DataError: If a transform fails on this image, or another cannot be read.
        """
        check_image(image)
        image, objects = self._apply(self.before, image, objects, key, draw, name)
        if isinstance(self.mixup, MixUp) and self.after is not None:
            rng = make_generator((*key, MIXING))
            if rng.random() < self.mixup.p:
                ratio = rng.beta(self.mixup.alpha, self.mixup.alpha)
                other = self._apply(self.before, *draw(rng), (*key, MIXED), draw, name)
                image, objects = mix(image, objects, *other, ratio, self.fill)
            image, objects = self._apply(self.after, image, objects, (*key, AFTER), draw, name)
        if self.size is not None:
            source = image.shape[0], image.shape[1]
            placement = Placement(source, self.size, (0, 0), self.size, mirrored=False)
            image, objects = placement.place_image(image, self.fill), placement.place(objects)
        return image, keep_visible(objects, self.min_side)

    def _apply(
        self,
        pipeline: A.Compose,
        image: np.ndarray,
        objects: Instances,
        key: Key,
        draw: DrawObjects,
        name: str,
    ) -> tuple[np.ndarray, Instances]:
        boxes, valid = clip_boxes(objects.boxes, np.array(image.shape[1::-1]))
        objects = Instances(boxes, objects.labels, objects.masks, objects.keypoints).select(valid)
        labels = [objects.labels]
        data: dict[str, Any] = {"image": image, "bboxes": objects.boxes}
        data["rows"] = np.arange(len(objects))
        if objects.masks is not None:  # one that is empty where there are no objects
            data["masks"] = list(objects.masks) or [np.zeros(image.shape[:2], np.uint8)]
        points = _list_points(objects, image)
        data.update(keypoints=points - HALF, points=np.arange(len(points)))
        if uses_mosaic(pipeline.transforms):

            def read(rng: np.random.Generator) -> dict[str, Any]:
                pixels, found = draw(rng)
                boxes, valid = clip_boxes(found.boxes, np.array(pixels.shape[1::-1]))
                first = sum(len(part) for part in labels)
                labels.append(found.labels[valid])
                rows = first + np.arange(len(labels[-1]))
                none = {"keypoints": np.empty((0, 2)), "points": np.empty(0, int)}
                return {"image": pixels, "bboxes": boxes[valid], "rows": rows, **none}

            data[MOSAIC] = Others(read, pipeline, (*key, MOSAIC_PART))
        result = run(pipeline, data, key, name)
        image = np.ascontiguousarray(result["image"])
        rows = np.asarray(result["rows"], np.int64).reshape(-1)
        boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        boxes, valid = clip_boxes(boxes, np.array(image.shape[1::-1]))
        found = Instances(boxes, np.concatenate(labels)[rows])
        if objects.masks is not None:
            found.masks = np.asarray(result["masks"], np.uint8)[rows]
        if objects.keypoints is not None:
            found.keypoints = self._place_keypoints(objects.keypoints, result, image)[rows]
        return image, found.select(valid)

    def _place_keypoints(
        self, keypoints: np.ndarray, result: dict[str, Any], image: np.ndarray
    ) -> np.ndarray:
        placed = keypoints.astype(np.float64)
        points = np.full((3 + placed[..., 0].size, 2), np.nan)  # those that a transform drops
        order = np.asarray(result["points"], np.int64).reshape(-1)
        points[order] = np.asarray(result["keypoints"], np.float64).reshape(-1, 2) + HALF
        # Right-handed axes became left-handed ones: the image was mirrored, turned or not.
        (ax, ay), (bx, by) = points[1:3] - points[0]
        placed[..., :2] = points[3:].reshape(*placed.shape[:2], 2)
        if self.other_side and ax * by - ay * bx < 0:
            placed = placed[:, list(self.other_side)]
        return unlabel_outside(placed.astype(np.float32), (image.shape[0], image.shape[1]))

    def __repr__(self) -> str:
        return f"ListedAugmentation({self.before}, {self.mixup}, {self.after}, size={self.size})"


def mix(
    image: np.ndarray,
    objects: Instances,
    other_image: np.ndarray,
    other_objects: Instances,
    ratio: float,
    fill: tuple[float, float, float] = IMAGENET_MEAN,
) -> tuple[np.ndarray, Instances]:
    """Lay two images on each other at the top left; the smaller one gets a border.

    Args:
        image: (H, W, 3) uint8.
        objects: Objects of `image`.
        other_image: (H', W', 3) uint8.
        other_objects: Objects of `other_image`.
        ratio: Share of `image` in the pixels, in [0, 1].
        fill: RGB of the border.

    Returns:
        The mixed image, and the objects of both.
    """
    height, width = np.maximum(image.shape[:2], other_image.shape[:2]).tolist()
    mixed = np.zeros((height, width, 3), np.float32)
    placed = []
    for pixels, found, share in ((image, objects, ratio), (other_image, other_objects, 1 - ratio)):
        source = pixels.shape[0], pixels.shape[1]
        placement = Placement(source, source, (0, 0), (height, width), mirrored=False)
        mixed += np.float32(share) * placement.place_image(pixels, fill)
        placed.append(placement.place(found))
    return np.rint(mixed).astype(np.uint8), concatenate_objects(*placed)


def _list_points(objects: Instances, image: np.ndarray) -> np.ndarray:
    """List three points that show whether the image is mirrored, then (x, y) of all keypoints."""
    if objects.keypoints is None:
        return np.empty((0, 2))
    height, width = image.shape[:2]
    middle = np.array([width / 2, height / 2])
    axes = middle + np.array([(0, 0), (width / 8, 0), (0, height / 8)])
    xy = objects.keypoints[..., :2].astype(np.float64)
    labeled = np.where(objects.keypoints[..., 2:] > 0, xy, middle)  # the others lie anywhere
    return np.concatenate((axes, labeled.reshape(-1, 2)))
