"""Facts about a detector, ours or torchvision's: how it scales images, and what it learns from."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.instances import TargetType


def read_model_input(model: nn.Module) -> ModelInput:
    """Return what a detector takes: the facts of its image transform, ours or torchvision's."""
    transform = getattr(model, "transform", None)
    fixed_size = getattr(transform, "fixed_size", None)  # (W, H)
    shortest = getattr(transform, "min_size", ModelInput.min_size)
    return ModelInput(
        size=None if fixed_size is None else (int(fixed_size[1]), int(fixed_size[0])),
        # Of several sides the last one holds in evaluation.
        min_size=int(shortest if isinstance(shortest, int) else shortest[-1]),
        max_size=int(getattr(transform, "max_size", ModelInput.max_size)),
        fill_color=getattr(transform, "fill_color", ModelInput.fill_color),
        target_types=read_target_types(model) if hasattr(model, "target_types") else None,
    )


def read_target_types(model: nn.Module) -> tuple[TargetType, ...]:
    """Return a detector's `target_types`, or what the RoI heads of torchvision's own have."""
    if hasattr(model, "target_types"):
        return tuple(cast(Sequence[TargetType], model.target_types))
    heads = getattr(model, "roi_heads", None)
    target_types: list[TargetType] = ["boxes"]
    target_types += ["masks"] if heads is not None and heads.has_mask() else []
    target_types += ["keypoints"] if heads is not None and heads.has_keypoint() else []
    return tuple(target_types)
