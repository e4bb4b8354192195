"""What a detector learns beside boxes, and how that is evaluated."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from densenet_backbones.data.instances import TargetType
from densenet_backbones.data.samples import Categories, DetectionSet
from densenet_backbones.metrics.coco import PREFIXES
from densenet_backbones.metrics.coco_summary import IouType

IOU_TYPES: dict[TargetType, IouType] = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
"""What may be learned -> the type of COCO's evaluation of it."""

COCO_KEYPOINTS = 17
MEAN_SIGMA = 0.067
"""Of COCO's 17 constants (cocoeval.py, `kpt_oks_sigmas`), the mean: for keypoints without any."""


def learned_by(model: nn.Module) -> tuple[TargetType, ...]:
    """Its `target_types`, or for torchvision's own detectors what their RoI heads have."""
    if hasattr(model, "target_types"):
        return tuple(model.target_types)  # type: ignore[arg-type]
    heads: Any = getattr(model, "roi_heads", None)
    found: list[TargetType] = ["boxes"]
    found += ["masks"] if heads is not None and heads.has_mask() else []
    found += ["keypoints"] if heads is not None and heads.has_keypoint() else []
    return tuple(found)


def learned_by_name(detector: str) -> tuple[TargetType, ...]:
    """The same, told from a name in torchvision's registry, before anything is built."""
    kind = detector.lower().partition("_")[0]
    if kind == "maskrcnn":
        return ("boxes", "masks")
    return ("boxes", "keypoints") if kind == "keypointrcnn" else ("boxes",)


def allow_channels_last(model: nn.Module) -> None:
    """Let a keypoint detector keep its maps with their channels side by side.

    torchvision's `keypointrcnn_loss` takes views of the predicted heat maps, which must be
    contiguous for that.
    """
    predictor = getattr(getattr(model, "roi_heads", None), "keypoint_predictor", None)
    if predictor is not None:
        predictor.register_forward_hook(_contiguous)


def _contiguous(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.contiguous()


def with_keypoints(detector: str, args: dict[str, Any], categories: Categories) -> dict[str, Any]:
    """The arguments of a keypoint detector with the number of keypoints that the data has.

    Raises:
        ValueError: Another number is asked for.
    """
    there = len(categories.keypoints)
    if "keypoints" not in learned_by_name(detector) or not there:
        return args
    if args.get("num_keypoints", there) != there:
        raise ValueError(
            f"model.args: num_keypoints is {args['num_keypoints']}, but an object of the data has "
            f"{there} keypoints ({', '.join(categories.keypoints)}); leave it out"
        )
    return {**args, "num_keypoints": there}


def headline_of(target_types: Sequence[TargetType]) -> tuple[str, ...]:
    """The numbers that are shown: the last one says which weights are best."""
    return tuple(f"{PREFIXES[IOU_TYPES[what]]}AP" for what in target_types)


def keypoint_sigmas(number: int) -> list[float] | None:
    """OKS constants of so many keypoints: COCO's own (None) for its 17, else one for all."""
    return None if number == COCO_KEYPOINTS else [MEAN_SIGMA] * number


def evaluated_truth(
    part: DetectionSet, target_types: Sequence[str], keypoints: int | None = None
) -> dict[str, Any]:
    """COCO's JSON form of a set, complete for what is evaluated.

    An object without a mask, or without keypoints, counts neither as found nor as missed in the
    evaluation of those.

    Args:
        part: The set.
        target_types: What is evaluated.
        keypoints: Number of an object's keypoints.

    Raises:
        ValueError: No object of the set has a mask or keypoints where those are evaluated.
    """
    truth = part.ground_truth()
    annotations = truth["annotations"]
    for what, key in (("masks", "segmentation"), ("keypoints", "keypoints")):
        if what in target_types and annotations and not any(a.get(key) for a in annotations):
            raise ValueError(
                f"{part.name}: no object has a {key!r}, so {what} cannot be evaluated; evaluate a "
                "detector of boxes, or complete the annotations"
            )
    if "masks" in target_types:
        truth["annotations"] = annotations = [
            a if a.get("segmentation") else {**a, "segmentation": None} for a in annotations
        ]
    if "keypoints" in target_types:
        none = {"keypoints": [0] * 3 * (keypoints or COCO_KEYPOINTS), "num_keypoints": 0}
        truth["annotations"] = [a if a.get("keypoints") else {**a, **none} for a in annotations]
    return truth
