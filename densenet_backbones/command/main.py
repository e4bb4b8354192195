"""Entry of the console script ``densenet`` and of ``python -m densenet_backbones``.

Help and errors about a command's name need nothing but the table, so they come at once.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from densenet_backbones.command.table import COMMANDS, FOREIGN, PROGRAM
from densenet_backbones.messages import CommandParser, nearest, read_version

__all__ = ["import_entry", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command by its name; the words after it are its own.

    Args:
        argv: Words of the command line; those of the process when None.

    Returns:
        Exit status.

    Raises:
        SystemExit: The command's own; 2 for a command that does not exist.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    if not words or words[0].startswith("-"):
        parser.parse_args(words or ["--help"])
        parser.error("give a command before its options")
    name, *rest = words
    if name not in COMMANDS:
        parser.fail(
            f"there is no command {name!r}{nearest(FOREIGN.get(name, name), COMMANDS)} (commands: "
            f"{', '.join(COMMANDS)})"
        )
    # sys.argv stays: Lightning starts the processes of other devices with it.
    CommandParser.program = f"{PROGRAM} {name}"
    try:
        status = import_entry(COMMANDS[name].entry)(rest)
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("densenet_backbones"):
            raise
        parser.fail(
            f"{PROGRAM} {name} needs {error.name}, which is not installed; "
            'pip install "densenet-backbones[train]"'
        )
    return status if isinstance(status, int) else 0


def import_entry(entry: str) -> Callable[..., Any]:
    """Return the function that a command's ``module:function`` names."""
    module, _, function = entry.partition(":")
    found: Callable[..., Any] = getattr(
        importlib.import_module(f"densenet_backbones.{module}"), function
    )
    return found


def make_parser() -> CommandParser:
    """Return the parser of the options that stand before a command."""
    width = max(map(len, COMMANDS)) + 2
    lines = (f"  {name:{width}}{command.help}" for name, command in COMMANDS.items())
    parser = CommandParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Train, evaluate and use detectors and segmenters on DenseNet backbones.",
        epilog="\n".join(("commands:", *lines, "", f"{PROGRAM} COMMAND --help says more.")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=read_version())
    return parser
