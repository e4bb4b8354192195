"""Build adapters by name, all with the same levels for the same arguments."""

from collections.abc import Sequence
from typing import Any

from densenet_backbones.features import FeatureLevel
from densenet_backbones.fpn.adapter import (
    EXTRA_LEVELS,
    Adapter,
    check_doubling,
    describe_levels,
)
from densenet_backbones.fpn.bifpn import BiFPN
from densenet_backbones.fpn.dense_prediction import DensePrediction
from densenet_backbones.fpn.feature_pyramid import FPN
from densenet_backbones.fpn.path_aggregation import PAN
from densenet_backbones.messages import check_choice, check_whole

__all__ = ["build_adapter"]

_PYRAMIDS: dict[str, type[Adapter]] = {"fpn": FPN, "pan": PAN, "bifpn": BiFPN}
# Keyword arguments of an adapter beyond those that all have.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "fpn": ("p6p7_input", "norm"),
    "pan": ("p6p7_input",),
    "bifpn": ("repeats",),
    "dense_prediction": (),
}


def build_adapter(
    name: str,
    levels_in: Sequence[FeatureLevel],
    out_channels: int = 256,
    extra: str | None = "pool",
    **kwargs: Any,
) -> Adapter:
    """Build an adapter by name, with ``out_channels`` and the same strides whatever its name.

    Strides are those of ``levels_in``, then one more (``extra="pool"``) or two more (``"p6p7"``),
    each doubled. Give the adapter the maps of its own ``levels_in``: ``"dense_prediction"`` reads
    the first two levels only and makes the others itself.

    Args:
        name: ``"fpn"``, ``"pan"``, ``"bifpn"`` or ``"dense_prediction"``.
        levels_in: Levels of a backbone, fine to coarse, each of twice the stride of the one before;
            two or more for ``"dense_prediction"``.
        out_channels: Channels of every output level; even for ``"dense_prediction"``, which joins
            halves.
        extra: ``"pool"``, ``"p6p7"`` or None; how each adapter makes these levels says its class.
        **kwargs: ``p6p7_input`` of `FPN` and `PAN`, ``norm`` of `FPN`, ``repeats`` of `BiFPN`.

    Raises:
        ValueError: If an argument is out of range, or strides do not double.
    """
    check_choice("adapter", name, _OPTIONS)
    unknown = sorted(set(kwargs) - set(_OPTIONS[name]))
    if unknown:
        known = ", ".join(("out_channels", "extra", *_OPTIONS[name]))
        raise ValueError(f"adapter {name!r} takes {known}, not {', '.join(unknown)}")
    if name in _PYRAMIDS:
        return _PYRAMIDS[name](levels_in, out_channels=out_channels, extra=extra, **kwargs)
    return _build_dense_prediction(levels_in, out_channels, extra)


def _build_dense_prediction(
    levels_in: Sequence[FeatureLevel], out_channels: int, extra: str | None
) -> DensePrediction:
    check_choice("extra", extra, EXTRA_LEVELS)
    check_whole("out_channels", out_channels)
    if out_channels % 2:
        raise ValueError(
            f"out_channels of 'dense_prediction' must be even, two halves, got {out_channels}"
        )
    if len(levels_in) < 2:
        raise ValueError(
            f"'dense_prediction' needs two or more levels, got {describe_levels(levels_in)}"
        )
    check_doubling(levels_in)
    # Dense prediction makes all but the first level itself, so that strides equal a pyramid's.
    made = len(levels_in) - 1 + EXTRA_LEVELS[extra]
    return DensePrediction(levels_in[:2], [out_channels // 2] * made, first_channels=out_channels)
