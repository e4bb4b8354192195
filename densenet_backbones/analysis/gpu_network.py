"""Times of a whole DenseNet on a GPU: timm's beside ours deployed, on the same weights.

Inference in bfloat16, channels last, from the image to the last feature map. What each contender
computes is compared with timm's net in float32 before anything is timed.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from densenet_backbones.analysis.gpu_costs import net_cost
from densenet_backbones.analysis.timing import Timing, interleave
from densenet_backbones.checkpoints import to_torchvision
from densenet_backbones.dense_block.kernels import usable
from densenet_backbones.densenet import DenseNet
from densenet_backbones.deploy import deploy
from densenet_backbones.variants import VARIANTS

__all__ = ["CONTENDERS", "NetRow", "measure_network", "network_rows", "network_table"]

CONTENDERS = ("timm", "timm-compiled", "deployed", "deployed-compiled")


@dataclass(frozen=True)
class NetRow:
    """What was measured of one contender.

    Attributes:
        name: One of ``CONTENDERS``.
        error: Difference from float32, as a share of its norm.
        seconds: Of a forward pass, turn by turn.
        us_per_image: Median.
        ratio: Median of the time in units of the first contender's, taken turn by turn.
        ratio_range: Smallest and largest.
        floor_ratio: Median time over the least time on paper with a kernel for each dense layer.
    """

    name: str
    error: float
    seconds: tuple[float, ...]
    us_per_image: float
    ratio: float
    ratio_range: tuple[float, float]
    floor_ratio: float


def measure_network(
    net: str = "densenet121",
    batch: int = 8,
    size: tuple[int, int] = (224, 224),
    *,
    contenders: Sequence[str] = ("timm", "deployed", "deployed-compiled"),
    turns: int = 10,
    repeats: int = 10,
    bandwidth: float = 4.3e12,
    flops: float = 790e12,
    file: Path | None = None,
) -> str:
    """Measures forward passes in turns.

    Args:
        net: A net that timm and this package publish under one name, such as ``densenet121``.
        batch: Images.
        size: Their height and width in pixels.
        contenders: Of ``CONTENDERS``; the first is what the others are compared with. Compiled
            ones take minutes: timm's with ``max-autotune``, ours with ``reduce-overhead``.
        turns: Counted rounds.
        repeats: Forward passes in a turn.
        bandwidth: Bytes a second of the card's memory, for the floor.
        flops: Operations a second of its tensor cores.
        file: Where to write the rows as JSON too.

    Returns:
        A table.

    Raises:
        ValueError: There is no CUDA device, or a number is below 1.
        RuntimeError: A contender computes something else; see `_check`.
    """
    if not torch.cuda.is_available():
        raise ValueError("this measurement needs a CUDA device, and PyTorch finds none")
    if min(batch, turns, repeats) < 1:
        raise ValueError(
            f"batch, turns and repeats must be >= 1, not {batch}, {turns} and {repeats}"
        )
    device = torch.device("cuda")
    images = torch.randn(batch, 3, *size, device=device)
    # What torch cannot know of a net is what runs in it: without kernels, the table says so.
    kernels = usable(device, torch.bfloat16)
    with torch.inference_mode():
        steps, errors = _prepare(net, images, contenders)
        repeated = {name: partial(_repeat, step, repeats) for name, step in steps.items()}
        timings = interleave(repeated, turns, torch.cuda.synchronize)
    passes = [Timing(t.name, tuple(s / repeats for s in t.seconds)) for t in timings]
    cost = net_cost(VARIANTS[net], *size) * batch
    rows = network_rows(passes, errors, batch, cost.seconds(bandwidth, flops, fused=True))
    head = {"net": net, "batch": batch, "size": size, "device": torch.cuda.get_device_name()}
    head |= {"torch": torch.__version__, "kernels": kernels, "floor": asdict(cost)}
    if file is not None:
        values = {**head, "rows": [asdict(row) for row in rows]}
        file.write_text(json.dumps(values, indent=1))
    return (
        f"{net}, inference, {batch} images of {size[0]}x{size[1]}, bfloat16, channels last, "
        f"{head['device']}, {turns} turns of {repeats} passes, Triton kernels "
        f"{'run' if kernels else 'do not run'}\n{network_table(rows)}"
    )


def network_rows(
    timings: Sequence[Timing], errors: Mapping[str, float], batch: int, floor: float
) -> list[NetRow]:
    """Rows of the table from times of forward passes.

    Args:
        timings: The first is what the others are compared with.
        errors: By name of the contender.
        batch: Images of a pass.
        floor: Seconds of a pass on paper.
    """
    rows = []
    for timing in timings:
        pairs = zip(timing.seconds, timings[0].seconds, strict=True)
        ratios = [mine / first for mine, first in pairs]
        rows.append(
            NetRow(
                name=timing.name,
                error=errors[timing.name],
                seconds=timing.seconds,
                us_per_image=1e6 * timing.median / batch,
                ratio=statistics.median(ratios),
                ratio_range=(min(ratios), max(ratios)),
                floor_ratio=timing.median / floor,
            )
        )
    return rows


def network_table(rows: Sequence[NetRow]) -> str:
    """One line a contender."""
    width = max(len(row.name) for row in rows)
    ratio = f"time / {rows[0].name}: median (min .. max)"
    lines = [f"{'':{width}}  us an image  {ratio}  time / floor    error"]
    for row in rows:
        low, high = row.ratio_range
        spread = f"{row.ratio:.3f} ({low:.3f} .. {high:.3f})"
        lines.append(
            f"{row.name:{width}}  {row.us_per_image:11.1f}  {spread:>{len(ratio)}}  "
            f"{row.floor_ratio:12.2f}  {row.error:7.1e}"
        )
    return "\n".join(lines)


def _prepare(
    net: str, images: Tensor, contenders: Sequence[str]
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, float]]:
    """Each contender's forward pass, compiled and run, with its error."""
    theirs, ours = (model.eval().to(images.device) for model in _same_weights(net))
    deployed = deploy(ours).bfloat16().to(memory_format=torch.channels_last)
    expected = _in_float32(theirs, images)
    theirs = theirs.bfloat16().to(memory_format=torch.channels_last)
    x = images.to(torch.bfloat16, memory_format=torch.channels_last)
    allowed = _allowed_error(_distance(theirs(x), expected))
    steps: dict[str, Callable[[], Tensor]] = {}
    errors = {}
    for name in contenders:
        start = time.perf_counter()
        step = partial(_contender(name, theirs, deployed, x), x)
        # A CUDA graph is captured in the second run.
        outputs = [cast(Tensor, step()).float() for _ in range(3)]
        steps[name], errors[name] = step, _distance(outputs[-1], expected)
        _check(name, errors[name], allowed)
        print(f"{name}: ready after {time.perf_counter() - start:.0f} s", flush=True)
    return steps, errors


