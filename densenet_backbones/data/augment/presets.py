"""Choice of a detector's augmentation, from a preset or a list and what the model takes.

Sources: the presets' own files; torchvision's ``references/detection/train.py`` for the canvas of
"lsj", and for turning the model's resizing off where the augmentation scales (`_skip_resize`).
"""

from collections.abc import Sequence
from typing import Literal

from densenet_backbones.data.augment.detection import Augmentation
from densenet_backbones.data.augment.instances import InstanceAugmentation
from densenet_backbones.data.augment.listed import ListedAugmentation
from densenet_backbones.data.augment.listing import Entries
from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.instances import TargetType

AnyPreset = Literal["ssd", "light", "flip", "multiscale", "lsj", "none"]
JITTERED = 1024 / 800  # of the model's shortest side: the canvas of "lsj" in torchvision's training
STEP = 32  # pixels: the coarsest level of a pyramid fits exactly


def choose_augmentation(
    model_input: ModelInput,
    preset: AnyPreset | Entries,
    target_types: Sequence[TargetType],
    *,
    jitter_size: int | None = None,
    other_side: tuple[int, ...] = (),
) -> Augmentation | InstanceAugmentation | ListedAugmentation | None:
    """Return the augmentation of a detector's training images.

    Args:
        model_input: What the detector takes.
        preset: Of `Augmentation` or `InstanceAugmentation`, or a list for `ListedAugmentation`.
        target_types: Annotations that it learns from: "boxes", and "masks" or "keypoints".
        jitter_size: Side of the square canvas of "lsj"; None takes the image size, or one that is
            to the shortest side of the model's scaling as 1024 is to 800.
        other_side: See `Categories.mirrored_keypoints`.

    Returns:
        The augmentation, or None where images are handed out as they are.

    Raises:
        DataError: If the preset or the list does not fit the model.
    """
    size = model_input.size
    if not isinstance(preset, str):
        return ListedAugmentation(
            preset,
            target_types=target_types,
            size=size,
            other_side=other_side,
            fill=model_input.fill_color,
        )
    if preset == "none" and (size is None or tuple(target_types) != ("boxes",)):
        return None  # the model resizes
    if preset == "ssd" or preset == "light" or preset == "none":
        if size is None:
            raise DataError(
                f"data.augmentation {preset!r} makes images of one size, but this detector takes "
                "them of any; choose flip, multiscale, lsj or none"
            )
        return Augmentation(preset, size, fill=model_input.fill_color)
    if preset == "multiscale" and size is not None:
        raise DataError(
            "data.augmentation 'multiscale' scales images, but this detector takes them of "
            f"{size[0]}x{size[1]} (H x W) only; choose ssd, light, flip, lsj or none"
        )
    side = jitter_size or STEP * max(1, round(JITTERED * model_input.min_size / STEP))
    return InstanceAugmentation(
        preset,
        shortest=model_input.min_size,
        longest=model_input.max_size,
        size=(side, side) if jitter_size or size is None else size,
        other_side=other_side,
        fill=model_input.fill_color,
    )


def scales_images(model_input: ModelInput, preset: AnyPreset | Entries) -> bool:
    """Return True if a preset scales images in place of the model.

    The model must not resize in training then: it would undo the scales. In evaluation it goes on.
    """
    return model_input.size is None and preset in ("multiscale", "lsj")
