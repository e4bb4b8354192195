"""Side-by-side measurements: ``python -m densenet_backbones.analysis.benchmark backbone``.

A claim about speed is a ratio of two things measured in turns within one run, on random inputs,
with outputs checked. To add a measurement, write a `Command` and list it in ``COMMANDS``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torchvision
from torch import Tensor, nn

from densenet_backbones.checkpoints import to_ours, to_torchvision
from densenet_backbones.densenet import DenseNet
from densenet_backbones.timm_models import densenet121_features

__all__ = ["COMMANDS", "Command", "Timing", "interleave", "main", "ratio_table"]


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        name: What is typed.
        help: One line for ``--help``.
        add_arguments: Declares its options.
        run: Measures and returns the report to print.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], str]


@dataclass(frozen=True)
class Timing:
    """Seconds of each turn of one contender, in the order of the turns."""

    name: str
    seconds: tuple[float, ...]


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    turns: int,
    synchronize: Callable[[], None] = lambda: None,
) -> tuple[Timing, ...]:
    """Times contenders in turns, so that a busy moment of the machine meets all of them.

    The order is turned round in every other round, and one round before the first is not counted.

    Args:
        contenders: Name to a step; the first is what the others are compared with.
        turns: Counted rounds, at least 1.
        synchronize: Waits for the device.

    Raises:
        ValueError: There is no contender, or ``turns`` is below 1.
    """
    if not contenders or turns < 1:
        raise ValueError(f"give one or more contenders and turns >= 1, not {turns}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(turns + 1):
        for name in names if turn % 2 else reversed(names):
            synchronize()
            start = time.perf_counter()
            contenders[name]()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return tuple(Timing(name, tuple(values)) for name, values in seconds.items())


def ratio_table(timings: Sequence[Timing]) -> str:
    """Median step time and, turn by turn, the time in units of the first contender's.

    Args:
        timings: As `interleave` returns them.

    Returns:
        One line a contender: median milliseconds, median ratio, smallest and largest ratio.
    """
    first = timings[0]
    width = max(len(timing.name) for timing in timings)
    lines = [f"{'':{width}}  {'median ms':>10}  time / {first.name}: median (min .. max)"]
    for timing in timings:
        ratios = [a / b for a, b in zip(timing.seconds, first.seconds, strict=True)]
        lines.append(
            f"{timing.name:{width}}  {statistics.median(timing.seconds) * 1e3:10.2f}  "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} .. {max(ratios):.3f})"
        )
    return "\n".join(lines)


def _backbone_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1, help="images in a batch (default 1)")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels, from 32")
    parser.add_argument("--turns", type=int, default=10, help="counted rounds (default 10)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")


def _backbone(arguments: argparse.Namespace) -> str:
    """Inference of densenet121 as torchvision, timm and we build it, on the same weights."""
    if arguments.batch < 1 or arguments.size < 32:
        raise ValueError(
            f"--batch must be >= 1 and --size >= 32, not {arguments.batch} and {arguments.size}"
        )
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    nets = {name: net.eval().to(device) for name, net in _same_weights().items()}
    image = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    with torch.inference_mode():
        difference = _largest_difference([net(image) for net in nets.values()])
        timings = interleave(
            {name: partial(net, image) for name, net in nets.items()},
            arguments.turns,
            synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        )
    return (
        f"densenet121, inference, {tuple(image.shape)}, {device}, {torch.get_num_threads()} CPU "
        f"threads, {arguments.turns} turns; outputs differ by at most {difference:.1e} of their "
        f"largest value\n{ratio_table(timings)}"
    )


def _same_weights() -> dict[str, nn.Module]:
    theirs = torchvision.models.densenet121(weights=None)
    for name, buffer in theirs.named_buffers():
        # Fresh statistics (0 and 1) would hide a norm that reads the wrong ones.
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    ours = densenet121_features(features_only=False)
    assert isinstance(ours, DenseNet)
    ours.load_state_dict(to_ours(theirs.state_dict()))
    timms = timm.create_model("densenet121")
    timms.load_state_dict(to_torchvision(ours.state_dict()))
    return {"torchvision": theirs, "timm": timms, "ours": ours}


def _largest_difference(outputs: Sequence[Tensor]) -> float:
    """Largest difference from the first output, as a share of its largest value.

    Raises:
        RuntimeError: It is above 1e-4, so the contenders do not compute the same.
    """
    first = outputs[0]
    difference = max(float((output - first).abs().max() / first.abs().max()) for output in outputs)
    if not difference <= 1e-4:
        raise RuntimeError(f"outputs differ by {difference:.1e}; their times cannot be compared")
    return difference


COMMANDS: tuple[Command, ...] = (
    Command(
        name="backbone",
        help="densenet121 inference: ours beside torchvision's and timm's, on the same weights",
        add_arguments=_backbone_arguments,
        run=_backbone,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: one sub-command a measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="densenet-benchmark", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    commands = {command.name: command for command in COMMANDS}
    for command in COMMANDS:
        command.add_arguments(subparsers.add_parser(command.name, help=command.help))
    arguments = parser.parse_args(argv)
    try:
        report = commands[arguments.command].run(arguments)
    except ValueError as error:
        parser.error(str(error))
    print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
