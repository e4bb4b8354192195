"""Subcommands of ``tools/benchmark.py``: their options, and what they measure.

To add a measurement, write a `Subcommand` and list it in ``SUBCOMMANDS``. What measures is imported
where it runs: ``--help`` and typos are answered at once.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from densenet_backbones.benchmark.deployed import DEPLOYED_MODELS
from densenet_backbones.benchmark.gpu_costs import Card
from densenet_backbones.benchmark.options import (
    MODES,
    PRECISIONS,
    add_batch,
    add_card,
    add_turns,
    choose_by_device,
    parse_positive,
    settle_batch,
)
from densenet_backbones.benchmark.report import Table

__all__ = ["SUBCOMMANDS", "TIMM_NETS", "Subcommand"]

TIMM_NETS = (
    "densenet121",
    "densenet169",
    "densenet201",
    "densenet161",
    "densenet264d",
    "densenetblur121d",
)
"""DenseNets of ours that timm has."""


@dataclass(frozen=True)
class Subcommand:
    """Subcommand that measures something.

    Attributes:
        name: Its word on the command line.
        help: One line for ``--help``.
        add_arguments: Declares its own options.
        run: Measures; each table is yielded when it is there. Finds ``device``, a `torch.device`,
            among the options.
        quick: Options of a trial run of seconds.
        devices: Where ``all`` measures it, if they are there; the first is the default.
        charts: True if its tables can be drawn.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Iterator[Table]]
    quick: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    charts: bool = False


# -- inference -----------------------------------------------------------------------------------


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


# -- whole models --------------------------------------------------------------------------------


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


# -- training steps ------------------------------------------------------------------------------


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


# -- the rest ------------------------------------------------------------------------------------


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


SUBCOMMANDS: tuple[Subcommand, ...] = (
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
        name="detector",
        help="training steps of one detector on several backbones: size, memory, time",
        add_arguments=_add_detector_arguments,
        run=_run_detector,
        quick=(
            *("--backbones", "dsod_smallest_features", "resnet18"),
            *("--size", "64", "--batch", "2", "--turns", "1"),
        ),
    ),
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
