"""Our entries in torchvision's registry: ``torchvision.models.get_model("densenet121_features")``.

There are the detectors (``dsod300``, ...), the segmenters (``unet``, ``fcdensenet103``, ...) and,
under their timm names, all backbones of `timm_models`. torchvision looks names up in lower case and
offers no public decorator, so its private one is reached here and nowhere else.
"""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from torch import nn

from densenet_backbones.checkpoints import CheckpointError, read_state_dict
from densenet_backbones.heads import (
    dsod300,
    dsod300_smallest,
    dsod_tiny,
    fcdensenet56,
    fcdensenet67,
    fcdensenet103,
    unet,
)
from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

try:
    from torchvision.models._api import register_model
except ImportError as error:
    raise ImportError(
        "this torchvision has no models._api.register_model; densenet-backbones was tested with "
        "torchvision 0.26 to 0.29. The models are in densenet_backbones.heads, the backbones in "
        "timm.create_model"
    ) from error

__all__ = ["BACKBONES", "DETECTORS", "MODELS", "SEGMENTERS"]


def _backbone(name: str) -> Callable[..., nn.Module]:
    def build(*, weights: str | Path | None = None, **config: Any) -> nn.Module:
        if config.get("pretrained"):
            raise ValueError(
                f"{name}: torchvision's entry downloads nothing, so pretrained=True has no "
                f"meaning; call timm.create_model({name!r}, pretrained=True), or give weights=FILE"
            )
        if weights is not None and not (
            isinstance(weights, str | Path) and Path(weights).is_file()
        ):
            raise ValueError(
                f"{name}: weights must be None or a file of weights that exists, not {weights!r}; "
                "torchvision's own enums and names of weights are not known here, and nothing is "
                f"downloaded: timm.create_model({name!r}, pretrained=True) does that"
            )
        net = timm.create_model(name, **config)
        if weights is not None:
            _load(net, weights, name)
        return net

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{name}, built by `timm.create_model`: a feature net.

    Args:
        weights: File of weights in torchvision's, timm's or our naming; None for random ones.
        **config: What timm's entry takes: fields of `DenseNetSpec`, ``tap``, ``layer_taps``,
            ``out_indices``, ``memory``, ``in_chans``, ``features_only=False`` for the classifier.

    Raises:
        ValueError: ``weights`` is no file, or does not fit the network; or as timm's entry.
    """
    return build


def _load(net: nn.Module, weights: str | Path, name: str) -> None:
    try:
        net.load_state_dict(read_state_dict(weights))
    except RuntimeError as error:  # torch lists every name and shape that does not fit
        reason = textwrap.shorten(str(error), 600)
        raise CheckpointError(
            f"{weights}: the weights do not fit {name} as it is asked for here ({reason}); give "
            "the arguments the weights were trained with, or another file"
        ) from error


# A name that torchvision, or another package, registered before raises a ValueError here.
DETECTORS = {
    builder.__name__: register_model()(builder)
    for builder in (dsod300, dsod300_smallest, dsod_tiny)
}
SEGMENTERS = {
    builder.__name__: register_model()(builder)
    for builder in (fcdensenet56, fcdensenet67, fcdensenet103, unet)
}
MODELS = DETECTORS | SEGMENTERS
BACKBONES = {name + SUFFIX: register_model()(_backbone(name + SUFFIX)) for name in VARIANTS}
