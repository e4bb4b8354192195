"""Side-by-side measurements: ``tools/benchmark.py inference``, ``memory``, ``gpu`` and others.

A claim about speed is a ratio of two things measured in turns within one run, with outputs
checked. To add a measurement, write a `Command` and list it in ``COMMANDS``.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from densenet_backbones.analysis.detector_benchmark import compare_backbones, detector_table
from densenet_backbones.analysis.gpu_benchmark import measure_kernels
from densenet_backbones.analysis.gpu_network import CONTENDERS, measure_network
from densenet_backbones.analysis.inference_benchmark import (
    INFERENCE_NOTE,
    compare_inference,
    inference_table,
    parse_input,
)
from densenet_backbones.analysis.memory import compare_memory_modes, memory_table

__all__ = ["COMMANDS", "Command", "main"]


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


def _step_arguments(parser: argparse.ArgumentParser, batch: int, turns: int) -> None:
    parser.add_argument("--batch", type=int, default=batch, help="images a step (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels (%(default)s)")
    parser.add_argument("--turns", type=int, default=turns, help="counted rounds (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")


def _prepare(arguments: argparse.Namespace, smallest: int) -> torch.device:
    """Checks the options of `_step_arguments`, sets the threads, returns the device."""
    if arguments.batch < 1 or arguments.size < smallest:
        raise ValueError(
            f"--batch must be >= 1 and --size >= {smallest}, not {arguments.batch} and "
            f"{arguments.size}"
        )
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return torch.device(arguments.device)


def _inference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", default="densenet121", help="default: %(default)s")
    parser.add_argument(
        "--inputs",
        nargs="+",
        default=["1x224", "1x512", "4x300"],
        metavar="NxSIZE",
        help="images a batch, and their side in pixels (%(default)s)",
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=int, default=10, help="counted rounds (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile timm's net and the deployed one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times there")


def _inference(arguments: argparse.Namespace) -> str:
    """Feature maps of one net as its libraries make them and as it is deployed, same weights."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    tables, times = [], {}
    for text in arguments.inputs:
        size = parse_input(text)
        rows = compare_inference(
            arguments.net,
            size,
            turns=arguments.turns,
            device=device,
            dtype=getattr(torch, arguments.precision),
            compiled=arguments.compile,
        )
        times[text] = {row.timing.name: row.timing.seconds for row in rows}
        tables.append(
            f"{arguments.net} features, {' x '.join(map(str, size))}, {arguments.precision}, "
            f"{device}, {torch.get_num_threads()} CPU threads, {arguments.turns} turns\n"
            + inference_table(rows)
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(times, indent=1) + "\n")
    return "\n\n".join((*tables, INFERENCE_NOTE))


def _memory_arguments(parser: argparse.ArgumentParser) -> None:
    nets = ["densenet121", "densenet201"]
    parser.add_argument("--nets", nargs="+", default=nets, help="default: densenet121 densenet201")
    _step_arguments(parser, batch=2, turns=5)


def _memory(arguments: argparse.Namespace) -> str:
    """Training steps of each memory mode beside torchvision's, on the same weights."""
    # At 32 pixels the last map is one cell, of which a batch of one has no statistics.
    device = _prepare(arguments, smallest=64)
    tables = []
    for net in arguments.nets:
        rows = compare_memory_modes(net, arguments.batch, arguments.size, arguments.turns, device)
        tables.append(
            f"{net}, training step, {arguments.batch} images of {arguments.size} pixels, {device}, "
            f"{torch.get_num_threads()} CPU threads, {arguments.turns} turns\n{memory_table(rows)}"
        )
    note = "saved: storages autograd keeps between forward and backward pass, parameters excluded"
    return "\n\n".join((*tables, note))


def _detector_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detector", default="retinanet_fpn", help="default: %(default)s")
    nets = ["densenet121_features", "resnet50"]
    parser.add_argument("--backbones", nargs="+", default=nets, help="timm names (%(default)s)")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    _step_arguments(parser, batch=2, turns=5)


