"""What training a network keeps for its backward pass, and what keeping less costs in time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, get_args

import torch
import torchvision
from torch import Tensor, nn

from densenet_backbones.analysis.timing import Timing, interleave, ratios_of
from densenet_backbones.checkpoints import to_ours
from densenet_backbones.dense_block import Memory
from densenet_backbones.densenet import DenseNet
from densenet_backbones.variants import VARIANTS

__all__ = ["MemoryRow", "compare_memory_modes", "memory_table", "peak_bytes", "saved_bytes"]


@dataclass(frozen=True)
class MemoryRow:
    """One way to train a network.

    Attributes:
        name: Whose network, and its memory mode.
        saved: Bytes that autograd keeps between forward and backward pass, parameters excluded.
        peak: Bytes allocated at most during a step, beyond what there was before it.
        updates: How often batch norms counted the one batch: fewest, most.
        timing: Seconds of the steps.
    """

    name: str
    saved: int
    peak: int
    updates: tuple[int, int]
    timing: Timing


def saved_bytes(net: nn.Module, step: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Bytes of all storages that autograd keeps for the backward pass of ``step()``.

    A storage that several tensors share counts once, and parameters do not count. It is what is
    held between the passes: the peak within a pass is higher.

    Args:
        net: Whose parameters are left out.
        step: A forward pass.

    Returns:
        Bytes, and what ``step`` returned.
    """
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = step()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), result


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Bytes of tensors that there are at most during ``step()``, beyond those there before it.

    On a CPU the allocations of PyTorch's profiler are added up; what libraries take for themselves
    (oneDNN's scratch memory) is not among them.

    Args:
        step: Is called twice, since a first step also chooses algorithms.
        device: Whose memory.
    """
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    results: Any = profiler.profiler
    changes = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def compare_memory_modes(
    variant: str, batch: int, size: int, turns: int, device: torch.device
) -> tuple[MemoryRow, ...]:
    """Training steps of torchvision's two modes and ours, on the same weights and images.

    Args:
        variant: A DenseNet that torchvision has: ``densenet121``, ``densenet161``, ...
        batch: Images of a step.
        size: Their side in pixels.
        turns: Counted rounds of steps; see `interleave`.
        device: Where to measure.

    Raises:
        ValueError: torchvision has no such DenseNet.
        RuntimeError: Two contenders do not compute the same, so their costs cannot be compared.
    """
    if not hasattr(torchvision.models, variant) or variant not in VARIANTS:
        known = [name for name in VARIANTS if hasattr(torchvision.models, name)]
        raise ValueError(f"torchvision has no {variant!r} to compare with; it has {known}")
    nets = {name: net.to(device).train() for name, net in _contenders(variant).items()}
    image = torch.randn(batch, 3, size, size, device=device)
    saved, peaks, updates = {}, {}, {}
    losses = []
    for name, net in nets.items():
        saved[name], loss = saved_bytes(net, partial(_loss, net, image))
        peaks[name] = peak_bytes(partial(_step, net, image), device)
        losses.append(loss.detach())
        updates[name] = _updates_of_a_step(net, partial(_step, net, image))
    difference = max(float((loss - losses[0]).abs() / losses[0].abs()) for loss in losses)
    if not difference <= 1e-4:
        raise RuntimeError(f"losses differ by {difference:.1e} of their value")
    timings = interleave(
        {name: partial(_step, net, image) for name, net in nets.items()},
        turns,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
    )
    return tuple(
        MemoryRow(t.name, saved[t.name], peaks[t.name], updates[t.name], t) for t in timings
    )


def _contenders(variant: str) -> dict[str, nn.Module]:
    build: Any = getattr(torchvision.models, variant)
    plain = build(weights=None)
    efficient = build(weights=None, memory_efficient=True)
    efficient.load_state_dict(plain.state_dict())
    nets: dict[str, nn.Module] = {
        "torchvision": plain,
        "torchvision memory_efficient": efficient,
    }
    for memory in get_args(Memory):
        net = DenseNet(VARIANTS[variant], memory=memory)
        net.load_state_dict(to_ours(plain.state_dict()))
        nets[f"ours memory={memory}"] = net
    return nets


def _loss(net: nn.Module, image: Tensor) -> Tensor:
    return net(image).square().mean()


def _step(net: nn.Module, image: Tensor) -> None:
    _loss(net, image).backward()
    net.zero_grad(set_to_none=True)  # at the end: gradients are part of what a step takes


def _updates_of_a_step(net: nn.Module, step: Callable[[], None]) -> tuple[int, int]:
    def counts() -> list[int]:
        norms = (m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
        return [int(m.num_batches_tracked) for m in norms if m.num_batches_tracked is not None]

    before = counts()
    step()
    updates = [after - earlier for after, earlier in zip(counts(), before, strict=True)]
    return min(updates), max(updates)


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """One line a row: MiB kept, share of the first row's, peak, BN updates, time ratios."""
    first = rows[0]
    width = max(len(row.name) for row in rows)
    head = f"{'':{width}}  {'saved MiB':>9}  {'share':>5}  {'peak MiB':>8}  BN updates"
    lines = [f"{head}  step time / {first.name}: median (min .. max)"]
    for row in rows:
        fewest, most = row.updates
        updates = str(most) if fewest == most else f"{fewest} and {most}"
        lines.append(
            f"{row.name:{width}}  {row.saved / 2**20:9.1f}  {row.saved / first.saved:5.2f}  "
            f"{row.peak / 2**20:8.1f}  {updates:>10}  {ratios_of(row.timing, first.timing)}"
        )
    return "\n".join(lines)
