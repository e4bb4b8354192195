"""timm entries: ``timm.create_model("densenet121_features")`` after ``import densenet_backbones``.

There is one for every published member of the family (`variants.VARIANTS`), named
``<variant>_features``. Entries return multi-scale features; ``features_only=False`` returns the
classifier. Every field of `DenseNetSpec` may be overridden (``growth_rate=4``, ``output_stride=8``,
``norm="group"``; ``connections`` of a pruned net; ``bn_size=0`` for no bottleneck, since timm drops
None), besides ``memory``, ``tap``, ``layer_taps``, ``out_indices``, ``in_chans``, ``pretrained``,
``device``, ``dtype`` and timm's other arguments.

Local weights load with ``checkpoint_path=...``, or with ``pretrained=True,
pretrained_cfg_overlay=dict(file=...)``, which also adapts them to ``in_chans`` and to a classifier
of other classes; both take torchvision's, timm's and our names.
"""

import dataclasses
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._builder import build_model_with_cfg
from timm.models._pretrained import PretrainedCfg
from timm.models._registry import generate_default_cfgs, register_model
from torch import Tensor, nn

from densenet_backbones.checkpoints import fit_to
from densenet_backbones.checkpoints.reach import OfflineError, download_or_fail_soon
from densenet_backbones.densenet import DenseNet
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.messages import to_plain
from densenet_backbones.variants import SUFFIX, VARIANTS

# timm appends to it, so a list; every registered name is added there.
__all__ = ["SUFFIX"]

_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "conv0",
    "classifier": "classifier",
    "license": "apache-2.0",
}
_STEM_CFG: dict[str, dict[str, object]] = {
    # Mean and deviation: facebook/fb.resnet.torch, datasets/cifar10.lua, as the paper's code.
    "cifar": {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255),
        "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
    },
    "dsod": {"input_size": (3, 300, 300), "pool_size": (19, 19)},
}
# timm's published weights, the default first. timm would complete "timm/" with our entry's name,
# where nothing is, so hub names are written out.
_TAGS = {
    "densenet121": ("ra_in1k", "tv_in1k"),
    "densenet161": ("tv_in1k",),
    "densenet169": ("tv_in1k",),
    "densenet201": ("tv_in1k",),
    "densenetblur121d": ("ra_in1k",),
}
_TAG_CFG = {"ra_in1k": {"test_input_size": (3, 288, 288), "test_crop_pct": 0.95}}


def _build_cfgs() -> dict[str, dict[str, Any] | PretrainedCfg]:
    cfgs: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for name, spec in VARIANTS.items():
        cfg = {**_CFG, **_STEM_CFG.get(spec.stem, {})}
        for tag in _TAGS.get(name, ()):
            published = {"hf_hub_id": f"timm/{name}.{tag}", **_TAG_CFG.get(tag, {})}
            cfgs[f"{name}{SUFFIX}.{tag}"] = cfg | published
        if name not in _TAGS:
            cfgs[f"{name}{SUFFIX}.untrained"] = cfg
    return cfgs


default_cfgs = generate_default_cfgs(_build_cfgs())


def _create(name: str, spec: DenseNetSpec, pretrained: bool, **kwargs: Any) -> nn.Module:
    kwargs = {key: to_plain(value) for key, value in kwargs.items()}
    spec_fields = {field.name for field in dataclasses.fields(DenseNetSpec)}
    spec = dataclasses.replace(
        spec, **{key: kwargs.pop(key) for key in spec_fields & kwargs.keys()}
    )
    features = kwargs.setdefault("features_only", True)
    taps = {key: kwargs.pop(key) for key in ("tap", "layer_taps") if key in kwargs}
    feature_cfg: dict[str, object] = {"out_indices": None}
    if features and "feature_cls" not in kwargs:
        feature_cfg.update(feature_cls=DenseFeatureNet, **taps)
    elif taps:
        raise ValueError(
            f"{name}: {next(iter(taps))} belongs to our own feature net; leave it out, or leave "
            "out features_only=False and feature_cls"
        )
    else:
        feature_cfg.update(out_indices=tuple(range(len(spec.blocks) + 1)))
    taps_to_fit: Any = {"out_indices": kwargs.get("out_indices"), **taps} if features else None
    # Weights that are given, rather than published ones, need no network.
    is_given = kwargs.get("pretrained_cfg") or kwargs.get("pretrained_cfg_overlay")
    try:
        with download_or_fail_soon() if pretrained and not is_given else nullcontext():
            return build_model_with_cfg(
                DenseNet,
                name,
                pretrained,
                feature_cfg=feature_cfg,
                pretrained_filter_fn=partial(_fit_weights, taps_to_fit=taps_to_fit),
                # Stages behind the last tap and the classifier may be absent; the filter checks
                # the rest.
                pretrained_strict=not features,
                spec=spec,
                **kwargs,
            )
    except (ConnectionError, LocalEntryNotFoundError, OfflineModeIsEnabled, OfflineError) as error:
        raise OfflineError(
            f"{name}: its pretrained weights are neither on this machine nor within its reach "
            "(huggingface.co); give a file, pretrained=True, "
            "pretrained_cfg_overlay=dict(file='densenet.safetensors'), or pretrained=False"
        ) from error


def _fit_weights(
    weights: dict[str, Tensor], model: DenseNet, taps_to_fit: Any
) -> dict[str, Tensor]:
    """Rename weights to our names and check that they reach as far as the taps."""
    target = model if taps_to_fit is None else DenseFeatureNet(model, **taps_to_fit)
    return fit_to(weights, known=model.state_dict(), needed=target.state_dict())


def _describe(spec: DenseNetSpec) -> str:
    levels = ", ".join(f"{plan.channels}@{plan.stride}" for plan in spec.blocks)
    return (
        f"Blocks of {'-'.join(map(str, spec.block_config))} layers, k={spec.growth_rate}; "
        f"channels@stride {spec.num_init_features}@{spec.stem_stride}, {levels}."
    )


def _register(name: str, spec: DenseNetSpec) -> None:
    def create(
        pretrained: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        # timm's own nets hand both down to every layer; a context reaches as many with less.
        with nullcontext() if device is None else torch.device(device):
            net = _create(name, spec, pretrained, **kwargs)
        return net if dtype is None else net.to(dtype)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = _describe(spec)
    globals()[name] = register_model(create)


for _name, _spec in VARIANTS.items():
    _register(_name + SUFFIX, _spec)
