"""Command line of the quick-start data set.

Run ``python -m densenet_backbones.data.scenes ROOT --train 400 --val 100 --size 160``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.data import scenes
from densenet_backbones.data.faults import DataError
from densenet_backbones.messages import CommandParser, pluralize, print_lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse a command line, the process's own by default, and draw the scenes."""
    parser = CommandParser(
        prog="python -m densenet_backbones.data.scenes", description=scenes.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("root", type=Path, help="folder to write")
    parser.add_argument("--train", type=int, default=400, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[160], metavar="PIXELS", help="side, or H W"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    if len(options.size) > 2:
        parser.error(f"--size takes one or two numbers, got {len(options.size)}")
    # Help and wrong words need no more than what is above.
    from densenet_backbones.data.scenes import generation

    try:
        root = generation.generate_scenes(
            options.root,
            train=options.train,
            val=options.val,
            size=(options.size[0], options.size[-1]),
            seed=options.seed,
            progress=not options.quiet,
        )
    except (DataError, OSError) as error:
        parser.fail(error)
    print_lines(
        f"{root}: {options.train} training and {pluralize(options.val, 'validation image')}"
    )


if __name__ == "__main__":
    main()
