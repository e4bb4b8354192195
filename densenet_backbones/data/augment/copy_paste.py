"""Copy-paste augmentation: pastes objects of one image on another.

Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation", CVPR 2021 (arXiv 2012.07177), section 3. Edges are not blended, which the paper
found to make no difference.

Legend: B objects, H x W pixels.
"""

import numpy as np

from densenet_backbones.data.augment.instances import keep_visible
from densenet_backbones.data.instances import Instances

CHANCE = 0.5  # of each object to be pasted: "a random subset of objects"
HIDDEN, VISIBLE = 1, 2  # COCO's visibility of keypoints


def paste_objects(
    image: np.ndarray,
    objects: Instances,
    other_image: np.ndarray,
    other_objects: Instances,
    rng: np.random.Generator,
    *,
    min_side: float = 1.0,
) -> tuple[np.ndarray, Instances]:
    """Paste a random part of the other image's objects.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        objects: Objects of `image`, with masks; not changed.
        other_image: Image to paste from, of the same shape.
        other_objects: Objects of `other_image`, with masks.
        rng: Random numbers that choose the objects.
        min_side: Smallest side of a box, in pixels; objects of which less can still be seen are
            left out.

    Returns:
        The new image, and its objects: first those of `image` without what is covered, their boxes
        tight around what is left, then the pasted ones. A covered keypoint is a hidden one.

    Raises:
        ValueError: If the images differ in shape.
    """
    if image.shape != other_image.shape:
        raise ValueError(f"images must have one shape, got {image.shape} and {other_image.shape}")
    pasted = other_objects.select(rng.random(len(other_objects)) < CHANCE)
    assert objects.masks is not None and pasted.masks is not None
    if not len(pasted):
        return image, objects
    cover = np.asarray(pasted.masks.any(0))  # (H, W)
    # What the pasted objects do not cover.
    uncovered = Instances(
        objects.boxes,
        objects.labels,
        objects.masks * ~cover,
        None if objects.keypoints is None else _hide_covered(objects.keypoints, cover),
    )
    visible = keep_visible(uncovered, min_side)
    return np.where(cover[..., None], other_image, image), concatenate_objects(visible, pasted)


def _hide_covered(keypoints: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Mark those of (B, Kp, 3) keypoints as hidden that lie under the cover, (H, W) bool."""
    hidden = keypoints.copy()
    # A keypoint may lie on the end of the last pixel.
    x = np.minimum(hidden[..., 0].astype(np.int64), cover.shape[1] - 1)
    y = np.minimum(hidden[..., 1].astype(np.int64), cover.shape[0] - 1)
    hidden[..., 2][cover[y, x] & (hidden[..., 2] == VISIBLE)] = HIDDEN
    return hidden


def concatenate_objects(first: Instances, second: Instances) -> Instances:
    """Concatenate the objects of one image; masks and keypoints stay where both have them."""

    def join(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
        return None if a is None or b is None else np.concatenate((a, b))

    return Instances(
        np.concatenate((first.boxes, second.boxes)),
        np.concatenate((first.labels, second.labels)),
        join(first.masks, second.masks),
        join(first.keypoints, second.keypoints),
    )