def _detector(arguments: argparse.Namespace) -> str:
    """Training steps of one detector on several backbones, from random weights."""
    device = _prepare(arguments, smallest=64)
    rows = compare_backbones(
        arguments.detector,
        arguments.backbones,
        batch=arguments.batch,
        size=arguments.size,
        turns=arguments.turns,
        device=device,
        bf16=arguments.precision == "bf16-mixed",
    )
    return (
        f"{arguments.detector}, training step, {arguments.batch} images of {arguments.size} "
        f"pixels, {arguments.precision}, {device}, {torch.get_num_threads()} CPU threads, "
        f"{arguments.turns} turns\n{detector_table(rows)}\n"
        "GMAC: of one image in evaluation; saved: between forward and backward pass; peak: of "
        "tensors in a step, beyond the parameters"
    )


def _input_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="COCO or VOC layout (default: drawn scenes)")
    parser.add_argument("--split", default="train", help="which part of it (%(default)s)")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="a turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="counted (%(default)s)")
    parser.add_argument("--detector", default="dsod300_smallest", help="trained (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="of it (%(default)s)")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--threads", type=int, metavar="N", help="of the training step's CPU part")
    parser.add_argument("--device", default="cpu", help="of the training step: cpu, cuda, ...")


def _input(arguments: argparse.Namespace) -> str:
    """Images a second of the input pipeline beside the training step that it feeds."""
    try:
        # Only here: the backbone's measurement runs without the training tools.
        from densenet_backbones.analysis.input_benchmark import measure
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this measurement needs {error.name}: install densenet-backbones[train]"
        ) from error
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return measure(
        arguments.data,
        arguments.split,
        images=arguments.images,
        turns=arguments.turns,
        detector=arguments.detector,
        batch=arguments.batch,
        precision=arguments.precision,
        device=torch.device(arguments.device),
    )


def _card_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", default="densenet121", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="images (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"))
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes/s (%(default)s)")
    parser.add_argument("--flops", type=float, default=790e12, help="a second (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows, as numbers")


def _gpu_arguments(parser: argparse.ArgumentParser) -> None:
    _card_arguments(parser)
    parser.add_argument("--every-layer", action="store_true", help="not first and last alone")


def _gpu(arguments: argparse.Namespace) -> str:
    """The Triton kernels of folded dense layers beside PyTorch's convolutions."""
    return measure_kernels(
        arguments.net,
        arguments.batch,
        tuple(arguments.size),
        every_layer=arguments.every_layer,
        bandwidth=arguments.bandwidth,
        flops=arguments.flops,
        file=arguments.json,
    )


def _network_arguments(parser: argparse.ArgumentParser) -> None:
    _card_arguments(parser)
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=["timm", "deployed", "deployed-compiled"],
        help="first: what the others are compared with; timm-compiled takes minutes (%(default)s)",
    )
    parser.add_argument("--turns", type=int, default=10, help="counted rounds (%(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="passes a turn (%(default)s)")


def _network(arguments: argparse.Namespace) -> str:
    """A whole net on a GPU, deployed beside timm's, eager and compiled."""
    return measure_network(
        arguments.net,
        arguments.batch,
        tuple(arguments.size),
        contenders=arguments.contenders,
        turns=arguments.turns,
        repeats=arguments.repeats,
        bandwidth=arguments.bandwidth,
        flops=arguments.flops,
        file=arguments.json,
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        name="inference",
        help="feature maps: torchvision, timm, smp, onnxruntime, ours and deployed, same weights",
        add_arguments=_inference_arguments,
        run=_inference,
    ),
    Command(
        name="memory",
        help="training steps: what each memory mode keeps, beside torchvision's two",
        add_arguments=_memory_arguments,
        run=_memory,
    ),
    Command(
        name="detector",
        help="training steps of one detector on several backbones: size, memory, time",
        add_arguments=_detector_arguments,
        run=_detector,
    ),
    Command(
        name="input",
        help="detection input: decoding and augmentation on one core, beside a training step",
        add_arguments=_input_arguments,
        run=_input,
    ),
    Command(
        name="gpu",
        help="Triton kernels of densenet121's layers: time, bandwidth, floor on paper (CUDA)",
        add_arguments=_gpu_arguments,
        run=_gpu,
    ),
    Command(
        name="gpu-net",
        help="inference of a whole net in bfloat16: deployed beside timm's, and a floor (CUDA)",
        add_arguments=_network_arguments,
        run=_network,
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
