"""Which augmentation a detector is trained with: from a preset's name and what the model takes."""

from collections.abc import Sequence
from typing import Any, Literal

from densenet_backbones.data.augment.detection import Augmentation
from densenet_backbones.data.augment.instances import InstanceAugmentation
from densenet_backbones.data.augment.ssd import IMAGENET_MEAN
from densenet_backbones.data.samples import DataError

AnyPreset = Literal["ssd", "light", "flip", "multiscale", "lsj", "none"]
JITTERED = 1024 / 800  # of the model's shortest side: the canvas of "lsj" in torchvision's training
STEP = 32  # pixels: the coarsest level of a pyramid fits exactly


def augmentation_for(
    model: Any,
    preset: AnyPreset,
    target_types: Sequence[str],
    *,
    jitter_size: int | None = None,
    other_side: tuple[int, ...] = (),
) -> Augmentation | InstanceAugmentation | None:
    """The augmentation of a detector's training images.

    "multiscale" and "lsj" turn the model's own resizing in training off where it has no fixed image
    size: it would undo the scales. In evaluation it goes on resizing. (torchvision's
    references/detection/train.py sets the same, `_skip_resize`, for these two.)

    Args:
        model: With `image_size` where it takes images of one size; its `transform`
            knows its scales and colours.
        preset: Of `Augmentation` or `InstanceAugmentation`.
        target_types: Annotations that it learns from: "boxes", and "masks" or "keypoints".
        jitter_size: Side of the square canvas of "lsj"; None takes the image size, or one that is
            to the shortest side of the model's scaling as 1024 is to 800.
        other_side: See `Categories.mirrored_keypoints`.

    Returns:
        The augmentation, or None where images are handed out as they are.

    Raises:
        DataError: If the preset does not fit the model.
    """
    transform, size = _preprocessing(model), image_size_of(model)
    fill = getattr(transform, "fill_color", IMAGENET_MEAN)
    if preset == "none" and (size is None or tuple(target_types) != ("boxes",)):
        return None  # the model resizes
    if preset == "ssd" or preset == "light" or preset == "none":
        if size is None:
            raise DataError(
                f"data.augmentation {preset!r} makes images of one size, but this detector takes "
                "them of any; choose flip, multiscale, lsj or none"
            )
        return Augmentation(preset, size, fill=fill)
    if preset == "multiscale" and size is not None:
        raise DataError(
            "data.augmentation 'multiscale' scales images, but this detector takes them of "
            f"{size[0]}x{size[1]} (H x W) only; choose ssd, light, flip, lsj or none"
        )
    shortest, longest = _scale(transform)
    if preset != "flip" and size is None:
        transform._skip_resize = True
    side = jitter_size or STEP * max(1, round(JITTERED * shortest / STEP))
    return InstanceAugmentation(
        preset,
        shortest=shortest,
        longest=longest,
        size=(side, side) if jitter_size or size is None else size,
        other_side=other_side,
        fill=fill,
    )


def image_size_of(model: Any) -> tuple[int, int] | None:
    """(H, W) that a detector resizes every image to, or None where images keep their shapes."""
    size = getattr(model, "image_size", None)
    if size is None:
        fixed = getattr(_preprocessing(model), "fixed_size", None)  # torchvision's (W, H)
        size = fixed[::-1] if fixed else None
    return None if size is None else (int(size[0]), int(size[1]))


def _preprocessing(model: Any) -> Any:
    """The image transform, which all detectors have at the same place."""
    return getattr(model, "transform", None)


def _scale(transform: Any) -> tuple[int, int]:
    """Shortest and longest side that a model scales images to in evaluation."""
    shortest = getattr(transform, "min_size", 800)
    shortest = shortest if isinstance(shortest, int) else shortest[-1]
    return int(shortest), int(getattr(transform, "max_size", 1333))
