"""Plan the memory that training saves for its backward pass in each mode, computing nothing.

The forward pass itself runs on fake tensors, which have shapes, types and a device but no values,
and autograd tells what it saves, as `benchmark.measuring` counts it. No formula has to follow the
code: checkpoints, blocks over one buffer, autocast's copies, frozen stages, fallbacks to the plain
mode and whatever stands between the blocks are counted because they run. Fake tensors are used and
not the meta device of `plan`, since autocast goes by the device.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from densenet_backbones.dense_block import MEMORY_MODES, Memory, rank_modes
from densenet_backbones.layers import DenseBlock, get_memory, set_memory

__all__ = [
    "MemoryPlan",
    "choose_memory",
    "extrapolate_batch",
    "format_bytes",
    "largest_batch",
    "plan_memory",
]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a model saves between forward and backward pass, by memory mode.

    Attributes:
        model: Class of the model.
        inputs: Input shape in words.
        saved_bytes: Bytes by mode, as `benchmark.measuring` counts them; the fastest mode first.
    """

    model: str
    inputs: str
    saved_bytes: Mapping[Memory, int]

    def fastest_within(self, budget: float) -> Memory:
        """Return the fastest mode that saves at most ``budget`` bytes, or else the smallest."""
        within = (memory for memory, saved in self.saved_bytes.items() if saved <= budget)
        return next(within, min(self.saved_bytes, key=lambda memory: self.saved_bytes[memory]))

    def line(self) -> str:
        """Return all modes in a line for people."""
        return ", ".join(
            f"{memory} {format_bytes(saved)}" for memory, saved in self.saved_bytes.items()
        )

    def table(self) -> str:
        """Return a table for people, one line a mode, the fastest first."""
        most = max(self.saved_bytes.values())
        width = max(len(memory) for memory in self.saved_bytes)
        lines = [f"{self.model} at {self.inputs}, fastest first"]
        lines.append(f"{'':{width}}  {'kept MiB':>9}  share")
        lines += [
            f"{memory:{width}}  {saved / 2**20:9.1f}  {saved / max(most, 1):5.2f}"
            for memory, saved in self.saved_bytes.items()
        ]
        return "\n".join(lines)


