"""Options of earlier releases under their names of today, for saved models and configs.

Builders carry torchvision's names (``torchvision/models/detection/*.py``) since format 2 of model
files. This table is the one place that knows the names before; readers of files and configs pass
what they read through `rename_options`.
"""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["NESTED", "RENAMED", "rename_options", "rename_transform"]


def _named(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: value}


def _weights_backbone(pretrained: bool | None) -> dict[str, Any]:
    return {"weights_backbone": "timm" if pretrained else None}


RENAMED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "backbone_args": _named("backbone_kwargs"),
    "detections_per_image": _named("detections_per_img"),
    "nms_threshold": _named("nms_thresh"),
    "pretrained_backbone": _weights_backbone,
    "score_threshold": _named("score_thresh"),
    "trainable_layers": _named("trainable_backbone_layers"),
}
"""From an old name to what makes today's names and values of its value."""


NESTED = ("preprocessing", "normalization")
"""Options that were dictionaries of what are now options themselves."""

RENAMED_IN_TRANSFORM = {"mean": "image_mean", "std": "image_std", "fixed_size": "image_size"}
"""Names in those dictionaries, and in the transforms that model files describe."""


def rename_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a builder's options under their names of today.

    Args:
        options: Keyword arguments of a detector's or segmenter's builder, old names and new ones.

    Raises:
        ValueError: An option is given under both of its names.
    """
    renamed = {k: v for k, v in options.items() if k not in RENAMED and k not in NESTED}
    for name in RENAMED.keys() & options.keys():
        today = RENAMED[name](options[name])
        for new in today.keys() & renamed.keys():
            raise ValueError(f"{name} is an old name of {new}: give one of the two")
        renamed |= today
    for name in NESTED:  # these went before the others
        renamed |= rename_transform(options.get(name)) or {}
    return renamed


def rename_transform(described: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the description of a transform under the names of today.

    Args:
        described: Arguments of a `DetectionTransform` or an `ImageNormalization`, or None.
    """
    if described is None:
        return None
    return {RENAMED_IN_TRANSFORM.get(name, name): value for name, value in described.items()}
