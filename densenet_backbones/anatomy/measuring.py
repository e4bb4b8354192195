"""Measure a model for its report: stages, levels, receptive fields, memory."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from densenet_backbones.analysis.memory_plan import extrapolate_batch, plan_memory
from densenet_backbones.analysis.plan import plan, plan_inputs
from densenet_backbones.analysis.receptive_field import compute_fields, measure_effective_fields
from densenet_backbones.anatomy.opening import OpenedModel
from densenet_backbones.densenet import DenseNet
from densenet_backbones.features import DenseFeatureNet, feature_levels
from densenet_backbones.layers import DenseBlock, get_memory

__all__ = ["measure_model"]

Table = dict[str, Any]


def measure_model(
    opened: OpenedModel, size: tuple[int, int], batch: int, budget: float | None
) -> Table:
    """Measure a model.

    Args:
        opened: The model; it is left as it is.
        size: (H, W) of its images in pixels.
        batch: Images of a training batch, for the memory.
        budget: Bytes for the largest batch; None to leave it out.

    Returns:
        ``name``, ``kind``, ``size``, ``parameters``, ``macs`` of one image, ``stages``, ``levels``,
        ``memory``. Numbers that cannot be told are None.

    Raises:
        ValueError: The images are too small for it.
    """
    net = _as_feature_net(opened.net)
    shape = (opened.in_chans, *size)
    return {
        "name": opened.name,
        "kind": opened.kind,
        "trained": opened.trained,
        "size": list(size),
        "parameters": sum(p.numel() for p in opened.model.parameters()),
        "macs": _count_macs(opened, (opened.image_channels, *size)),
        "stages": list(_measure_stages(opened.net, net, shape)),
        "levels": _measure_levels(net, shape),
        "memory": _plan_memory(opened, net, shape, batch, budget),
    }


def _as_feature_net(net: nn.Module) -> nn.Module:
    """Return a feature net that shares a classifier's stages; any other net as it is."""
    return DenseFeatureNet(net) if isinstance(net, DenseNet) else net


def _count_macs(opened: OpenedModel, shape: Sequence[int]) -> int:
    if opened.kind != "detector":
        return plan(opened.model, (1, *shape)).macs
    # A detector's boxes depend on the values, so it is run.
    return plan_inputs(opened.model, [torch.rand(*shape)]).macs


def _measure_stages(net: nn.Module, features: nn.Module, shape: Sequence[int]) -> list[Table]:
    costs = {row.name: row for row in plan(net, (1, *shape)).rows}
    sizes = _trace_sizes(features, shape)
    rows = []
    for name, _ in net.named_children():
        row, output = costs.get(name), sizes.get(name)
        if row is None and output is None:
            continue
        rows.append(
            {
                "name": name,
                "channels": output and output[0],
                "stride": output and round(shape[1] / output[1], 2),
                "parameters": row.parameters if row else 0,
                "macs": row.macs if row else 0,
            }
        )
    return rows


def _trace_sizes(net: nn.Module, shape: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Return channels and height of each child's output, by running the net on one image."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 4:
                sizes[name] = (output.shape[1], output.shape[2])

        return hook

    hooks = [child.register_forward_hook(note(name)) for name, child in net.named_children()]
    try:
        with torch.no_grad():
            net(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _measure_levels(net: nn.Module, shape: Sequence[int]) -> list[Table]:
    levels = feature_levels(net)
    theoretical: Mapping[str, int] = compute_fields(net) if isinstance(net, DenseFeatureNet) else {}
    effective = measure_effective_fields(net, shape)
    return [
        {
            "name": level.name,
            "tap": _name_tap(net, position),
            "channels": level.channels,
            "stride": level.stride,
            "receptive_field": theoretical.get(level.name),
            "effective_field": round(side, 1),
        }
        for position, (level, side) in enumerate(zip(levels, effective, strict=True))
    ]


def _name_tap(net: nn.Module, position: int) -> str:
    """Return the module that a level is read behind."""
    info = cast(Any, net).feature_info
    return str(info[sorted(i % len(info) for i in info.out_indices)[position]]["module"])


def _plan_memory(
    opened: OpenedModel, net: nn.Module, shape: Sequence[int], batch: int, budget: float | None
) -> Table:
    """Plan each memory mode: of a detector's feature net, else of the whole model."""
    whole = opened.kind != "detector"
    model = opened.model if whole else net
    shape = (opened.image_channels, *shape[1:])
    modes: dict[str, Any] = {}
    has_modes = any(isinstance(m, DenseBlock) for m in model.modules())
    only: Table = {} if has_modes else {"modes": (get_memory(model) or "none",)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # norms of a single cell
        saved = plan_memory(model, (batch, *shape), **only).saved_bytes
        further = plan_memory(model, (batch + 1, *shape), **only).saved_bytes
    for memory, size in saved.items():
        most = None
        if budget is not None:
            most = extrapolate_batch(batch, size, further[memory], budget)
        modes[memory] = {"saved_bytes": size, "largest_batch": most}
    return {
        "of": "model" if whole else "feature net",
        "batch": batch,
        "budget_bytes": budget,
        "modes": modes,
    }
