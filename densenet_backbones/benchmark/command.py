"""Command line of the side-by-side measurements: ``tools/benchmark.py all``, or one by name.

A claim about speed is a ratio of two things measured in turns within one run, with outputs
checked, under a head that says the machine's kind.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from densenet_backbones.benchmark.charts import check_chart, draw
from densenet_backbones.benchmark.report import Report, Unavailable
from densenet_backbones.benchmark.subcommands import SUBCOMMANDS, Subcommand
from densenet_backbones.benchmark.subcommands.options import parse_positive
from densenet_backbones.file_writing import check_output
from densenet_backbones.messages import CommandParser, print_lines

if TYPE_CHECKING:
    import torch

__all__ = ["main", "make_parser"]

_PROGRAM = "densenet-benchmark"
_ALL = "all"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement, or ``all``; return the exit status.

    Args:
        argv: Words of the command line; those of the process when None.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        for option, file in (("--json", arguments.json), ("--plot", arguments.plot)):
            if file is not None and not file.absolute().parent.is_dir():
                folder = file.absolute().parent
                raise ValueError(f"there is no folder {folder} for {file.name}; make it first")
            if file is not None:
                check_output(file.absolute().parent, option)
        if arguments.plot is not None:
            check_chart(arguments.plot)
        if arguments.threads is not None:
            import torch

            torch.set_num_threads(arguments.threads)
        report = Report([_PROGRAM, *argv], arguments.quick, arguments.json)
        if arguments.command == _ALL:
            _measure_all(parser, arguments, report)
        else:
            command = next(c for c in SUBCOMMANDS if c.name == arguments.command)
            _measure(parser, command, argv[1:], command.devices[0], report)
        if arguments.plot is not None:
            _draw(report, arguments.plot)
    except (ValueError, OSError) as error:
        parser.fail(error)
    return 1 if report.failed else 0


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    one = subparsers.add_parser(_ALL, help="every measurement below with its defaults, in turn")
    _add_common_arguments(one, charts=True)
    for command in SUBCOMMANDS:
        sub = subparsers.add_parser(command.name, help=command.help)
        command.add_arguments(sub)
        sub.add_argument("--device", help=f"cpu, cuda, ... ({command.devices[0]})")
        _add_common_arguments(sub, command.charts)
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser, charts: bool) -> None:
    parser.add_argument("--threads", type=parse_positive, help="CPU threads (default: torch's)")
    parser.add_argument("--quick", action="store_true", help="a trial run: tiny, one turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single time there")
    parser.set_defaults(plot=None)
    if charts:
        parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a .png or .svg")


def _measure(
    parser: argparse.ArgumentParser,
    command: Subcommand,
    options: Sequence[str],
    device: str,
    report: Report,
) -> None:
    quick = command.quick if report.quick else ()
    arguments = parser.parse_args([command.name, *quick, *options])
    arguments.device = _read_device(arguments.device or device)
    try:
        for table in command.run(arguments):
            report.add(command.name, table)
    except ModuleNotFoundError as error:  # some measure what the core dependencies do not run
        raise Unavailable(
            f"this measurement needs {error.name}: install densenet-backbones[train]"
        ) from error


def _read_device(name: str) -> "torch.device":
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be like cpu or cuda:0, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Unavailable("this needs a CUDA device, and PyTorch finds none")
    return device


def _measure_all(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, report: Report
) -> None:
    import torch

    for device in ("cpu", "cuda"):
        commands = [command for command in SUBCOMMANDS if device in command.devices]
        if device == "cuda" and not torch.cuda.is_available():
            names = ", ".join(command.name for command in commands)
            report.miss(f"{names} on a GPU", "PyTorch finds no CUDA device")
            continue
        for command in commands:
            name = f"{command.name} on {device}"
            try:
                _measure(parser, command, (), device, report)
            except Unavailable as error:
                report.miss(name, str(error))
            except Exception as error:  # what was measured and what is to come are not lost
                report.fail(name, error)


def _draw(report: Report, file: Path) -> None:
    tables = [table for _, table in report.tables]
    facts = (f"{fact}: {report.machine[fact]}" for fact in ("CPU", "GPU", "packages"))
    draw(tables, "; ".join(facts), file)
    print_lines(f"drawn: {file}")


if __name__ == "__main__":
    raise SystemExit(main())
