"""Decides if the Triton kernels may be on by default: their error, and time beside peers.

The kernels are off unless asked for (see `dense_block.backends`), as they were never run on a card.
One run of this on a card decides: each use of them (inference, training) gets a verdict from its
error, its time beside plain operators, which is what runs by default, and beside ``torch.compile``.
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import timm
import torch
from torch import Tensor, nn

from densenet_backbones.benchmark.gpu import require_gpu
from densenet_backbones.benchmark.measuring import get_synchronize, interleave
from densenet_backbones.benchmark.report import Cell, Column, Table
from densenet_backbones.dense_block import Memory
from densenet_backbones.dense_block.backends import has_triton, has_triton_training, use_triton
from densenet_backbones.deploy import deploy
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.messages import pluralize

__all__ = ["Evidence", "decide_default", "judge", "measure_inference", "measure_training"]

Compile = Callable[[nn.Module], Callable[[Tensor], Sequence[Tensor]]]

# Kernels round elsewhere than plain operators do: they may err half as much again, and once more.
_SHARE_OF_PLAIN_ERROR, _ONE_ROUNDING = 1.5, 2**-9
_COLUMNS = (
    Column("use"),
    Column("error", ".1e"),
    Column("error of plain operators", ".1e"),
    Column("time / plain operators", ".2f", spread=True),
    Column("time / torch.compile", ".2f", spread=True),
    Column("verdict"),
)
_NOTE = (
    "errors: from plain operators in float64, as shares of the norm of maps or gradients\n"
    "inference: a deployed net; plain operators are cuDNN's from folded weights; torch.compile has "
    "the net as it is, in mode max-autotune, beside kernels in a CUDA graph\n"
    "training: steps in memory mode shared; torch.compile has the net in memory mode none\n"
    "on by default needs: equal up to rounding, faster than plain operators in every turn, no "
    "slower than torch.compile in the median"
)


@dataclass(frozen=True)
class Evidence:
    """Measurements of one use of the kernels.

    Attributes:
        use: ``inference`` or ``training``.
        refusal: Why the kernels do not run on this card; None if they do.
        error: Error of maps or gradients, as a share of their norm.
        plain_error: The same of plain operators in the same type.
        to_plain: Time in units of plain operators', turn by turn.
        to_compiled: Time in units of ``torch.compile``'s, turn by turn.
    """

    use: str
    refusal: str | None = None
    error: float = 0.0
    plain_error: float = 0.0
    to_plain: tuple[float, ...] = ()
    to_compiled: tuple[float, ...] = ()


def judge(evidence: Evidence) -> str:
    """Return the verdict on one use of the kernels: on by default, or off and why."""
    if evidence.refusal is not None:
        return f"off: {evidence.refusal}"
    bound = _SHARE_OF_PLAIN_ERROR * evidence.plain_error + _ONE_ROUNDING
    if not evidence.error <= bound:  # a comparison that an error of NaN fails
        return f"off: the error {evidence.error:.1e} is above {bound:.1e}, which rounding explains"
    slowest, beside = max(evidence.to_plain), statistics.median(evidence.to_compiled)
    if slowest >= 1:
        return f"off: takes up to {slowest:.2f} of the time of plain operators"
    if beside > 1:
        return f"off: takes {beside:.2f} of the time of torch.compile"
    return "on by default"


def decide_default(
    net: str, batch: int, size: tuple[int, int], *, turns: int, device: torch.device
) -> Table:
    """Measure what it would take to turn the kernels on by default, in bfloat16.

    Args:
        net: A published net with bottlenecks and the ImageNet stem.
        batch: Number of images.
        size: Height and width of the images in pixels.
        turns: Counted rounds; see `interleave`.
        device: A GPU. The kernels are switched on and off here, whatever the environment says.

    Returns:
        A row for each use of the kernels, and a verdict line in the note.

    Raises:
        ValueError: There is no such net, or it is no CUDA device that can run the kernels.
    """
    require_gpu(net, device)
    shape = (batch, 3, *size)
    tune = partial(torch.compile, mode="max-autotune", dynamic=False)
    evidence = (
        measure_inference(net, shape, turns=turns, device=device, compile_net=tune),
        measure_training(net, shape, turns=turns, device=device, compile_net=torch.compile),
    )
    return _tabulate(
        f"{net}, {pluralize(batch, 'image')} of {size[0]}x{size[1]}, bfloat16, {device}", evidence
    )


def _tabulate(title: str, evidence: Sequence[Evidence]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in evidence:
        numbers: tuple[Cell, ...] = (one.error, one.plain_error, one.to_plain, one.to_compiled)
        rows.append((one.use, *(numbers if one.refusal is None else 4 * (None,)), judge(one)))
    verdicts = "; ".join(f"{one.use} {judge(one)}" for one in evidence)
    return Table(title, _COLUMNS, tuple(rows), f"{_NOTE}\nverdict: {verdicts}")


# ------------------------------------------------------------------------------ inference


def measure_inference(
    net: str,
    shape: tuple[int, ...],
    *,
    turns: int,
    device: torch.device,
    compile_net: Compile,
    dtype: torch.dtype = torch.bfloat16,
) -> Evidence:
    """Compare a deployed net in the kernels with plain operators, and with a compiled net.

    Args:
        net: A published net.
        shape: (N, 3, H, W) of the images.
        turns: Counted rounds.
        device: Device to measure on.
        compile_net: Compiles the net as it is.
        dtype: Type of weights and maps.
    """
    model = _build(net).eval().to(device)
    image = _draw_images(shape, device)
    with torch.inference_mode():
        exact = model.double()(image.double())
    model, image = model.to(dtype), image.to(dtype)
    deployed = deploy(model)
    # Equality first: what is wrong needs no timing, and kernels are chosen in their first run.
    with torch.inference_mode(), use_triton(False):
        plain_error = _measure_error(deployed(image), exact)
    with torch.inference_mode(), use_triton(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if not has_triton(image):
            return Evidence("inference", refusal=_quote(warned))
        error = _measure_error(deployed(image), exact)
    graphed: Callable[[Tensor], object] = deployed
    if device.type == "cuda":
        graphed = torch.compile(deployed, mode="reduce-overhead", dynamic=False)

    def run(step: Callable[[Tensor], object], kernels: bool) -> None:
        with torch.inference_mode(), use_triton(kernels):
            step(image)

    plain, kernels, in_graph, compiled = interleave(
        {
            "plain operators": partial(run, deployed, False),
            "kernels": partial(run, deployed, True),
            "kernels in a graph": partial(run, graphed, True),
            "torch.compile": partial(run, compile_net(model), False),
        },
        turns,
        get_synchronize(device),
        repeats=10,
    )
    ratios = kernels.compute_ratios(plain), in_graph.compute_ratios(compiled)
    return Evidence("inference", None, error, plain_error, *ratios)


# ------------------------------------------------------------------------------ training


def measure_training(
    net: str,
    shape: tuple[int, ...],
    *,
    turns: int,
    device: torch.device,
    compile_net: Compile,
    dtype: torch.dtype | None = torch.bfloat16,
) -> Evidence:
    """Compare training steps in the kernels with plain operators, and with a compiled net.

    Args:
        net: A published net.
        shape: (N, 3, H, W) of the images.
        turns: Counted rounds.
        device: Device to measure on.
        compile_net: Compiles the net as it is, in the mode that keeps everything.
        dtype: Type that autocast computes in; None for none.
    """
    model, image = _build(net).train().to(device), _draw_images(shape, device)
    exact = _run_step(model.double(), model, image.double(), None)
    model = model.float()

    def step(run: Callable[[Tensor], Sequence[Tensor]], kernels: bool) -> list[Tensor]:
        with use_triton(kernels):
            return _run_step(run, model, image, dtype)

    def step_in(memory: Memory, run: Callable[[Tensor], Sequence[Tensor]], kernels: bool) -> None:
        model.set_memory(memory)
        step(run, kernels)

    model.set_memory("shared")
    plain_error = _measure_error(step(model, kernels=False), exact)
    with use_triton(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if not has_triton_training(image if dtype is None else image.to(dtype)):
            return Evidence("training", refusal=_quote(warned))
    error = _measure_error(step(model, kernels=True), exact)
    plain, kernels, compiled = interleave(
        {
            "plain operators": partial(step_in, "shared", model, False),
            "kernels": partial(step_in, "shared", model, True),
            "torch.compile": partial(step_in, "none", compile_net(model), False),
        },
        turns,
        get_synchronize(device),
        repeats=3,
    )
    ratios = kernels.compute_ratios(plain), kernels.compute_ratios(compiled)
    return Evidence("training", None, error, plain_error, *ratios)


def _run_step(
    run: Callable[[Tensor], Sequence[Tensor]],
    model: nn.Module,
    image: Tensor,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """Return the gradients of all parameters, of the mean square of every map."""
    model.zero_grad()
    casts = nullcontext() if dtype is None else torch.autocast(image.device.type, dtype)
    with casts:
        maps = run(image)
    losses = [m.to(torch.promote_types(m.dtype, torch.float32)).square().mean() for m in maps]
    torch.stack(losses).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


# ------------------------------------------------------------------------------ both


def _build(net: str) -> DenseFeatureNet:
    """Build a net whose statistics are not those of a fresh one, which would hide wrong ones."""
    torch.manual_seed(0)
    model = timm.create_model(f"{net}_features")
    assert isinstance(model, DenseFeatureNet)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.to(memory_format=torch.channels_last)


def _draw_images(shape: tuple[int, ...], device: torch.device) -> Tensor:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return image.to(device, memory_format=torch.channels_last)


def _measure_error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the mean error of tensors, each as a share of its norm; NaN if there is one."""
    shares = [(a.double() - b).norm() / b.norm() for a, b in zip(results, exact, strict=True)]
    return float(torch.stack(shares).mean())


def _quote(warned: Sequence[warnings.WarningMessage]) -> str:
    return str(warned[-1].message) if warned else "the kernels do not run here"
