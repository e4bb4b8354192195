"""Print what a file of weights holds: ``python -m densenet_backbones.checkpoints FILE``.

Exit status: 0 when the file was read, whatever it holds; 2 when it was not.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.hub_name import is_on_hub
from densenet_backbones.messages import CommandParser, describe_missing, print_lines

__all__ = ["main"]

_EPILOG = """\
Nothing in the file is run: it is read as safetensors or with torch's weights_only=True.

rows of "levels"   for which taps of our feature nets all weights are there
rows of "statistics"
                   whether the norms of a dense block keep the same running mean and variance of
                   the channels they share, as training in one piece leaves them; they differ after
                   partial freezing, after updates that ran twice under activation checkpointing,
                   and in damaged files
exit status        0 when the file was read, 2 when it was not
"""


def _make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m densenet_backbones.checkpoints",
        description="Print what a file of DenseNet weights holds: where the weights are, whose\n"
        "names they have, the architecture, and values that look wrong.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a .safetensors file or one of torch.save")
    parser.add_argument(
        "--prefix",
        help="what stands before the network's names, for a file that holds several (student. "
        "or teacher.)",
    )
    parser.add_argument(
        "--entry",
        help="entry of a training checkpoint to read (state_dict_ema); without it the first of "
        "the usual ones",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status.

    Args:
        arguments: Words of the command line; those of the process when None.
    """
    options = _make_parser().parse_args(arguments)
    try:
        if not is_on_hub(options.file) and not Path(options.file).is_file():
            raise CheckpointError(describe_missing(Path(options.file)))
        # Help and wrong words need no more than what is above.
        from densenet_backbones.checkpoints.inspection import inspect_file

        report = inspect_file(options.file, options.prefix, options.entry)
    except CheckpointError as error:
        print_lines(str(error), file=sys.stderr)
        return 2
    as_json = json.dumps(report.to_dict(), indent=2)
    print_lines(*(as_json.splitlines() if options.json else report.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
