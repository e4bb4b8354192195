"""Memory modes of a dense block in training: their names, and the execution each one stands for.

All modes compute the same function as `run_plain`: outputs, gradients and batch-norm buffers. They
differ in what they keep between forward and backward pass, and compute again, for L layers:

===============  =====================================  =======================================
mode             kept besides the block's input         computed once more
===============  =====================================  =======================================
``none``         all maps, normed too: quadratic in L   nothing
``shared``       output and bottlenecks: linear in L    norms and ReLUs, but no statistics
``shared_lean``  output: linear in L                    norms, ReLUs and 1x1 convolutions
``bottleneck``   new and bottleneck maps: linear in L   concatenation, norm1, conv1
``layer``        new maps: linear in L                  every layer, one by one
``block``        nothing                                the block as a whole
===============  =====================================  =======================================

``bottleneck`` is what Pleiss et al., "Memory-Efficient Implementation of DenseNets" (1707.06990),
and gpleiss/efficient_densenet_pytorch do; a layer without bottleneck has nothing but its norm
before the 3x3, so there it means ``layer``. ``block`` needs room for one block's maps while it runs
backward.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeGuard, cast, get_args

import torch
from torch import Tensor, nn

from densenet_backbones.dense_block import native
from densenet_backbones.dense_block.checkpointed import (
    checkpoint_block,
    checkpoint_bottlenecks,
    checkpoint_layers,
)
from densenet_backbones.dense_block.interfaces import (
    DenseLayerLike,
    find_change,
    has_hooks,
    warn_eagerly,
)
from densenet_backbones.dense_block.plain import run_plain
from densenet_backbones.dense_block.shared import read_block, run_shared

__all__ = [
    "MEMORY_MODES",
    "Memory",
    "SharedMemory",
    "check_memory",
    "has_shared_buffer",
    "is_known_to_shared",
    "rank_modes",
    "run_block",
]

SharedMemory = Literal["shared", "shared_lean"]
"""Modes that run a block over one buffer, and keep less of what stands between blocks."""

Memory = Literal["none", SharedMemory, "bottleneck", "layer", "block"]

MEMORY_MODES: tuple[Memory, ...] = get_args(Memory)
"""All modes, ordered by what they compute again: see `rank_modes`. ``block`` takes as long as
``layer`` and holds more for a while.

