"""Report on a model: ``python tools/report.py MODEL_OR_CONFIG_OR_CHECKPOINT``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densenet_backbones.anatomy.naming import refuse_missing
from densenet_backbones.messages import CommandParser

MOST_PIXELS = 4096


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Report on a model: channels, strides, taps, receptive fields (theoretical and "
        "effective), parameters, multiply-adds and the memory of every mode; for a detector and "
        "--data how its priors or anchors fit the boxes, and better ones to paste into a config."
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="registered name, config, model.safetensors, checkpoint, or folder of a run",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="all registered backbones, detectors and segmenters with their costs, in its place",
    )
    parser.add_argument("--weights", metavar="FILE", help="weights for a name")
    parser.add_argument(
        "--size", nargs="+", type=int, metavar="N", help="pixels of the image, one side or H W"
    )
    parser.add_argument(
        "--batch", type=int, default=2, metavar="N", help="images of a training step (%(default)s)"
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=8.0,
        metavar="GIB",
        help="memory for the largest batch (%(default)s)",
    )
    parser.add_argument("--data", metavar="PATH", help="data set with boxes, for a detector")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where files go (report-NAME, or a numbered one beside it)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of ``tools/report.py`` and ``densenet-report``.

    Raises:
        SystemExit: 2 for wrong usage, 1 for what is no model or no data; with one line on standard
            error.
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    if (options.model is None) != options.list:
        parser.error("give a MODEL, or --list in its place")
    if options.batch < 1 or not options.memory > 0:
        parser.error("--batch must be at least 1, and --memory above 0")
    size = options.size or ()
    if len(size) > 2 or any(not 1 <= side <= MOST_PIXELS for side in size):
        parser.error(f"--size must be one or two numbers from 1 to {MOST_PIXELS}")
    # Help and wrong words need no more than what is above.
    from densenet_backbones.reporting.console import fail, quiet_libraries

    quiet_libraries()
    try:
        refuse_missing(options.model, options.weights)
        if options.list:
            from densenet_backbones.anatomy.registered import print_costs

            print_costs()
        else:
            sides = (size[0], size[-1]) if size else None
            budget = options.memory * 2**30
            place = {"data": options.data, "out": options.out}
            write_report(options.model, options.weights, sides, options.batch, budget, **place)
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 1)


def write_report(
    source: str,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 2,
    budget: float | None = None,
    data: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a model, print its report and write its files.

    Args:
        source: As of `open_model`.
        weights: As of `open_model`.
        size: (H, W) of the images in pixels; the model's own when left out.
        batch: Images of a training step.
        budget: Bytes for the largest batch.
        data: Data set with boxes, for a detector.
        out: Folder for ``report.json`` and ``report.png``; another number where it holds files.

    Returns:
        The numbers of the JSON file.

    Raises:
        ValueError: The source names no model, or the data does not go with it.
        OSError: The files cannot be written.
    """
    from densenet_backbones.anatomy.boxes_of_data import measure_boxes
    from densenet_backbones.anatomy.heatmap import name_folder
    from densenet_backbones.anatomy.measuring import measure_model
    from densenet_backbones.anatomy.opening import open_model
    from densenet_backbones.anatomy.report_picture import plot_report
    from densenet_backbones.anatomy.report_text import list_tables
    from densenet_backbones.file_writing import check_output, find_unused_folder, save_json
    from densenet_backbones.reporting.console import say

    out = out or Path(name_folder("report", source))
    check_output(out, "--out")
    opened = open_model(source, weights)
    boxes = measure_boxes(opened, data) if data is not None else None
    if boxes is not None and opened.spec is None and weights is None:
        opened = open_model(source, classes=len(boxes["classes"]) + 1)  # as training builds it
    report = measure_model(opened, size or opened.input_size, batch, budget)
    report |= {} if boxes is None else {"boxes": boxes}
    out = find_unused_folder(out)
    save_json(out / "report.json", report, indent=2)
    plot_report(report, out / "report.png")
    say(*list_tables(report), "", f"Written to {out}/: report.json, report.png")
    return report
