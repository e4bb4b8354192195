"""Our entries in torchvision's registry: ``torchvision.models.get_model("densenet121_features")``.

There are the detectors (``dsod300``, ``fasterrcnn_densenet121_fpn``, ``fasterrcnn_fpn`` with any
``backbone``, ...), the segmenters (``unet``, ``fcdensenet103``, ...) and, under their timm names,
all backbones of `timm_models`. torchvision looks names up in lower case and offers no public
decorator, so its private one is reached here and nowhere else.

torchvision's ``references/detection/train.py`` and ``references/segmentation/train.py`` build our
models by ``--model NAME``. The second one passes ``aux_loss``: given, True or False, a segmenter
takes normalized images and returns a dictionary (`TorchvisionSegmenter`); left out, it is as in
`densenet_backbones.heads`.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
from torch import nn
from torchvision.models import WeightsEnum, detection, segmentation

from densenet_backbones.checkpoints import CheckpointError, read_state_dict
from densenet_backbones.heads import (
    dsod300,
    dsod300_smallest,
    dsod512,
    dsod_tiny,
    fasterrcnn_fpn,
    fasterrcnn_fpn_v2,
    fcdensenet56,
    fcdensenet67,
    fcdensenet103,
    fcos_fpn,
    keypointrcnn_fpn,
    maskrcnn_fpn,
    maskrcnn_fpn_v2,
    retinanet_fpn,
    retinanet_fpn_v2,
    ssd300,
    ssd512,
)
from densenet_backbones.heads.segmentation.segmenter import Segmenter, TorchvisionSegmenter
from densenet_backbones.heads.segmentation.unet import unet
from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

try:
    from torchvision.models._api import register_model
except ImportError as error:
    raise ImportError(
        "this torchvision has no models._api.register_model; densenet-backbones was tested with "
        "torchvision 0.28 and 0.29. The models are in densenet_backbones.heads, the backbones in "
        "timm.create_model"
    ) from error

__all__ = ["BACKBONES", "DETECTORS", "MODELS", "SEGMENTERS"]


def _backbone(name: str) -> Callable[..., nn.Module]:
    def build(*, weights: PublishedWeights | str | Path | None = None, **config: Any) -> nn.Module:
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


class PublishedWeights(WeightsEnum):
    """Weights of whole models that can be asked for by name: none are published yet.

    ``torchvision.models.get_model_weights`` answers with it for all our names.
    """


def _variant_of(builder: Callable[..., nn.Module], variant: str) -> Callable[..., nn.Module]:
    """Return a detector's builder for one backbone: ``fasterrcnn_<variant>_fpn`` of the kind."""
    kind, joint, rest = builder.__name__.partition("_")
    name = f"{kind}_{variant}{joint}{rest}"
    backbone = variant + SUFFIX

    @functools.wraps(builder)  # the signature too, by which arguments are checked
    def build(**options: Any) -> nn.Module:
        if options.setdefault("backbone", backbone) != backbone:
            raise ValueError(
                f"{name} stands on {backbone}; call {builder.__name__} with "
                f"backbone={options['backbone']!r}"
            )
        return builder(**options)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name}: `{builder.__name__}` on ``{backbone}``, with its arguments."
    return build


def _register(builder: Callable[..., nn.Module], module: ModuleType) -> Callable[..., nn.Module]:
    """Register a builder so that torchvision lists it among the models of one of its modules.

    torchvision goes by the builder's ``__module__`` (``list_models(module=...)``), and by what the
    parameter ``weights`` is annotated with (``get_model_weights``).

    Args:
        builder: Builder of a detector or segmenter.
        module: ``torchvision.models.detection`` or ``torchvision.models.segmentation``.

    Returns:
        The builder as it was.
    """

    @functools.wraps(builder)
    def entry(**options: Any) -> nn.Module:
        if module is segmentation and "aux_loss" in options:
            return _build_torchvision_segmenter(builder, **options)
        return builder(**options)

    signature = inspect.signature(builder)
    parameters = {**signature.parameters}
    options = parameters.pop("options")  # each builder's further arguments, last of all
    weights = inspect.Parameter(
        "weights", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=PublishedWeights
    )
    arguments = {**parameters, "weights": weights, "options": options}
    entry.__signature__ = signature.replace(parameters=list(arguments.values()))  # type: ignore[attr-defined]
    entry.__module__ = f"{module.__name__}.densenet_backbones"
    register_model()(entry)
    return builder


def _build_torchvision_segmenter(
    builder: Callable[..., nn.Module], *, aux_loss: bool | None, **options: Any
) -> nn.Module:
    """Build a segmenter as torchvision's own are called, with ``aux_loss``."""
    if aux_loss:
        if "deep_supervision" not in inspect.signature(builder).parameters:
            raise ValueError(f"{builder.__name__} has no auxiliary logits: leave aux_loss out")
        options["deep_supervision"] = True
    segmenter = builder(**options)
    assert isinstance(segmenter, Segmenter)
    if aux_loss is None:
        return segmenter
    return TorchvisionSegmenter(
        segmenter.net,
        stride=segmenter.stride,
        normalization=segmenter.normalization,
        smallest=segmenter.smallest,
    )


_ON_ANY_BACKBONE: tuple[Callable[..., nn.Module], ...] = (
    fasterrcnn_fpn,
    fasterrcnn_fpn_v2,
    maskrcnn_fpn,
    maskrcnn_fpn_v2,
    keypointrcnn_fpn,
    retinanet_fpn,
    retinanet_fpn_v2,
    fcos_fpn,
    ssd300,
    ssd512,
)
_DETECTOR_VARIANTS = (
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "condensenet74",
)

# A name that torchvision, or another package, registered before raises a ValueError here.
DETECTORS = {
    builder.__name__: _register(builder, detection)
    for builder in (
        dsod300,
        dsod300_smallest,
        dsod512,
        dsod_tiny,
        *_ON_ANY_BACKBONE,
        *(_variant_of(b, variant) for b in _ON_ANY_BACKBONE for variant in _DETECTOR_VARIANTS),
    )
}
SEGMENTERS = {
    builder.__name__: _register(builder, segmentation)
    for builder in (fcdensenet56, fcdensenet67, fcdensenet103, unet)
}
MODELS = DETECTORS | SEGMENTERS
BACKBONES = {name + SUFFIX: register_model()(_backbone(name + SUFFIX)) for name in VARIANTS}