def format_bytes(count: float) -> str:
    """Write bytes for people, in MiB or GiB."""
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def plan_memory(
    model: nn.Module,
    input_size: Sequence[int] = (1, 3, 224, 224),
    *,
    autocast: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    modes: Sequence[Memory] = MEMORY_MODES,
) -> MemoryPlan:
    """Plan what training a model saves for its backward pass; nothing is computed or allocated.

    Counted are the storages that autograd holds between forward and backward pass, each once,
    without parameters. Gradients and what a backward pass makes for a while come on top.

    Args:
        model: Any module that maps one image tensor without looking at its values: a (feature) net
            or a segmenter, but no whole detector. It is planned in training mode, frozen stages
            excepted, and left as it is.
        input_size: (N, C, H, W) of a training batch.
        autocast: Type that autocast is to compute in: ``torch.bfloat16`` or ``torch.float16``.
        dtype: Type of the parameters; their own when left out.
        device: Where training is to run; where the model is when left out. A device that is not
            there is planned without its autocast.
        modes: Modes to plan.

    Raises:
        ValueError: ``input_size`` is not made of positive integers, ``modes`` has none or unknown
            ones, or ``device`` is "mps" where torch has none: it ends the process when asked.
    """
    size = tuple(input_size)
    if not size or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(f"input_size must hold integers >= 1, such as (8, 3, 224, 224): {size}")
    if not modes or not set(modes) <= set(MEMORY_MODES):
        raise ValueError(f"modes must be some of {MEMORY_MODES}, got {tuple(modes)}")
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    device = torch.device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "device: convolutions on mps can only be planned where torch has it, and here it has "
            "none; plan for cuda, which keeps the same maps"
        )
    own = next((p.dtype for p in model.parameters()), torch.float32)
    ranked = rank_modes(device, dtype or own, autocast)
    saved: dict[Memory, int] = {}
    with _train_temporarily(model), _restore_modes(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training itself says which blocks fall back
        for memory in (known for known in ranked if known in modes):
            set_memory(model, memory)
            saved[memory] = _count_saved_bytes(model, size, device, dtype, autocast)
    return MemoryPlan(type(model).__name__, " x ".join(map(str, size)), saved)


def choose_memory(
    model: nn.Module,
    input_size: Sequence[int],
    budget: float,
    *,
    autocast: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Memory:
    """Give a model the fastest memory mode whose plan fits a budget.

    `plan_memory` and `MemoryPlan.fastest_within` tell it without setting it.

    Args:
        model: As of `plan_memory`.
        input_size: (N, C, H, W) of a training batch.
        budget: Bytes that may be kept between forward and backward pass.
        autocast: As of `plan_memory`.
        dtype: As of `plan_memory`.
        device: As of `plan_memory`.

    Returns:
        The mode, which all dense blocks of the model have now. If no mode fits it is the one that
        keeps least, and a warning says so.

    Raises:
        ValueError: The model has no dense blocks, ``budget`` is not above 0, or ``input_size`` is
            refused by `plan_memory`.
    """
    if not budget > 0:
        raise ValueError(f"budget must be a number of bytes above 0, got {budget}")
    if get_memory(model) is None:
        raise ValueError(f"{type(model).__name__} has no dense blocks, so it has no memory modes")
    # Modes are ordered by their speed; the one that keeps least is the way out.
    plan = plan_memory(model, input_size, autocast=autocast, dtype=dtype, device=device)
    memory = plan.fastest_within(budget)
    if plan.saved_bytes[memory] > budget:
        warnings.warn(
            f"no memory mode fits {format_bytes(budget)}; {memory!r} keeps least, "
            f"{format_bytes(plan.saved_bytes[memory])}: use smaller batches or images",
            stacklevel=2,
        )
    set_memory(model, memory)
    return memory


def largest_batch(
    model: nn.Module,
    image_size: Sequence[int],
    budget: float,
    *,
    memory: Memory = "none",
    autocast: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> int:
    """Return the most images of a training batch whose plan fits a budget; nothing is computed.

    It follows from the plans of two and three images, as every further image adds the same maps.
    (Planning large batches takes long: over one buffer, statistics are taken image by image.)

    Args:
        model: As of `plan_memory`; one without dense blocks keeps what it keeps in any mode.
        image_size: (C, H, W).
        budget: Bytes that may be kept between forward and backward pass.
        memory: The mode.
        autocast: As of `plan_memory`.
        device: As of `plan_memory`.

    Returns:
        Their number; 0 where not even two fit, which batch norm needs for a map of one cell.
    """

    def count_saved_bytes(batch: int) -> int:
        size = (batch, *image_size)
        plan = plan_memory(model, size, autocast=autocast, device=device, modes=(memory,))
        return plan.saved_bytes[memory]

    two, three = count_saved_bytes(2), count_saved_bytes(3)
    largest = extrapolate_batch(2, two, three, budget)
    return largest if largest >= 2 else 0


def extrapolate_batch(images: int, saved: int, saved_of_next: int, budget: float) -> int:
    """Return the most images whose plan fits a budget, from the plans of two batches.

    Args:
        images: Number of images of the first plan.
        saved: Bytes that it saves.
        saved_of_next: Bytes that one image more saves.
        budget: Bytes that may be kept between forward and backward pass.

    Returns:
        Their number, 0 or more; every image adds the same maps.
    """
    return max(0, images + int((budget - saved) // max(saved_of_next - saved, 1)))


def _blocks(model: nn.Module) -> Iterator[DenseBlock]:
    return (module for module in model.modules() if isinstance(module, DenseBlock))


@contextmanager
def _restore_modes(model: nn.Module) -> Iterator[None]:
    before = [(block, block.memory) for block in _blocks(model)]
    try:
        yield
    finally:
        for block, memory in before:
            block.memory = memory


@contextmanager
def _train_temporarily(model: nn.Module) -> Iterator[None]:
    """Set training mode for a while; a model in it stays as it is, parts in eval included."""
    before = {module: module.training for module in model.modules()}
    if not model.training:
        model.train()
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


def _count_saved_bytes(
    model: nn.Module,
    size: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype | None,
    autocast: torch.dtype | None,
) -> int:
    """Count bytes that autograd keeps of a forward pass on fake tensors."""
    storages: dict[int, torch.UntypedStorage] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        of_type = dtype if tensor.is_floating_point() and dtype is not None else tensor.dtype
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=of_type, device=device)
        return fake.requires_grad_(tensor.requires_grad)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no other storage gets its address
        return tensor

    # Fake tensors have sizes and no data; what autograd saves of them is counted by storage.
    casts = torch.autocast(device.type, autocast) if autocast is not None else nullcontext()
    with FakeTensorMode(), torch.enable_grad():
        parameters = {name: stand_in(p) for name, p in model.named_parameters()}
        buffers = {name: stand_in(b) for name, b in model.named_buffers()}
        image_type = next((p.dtype for p in parameters.values()), dtype or torch.float32)
        image = torch.empty(size, dtype=image_type, device=device)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), casts:
            out = functional_call(model, {**parameters, **buffers}, (image,))
        # Parameters are there anyway, saved or not.
        own = {p.untyped_storage()._cdata for p in parameters.values()}
        total = sum(s.nbytes() for address, s in storages.items() if address not in own)
    del out  # held until here, as a training step holds it
    return total
