"""One voice for errors, and for all that is printed."""

from densenet_backbones.messages.checks import (
    check_choice,
    check_interval,
    check_whole,
    to_plain,
)
from densenet_backbones.messages.command_line import CommandParser, find_foreign, one_sentence
from densenet_backbones.messages.sentences import (
    advise,
    describe_error,
    describe_missing,
    nearest,
    pluralize,
    print_lines,
    quote_word,
    read_version,
    show_controls,
)

__all__ = [
    "CommandParser",
    "advise",
    "check_choice",
    "check_interval",
    "check_whole",
    "describe_error",
    "describe_missing",
    "find_foreign",
    "nearest",
    "one_sentence",
    "pluralize",
    "print_lines",
    "quote_word",
    "read_version",
    "show_controls",
    "to_plain",
]
