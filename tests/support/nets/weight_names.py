"""Small members of the family, and their weights' names as other libraries write them."""

import dataclasses
import functools

import torch
from torch import Tensor

from densenet_backbones.checkpoints import to_timm_features, to_torchvision
from densenet_backbones.densenet import DenseNet, DenseNetSpec

SMALL = {"growth_rate": 4, "num_init_features": 8}


def small(spec: DenseNetSpec) -> DenseNetSpec:
    # Groups divide the growth rate.
    few = {"groups": 2, "condense_factor": 2} if spec.is_condensed else {}
    return dataclasses.replace(spec, block_config=(1,) * len(spec.block_config), **SMALL, **few)


def net(spec: DenseNetSpec, classes: int = 0, in_chans: int = 3) -> DenseNet:
    with torch.device("meta"):
        return DenseNet(spec, num_classes=classes, in_chans=in_chans)


@functools.cache
def shared_state(spec: DenseNetSpec, classes: int, in_chans: int) -> dict[str, Tensor]:
    return net(spec, classes, in_chans).state_dict()


def state(spec: DenseNetSpec, classes: int = 0, in_chans: int = 3) -> dict[str, Tensor]:
    return dict(shared_state(spec, classes, in_chans))


def named(spec: DenseNetSpec, classes: int = 3) -> dict[str, str]:
    """A network's names, each to itself: a map that loses or swaps one shows."""
    with torch.device("meta"):
        return {key: key for key in DenseNet(spec, num_classes=classes).state_dict()}


def prefixed(weights: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in weights.items()}


def old(weights: dict) -> dict:
    names = {f".{kind}{i}.": f".{kind}.{i}." for kind in ("norm", "conv") for i in (1, 2)}
    renamed = {}
    for key, value in weights.items():
        if "denselayer" in key:
            for new, dotted in names.items():
                key = key.replace(new, dotted)
        renamed[key] = value
    return renamed


def efficient(weights: dict) -> dict:
    return {key.replace("norm5", "norm_final"): value for key, value in weights.items()}


NAMINGS = {
    "ours": dict,
    "torchvision": to_torchvision,
    "old torchvision": lambda w: old(to_torchvision(w)),
    "efficient_densenet": lambda w: efficient(to_torchvision(w)),
    "old efficient_densenet": lambda w: old(efficient(to_torchvision(w))),
    "timm features_only": to_timm_features,
}
