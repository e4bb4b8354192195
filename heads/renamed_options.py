"""Options of earlier releases under their names of today, for saved models and configs.

Builders carry torchvision's names (``torchvision/models/detection/*.py``) since format 2 of model
files. This table is the one place that knows the names before; readers of files and configs pass
what they read through `rename_options`.
"""

from collections.abc import Callable
from typing import Any

from densenet_backbones.heads.options import Keywords, Options

__all__ = ["NESTED", "RENAMED", "rename_options", "rename_transform"]


def _rename_to(name: str) -> Callable[[Any], Keywords]:
    return lambda value: {name: value}


def _convert_pretrained(pretrained: bool | None) -> Keywords:
    return {"weights_backbone": "timm" if pretrained else None}


RENAMED: dict[str, Callable[[Any], Keywords]] = {
    "backbone_args": _rename_to("backbone_kwargs"),
    "detections_per_image": _rename_to("detections_per_img"),
    "nms_threshold": _rename_to("nms_thresh"),
    "pretrained_backbone": _convert_pretrained,
    "score_threshold": _rename_to("score_thresh"),
    "trainable_layers": _rename_to("trainable_backbone_layers"),
}
"""Old name -> function that turns its value into today's names and values."""


NESTED = ("preprocessing", "normalization")
"""Options that were dictionaries of what are now options themselves."""

RENAMED_IN_TRANSFORM = {"mean": "image_mean", "std": "image_std", "fixed_size": "image_size"}
"""Names in those dictionaries, and in the transforms that model files describe."""


def rename_options(options: Options) -> Keywords:
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


def rename_transform(described: Options | None) -> Keywords | None:
    """Return the description of a transform under the names of today.

    Args:
        described: Arguments of a `DetectionTransform` or an `ImageNormalization`, or None.
    """
    if described is None:
        return None
    return {RENAMED_IN_TRANSFORM.get(name, name): value for name, value in described.items()}
