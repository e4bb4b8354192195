"""What one detector costs on several backbones: training steps side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from densenet_backbones.analysis.memory import peak_bytes, saved_bytes
from densenet_backbones.analysis.plan import plan_inputs
from densenet_backbones.analysis.timing import Timing, interleave, ratios_of

__all__ = ["DetectorRow", "compare_backbones", "detector_table"]

_OBJECTS = 8  # in each image


@dataclass(frozen=True)
class DetectorRow:
    """A detector on one backbone.

    Attributes:
        name: Of the backbone, for timm.
        parameters: Their number.
        macs: Multiply-adds for one image in evaluation mode.
        saved: Bytes that autograd keeps between forward and backward pass, parameters excluded.
        peak: Bytes allocated at most during a step, beyond the parameters: maps and gradients.
        timing: Seconds of the steps.
    """

    name: str
    parameters: int
    macs: int
    saved: int
    peak: int
    timing: Timing


def compare_backbones(
    detector: str,
    backbones: Sequence[str],
    *,
    batch: int,
    size: int,
    turns: int,
    device: torch.device,
    bf16: bool = False,
) -> tuple[DetectorRow, ...]:
    """Training steps of one detector on several backbones, from random weights on one batch.

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
    targets = [_objects(size, generator, device) for _ in range(batch)]
    context = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)

    def loss(model: nn.Module) -> Tensor:
        torch.manual_seed(0)  # two-stage detectors draw the boxes they learn from
        with context():
            losses: dict[str, Tensor] = model(images, targets)
        return torch.stack(list(losses.values())).sum()

    def step(model: nn.Module) -> None:
        loss(model).backward()
        model.zero_grad(set_to_none=True)  # at the end: gradients are part of what a step takes

    models = {name: _built(detector, name, size).to(device).train() for name in backbones}
    rows: dict[str, Any] = {}
    for name, model in models.items():
        saved, value = saved_bytes(model, partial(loss, model))
        del value  # and with it what was saved
        rows[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "macs": plan_inputs(model, images[:1]).macs,
            "saved": saved,
            "peak": peak_bytes(partial(step, model), device),
        }
    timings = interleave(
        {name: partial(step, model) for name, model in models.items()},
        turns,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
    )
    return tuple(DetectorRow(name=t.name, timing=t, **rows[t.name]) for t in timings)


def _built(detector: str, backbone: str, size: int) -> nn.Module:
    try:
        built: nn.Module = torchvision.models.get_model(
            detector, backbone=backbone, num_classes=21, min_size=size, max_size=size
        )
    except (TypeError, RuntimeError) as error:  # another builder; a name that timm does not know
        raise ValueError(f"{detector} cannot be built on {backbone}: {error}") from error
    return built.to(memory_format=torch.channels_last)  # as the training tool does


def _objects(size: int, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    corner = torch.rand(_OBJECTS, 2, generator=generator) * size * 0.7
    extent = (0.1 + 0.2 * torch.rand(_OBJECTS, 2, generator=generator)) * size
    labels = torch.randint(1, 21, (_OBJECTS,), generator=generator)
    boxes = torch.cat((corner, corner + extent), dim=1)
    return {"boxes": boxes.to(device), "labels": labels.to(device)}


def detector_table(rows: Sequence[DetectorRow]) -> str:
    """One line a row: parameters, GMAC, MiB kept and at most, median seconds, time ratios."""
    first = rows[0]
    width = max(len(row.name) for row in rows)
    lines = [
        f"{'':{width}}  {'parameters':>11}  {'GMAC':>7}  {'saved MiB':>9}  {'peak MiB':>8}  "
        f"{'s a step':>8}  step time / {first.name}: median (min .. max)"
    ]
    for row in rows:
        lines.append(
            f"{row.name:{width}}  {row.parameters:11,}  {row.macs / 1e9:7.2f}  "
            f"{row.saved / 2**20:9.1f}  {row.peak / 2**20:8.1f}  {row.timing.median:8.2f}  "
            f"{ratios_of(row.timing, first.timing)}"
        )
    return "\n".join(lines)
