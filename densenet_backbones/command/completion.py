"""`densenet completion SHELL`: a script by which a shell completes commands, options and files."""

from collections.abc import Sequence

from densenet_backbones.command.main import import_entry
from densenet_backbones.command.table import COMMANDS, PROGRAM
from densenet_backbones.messages import CommandParser, print_lines

__all__ = ["main", "make_parser", "make_whole_parser"]

SHELLS = ("bash", "zsh", "fish", "tcsh")


def main(argv: Sequence[str]) -> None:
    """Print the script for a shell."""
    parser = make_parser()
    shell = parser.parse_args(argv).shell
    try:
        import shtab
    except ImportError:
        parser.fail("completion needs shtab; install it by pip install shtab")
    print_lines(*shtab.complete(make_whole_parser(), shell).splitlines())


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Print what makes a shell complete the words of densenet. For this shell "
        'alone: eval "$(densenet completion bash)"; for good, add that line to ~/.bashrc, or write '
        "the output to a file that your shell reads.",
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def make_whole_parser() -> CommandParser:
    """Return one parser of every command and its options, to complete words with."""
    whole = CommandParser(prog=PROGRAM)
    parsers = whole.add_subparsers()
    for name, command in COMMANDS.items():
        parser = import_entry(f"{command.entry.partition(':')[0]}:make_parser")()
        parsers.add_parser(name, help=command.help, parents=[parser], add_help=False)
    return whole
