"""Choice of a detector's augmentation, from a preset or a list and what the model takes.

Sources: the presets' own files; torchvision's ``references/detection/train.py`` for the canvas of
"lsj", and for turning the model's resizing off where the augmentation scales (`_skip_resize`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from densenet_backbones.data.augment.detection import Augmentation
from densenet_backbones.data.augment.instances import InstanceAugmentation
from densenet_backbones.data.augment.listed import ListedAugmentation
from densenet_backbones.data.augment.listing import Entries
from densenet_backbones.data.augment.ssd import IMAGENET_MEAN
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.instances import TargetType

AnyPreset = Literal["ssd", "light", "flip", "multiscale", "lsj", "none"]
JITTERED = 1024 / 800  # of the model's shortest side: the canvas of "lsj" in torchvision's training
STEP = 32  # pixels: the coarsest level of a pyramid fits exactly


@dataclass(frozen=True)
class ModelInput:
    """Properties of a model that its training images depend on.

    Attributes:
        size: (H, W) that every image is resized to; None where images keep their shapes.
        min_size: Where there is no size: pixels that evaluation scales the shorter side to.
        max_size: Where there is no size: most pixels of the longer side.
        fill_color: RGB in 0..255 for borders: the mean, which is 0 to the network.
        target_types: Annotations that it learns from; None for all that were read.
        largest_view: Largest factor on its size at which it is evaluated.
        crop_pct: Of a classifier: share of the shorter side that evaluation sees.
    """

    size: tuple[int, int] | None = None
    min_size: int = 800
    max_size: int = 1333
    fill_color: tuple[float, float, float] = IMAGENET_MEAN
    target_types: tuple[TargetType, ...] | None = None
    largest_view: float = 1.0
    crop_pct: float = 1.0

    def choose_read_size(self, target_types: Sequence[str]) -> tuple[int, int] | None:
        """Return (H, W) that images need not exceed to be evaluated; None for their full size.

        It is twice the size to which the model brings them. It sees about the same in an image of
        that size and in a larger one, which may take gigabytes. Masks are made at full size.

        Args:
            target_types: Annotations that are evaluated.
        """
        if "masks" in target_types:
            return None
        height, width = self.size or (self.min_size, self.min_size)
        factor = 2 * max(self.largest_view, 1)
        return round(factor * height), round(factor * width)


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
