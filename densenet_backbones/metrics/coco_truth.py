"""Ground truth for COCO's evaluation of boxes, masks and keypoints, completed from a data set.

Sources: pycocotools (``cocoeval.py``, `Params` and `computeOks`) for the types of IoU and the
constants of keypoints.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.instances import TargetType
from densenet_backbones.data.samples import DetectionSet, GroundTruth
from densenet_backbones.metrics.coco_summary import IouType

IOU_TYPES: dict[TargetType, IouType] = {
    "boxes": "bbox",
    "masks": "segm",
    "keypoints": "keypoints",
}
"""Annotation that a detector learns from -> the type of COCO's evaluation of it."""

COCO_KEYPOINTS = 17
COCO_SIGMAS = {
    "nose": 0.026,
    **{f"{side}_eye": 0.025 for side in ("left", "right")},
    **{f"{side}_ear": 0.035 for side in ("left", "right")},
    **{f"{side}_shoulder": 0.079 for side in ("left", "right")},
    **{f"{side}_elbow": 0.072 for side in ("left", "right")},
    **{f"{side}_wrist": 0.062 for side in ("left", "right")},
    **{f"{side}_hip": 0.107 for side in ("left", "right")},
    **{f"{side}_knee": 0.087 for side in ("left", "right")},
    **{f"{side}_ankle": 0.089 for side in ("left", "right")},
}
"""COCO's OKS constants by the names and in the order of its person_keypoints files."""
MEAN_SIGMA = 0.067
"""Mean of COCO's 17 constants (cocoeval.py, `kpt_oks_sigmas`): for keypoints that have none."""


def choose_sigmas(keypoints: int, categories: Categories | None = None) -> list[float] | None:
    """Return the OKS constants of an object's keypoints, in the order of the evaluated file.

    Args:
        keypoints: Number of an object's keypoints.
        categories: The evaluated set's classes: where they name COCO's keypoints in another
            order, each gets its own constant.

    Returns:
        None, which stands for COCO's own, where there are 17; else one constant for all.
    """
    names: list[str] = []
    if categories is not None and categories.keypoints:
        names = categories.put_in_file_order(np.array(categories.keypoints)[:, None])[:, 0].tolist()
    if set(names) == set(COCO_SIGMAS) and names != list(COCO_SIGMAS):
        return [COCO_SIGMAS[name] for name in names]
    return None if keypoints == COCO_KEYPOINTS else [MEAN_SIGMA] * keypoints


def complete_truth(
    part: DetectionSet, target_types: Sequence[str], keypoints: int | None = None
) -> GroundTruth:
    """Return COCO's JSON form of a set, complete for what is evaluated.

    An object without a mask, or without keypoints, counts neither as found nor as missed in the
    evaluation of those.

    Args:
        part: The set.
        target_types: Annotations that are evaluated: "boxes", "masks", "keypoints".
        keypoints: Number of an object's keypoints.

    Raises:
        ValueError: No object of the set has a mask or keypoints where those are evaluated.
    """
    truth = part.ground_truth()
    annotations = truth["annotations"]
    keys: tuple[tuple[str, Literal["segmentation", "keypoints"]], ...] = (
        ("masks", "segmentation"),
        ("keypoints", "keypoints"),
    )
    # Without a single mask or keypoint the numbers would be NaN, with no reason given.
    for target_type, key in keys:
        if target_type not in target_types or not annotations:
            continue
        if not any(annotation.get(key) for annotation in annotations):
            raise ValueError(
                f"{part.name}: no object has a {key!r}, so {target_type} cannot be evaluated; "
                "evaluate a detector of boxes, or complete the annotations"
            )
    # pycocotools reads these keys of every annotation, and leaves empty ones out.
    if "masks" in target_types:
        truth["annotations"] = annotations = [
            a if a.get("segmentation") else {**a, "segmentation": None} for a in annotations
        ]
    if "keypoints" in target_types:
        unlabeled = [0.0] * 3 * (keypoints or COCO_KEYPOINTS)
        truth["annotations"] = [
            a if a.get("keypoints") else {**a, "keypoints": unlabeled, "num_keypoints": 0}
            for a in annotations
        ]
    return truth
