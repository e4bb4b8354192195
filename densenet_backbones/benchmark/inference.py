"""Time the feature maps of one DenseNet side by side: its libraries, onnxruntime and ours."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

from densenet_backbones.benchmark.contenders import (
    DEPLOYED,
    Run,
    add_if_installed,
    build_feature_nets,
    build_in_onnxruntime,
    compile_nets,
)
from densenet_backbones.benchmark.gpu_costs import Card, compute_net_cost
from densenet_backbones.benchmark.measuring import Timing, get_synchronize, interleave
from densenet_backbones.benchmark.report import Column, Table
from densenet_backbones.dense_block.backends import has_triton
from densenet_backbones.messages import check_choice
from densenet_backbones.variants import VARIANTS

__all__ = ["compare_inference", "parse_input"]

_NOTE = (
    "of the last map, from timm's in float32: largest difference, as a share of its largest value, "
    "and error, as a share of its norm; first call: seconds of it, in which compilers compile"
)


@dataclass(frozen=True)
class _Bounds:
    """Largest deviation of a last map from float32 by rounding alone.

    Attributes:
        largest: Difference, as a share of the map's largest value.
        error: Norm of the difference, as a share of the map's.
    """

    largest: float
    error: float


@dataclass(frozen=True)
class _Checked:
    largest: float
    error: float
    first_call: float


def parse_input(text: str) -> tuple[int, int, int, int]:
    """Read batch, channels, height and width from ``NxSIZE`` or ``NxHxW``.

    Raises:
        ValueError: If the text has another form, or the images are too small.
    """
    batch, *sides = (int(part) if part.isdecimal() else 0 for part in text.split("x"))
    if len(sides) not in (1, 2) or batch < 1 or min(sides) < 32:
        raise ValueError(
            f"--inputs must be like 1x224 or 2x800x1344, of 32 pixels or more, got {text!r}"
        )
    return batch, 3, sides[0], sides[-1]


def compare_inference(
    net: str,
    size: tuple[int, int, int, int],
    *,
    turns: int,
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool = False,
    card: Card | None = None,
) -> Table:
    """Time all that make the feature maps of ``net``, on the same weights and images.

    Args:
        net: A DenseNet that timm and torchvision have: ``densenet121``, ...
        size: (N, 3, H, W).
        turns: Counted rounds; see `interleave`.
        repeats: Passes in a turn.
        device: Where. On a GPU these are timm's net and the deployed one, eager and compiled with
            ``reduce-overhead``.
        dtype: float32 or bfloat16, of weights and images.
        compiled: Also compile timm's net (on a GPU with ``max-autotune``, which takes minutes) and
            the deployed one.
        card: What the GPU reaches at most, for the least time on paper; `Card`'s when left out.

    Raises:
        ValueError: A library has no such net.
        RuntimeError: Two contenders do not compute the same.
    """
    check_choice("--net", net, [name for name in VARIANTS if hasattr(torchvision.models, name)])
    image = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    images = image.to(dtype=dtype, memory_format=torch.channels_last)
    # The same weights in every library, and timm's result as what all must compute.
    nets, missing = build_feature_nets(net, device)
    theirs = nets["timm"]
    synchronize = get_synchronize(device)
    with torch.inference_mode():
        expected = _compute_in_float32(theirs, image)
        contenders: dict[str, Run] = {}
        if device.type == "cpu" and dtype == torch.float32:
            missing |= add_if_installed(
                "timm in onnxruntime", partial(build_in_onnxruntime, theirs, image), contenders
            )
        for name, model in nets.items():
            contenders[name] = model.to(dtype).to(memory_format=torch.channels_last)
        contenders |= compile_nets(nets, device, compiled)
        # Nothing is timed before all have computed the same.
        bounds = _choose_bounds(dtype, device, _measure_error(theirs(images)[-1], expected))
        checked = {
            name: _check(name, partial(run, images), expected, bounds, device)
            for name, run in contenders.items()
        }
        steps = {name: partial(run, images) for name, run in contenders.items()}
        timings = interleave(steps, turns, synchronize, repeats)
    batch, _, height, width = size
    title = (
        f"feature maps of {net}, {batch} x {height}x{width} pixels, "
        f"{str(dtype).removeprefix('torch.')}, channels last, {device}, {turns} turns"
        + (f" of {repeats} passes" if repeats > 1 else "")
    )
    # Notes say what was left out, and what would be the least time on paper.
    notes = [_NOTE, *(f"{name}: not measured, {why}" for name, why in missing.items())]
    floor = None
    if device.type == "cuda":
        kernels = "run" if has_triton(images) else "do not run"
        notes.append(f"Triton kernels {kernels} in the deployed net")
        if dtype == torch.bfloat16:  # the costs are of two bytes a value
            card = card or Card()
            floor = (compute_net_cost(VARIANTS[net], height, width) * batch).compute_seconds(
                card, fused=True
            )
            notes.append(
                f"floor: a kernel for each layer, {card.bandwidth / 1e12:g} TB/s and "
                f"{card.flops / 1e12:g} TFLOP/s (--bandwidth, --flops)"
            )
    return _build_table(title, timings, checked, batch, floor, "\n".join(notes))


def _build_table(
    title: str,
    timings: tuple[Timing, ...],
    checked: Mapping[str, _Checked],
    batch: int,
    floor: float | None,
    note: str,
) -> Table:
    deployed = next(timing for timing in timings if timing.name == DEPLOYED)
    ratio = f"time / {DEPLOYED}"
    columns = [Column(""), Column("ms", ".2f"), Column("us an image", ".1f")]
    columns += [Column(ratio, ".3f", spread=True), Column("largest difference", ".1e")]
    columns += [Column("error", ".1e"), Column("first call s", ".2f")]
    if floor is not None:
        columns.append(Column("time / floor", ".2f"))
    # Ratios turn by turn, as turns share the machine's state of the moment.
    rows = []
    for timing in timings:
        check = checked[timing.name]
        microseconds = 1e6 * timing.median / batch
        ratios = timing.compute_ratios(deployed)
        row = (timing.name, timing.milliseconds, microseconds, ratios, check.largest, check.error)
        floors = () if floor is None else (timing.median / floor,)
        rows.append((*row, check.first_call, *floors))
    return Table(title, tuple(columns), tuple(rows), note, chart=(ratio,))


def _compute_in_float32(net: nn.Module, image: Tensor) -> Tensor:
    """Compute the last map without TF32, whose products have few more bits than bfloat16's."""
    conv: Any = torch.backends.cudnn
    before, conv.allow_tf32 = conv.allow_tf32, False
    try:
        return cast(Tensor, net(image)[-1])
    finally:
        conv.allow_tf32 = before


