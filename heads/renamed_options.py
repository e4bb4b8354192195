"""Options of earlier releases under their names of today, for saved models and configs.

Builders carry torchvision's names (``torchvision/models/detection/*.py``) since format 2 of model
files. This table is the one place that knows the names before; readers of files and configs pass
what they read through `rename_options`.
"""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["RENAMED", "rename_options"]


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


def rename_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a builder's options under their names of today.

    Args:
        options: Keyword arguments of a detector's or segmenter's builder, old names and new ones.

    Raises:
        ValueError: An option is given under both of its names.
    """
    renamed: dict[str, Any] = {}
    for name, value in options.items():
        today = RENAMED[name](value) if name in RENAMED else {name: value}
        for new in today:
            if new in renamed or (new != name and new in options):
                raise ValueError(f"{name} is an old name of {new}: give one of the two")
        renamed |= today
    return renamed
