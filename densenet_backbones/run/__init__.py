r"""Run a script with our networks registered: ``python -m densenet_backbones.run train.py``.

For scripts that build models by name with timm or torchvision and never import this package, such
as timm's own ``train.py``, which needs a classifier::

    python -m densenet_backbones.run train.py DATA \
        --model densenet121_features --model-kwargs features_only=False
    torchrun --nproc-per-node 2 -m densenet_backbones.run train.py ...

Processes that the script *spawns* start a fresh Python without this package; import it there.
"""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from densenet_backbones.messages import CommandParser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    r"""Run a script or a module as ``__main__``, with ``sys.argv`` as Python would set it.

    The names are registered as soon as the script imports timm or torchvision: Python imported
    this package to find this module.

    Args:
        arguments: Words of the command line; those of the process when None.

    Raises:
        SystemExit: The script's own; with status 2 if there is no such script.
    """
    options = _make_parser().parse_args(arguments)
    if not options.module and not os.path.exists(options.script):
        _make_parser().error(f"there is no file {options.script!r}")
    sys.argv = [options.script, *options.arguments]
    if options.module:
        runpy.run_module(options.script, run_name="__main__", alter_sys=True)
        return
    if not sys.flags.safe_path:  # with it, Python puts no folder in front
        sys.path[0] = os.path.dirname(os.path.realpath(options.script))
    runpy.run_path(options.script, run_name="__main__")


def _make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m densenet_backbones.run",
        description="Register the networks of densenet_backbones with timm and torchvision, then "
        "run a Python script.",
        usage="%(prog)s [-h] [-m] SCRIPT [ARGUMENT ...]",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT names a module")
    parser.add_argument("script", metavar="SCRIPT", help="file, or module with -m")
    parser.add_argument(
        "arguments",
        metavar="ARGUMENT",
        nargs=argparse.REMAINDER,
        help="the script's own arguments, all that follow it",
    )
    return parser
