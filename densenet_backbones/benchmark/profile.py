"""Where the time of a whole model's training step goes, by kind of operation.

The model is as the training tools have it: losses and matching, channels last, a fused AdamW.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densenet_backbones.benchmark.deployed.models import build_model
from densenet_backbones.benchmark.detector import draw_objects
from densenet_backbones.benchmark.measuring import profile_operations
from densenet_backbones.benchmark.report import Cell, Column, Table
from densenet_backbones.dense_block import Memory, has_shared_buffer, use_compiled_convolutions
from densenet_backbones.heads.segmentation.losses import SegmentationLoss
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.layers import set_memory
from densenet_backbones.messages import pluralize

__all__ = ["profile_step"]

# Kinds of operations, by the names that torch's profiler gives them; the first that fits counts.
_KINDS = {
    "dense blocks in the kernels": r"CompiledBlock",
    "units in the kernels": r"^_\w*(Unit|MaxPool)|^_Shared|CompiledConv",
    "convolutions": r"conv",
    "norms": r"_norm|var_mean|rsqrt",
    "activations": r"relu|threshold|clamp",
    "concatenation, copies, filling": r"::(cat|copy_|clone|contiguous|fill_|zero_|index|stack|pad)",
    "pools, resizing": r"pool|upsample|interpolate",
    "dropout": r"bernoulli|dropout",
    "optimizer": r"adamw|Optimizer",
}
_REST = "the rest: loss, matching, sums"


def profile_step(
    name: str, batch: int, size: int, modes: Sequence[Memory], *, turns: int, bf16: bool = False
) -> Table:
    """Profile training steps of one model in memory modes, from random weights.

    Args:
        name: Of `PROFILED_MODELS`, by `build_model`.
        batch: Images of a step.
        size: Their side in pixels.
        modes: Memory modes, one column each.
        turns: Counted steps of each mode, in turns; one more goes before.
        bf16: Compute in bfloat16 by autocast.
    """
    step = _build_step(name, batch, size, bf16)
    for mode in modes:  # the first steps, which are not counted
        step(mode)
    times: list[dict[str, float]] = [dict.fromkeys((*_KINDS, _REST), 0.0) for _ in modes]
    for _ in range(turns):  # in turns, so that a busy moment meets all modes
        for mode, of_mode in zip(modes, times, strict=True):
            for kind, microseconds in _measure_kinds(partial(step, mode)).items():
                of_mode[kind] += microseconds / turns
    columns = [Column("")]
    for mode in modes:
        columns += [Column(f"{mode}: ms", ".1f"), Column("share", ".0%")]
    rows: list[tuple[Cell, ...]] = []
    for kind in (*_KINDS, _REST):
        cells: list[Cell] = []
        for of_mode in times:
            cells += [of_mode[kind] / 1e3, of_mode[kind] / sum(of_mode.values())]
        rows.append((kind, *cells))
    totals: list[Cell] = []
    for of_mode in times:
        totals += [sum(of_mode.values()) / 1e3, 1.0]
    title = (
        f"training step of {name}, {pluralize(batch, 'image')} of {size} pixels, "
        f"{'bf16-mixed' if bf16 else 'float32'}, channels last, "
        f"{pluralize(torch.get_num_threads(), 'thread')}, mean of {pluralize(turns, 'turn')}"
    )
    note = (
        "time of operations themselves, as torch.profiler counts it, waiting for a processor "
        f"included; instructions: torch {torch.backends.cpu.get_cpu_capability()}"
    )
    return Table(title, tuple(columns), (*rows, ("all", *totals)), note)


def _build_step(name: str, batch: int, size: int, bf16: bool) -> Callable[[Memory], None]:
    """Return a training step of a new model, in a memory mode."""
    whole = build_model(name, size)
    model = whole.model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator)
    if isinstance(whole, SegmentationModel):
        classes = whole.spec.classes.num_classes
        labels = torch.randint(classes, (batch, size, size), generator=generator)
        compute = partial(
            _compute_mask_loss, SegmentationLoss(terms={"cross_entropy": 1.0, "dice": 1.0}), labels
        )
    else:
        targets = [draw_objects(size, generator, torch.device("cpu")) for _ in range(batch)]
        compute = partial(_compute_box_loss, targets)

    def step(memory: Memory) -> None:
        set_memory(model, memory)
        kernels = use_compiled_convolutions(has_shared_buffer(memory))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), kernels:
            loss = compute(model, images)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _compute_mask_loss(
    loss: SegmentationLoss, labels: Tensor, model: nn.Module, images: Tensor
) -> Tensor:
    images = images.contiguous(memory_format=torch.channels_last)
    terms: dict[str, Tensor] = loss(model(images), labels)
    return torch.stack(list(terms.values())).sum()


def _compute_box_loss(targets: list[Any], model: nn.Module, images: Tensor) -> Tensor:
    losses: dict[str, Tensor] = model(list(images), targets)
    return torch.stack(list(losses.values())).sum()


def _measure_kinds(step: Callable[[], None]) -> dict[str, float]:
    """Return microseconds of a step by kind of operation."""
    times = dict.fromkeys((*_KINDS, _REST), 0.0)
    for event in profile_operations(step).key_averages():
        fits = (kind for kind, pattern in _KINDS.items() if re.search(pattern, event.key))
        times[next(fits, _REST)] += event.self_cpu_time_total
    return times
