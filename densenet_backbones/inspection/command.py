"""Command line of ``python tools/inspect_data.py PATH``, which imports nothing heavy itself."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.data.faults import check_is_there
from densenet_backbones.messages import CommandParser

LAYOUTS = ("coco", "voc", "yolo")
"""Layouts that data can be written in."""
IMAGES_DECODED = 2000


def make_parser() -> CommandParser:
    """Make the parser of the inspection's options."""
    parser = CommandParser(
        description="Look at a data set: counts and sizes, faults, duplicates, what no prior of a "
        "detector matches, and sheets of pictures, on one HTML page. With --to or --fix write it "
        "in another layout, or without its faults; the data itself is never changed."
    )
    parser.add_argument(
        "data", metavar="PATH", help="folder, annotation file, data.yaml or zip archive"
    )
    parser.add_argument("--layout", default="auto", metavar="NAME", help="%(default)s looks")
    parser.add_argument("--annotation-file", metavar="FILE", help="COCO's JSON, where several fit")
    parser.add_argument("--image-folder", metavar="DIR", help="COCO's images, if named otherwise")
    parser.add_argument(
        "--masks",
        action="store_true",
        help="take data that has boxes and masks as masks, one class a pixel",
    )
    classes = parser.add_argument_group("classes")
    classes.add_argument("--classes", metavar="A,B", help="names in the order of their labels")
    classes.add_argument("--rename", metavar="OLD=NEW,…", help="those of one new name are merged")
    classes.add_argument(
        "--drop", metavar="A,B", help="classes to leave out; '*' for all that are not in --classes"
    )
    report = parser.add_argument_group("report")
    report.add_argument(
        "--report", type=Path, metavar="DIR", help="where report.html goes (runs/inspect-NAME)"
    )
    report.add_argument(
        "--images",
        type=int,
        default=IMAGES_DECODED,
        metavar="N",
        help="most images that are decoded, spread evenly (%(default)s)",
    )
    report.add_argument(
        "--detector",
        default="dsod300",
        metavar="NAME",
        help="detector whose priors are matched with the boxes (%(default)s)",
    )
    writing = parser.add_argument_group("writing")
    writing.add_argument("--to", choices=LAYOUTS, help="write the data in this layout, to --out")
    writing.add_argument("--out", type=Path, metavar="DIR", help="new folder for --to")
    writing.add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write a clean copy: faulty boxes clipped or left out, images upright and readable, "
        "duplicates once; in the layout of --to (coco; voc for masks)",
    )
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.images < 1:
        parser.error(f"--images must be at least 1, got {options.images}")
    if options.to and not (options.out or options.fix):
        parser.error("--to needs --out DIR, a new folder")
    if options.out and (options.fix or not options.to):
        parser.error(
            "--out belongs to --to; --fix OUT names its own folder, and --report DIR the report's"
        )
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of ``tools/inspect_data.py`` and ``densenet-inspect-data``.

    Raises:
        SystemExit: 2 for wrong usage, 1 for wrong data; with one line on standard error.
    """
    options = parse(argv)
    # Help and wrong words need no more than what is above.
    from densenet_backbones.reporting.console import fail, quiet_libraries

    quiet_libraries()
    try:
        check_is_there(options.data)
        from densenet_backbones.inspection.inspecting import run

        run(options)
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 1)
