"""timm entries: ``timm.create_model("densenet121_features")`` after ``import densenet_backbones``.

Entries return multi-scale features; ``features_only=False`` returns the classifier. Every field of
`DenseNetSpec` may be overridden (``growth_rate=4``; ``bn_size=0`` for no bottleneck, since timm
drops None), besides ``tap``, ``out_indices``, ``in_chans``, ``pretrained`` and timm's other
arguments. A local file loads with ``pretrained=True, pretrained_cfg_overlay=dict(file=...)``.
"""

import dataclasses
from functools import partial
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._builder import build_model_with_cfg
from timm.models._registry import generate_default_cfgs, register_model
from torch import Tensor, nn

from densenet_backbones.checkpoints import fit_to
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.features import DenseFeatureNet

# timm appends to it, so a list; every registered name is added there.
__all__ = ["dsod_spec"]


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
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
        **kwargs,
    }


# Hub names are written out: timm would complete "timm/" with our entry's name, where nothing is.
default_cfgs = generate_default_cfgs(
    {
        "densenet121_features.ra_in1k": _cfg(
            hf_hub_id="timm/densenet121.ra_in1k",
            test_input_size=(3, 288, 288),
            test_crop_pct=0.95,
        ),
        "densenet121_features.tv_in1k": _cfg(hf_hub_id="timm/densenet121.tv_in1k"),
        "densenet161_features.tv_in1k": _cfg(hf_hub_id="timm/densenet161.tv_in1k"),
        "densenet169_features.tv_in1k": _cfg(hf_hub_id="timm/densenet169.tv_in1k"),
        "densenet201_features.tv_in1k": _cfg(hf_hub_id="timm/densenet201.tv_in1k"),
        "densenet264_features.untrained": _cfg(),
        "dsod_features.untrained": _cfg(input_size=(3, 300, 300), pool_size=(19, 19)),
        "dsod_smallest_features.untrained": _cfg(input_size=(3, 300, 300), pool_size=(19, 19)),
    }
)


def _create(name: str, spec: DenseNetSpec, pretrained: bool, **kwargs: Any) -> nn.Module:
    fields = {field.name for field in dataclasses.fields(DenseNetSpec)}
    spec = dataclasses.replace(spec, **{key: kwargs.pop(key) for key in fields & kwargs.keys()})
    features = kwargs.setdefault("features_only", True)
    feature_cfg: dict[str, Any] = {"out_indices": tuple(range(len(spec.blocks) + 1))}
    if features and "feature_cls" not in kwargs:
        feature_cfg.update(feature_cls=DenseFeatureNet, tap=kwargs.pop("tap", "raw"))
    if "tap" in kwargs:
        raise ValueError(
            f"{name}: tap={kwargs['tap']!r} belongs to our own feature net; leave out tap, or "
            "leave out features_only=False and feature_cls"
        )
    wanted = kwargs.get("out_indices"), feature_cfg.get("tap", "raw")
    return build_model_with_cfg(
        DenseNet,
        name,
        pretrained,
        feature_cfg=feature_cfg,
        pretrained_filter_fn=partial(_fit_weights, wanted=wanted if features else None),
        # Stages behind the last tap and the classifier may be absent; the filter checks the rest.
        pretrained_strict=not features,
        spec=spec,
        **kwargs,
    )


def _fit_weights(weights: dict[str, Tensor], model: DenseNet, wanted: Any) -> dict[str, Tensor]:
    """Our names for the weights, complete as far as the wanted taps reach."""
    target = model if wanted is None else DenseFeatureNet(model, *wanted)
    return fit_to(weights, known=model.state_dict().keys(), needed=target.state_dict().keys())


def dsod_spec(growth_rate: int = 48) -> DenseNetSpec:
    """A DSOD base, DS/64-4k-k-1: 6-8-8-8 layers, no compression, the third transition unpooled.

    Its pools round up, so a 300 pixel image gives maps of 150, 75, 38, 19 and 19 (1708.01241,
    table 1; szq0214/DSOD, ``model_libs.py``, ``DSOD300_V3_Body``). The 1x1 behind block 4 belongs
    to the dense prediction that follows.

    Args:
        growth_rate: New channels of each layer: 48, or 16 in the smallest published net.
    """
    return DenseNetSpec(
        growth_rate=growth_rate,
        block_config=(6, 8, 8, 8),
        num_init_features=128,
        compression=1.0,
        transition_pool=(True, True, False),
        pool="max",
        ceil_mode=True,
        stem="dsod",
        final_norm=False,
        init="xavier_caffe",
    )


@register_model
def dsod_smallest_features(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Base of DS/64-64-16-1 (1708.01241): 128@2, 224@4, 352@8, 480@16, 608@16."""
    return _create("dsod_smallest_features", dsod_spec(16), pretrained, **kwargs)


@register_model
def dsod_features(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Base of DS/64-192-48-1 (1708.01241): 128@2, 416@4, 800@8, 1184@16, 1568@16."""
    return _create("dsod_features", dsod_spec(48), pretrained, **kwargs)


@register_model
def densenet121_features(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-121, k=32 (1608.06993, table 1): 64@2, 256@4, 512@8, 1024@16, 1024@32."""
    return _create("densenet121_features", DenseNetSpec(), pretrained, **kwargs)


@register_model
def densenet169_features(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-169, k=32 (1608.06993, table 1): 64@2, 256@4, 512@8, 1280@16, 1664@32."""
    spec = DenseNetSpec(block_config=(6, 12, 32, 32))
    return _create("densenet169_features", spec, pretrained, **kwargs)


@register_model
def densenet201_features(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-201, k=32 (1608.06993, table 1): 64@2, 256@4, 512@8, 1792@16, 1920@32."""
    spec = DenseNetSpec(block_config=(6, 12, 48, 32))
    return _create("densenet201_features", spec, pretrained, **kwargs)


@register_model
def densenet161_features(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-161, k=48 (torchvision/models/densenet.py): 96@2 ... 2208@32."""
    spec = DenseNetSpec(growth_rate=48, block_config=(6, 12, 36, 24), num_init_features=96)
    return _create("densenet161_features", spec, pretrained, **kwargs)


@register_model
def densenet264_features(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DenseNet-264, k=32 (1608.06993, table 1): 64@2, 256@4, 512@8, 2304@16, 2688@32."""
    spec = DenseNetSpec(block_config=(6, 12, 64, 48))
    return _create("densenet264_features", spec, pretrained, **kwargs)
