"""Measurements of what is around a network: input, starts, and kernels one by one."""

import argparse
from collections.abc import Iterator

from densenet_backbones.benchmark.gpu_costs import Card
from densenet_backbones.benchmark.report import Table
from densenet_backbones.benchmark.subcommands.form import Subcommand
from densenet_backbones.benchmark.subcommands.options import (
    PRECISIONS,
    add_card,
    add_turns,
)

__all__ = ["OTHERS", "TIMM_NETS"]


TIMM_NETS = (
    "densenet121",
    "densenet169",
    "densenet201",
    "densenet161",
    "densenet264d",
    "densenetblur121d",
)
"""DenseNets of ours that timm has."""


def _add_input_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="COCO or VOC layout (default: drawn scenes)")
    parser.add_argument("--split", default="train", help="which part of it (%(default)s)")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="a turn (%(default)s)")
    add_turns(parser, 5)
    parser.add_argument("--detector", default="dsod300_smallest", help="trained (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="of it (%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true")


def _run_input(arguments: argparse.Namespace) -> Iterator[Table]:
    """Measure images a second of the input pipeline beside the training step that it feeds."""
    from densenet_backbones.benchmark.input_pipeline import measure

    yield measure(
        arguments.data,
        arguments.split,
        images=arguments.images,
        turns=arguments.turns,
        detector=arguments.detector,
        batch=arguments.batch,
        precision=arguments.precision,
        device=arguments.device,
    )


def _add_startup_arguments(parser: argparse.ArgumentParser) -> None:
    nets = TIMM_NETS
    parser.add_argument("--net", choices=nets, default=nets[0], help="compiled (%(default)s)")
    parser.add_argument("--inputs", default="1x224", metavar="NxSIZE", help="of it (%(default)s)")
    add_turns(parser, 5)
    parser.add_argument(
        "--compile-turns", type=int, default=3, metavar="N", help="of minutes; or 0 (%(default)s)"
    )


def _run_startup(arguments: argparse.Namespace) -> Iterator[Table]:
    """Measure imports, answers, a first prediction, and a compiled net's first maps."""
    from densenet_backbones.benchmark.inference import parse_input
    from densenet_backbones.benchmark.startup import (
        compare_answers,
        compare_compilation,
        compare_imports,
        compare_prediction,
    )

    size = parse_input(arguments.inputs)
    yield compare_imports(arguments.turns)
    yield compare_answers(arguments.turns)
    if arguments.compile_turns:
        yield compare_compilation(
            arguments.net, size, turns=arguments.compile_turns, device=arguments.device
        )
    yield compare_prediction(arguments.turns)  # last: it needs the training tools


def _add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", default="densenet121", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="images (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"))
    add_card(parser)
    add_turns(parser, 8)
    parser.add_argument("--every-layer", action="store_true", help="not first and last alone")


def _run_gpu(arguments: argparse.Namespace) -> Iterator[Table]:
    """Decide on the Triton kernels' default, then time them layer by layer beside PyTorch's."""
    from densenet_backbones.benchmark.gpu import measure_kernels
    from densenet_backbones.benchmark.gpu_decision import decide_default

    height, width = arguments.size
    yield decide_default(
        arguments.net,
        arguments.batch,
        (height, width),
        turns=arguments.turns,
        device=arguments.device,
    )
    yield from measure_kernels(
        arguments.net,
        arguments.batch,
        (height, width),
        device=arguments.device,
        card=Card(arguments.bandwidth, arguments.flops),
        every_layer=arguments.every_layer,
    )


OTHERS: tuple[Subcommand, ...] = (
    Subcommand(
        name="input",
        help="detection input: decoding and augmentation on one core, beside a training step",
        add_arguments=_add_input_arguments,
        run=_run_input,
        quick=("--detector", "dsod_tiny", "--batch", "2", "--images", "2", "--turns", "1"),
    ),
    Subcommand(
        name="startup",
        help="imports, help, typos, one prediction, and compiling with empty caches",
        add_arguments=_add_startup_arguments,
        run=_run_startup,
        quick=("--turns", "1", "--compile-turns", "0"),
        devices=("cpu",),
    ),
    Subcommand(
        name="gpu",
        help="Triton kernels: whether they may be on by default, and each layer's time (CUDA)",
        add_arguments=_add_gpu_arguments,
        run=_run_gpu,
        quick=("--batch", "1", "--size", "64", "64", "--turns", "1"),
        devices=("cuda",),
    ),
)
"""The others."""
