"""The network below a detector's adapter: any timm feature network, its weights, norms, stages."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Unpack

import torch
from timm.layers import (  # type: ignore[attr-defined]
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
)
from torch import nn
from torchvision.models import WeightsEnum

from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.fpn import Adapter
from densenet_backbones.heads.backbones import collect_network, create_features, is_ours
from densenet_backbones.heads.options import Keywords, NetworkOptions

__all__ = [
    "Body",
    "BodyOptions",
    "Norm",
    "build_body",
    "select_levels",
]

Norm = Literal["bn", "frozen", "sync", "group"]


class Body(NamedTuple):
    """A feature network with its adapter.

    Attributes:
        net: It ends where the adapter stops reading.
        adapter: Reads some of its levels.
        extra_levels: How many of the adapter's levels lie beyond the whole network's.
        whole: The network with all its levels, without data.
    """

    net: nn.Module
    adapter: Adapter
    extra_levels: int
    whole: nn.Module


class BodyOptions(NetworkOptions, total=False):
    """Keyword arguments of `densenet_fpn_backbone` about the network below the adapter."""

    weights_backbone: str | WeightsEnum | None
    progress: bool
    norm: Norm | None
    min_stride: int
    output_stride: int
    in_chans: int
    backbone_kwargs: Keywords | None


def build_body(
    name: str,
    make_adapter: Callable[[Sequence[FeatureLevel]], Adapter],
    **options: Unpack[BodyOptions],
) -> Body:
    """A feature network that ends where the adapter stops reading, and the adapter.

    Args:
        name: timm's, ours or any other that has ``features_only``.
        make_adapter: From the network's levels, see `select_levels`, to the adapter.
        **options: As of `densenet_fpn_backbone`.

    Raises:
        ValueError: An argument is out of range or not the network's.
    """
    # Batches of detectors are too small to learn statistics: pretrained ones stay as they are.
    weights = options.get("weights_backbone")
    norm = options.get("norm") or ("frozen" if weights else "bn")
    arguments = _collect_arguments(name, norm, options)
    # The whole network first, on the meta device, to learn its levels at no cost.
    with torch.device("meta"):
        whole = create_features(name, **arguments)
    coarsest, limit = feature_levels(whole)[-1].stride, options.get("output_stride", 32)
    if limit < min(coarsest, 32):
        raise ValueError(
            f"backbone {name!r} has no output_stride: its last map has a stride of {coarsest}, not "
            f"{limit}; leave output_stride out"
        )
    # The adapter says which of the levels it reads.
    positions = select_levels(feature_levels(whole), options.get("min_stride", 4))
    levels = [feature_levels(whole)[position] for position in positions]
    adapter = make_adapter(levels)
    # Then the network itself, which ends after the last level that is read.
    if arguments.get("out_indices") is None:
        info: Any = whole.feature_info
        taken = sorted(index % len(info) for index in info.out_indices)
        read = [feature_levels(whole).index(level) for level in adapter.levels_in]
        arguments["out_indices"] = tuple(taken[position] for position in read)
    net = create_features(name, weights, progress=options.get("progress", True), **arguments)
    if not is_ours(name):
        net = _convert_norm(net, norm, name)
    return Body(net, adapter, len(adapter.levels) - len(levels), whole)


def select_levels(levels: Sequence[FeatureLevel], min_stride: int) -> tuple[int, ...]:
    """Positions of the deepest level of every stride from ``min_stride`` on.

    Strides repeat where a network stops halving its maps (``output_stride``).

    Raises:
        ValueError: No level has that stride.
    """
    deepest = {level.stride: position for position, level in enumerate(levels)}
    if min_stride not in deepest:
        raise ValueError(
            f"min_stride must be one of the backbone's strides {sorted(deepest)}, got {min_stride}"
        )
    return tuple(deepest[stride] for stride in sorted(deepest) if stride >= min_stride)


def _collect_arguments(name: str, norm: Norm, options: BodyOptions) -> Keywords:
    """Return the keyword arguments for ``timm.create_model``."""
    arguments: Keywords = {"in_chans": options.get("in_chans", 3)}
    output_stride = options.get("output_stride", 32)
    if arguments["in_chans"] < 1 or output_stride < 1:
        raise ValueError(
            f"in_chans and output_stride must be 1 or more, got {arguments['in_chans']} and "
            f"{output_stride}"
        )
    if output_stride != 32:
        arguments["output_stride"] = output_stride
    if is_ours(name):
        arguments["norm"] = norm
    return {**arguments, **collect_network(name, {**options})}


def _convert_norm(net: nn.Module, norm: Norm, name: str) -> nn.Module:
    if norm == "group":
        raise ValueError(
            f"norm 'group' is for our own backbones; {name!r} has the norms timm built it with: "
            "choose 'bn', 'frozen' or 'sync'"
        )
    if norm == "bn":
        return net
    convert: Callable[[nn.Module], nn.Module] = (
        freeze_batch_norm_2d if norm == "frozen" else convert_sync_batchnorm
    )
    return convert(net)
