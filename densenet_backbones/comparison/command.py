"""Compare runs: ``python tools/compare.py RUN RUN …``."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.comparison.locating import find_run
from densenet_backbones.messages import CommandParser


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Compare runs: the options in which they differ, their best numbers, "
        "parameters, multiply-adds, time, images a second and peak memory; as tables on the "
        "terminal, Markdown, CSV and a picture."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its model")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("comparison"),
        help="where files go (%(default)s, or a numbered one beside it)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of ``tools/compare.py`` and ``densenet-compare``.

    Raises:
        SystemExit: 2 for wrong usage, 1 for folders that are no runs; with one line on standard
            error.
    """
    options = make_parser().parse_args(argv)
    from densenet_backbones.reporting.console import fail, quiet_libraries

    quiet_libraries()
    try:
        compare(options.runs, options.out)
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 1)


def compare(places: Sequence[str], out: Path) -> Path:
    """Print the comparison of runs and write its files.

    Args:
        places: Folders of runs, or files in them.
        out: Folder for the files; one of another number where it holds files.

    Returns:
        The folder.

    Raises:
        ValueError: A place is no run.
        OSError: The files cannot be written.
    """
    for place in places:
        find_run(place)
    from densenet_backbones.comparison.picture import plot_comparison
    from densenet_backbones.comparison.runs import find_differences, read_run
    from densenet_backbones.comparison.tables import (
        format_csv,
        format_markdown,
        format_plain,
        tabulate_differences,
        tabulate_runs,
    )
    from densenet_backbones.file_writing import check_output, find_unused_folder, save_text
    from densenet_backbones.reporting.console import say

    check_output(out, "--out")
    runs = [read_run(place) for place in places]
    for fault in dict.fromkeys(fault for run in runs for fault in run.faults):
        say(f"warning: {fault}", style="yellow")
    out, differences = find_unused_folder(out), find_differences(runs)
    results, options = tabulate_runs(runs), tabulate_differences(runs, differences)
    width = max(shutil.get_terminal_size().columns, 80)
    say(*format_plain(results, "Runs", width).splitlines())
    if differences:
        say("", *format_plain(options, "Options that differ", width).splitlines())
    elif len(runs) > 1:
        say("", "All options are the same.")
    save_text(out / "comparison.csv", format_csv(runs, differences))
    save_text(
        out / "comparison.md",
        f"{format_markdown(results)}\n{format_markdown(options) if differences else ''}",
    )
    plot_comparison(runs, out / "comparison.png")
    say("", f"Written to {out}/: comparison.csv, comparison.md, comparison.png")
    return out