def _same_weights(net: str) -> tuple[nn.Module, nn.Module]:
    """A net as timm and as we build it, up to the last feature map; its norms are random too."""
    ours = DenseNet(VARIANTS[net], num_classes=0, global_pool="")
    for name, buffer in ours.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    theirs = timm.create_model(net, num_classes=0, global_pool="")
    theirs.load_state_dict(to_torchvision(ours.state_dict()))
    return theirs, ours


def _in_float32(net: nn.Module, images: Tensor) -> Tensor:
    """Without TF32, whose products have hardly more bits than those of bfloat16."""
    conv: Any = torch.backends.cudnn
    before, conv.allow_tf32 = conv.allow_tf32, False
    try:
        return cast(Tensor, net(images))
    finally:
        conv.allow_tf32 = before


def _contender(
    name: str, theirs: nn.Module, deployed: nn.Module, x: Tensor
) -> Callable[[Tensor], Any]:
    if name == "timm":
        return theirs
    if name == "timm-compiled":
        return torch.compile(theirs, mode="max-autotune", dynamic=False)
    deployed(x)  # chooses kernels by measurement, which cannot be done within a CUDA graph
    if name == "deployed":
        return deployed
    return torch.compile(deployed, mode="reduce-overhead", dynamic=False)


def _distance(output: Tensor, expected: Tensor) -> float:
    return float((output.float() - expected).norm() / expected.norm())


def _allowed_error(timms: float) -> float:
    """Half as much again as timm's own in bfloat16, plus one rounding to its 8 bits."""
    return 1.5 * timms + 2**-9


def _check(name: str, error: float, allowed: float) -> None:
    """Raises a `RuntimeError` where a contender's error is above `_allowed_error` of timm's."""
    if not error <= allowed:
        raise RuntimeError(
            f"{name} differs from float32 by {error:.1e} of its norm, more than {allowed:.1e}; "
            "times cannot be compared"
        )


def _repeat(step: Callable[[], object], count: int) -> None:
    for _ in range(count):
        step()
