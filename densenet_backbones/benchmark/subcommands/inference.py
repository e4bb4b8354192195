"""Measurements of networks as they run in use."""

import argparse
from collections.abc import Iterator

from densenet_backbones.benchmark.deployed import DEPLOYED_MODELS
from densenet_backbones.benchmark.gpu_costs import Card
from densenet_backbones.benchmark.report import Table
from densenet_backbones.benchmark.subcommands.form import Subcommand
from densenet_backbones.benchmark.subcommands.options import (
    add_card,
    add_turns,
    choose_by_device,
    parse_positive,
)

__all__ = ["INFERENCE"]


def _add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", default="densenet121", help="default: %(default)s")
    parser.add_argument(
        "--inputs",
        nargs="+",
        metavar="NxSIZE",
        help="images a batch, and their side, or HxW, in pixels (1x224 1x512 4x300; on a GPU "
        "1x224 8x224 2x800x1344)",
    )
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="(float32; on a GPU bfloat16)"
    )
    add_turns(parser, 10)
    parser.add_argument("--repeats", type=parse_positive, help="passes a turn (1; on a GPU 20)")
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile timm's net and the deployed one"
    )
    add_card(parser)


def _run_inference(arguments: argparse.Namespace) -> Iterator[Table]:
    """Time feature maps of one net by its libraries and as it is deployed, on equal weights."""
    import torch

    from densenet_backbones.benchmark.inference import compare_inference, parse_input

    cpu, gpu = ("1x224", "1x512", "4x300"), ("1x224", "8x224", "2x800x1344")
    sizes = [
        parse_input(text) for text in arguments.inputs or choose_by_device(arguments, cpu, gpu)
    ]
    precision = arguments.precision or choose_by_device(arguments, "float32", "bfloat16")
    repeats = arguments.repeats or choose_by_device(arguments, 1, 20)
    for size in sizes:
        yield compare_inference(
            arguments.net,
            size,
            turns=arguments.turns,
            repeats=repeats,
            device=arguments.device,
            dtype=getattr(torch, precision),
            compiled=arguments.compile,
            card=Card(arguments.bandwidth, arguments.flops),
        )


def _add_deployed_arguments(parser: argparse.ArgumentParser) -> None:
    models = tuple(DEPLOYED_MODELS)
    parser.add_argument("--models", nargs="+", choices=models, default=models, help="default: all")
    sizes = ", ".join(map(str, DEPLOYED_MODELS.values()))
    parser.add_argument("--size", type=parse_positive, help=f"image side in pixels ({sizes})")
    parser.add_argument(
        "--int8", action="store_true", help="also exported in 8 bits (needs the extra int8)"
    )
    add_turns(parser, 5)


def _run_deployed(arguments: argparse.Namespace) -> Iterator[Table]:
    """Time whole models beside themselves exported."""
    from densenet_backbones.benchmark.deployed.models import compare_deployed

    for name in arguments.models:
        yield compare_deployed(name, arguments.size, arguments.turns, int8=arguments.int8)


INFERENCE: tuple[Subcommand, ...] = (
    Subcommand(
        name="inference",
        help="feature maps: torchvision, timm, smp, onnxruntime, ours and deployed, same weights",
        add_arguments=_add_inference_arguments,
        run=_run_inference,
        # In float32 a net would be exported for onnxruntime, which takes longer than all the rest.
        quick=("--inputs", "1x64", "--precision", "bfloat16", "--turns", "1", "--repeats", "1"),
        charts=True,
    ),
    Subcommand(
        name="deployed",
        help="whole detectors and segmenters, heads and NMS included: onnxruntime, OpenVINO, ours",
        add_arguments=_add_deployed_arguments,
        run=_run_deployed,
        quick=("--models", "fcdensenet56", "--size", "32", "--turns", "1"),
        devices=("cpu",),
    ),
)
"""Those of inference."""