Steps of DenseNet-121 on a CPU, relative to those of torchvision (``tools/benchmark.py step``, 2
images of 224 pixels, float32, channels last, medians): 1.07, 0.59, 0.64 on one thread, then
(``memory``) 1.09, 1.20, 1.22 on two of another machine.
"""


def rank_modes(
    device: torch.device, dtype: torch.dtype, autocast: torch.dtype | None = None
) -> tuple[Memory, ...]:
    """Return all modes, the fastest first, for blocks that train on a device.

    The C++ kernels run blocks over one buffer faster than plain operators run them, in float32, and
    by autocast in bfloat16 on processors that multiply whole tiles of it. In other precisions, on
    GPUs and without the kernels, what computes nothing again is the fastest.

    Args:
        device: Where they train.
        dtype: Type of the parameters.
        autocast: Type that autocast has convolutions compute in, if it is on.
    """
    in_kernels = False
    if device.type == "cpu" and dtype == torch.float32:
        halves = autocast == torch.bfloat16 and native.has_bfloat16_tiles()
        in_kernels = halves or (autocast is None and native.is_usable())
    first = get_args(SharedMemory) if in_kernels else ()
    return (*first, *(mode for mode in MEMORY_MODES if mode not in first))


_CHECKPOINTS: dict[Memory, Callable[[Tensor, Sequence[DenseLayerLike]], Tensor]] = {
    "bottleneck": checkpoint_bottlenecks,
    "layer": checkpoint_layers,
    "block": checkpoint_block,
}


def has_shared_buffer(memory: Memory) -> TypeGuard[SharedMemory]:
    """Return True if the mode runs a block over one buffer."""
    return memory in get_args(SharedMemory)


def check_memory(memory: str) -> None:
    """Refuse a name that is no memory mode.

    Raises:
        ValueError: ``memory`` is not one of `MEMORY_MODES`.
    """
    if memory not in MEMORY_MODES:
        raise ValueError(
            f"memory must be one of {MEMORY_MODES}, got {memory!r}; 'auto' is for training "
            "tools and analysis.memory_plan.choose_memory, which know the batch"
        )


def is_known_to_shared(layers: Sequence[DenseLayerLike]) -> bool:
    """Return True if the modes with one buffer run a block of these layers as they are now."""
    parameters = (p for layer in layers for p in cast(nn.Module, layer).parameters())
    first = next(parameters, None)
    if first is None or _find_module(layers, has_hooks) is not None:
        return False
    return not isinstance(read_block(first.device, layers, lean=False), str)


def run_block(
    x: Tensor, layers: Sequence[DenseLayerLike], memory: Memory, name: str = "a dense block"
) -> Tensor:
    """Run a dense block in a memory mode.

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Dense layers in order; each reads the input and the maps of all layers before it.
        memory: One of `MEMORY_MODES`.
        name: Name of the block for warnings.

    Returns:
        The concatenation of the input and all new maps, (N, C + sum of k, H, W), as `run_plain`
        returns it. A block runs plain, and a warning names the part and says why, if a layer
        carries hooks; if a mode with one buffer does not know a layer's modules (see
        `shared.read_block`); and if ``bottleneck``, which runs the two halves of a layer, does not
        know the layer. ``layer`` and ``block`` call whatever stands in a layer's place, unless it
        has buffers, which computing it again might update again.
    """
    if memory == "none" or not layers:
        return run_plain(x, layers)
    reason = _find_obstacle(layers, memory)
    if reason is None and not has_shared_buffer(memory):
        return _CHECKPOINTS[memory](x, layers)
    if reason is None:
        if x.numel() <= x.shape[1]:
            return run_plain(x, layers)  # which refuses to norm a single value
        form = read_block(x.device, layers, lean=memory == "shared_lean")
        if not isinstance(form, str):
            if x.shape[1] != form.in_channels:
                return run_plain(x, layers)  # which refuses as well
            return cast(Tensor, run_shared(x, form))
        reason = f"{form}; use 'bottleneck', 'layer' or 'block'"
    warn_eagerly(f"memory={memory!r} is off for {name}, {reason}")
    return run_plain(x, layers)


def _find_obstacle(layers: Sequence[DenseLayerLike], memory: Memory) -> str | None:
    """Return why a block has to run plain, and what to do; None if `run_shared` may say more."""
    # Compiled code carries its hooks within, and computes nothing again behind our back.
    in_one_buffer, compiled = has_shared_buffer(memory), torch.compiler.is_compiling()
    hooked = _find_module(layers, has_hooks) if in_one_buffer or not compiled else None
    if hooked is not None:
        return (
            f"whose layers carry hooks, as hooks must see every pass once ({hooked}); hook the "
            "blocks instead, or remove the hooks"
        )
    updated = None if in_one_buffer or compiled else _find_module(layers, _has_own_state)
    if updated is not None:
        return f"whose layers may update buffers in every pass ({updated} has some); use 'none'"
    for number, layer in enumerate(layers if memory == "bottleneck" else (), start=1):
        change = find_change(cast(nn.Module, layer), "halves")
        if change is not None:
            return (
                f"with layers of another kind (denselayer{number} {change}); use 'layer' or 'block'"
            )
    return None


def _find_module(
    layers: Sequence[DenseLayerLike], condition: Callable[[nn.Module], bool]
) -> str | None:
    """Return the name of a block's first module that meets a condition; None if none does."""
    for number, layer in enumerate(layers, start=1):
        if any(condition(module) for module in layer.modules()):
            named = cast(nn.Module, layer).named_modules(prefix=f"denselayer{number}")
            return str(next(name for name, module in named if condition(module)))
    return None


def _has_own_state(module: nn.Module) -> bool:
    """Return True if a module may update buffers again when a layer is computed again.

    Running statistics of norms do not count, as `checkpointed` leaves them alone then, nor do
    buffers of classes that say so by ``constant_buffers``; spectral norms and observers of
    quantization do.
    """
    constant = getattr(type(module), "constant_buffers", False)
    return bool(module._buffers) and "running_mean" not in module._buffers and not constant
