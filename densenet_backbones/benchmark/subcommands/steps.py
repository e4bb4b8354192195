"""Measurements of training steps."""

import argparse
from collections.abc import Iterator

from densenet_backbones.benchmark.report import Table
from densenet_backbones.benchmark.subcommands.form import Subcommand
from densenet_backbones.benchmark.subcommands.options import (
    MODES,
    PRECISIONS,
    PROFILED_MODELS,
    add_batch,
    add_turns,
    choose_by_device,
    parse_positive,
    settle_batch,
)

__all__ = ["STEPS"]


def _add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    nets = ["densenet121", "densenet201", "fcdensenet103", "dsod300"]
    parser.add_argument("--nets", nargs="+", default=nets, help=f"default: {' '.join(nets)}")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="default: all")
    parser.add_argument(
        "--budget", type=float, default=8.0, metavar="GiB", help="for the batch (%(default)s)"
    )
    add_batch(parser)
    parser.add_argument("--size", type=int, help="image side in pixels (224; of dsod300 300)")
    parser.add_argument("--precision", choices=PRECISIONS, help="(32-true; on a GPU bf16-mixed)")
    add_turns(parser, 5)


def _run_memory(arguments: argparse.Namespace) -> Iterator[Table]:
    """Measure training steps of each memory mode, beside torchvision's and timm's."""
    from densenet_backbones.benchmark.memory import compare_memory_modes

    batch = settle_batch(arguments)
    if not arguments.budget > 0:
        raise ValueError(f"--budget must be above 0, got {arguments.budget}")
    precision = arguments.precision or choose_by_device(arguments, "32-true", "bf16-mixed")
    for net in arguments.nets:
        yield compare_memory_modes(
            net,
            batch=batch,
            size=arguments.size,
            turns=arguments.turns,
            device=arguments.device,
            bf16=precision == "bf16-mixed",
            budget=arguments.budget,
            modes=arguments.modes,
        )


def _add_step_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", default="densenet121", help="default: %(default)s")
    inputs = ["2x224", "8x224"]
    parser.add_argument(
        "--inputs",
        nargs="+",
        default=inputs,
        metavar="NxSIZE",
        help=f"images a step, and their side, or HxW, in pixels ({' '.join(inputs)})",
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: both"
    )
    modes = MODES[:3]
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=modes, help=f"of ours ({' '.join(modes)})"
    )
    add_turns(parser, 7)


def _run_step(arguments: argparse.Namespace) -> Iterator[Table]:
    """Time training steps by images, precision and memory mode, beside torchvision's and timm's."""
    from densenet_backbones.benchmark.inference import parse_input
    from densenet_backbones.benchmark.memory import compare_steps

    sizes = [parse_input(text) for text in arguments.inputs]
    if min(min(size[2:]) for size in sizes) < 64:
        raise ValueError(f"--inputs must have sides >= 64, got {' '.join(arguments.inputs)}")
    for precision in arguments.precisions:
        for size in sizes:
            yield compare_steps(
                arguments.net,
                size,
                turns=arguments.turns,
                device=arguments.device,
                bf16=precision == "bf16-mixed",
                modes=arguments.modes,
            )


def _add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    models = tuple(PROFILED_MODELS)
    parser.add_argument("--models", nargs="+", choices=models, default=models, help="default: all")
    parser.add_argument("--batch", type=parse_positive, help="images a step (the model's own)")
    parser.add_argument("--size", type=parse_positive, help="image side in pixels (likewise)")
    modes = MODES[:2]
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=modes, help=f"of memory ({' '.join(modes)})"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true")
    add_turns(parser, 5)


def _run_profile(arguments: argparse.Namespace) -> Iterator[Table]:
    """Count where whole models' training steps spend their time, by kind of operation."""
    from densenet_backbones.benchmark.profile import profile_step

    for name in arguments.models:
        batch, size = PROFILED_MODELS[name]
        yield profile_step(
            name,
            arguments.batch or batch,
            arguments.size or size,
            arguments.modes,
            turns=arguments.turns,
            bf16=arguments.precision == "bf16-mixed",
        )


def _add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detector", default="retinanet_fpn", help="default: %(default)s")
    nets = ["densenet121_features", "resnet50"]
    parser.add_argument("--backbones", nargs="+", default=nets, help="timm names (%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true")
    add_batch(parser)
    parser.add_argument("--size", type=int, default=224, help="image side in pixels (%(default)s)")
    add_turns(parser, 5)


def _run_detector(arguments: argparse.Namespace) -> Iterator[Table]:
    """Measure training steps of one detector on several backbones, from random weights."""
    from densenet_backbones.benchmark.detector import compare_backbones

    yield compare_backbones(
        arguments.detector,
        arguments.backbones,
        batch=settle_batch(arguments),
        size=arguments.size,
        turns=arguments.turns,
        device=arguments.device,
        bf16=arguments.precision == "bf16-mixed",
    )


STEPS: tuple[Subcommand, ...] = (
    Subcommand(
        name="memory",
        help="training steps: what each memory mode keeps, beside torchvision's two and timm's",
        add_arguments=_add_memory_arguments,
        run=_run_memory,
        quick=(
            *("--nets", "densenet121", "--modes", "shared_lean"),
            *("--size", "64", "--batch", "2", "--turns", "1"),
        ),
        charts=True,
    ),
    Subcommand(
        name="step",
        help="training steps: time alone, by images, precision and mode, beside the peers'",
        add_arguments=_add_step_arguments,
        run=_run_step,
        quick=(
            *("--inputs", "2x64", "--precisions", "32-true"),
            *("--modes", "shared_lean", "--turns", "1"),
        ),
        charts=True,
    ),
    Subcommand(
        name="profile",
        help="training steps of whole models: where the time goes, by kind of operation",
        add_arguments=_add_profile_arguments,
        run=_run_profile,
        quick=("--models", "dsod_tiny", "--batch", "1", "--turns", "1"),
        devices=("cpu",),
    ),
    Subcommand(
        name="detector",
        help="training steps of one detector on several backbones: size, memory, time",
        add_arguments=_add_detector_arguments,
        run=_run_detector,
        quick=(
            *("--backbones", "dsod_smallest_features", "resnet18"),
            *("--size", "64", "--batch", "2", "--turns", "1"),
        ),
    ),
)
"""Those of training steps."""
