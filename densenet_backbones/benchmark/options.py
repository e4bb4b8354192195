"""Options that several measurements share."""

import argparse
from typing import Any

from densenet_backbones.benchmark.gpu_costs import Card

__all__ = ["add_batch", "add_card", "add_turns", "by_device", "positive", "settle_batch"]


def positive(text: str) -> int:
    """An option that counts something.

    Raises:
        argparse.ArgumentTypeError: It is no whole number, or below 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, not {text!r}")
    return int(text)


def add_turns(parser: argparse.ArgumentParser, default: int) -> None:
    """Declares ``--turns``."""
    parser.add_argument(
        "--turns", type=positive, default=default, help="counted rounds (%(default)s)"
    )


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Declares ``--batch`` of a training step; see `settle_batch`."""
    parser.add_argument("--batch", type=positive, help="images a step (2; on a GPU 16)")


def settle_batch(arguments: argparse.Namespace) -> int:
    """Images of a step, of a size that was checked.

    Raises:
        ValueError: ``--size`` is below 64.
    """
    # At 32 pixels the last map is one cell, of which a batch of one has no statistics.
    if arguments.size is not None and arguments.size < 64:
        raise ValueError(f"--size must be >= 64, not {arguments.size}")
    batch: int = arguments.batch or by_device(arguments, 2, 16)
    return batch


def by_device(arguments: argparse.Namespace, cpu: Any, gpu: Any) -> Any:
    """What is the default where the measurement runs."""
    return gpu if arguments.device.type == "cuda" else cpu


def add_card(parser: argparse.ArgumentParser) -> None:
    """Declares what a `Card` is made of."""
    card = Card()
    parser.add_argument(
        "--bandwidth", type=float, default=card.bandwidth, help="of the GPU, bytes/s (%(default)s)"
    )
    parser.add_argument(
        "--flops", type=float, default=card.flops, help="of the GPU, a second (%(default)s)"
    )
