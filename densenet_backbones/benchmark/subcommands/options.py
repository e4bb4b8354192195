"""Options that several subcommands of ``tools/benchmark.py`` share."""

import argparse
from typing import TypeVar

from densenet_backbones.benchmark.gpu_costs import Card

__all__ = [
    "MODES",
    "PRECISIONS",
    "PROFILED_MODELS",
    "add_batch",
    "add_card",
    "add_turns",
    "choose_by_device",
    "parse_positive",
    "settle_batch",
]

_T = TypeVar("_T")

MODES = ("none", "shared", "shared_lean", "bottleneck", "layer", "block")
"""Memory modes, those of `dense_block.MEMORY_MODES`."""

PRECISIONS = ("32-true", "bf16-mixed")
"""Those of training steps."""

PROFILED_MODELS = {
    "dsod_tiny": (8, 160),
    "dsod300_smallest": (4, 300),
    "retinanet_densenet121_fpn": (2, 320),
    "unet": (2, 224),
    "fcdensenet56": (2, 224),
}
"""Models whose training steps are profiled whole -> images of a step, and their side in pixels."""


def parse_positive(text: str) -> int:
    """Read an option that counts something.

    Raises:
        argparse.ArgumentTypeError: If it is no whole number, or below 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def add_turns(parser: argparse.ArgumentParser, default: int) -> None:
    """Declare ``--turns``."""
    parser.add_argument(
        "--turns", type=parse_positive, default=default, help="counted rounds (%(default)s)"
    )


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Declare ``--batch`` of a training step; see `settle_batch`."""
    parser.add_argument("--batch", type=parse_positive, help="images a step (2; on a GPU 16)")


def settle_batch(arguments: argparse.Namespace) -> int:
    """Return the number of images of a step, after a check of their size.

    Raises:
        ValueError: ``--size`` is below 64.
    """
    # At 32 pixels the last map is one cell, of which a batch of one has no statistics.
    if arguments.size is not None and arguments.size < 64:
        raise ValueError(f"--size must be >= 64, got {arguments.size}")
    batch: int = arguments.batch or choose_by_device(arguments, 2, 16)
    return batch


def choose_by_device(arguments: argparse.Namespace, cpu: _T, gpu: _T) -> _T:
    """Return the default of the device on which the measurement runs."""
    return gpu if arguments.device.type == "cuda" else cpu


def add_card(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make a `Card`."""
    card = Card()
    parser.add_argument(
        "--bandwidth", type=float, default=card.bandwidth, help="of the GPU, bytes/s (%(default)s)"
    )
    parser.add_argument(
        "--flops", type=float, default=card.flops, help="of the GPU, a second (%(default)s)"
    )