def _choose_bounds(dtype: torch.dtype, device: torch.device, timms: float) -> _Bounds:
    """Choose bounds by the bits of products: float32 24, TF32 11 (float32 on GPUs), bfloat16 8.

    With few bits there are over a hundred layers of rounding, so timm's own error is the measure:
    half as much again, plus one rounding.
    """
    if dtype == torch.bfloat16:
        return _Bounds(0.15, 1.5 * timms + 2**-9)
    if device.type == "cuda":
        return _Bounds(0.15 / 8, 1.5 * timms + 2**-12)
    return _Bounds(1e-4, 1e-4)


def _check(
    name: str,
    step: Callable[[], Sequence[Tensor]],
    expected: Tensor,
    bounds: _Bounds,
    device: torch.device,
) -> _Checked:
    synchronize = get_synchronize(device)
    start = time.perf_counter()
    maps = step()
    synchronize()
    first_call = time.perf_counter() - start
    if device.type == "cuda":  # a graph is captured in the second run
        step()
        maps = step()
    return _Checked(*_compare_maps(name, maps[-1], expected, bounds), first_call)


def _compare_maps(
    name: str, last: Tensor, expected: Tensor, bounds: _Bounds
) -> tuple[float, float]:
    """Return the largest difference and the error.

    Raises:
        RuntimeError: One of them is beyond its bound.
    """
    activated = last.float().relu()  # torchvision and smp leave the last ReLU out
    largest = float((activated - expected).abs().max() / expected.abs().max())
    error = _measure_error(last, expected)
    if not (largest <= bounds.largest and error <= bounds.error):
        raise RuntimeError(
            f"{name} differs by {largest:.1e} at most and {error:.1e} of the norm, more than "
            f"{bounds.largest:.1e} or {bounds.error:.1e}; times cannot be compared"
        )
    return largest, error


def _measure_error(last: Tensor, expected: Tensor) -> float:
    return float((last.float().relu() - expected).norm() / expected.norm())
