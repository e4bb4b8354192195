"""Subcommand of ``tools/benchmark.py``: a name, its options, and a measurement."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from densenet_backbones.benchmark.report import Table

__all__ = ["Subcommand"]


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
