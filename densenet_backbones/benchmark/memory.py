"""Measure training steps: what each memory mode saves for the backward pass, and time alone."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torchvision
from torch import Tensor, nn

from densenet_backbones.analysis.memory_plan import largest_batch
from densenet_backbones.benchmark.measuring import (
    Timing,
    get_synchronize,
    interleave,
    measure_peak_bytes,
    measure_saved_bytes,
)
from densenet_backbones.benchmark.report import Column, Table
from densenet_backbones.checkpoints import to_ours
from densenet_backbones.dense_block import MEMORY_MODES, Memory, native
from densenet_backbones.densenet import DenseNet
from densenet_backbones.heads import DSOD, dsod300
from densenet_backbones.heads.segmentation.fcdensenet import fcdensenet103
from densenet_backbones.layers import set_memory
from densenet_backbones.messages import pluralize
from densenet_backbones.variants import VARIANTS

__all__ = ["compare_memory_modes", "compare_steps"]

_NOTE = (
    "saved: storages autograd keeps between forward and backward pass, parameters excluded; peak: "
    "of tensors in a step, beyond the parameters; images in {budget:g} GiB: the largest batch of "
    "which so much is saved, as planned"
)


@dataclass(frozen=True)
class _Contender:
    """Network to train.

    Attributes:
        net: Maps one image tensor to one tensor.
        memory: Its mode, for planning; another library's has none but what it does.
    """

    net: nn.Module
    memory: Memory = "none"


def compare_memory_modes(
    variant: str,
    *,
    batch: int,
    size: int | None,
    turns: int,
    device: torch.device,
    bf16: bool = False,
    budget: float = 8.0,
    modes: Sequence[Memory] = MEMORY_MODES,
) -> Table:
    """Measure training steps of torchvision's two modes, timm's net and ours, on the same weights.

    Maps lie channels last, as in the training tools: all of them are faster so.

    Args:
        variant: A DenseNet that torchvision has, ``fcdensenet103`` or ``dsod300``; the last two
            have no peer there, and are compared with themselves in the first of the modes.
        batch: Images of a step.
        size: Their side in pixels; by default 300 for ``dsod300``, 224 for others.
        turns: Counted rounds of steps; see `interleave`.
        device: Where to measure.
        bf16: True if autocast computes in bfloat16.
        budget: GiB for the largest batch; see `largest_batch`.
        modes: Of ours.

    Raises:
        ValueError: There is nothing to measure under this name.
        RuntimeError: Two contenders do not compute the same, so their costs cannot be compared.
    """
    size = size or (300 if variant == "dsod300" else 224)
    contenders = _build_contenders(variant, modes)
    image, nets = _prepare(contenders, (batch, 3, size, size), device)
    autocast = torch.bfloat16 if bf16 else None
    losses = {name: partial(_compute_loss, net, image, autocast) for name, net in nets.items()}
    costs = {name: _measure_cost(net, losses[name], device) for name, net in nets.items()}
    _refuse_difference([value for *_, value in costs.values()], device, bf16)
    steps = {name: partial(_run_step, net, losses[name]) for name, net in nets.items()}
    timings = interleave(steps, turns, get_synchronize(device))
    first, images = timings[0], f"images in {budget:g} GiB"
    ratio = f"step time / {first.name}"
    columns = (
        *(Column(""), Column("saved MiB", ".1f"), Column("share", ".2f")),
        *(Column("peak MiB", ".1f"), Column(images), Column("BN updates"), Column("ms", ".1f")),
        Column(ratio, ".3f", spread=True),
    )
    rows = []
    for timing in timings:
        saved, peak, updates, _ = costs[timing.name]
        contender = contenders[timing.name]
        most = largest_batch(
            contender.net,
            image.shape[1:],
            budget * 2**30,
            memory=contender.memory,
            autocast=autocast,
            device=device,
        )
        cells = (saved / 2**20, saved / costs[first.name][0], peak / 2**20, most, updates)
        rows.append((timing.name, *cells, timing.milliseconds, timing.compute_ratios(first)))
    title = (
        f"training step of {variant}, {pluralize(batch, 'image')} of {size} pixels, "
        f"{'bf16-mixed' if bf16 else 'float32'}, channels last, {device}, {turns} turns"
    )
    note = _NOTE.format(budget=budget)
    return Table(title, columns, tuple(rows), note, chart=(ratio, "saved MiB"))


def compare_steps(
    variant: str,
    size: tuple[int, int, int, int],
    *,
    turns: int,
    device: torch.device,
    bf16: bool = False,
    modes: Sequence[Memory] = ("none", "shared", "shared_lean"),
) -> Table:
    """Time training steps of torchvision's, timm's and our net on the same weights.

    Beside wall time stands the processor time of all threads, which other processes disturb less,
    and on a CPU how fast one core multiplies and adds in vectors, measured in the same turns.

    Args:
        variant: A DenseNet that torchvision has, ``fcdensenet103`` or ``dsod300``.
        size: N, C, H and W of the images.
        turns: Counted rounds of steps; see `interleave`.
        device: Where to measure.
        bf16: True if autocast computes in bfloat16.
        modes: Of ours.

    Raises:
        ValueError: There is nothing to measure under this name.
        RuntimeError: Two contenders do not compute the same.
    """
    contenders = _build_contenders(variant, modes, checkpointing=False)
    image, nets = _prepare(contenders, size, device)
    autocast = torch.bfloat16 if bf16 else None
    losses = {name: partial(_compute_loss, net, image, autocast) for name, net in nets.items()}
    _refuse_difference([loss().item() for loss in losses.values()], device, bf16)
    processor: dict[str, list[float]] = {name: [] for name in (*nets, _PEAK)}

    def run(name: str, step: Callable[[], object]) -> None:
        start = time.process_time()
        step()
        processor[name].append(time.process_time() - start)

    steps = {n: partial(run, n, partial(_run_step, net, losses[n])) for n, net in nets.items()}
    if device.type == "cpu" and native.is_usable():
        steps[_PEAK] = partial(run, _PEAK, partial(native.run_multiply_adds, _ROUNDS))
    timings = {timing.name: timing for timing in interleave(steps, turns, get_synchronize(device))}
    # The first round is not counted.
    busy = {name: Timing(name, tuple(values[1:])) for name, values in processor.items()}
    first = next(iter(nets))
    names = (f"step time / {first}", f"CPU time / {first}")
    columns = (
        Column(""),
        Column("ms", ".1f"),
        *(Column(name, ".3f", spread=True) for name in names),
    )
    rows = tuple(
        (
            name,
            timings[name].milliseconds,
            timings[name].compute_ratios(timings[first]),
            busy[name].compute_ratios(busy[first]),
        )
        for name in nets
    )
    title = (
        f"training step of {variant}, {pluralize(size[0], 'image')} of {size[2]}x{size[3]} pixels, "
        f"{'bf16-mixed' if bf16 else 'float32'}, channels last, {device}, "
        f"{pluralize(torch.get_num_threads(), 'thread')}, {turns} turns"
    )
    return Table(title, columns, rows, _describe_core(busy[_PEAK]), chart=(names[0],))


_PEAK = "multiply-adds"
_ROUNDS = 2_000_000  # some 10 ms


def _describe_core(busy: Timing) -> str:
    """Tell what instructions the libraries use, and how fast a core is at the best of them."""
    text = f"instructions: torch {torch.backends.cpu.get_cpu_capability()}"
    if not busy.seconds:
        return text
    operations = 24 * native.get_vector_bits() // 32 * _ROUNDS
    speeds = Column("", ".0f", spread=True).write(tuple(operations / s / 1e9 for s in busy.seconds))
    return (
        f"{text}, our kernels {native.get_vector_bits()}-bit vectors; a core's multiply-adds in "
        f"these turns: {speeds} GFLOP/s of processor time"
    )


def _prepare(
    contenders: Mapping[str, _Contender], size: tuple[int, int, int, int], device: torch.device
) -> tuple[Tensor, dict[str, nn.Module]]:
    """Return images of a size and the nets, in training; all lie channels last on the device."""
    last = torch.channels_last
    image = torch.randn(size, device=device).contiguous(memory_format=last)
    return image, {
        name: contender.net.to(device, memory_format=last).train()  # type: ignore[call-overload]
        for name, contender in contenders.items()
    }


def _refuse_difference(values: Sequence[float], device: torch.device, bf16: bool) -> None:
    difference = max(abs(value - values[0]) / abs(values[0]) for value in values)
    # On a GPU convolutions round their inputs even in float32, by the default of PyTorch.
    if not difference <= (1e-4 if device.type == "cpu" and not bf16 else 1e-2):
        raise RuntimeError(f"losses differ by {difference:.1e} of their value")


def _measure_cost(
    net: nn.Module, loss: Callable[[], Tensor], device: torch.device
) -> tuple[int, int, str, float]:
    """Measure bytes saved, bytes at most, how often norms counted the batch, and the loss."""
    saved, result = measure_saved_bytes(net, loss)
    value = result.item()
    del result  # and with it what was saved
    step = partial(_run_step, net, loss)
    return saved, measure_peak_bytes(step, device), _count_updates(net, step), value


def _compute_loss(net: nn.Module, image: Tensor, autocast: torch.dtype | None) -> Tensor:
    torch.manual_seed(0)  # of dropout
    with torch.autocast(image.device.type, autocast, enabled=autocast is not None):
        maps = net(image)
    loss: Tensor = maps.float().square().mean()
    return loss


def _run_step(net: nn.Module, loss: Callable[[], Tensor]) -> None:
    torch.autograd.backward(loss())
    net.zero_grad(set_to_none=True)  # at the end: gradients are part of what a step takes


def _count_updates(net: nn.Module, step: Callable[[], None]) -> str:
    def counts() -> list[int]:
        norms = (m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
        return [int(m.num_batches_tracked) for m in norms if m.num_batches_tracked is not None]

    before = counts()
    step()
    updates = {after - earlier for after, earlier in zip(counts(), before, strict=True)}
    return " and ".join(map(str, sorted(updates)))


# -- who trains ----------------------------------------------------------------------------------


class _Predictions(nn.Module):
    """Detector from the network's input to its predictions, without boxes to learn."""

    def __init__(self, detector: DSOD) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.detector.predict(x), dim=-1)


