"""Choice of the memory mode of a training, and the lines of the summary about it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import lightning.pytorch as pl
import torch
from torch import nn

from densenet_backbones.analysis.memory_plan import MemoryPlan, format_bytes, plan_memory
from densenet_backbones.data.loading import AnyData
from densenet_backbones.dense_block import (
    MEMORY_MODES,
    DenseLayerLike,
    Memory,
    is_known_to_shared,
    rank_modes,
)
from densenet_backbones.layers import DenseBlock, get_memory, set_memory
from densenet_backbones.stages import DenseStages
from densenet_backbones.training.tasks.task import AnyTask

__all__ = ["compute_budget", "fits_memory", "settle_memory"]

MIXED: dict[str, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE: dict[str, torch.dtype] = {
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
}
"""Lightning's precisions -> the type of autocast, or of the parameters."""

COPIES = 4
"""Tensors beside each trained parameter: gradient, two states of Adam, an average (EMA)."""

SHARE = 0.5
"""Share of the free memory that maps may take. The rest is for what no plan holds: neck and heads
of a detector, maps that a backward pass makes for a while, workspaces, the data's own."""


def settle_memory(task: AnyTask, data: AnyData, trainer: pl.Trainer) -> list[str]:
    """Give the model the memory mode that was asked for.

    Returns:
        Lines about what it keeps.

    Raises:
        ValueError: A mode was asked for and the model has no dense blocks; or "auto" was, and the
            model cannot be planned.
    """
    part, (height, width) = task.planned_part(task.training_size(data))
    built = get_memory(part)
    if built is None:
        if task.memory is not None:
            raise ValueError(
                f"model.memory is {task.memory}, but {task.spec.name} has no dense blocks; "
                "leave it out"
            )
        return []
    # A mode that was named, the model's own, or the fastest, is set whatever it keeps.
    size = (data.batch, 3, height, width)
    if task.memory != "auto":
        task.chosen = memory = task.memory or _choose_fastest(task, built, trainer)
        set_memory(task.model, memory)
        try:
            plan = _plan(part, size, trainer, (memory,))
        except RuntimeError as error:  # a summary is no reason to stop a training
            reason = _take_first_line(error)
            return [f"What {_name_part(task, part)} keeps cannot be planned: {reason}."]
        task.kept_bytes = plan.saved_bytes[memory]
        return [_describe_kept(_name_part(task, part), plan, memory)]
    # "auto": all modes are planned, and the fastest one within the budget is set.
    try:
        plan = _plan(part, size, trainer, MEMORY_MODES)
    except RuntimeError as error:
        raise ValueError(
            f"model.memory auto: what {task.spec.name} keeps cannot be planned "
            f"({_take_first_line(error)}); name a mode"
        ) from error
    budget, source = _settle_budget(task, trainer)
    task.chosen = plan.fastest_within(budget)
    set_memory(task.model, task.chosen)
    task.kept_bytes = plan.saved_bytes[task.chosen]
    kept = _describe_kept(_name_part(task, part), plan, task.chosen)
    return [kept, *_describe_choice(plan, budget, source)]


def _choose_fastest(task: AnyTask, built: Memory, trainer: pl.Trainer) -> Memory:
    """Return the fastest mode where none was named, in the options or in those of the model."""
    args = getattr(task.spec, "args", None) or {}
    named = any("memory" in (options or {}) for options in (args, args.get("backbone_kwargs")))
    blocks = [m for m in task.model.modules() if isinstance(m, DenseBlock)]
    layers = (cast(list[DenseLayerLike], list(block.values())) for block in blocks)
    if named or built != "none" or not all(map(is_known_to_shared, layers)):
        return built
    precision = str(trainer.precision)
    dtype = TRUE.get(precision, torch.float32)
    return rank_modes(trainer.strategy.root_device, dtype, MIXED.get(precision))[0]


def fits_memory(task: AnyTask, data: AnyData, trainer: pl.Trainer) -> bool:
    """Return True if a batch of the data fits, in the mode that was asked for or the smallest.

    So it does where nothing can be said of it: the training itself will show.
    """
    part, (height, width) = task.planned_part(task.training_size(data))
    built = get_memory(part) or "none"
    named = task.memory or _choose_fastest(task, built, trainer)
    modes = MEMORY_MODES if named == "auto" else (named,)
    try:
        plan = _plan(part, (data.batch, 3, height, width), trainer, modes)
        budget, _ = _settle_budget(task, trainer)
    except (RuntimeError, ValueError):
        return True
    return min(plan.saved_bytes.values()) <= budget


def _plan(
    part: nn.Module, size: tuple[int, ...], trainer: pl.Trainer, modes: tuple[Memory, ...]
) -> MemoryPlan:
    precision = str(trainer.precision)
    return plan_memory(
        part,
        size,
        autocast=MIXED.get(precision),
        dtype=TRUE.get(precision),
        device=trainer.strategy.root_device,
        modes=modes,
    )


def _take_first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


# -- what is said of it ----------------------------------------------------------------------------


def _name_part(task: AnyTask, part: nn.Module) -> str:
    return f"the backbone of {task.spec.name}" if isinstance(part, DenseStages) else task.spec.name


def _describe_kept(name: str, plan: MemoryPlan, memory: Memory) -> str:
    return (
        f"Memory mode {memory}: {name} keeps "
        f"{format_bytes(plan.saved_bytes[memory])} for the backward pass of {plan.inputs}; what "
        "else the model, the gradients and the optimizer take comes on top."
    )


def _describe_choice(plan: MemoryPlan, budget: int, source: str) -> Iterator[str]:
    yield f"Fastest first: {plan.line()}; the budget is {format_bytes(budget)}, {source}."
    if min(plan.saved_bytes.values()) > budget:
        yield "No memory mode fits the budget: lower --batch-size or the images' size."


# -- the budget ------------------------------------------------------------------------------------


def _settle_budget(task: AnyTask, trainer: pl.Trainer) -> tuple[int, str]:
    """Return the bytes that may be kept, and where they come from in words."""
    if task.memory_budget is not None:
        return int(task.memory_budget * 2**30), "as model.memory_budget says"
    device = trainer.strategy.root_device
    processes = 1 if device.type == "cuda" else trainer.num_devices
    return compute_budget(task.model, device, processes), f"{SHARE:.0%} of what is free"


def compute_budget(model: nn.Module, device: torch.device, processes: int = 1) -> int:
    """Return the bytes that a plan may keep: a share of what weights and optimizer leave free.

    Args:
        model: What is trained, wherever it is now.
        device: Where it is to be trained.
        processes: That train on this machine and share the memory.

    Raises:
        ValueError: The system does not tell how much memory is free.
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    needed = COPIES * trained
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = _measure_free_ram() // processes
    if any(p.device.type != device.type for p in model.parameters()):
        needed += sum(p.nbytes for p in model.parameters())
    return max(int(SHARE * (free - needed)), 0)


def _measure_free_ram() -> int:
    """Return the bytes of RAM that new processes can have, within the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = _estimate_free_ram()
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, no limit ("max"), or another system
        pass
    return free


def _estimate_free_ram() -> int:
    """Return half of all RAM, for systems that do not tell how much is free (macOS)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError) as error:
        raise ValueError(
            "model.memory auto: this system does not tell how much memory is free; give "
            "--model.memory_budget GiB"
        ) from error
