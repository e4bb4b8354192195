"""Objects of one image pasted on another.

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
        objects: Its objects, with masks; not changed.
        other_image: Of the same shape.
        other_objects: Likewise.
        rng: Chooses the objects.
        min_side: Pixels; objects are left out of which less than that can still be seen.

    Returns:
        The image; its objects without what is covered now, their boxes tight around what is left,
        and then the pasted ones. A covered keypoint is a hidden one.

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
    left = Instances(
        objects.boxes,
        objects.labels,
        objects.masks * ~cover,
        None if objects.keypoints is None else _covered(objects.keypoints, cover),
    )
    left = keep_visible(left, min_side)
    return np.where(cover[..., None], other_image, image), _together(left, pasted)


def _covered(keypoints: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """(B, Kp, 3) keypoints, those hidden that lie under the cover (H, W)."""
    found = keypoints.copy()
    # A keypoint may lie on the end of the last pixel.
    x = np.minimum(found[..., 0].astype(np.int64), cover.shape[1] - 1)
    y = np.minimum(found[..., 1].astype(np.int64), cover.shape[0] - 1)
    found[..., 2][cover[y, x] & (found[..., 2] == VISIBLE)] = HIDDEN
    return found


def _together(first: Instances, second: Instances) -> Instances:
    def joined(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
        return None if a is None or b is None else np.concatenate((a, b))

    return Instances(
        np.concatenate((first.boxes, second.boxes)),
        np.concatenate((first.labels, second.labels)),
        joined(first.masks, second.masks),
        joined(first.keypoints, second.keypoints),
    )