_OTHERS: dict[str, Callable[[], nn.Module]] = {
    "fcdensenet103": lambda: fcdensenet103(num_classes=11).net,
    "dsod300": lambda: _Predictions(dsod300()),
}
"""Ours without a peer, with the classes of CamVid and VOC."""


def _build_contenders(
    variant: str, modes: Sequence[Memory], checkpointing: bool = True
) -> dict[str, _Contender]:
    """Build the peers, torchvision's checkpointing one among them if asked for, and ours."""
    peers: dict[str, _Contender] = {}
    if variant in _OTHERS:
        ours = _OTHERS[variant]()
    elif variant in VARIANTS and hasattr(torchvision.models, variant):
        peers, weights = _build_peers(variant)
        if not checkpointing:
            del peers["torchvision memory_efficient"]
        ours = DenseNet(VARIANTS[variant])
        ours.load_state_dict(to_ours(weights))
    else:
        known = [name for name in VARIANTS if hasattr(torchvision.models, name)]
        raise ValueError(
            f"torchvision has no {variant!r} to compare with; give some of {[*known, *_OTHERS]}"
        )
    for memory in modes:
        net = copy.deepcopy(ours)
        set_memory(net, memory)
        peers[f"ours memory={memory}"] = _Contender(net, memory)
    return peers


def _build_peers(variant: str) -> tuple[dict[str, _Contender], dict[str, Tensor]]:
    """Build torchvision's net in both of its modes, and timm's; return the weights of all too."""
    build = partial(torchvision.models.get_model, variant)
    plain = build(weights=None)
    weights = plain.state_dict()
    efficient = build(weights=None, memory_efficient=True)
    efficient.load_state_dict(weights)
    timms = timm.create_model(variant)
    timms.load_state_dict(weights)
    return {
        "torchvision": _Contender(plain),
        "torchvision memory_efficient": _Contender(efficient),
        "timm": _Contender(timms),
    }, weights
