"""Measure one detector on several backbones: training steps side by side.

They run as the training tool runs them: channels last, dense blocks in the mode that is the fastest
there, other convolutions in the kernels where they know them.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from densenet_backbones.analysis.plan import plan_inputs
from densenet_backbones.benchmark.measuring import (
    get_synchronize,
    interleave,
    measure_peak_bytes,
    measure_saved_bytes,
)
from densenet_backbones.benchmark.report import Cell, Column, Table
from densenet_backbones.dense_block import rank_modes, use_compiled_convolutions
from densenet_backbones.layers import get_memory, set_memory
from densenet_backbones.messages import pluralize

__all__ = ["compare_backbones", "draw_objects"]

_OBJECTS = 8  # in each image
_NOTE = (
    "GMAC: of one image in evaluation; saved: between forward and backward pass; peak: of tensors "
    "in a step, beyond the parameters"
)


def compare_backbones(
    detector: str,
    backbones: Sequence[str],
    *,
    batch: int,
    size: int,
    turns: int,
    device: torch.device,
    bf16: bool = False,
) -> Table:
    """Measure training steps of one detector on several backbones, from random weights.

    Args:
        detector: A name of torchvision's registry whose builder takes ``backbone``:
            ``retinanet_fpn``, ``fcos_fpn``, ``fasterrcnn_fpn``, ...
        backbones: timm names.
        batch: Images of a step.
        size: Their side in pixels.
        turns: Counted rounds of steps; see `interleave`.
        device: Where to measure.
        bf16: Compute in bfloat16 by autocast.

    Raises:
        ValueError: There is no such detector, or it takes no such backbone.
    """
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, size, size, generator=generator).to(device) for _ in range(batch)]
    targets = [draw_objects(size, generator, device) for _ in range(batch)]
    context = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    fastest, *_ = rank_modes(device, torch.float32, torch.bfloat16 if bf16 else None)

    def loss(model: nn.Module) -> Tensor:
        torch.manual_seed(0)  # two-stage detectors draw the boxes they learn from
        with context(), use_compiled_convolutions():
            losses: dict[str, Tensor] = model(images, targets)
        return torch.stack(list(losses.values())).sum()

    def step(model: nn.Module) -> None:
        torch.autograd.backward(loss(model))
        model.zero_grad(set_to_none=True)  # at the end: gradients are part of what a step takes

    models = {name: _build_detector(detector, name, size).to(device).train() for name in backbones}
    for model in models.values():
        if get_memory(model) is not None:
            set_memory(model, fastest)
    costs: dict[str, tuple[Cell, ...]] = {}
    for name, model in models.items():
        saved, value = measure_saved_bytes(model, partial(loss, model))
        del value  # and with it what was saved
        parameters = sum(p.numel() for p in model.parameters())
        macs, peak = (
            plan_inputs(model, images[:1]).macs,
            measure_peak_bytes(partial(step, model), device),
        )
        costs[name] = parameters, macs / 1e9, saved / 2**20, peak / 2**20
    steps = {name: partial(step, model) for name, model in models.items()}
    timings = interleave(steps, turns, get_synchronize(device))
    columns = (
        *(Column(""), Column("parameters", ",d"), Column("GMAC", ".2f")),
        *(Column("saved MiB", ".1f"), Column("peak MiB", ".1f"), Column("ms", ".1f")),
        Column(f"step time / {timings[0].name}", ".3f", spread=True),
    )
    rows = tuple(
        (timing.name, *costs[timing.name], timing.milliseconds, timing.compute_ratios(timings[0]))
        for timing in timings
    )
    title = (
        f"training step of {detector}, {pluralize(batch, 'image')} of {size} pixels, "
        f"{'bfloat16 by autocast' if bf16 else 'float32'}, {device}, {turns} turns"
    )
    return Table(title, columns, rows, _NOTE)


def _build_detector(detector: str, backbone: str, size: int) -> nn.Module:
    try:
        built: nn.Module = torchvision.models.get_model(
            detector, backbone=backbone, num_classes=21, min_size=size, max_size=size
        )
    except (TypeError, ValueError) as error:  # another builder; a name that timm does not know
        raise ValueError(f"{detector} cannot be built on {backbone}: {error}") from error
    return built.to(memory_format=torch.channels_last)


def draw_objects(size: int, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """Draw boxes (B, 4) and labels (B,) of 1 to 20 in an image of ``size`` pixels a side."""
    corner = torch.rand(_OBJECTS, 2, generator=generator) * size * 0.7
    extent = (0.1 + 0.2 * torch.rand(_OBJECTS, 2, generator=generator)) * size
    labels = torch.randint(1, 21, (_OBJECTS,), generator=generator)
    boxes = torch.cat((corner, corner + extent), dim=1)
    return {"boxes": boxes.to(device), "labels": labels.to(device)}
