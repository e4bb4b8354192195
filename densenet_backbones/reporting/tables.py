"""Format evaluations as tables of plain text, for the terminal and for files."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.table import Table

from densenet_backbones.messages import pluralize
from densenet_backbones.metrics.coco_summary import CocoEvaluation
from densenet_backbones.metrics.voc import VocEvaluation
from densenet_backbones.reporting.console import PlainConsole


def format_table(evaluation: CocoEvaluation, classes: bool = True, width: int = 100) -> str:
    """Format the summary, and one row a class, as text.

    Args:
        evaluation: Result of `evaluate_coco`.
        classes: List the classes.
        width: Columns of the terminal or file.

    Returns:
        Lines of plain text; "-" stands for a number that is not defined.
    """
    title = f"COCO {evaluation.iou_type}, {pluralize(evaluation.images, 'image')}"
    summary = make_numbers_table(title, evaluation.numbers)
    tables = [summary]
    if classes:
        by_class = Table("class", box=box.SIMPLE_HEAD)
        for name in ("objects", "AP", "AP50", "AP75", "AR"):
            by_class.add_column(name, justify="right", no_wrap=True)
        for c in evaluation.classes:
            values = map(format_number, (c.ap, c.ap50, c.ap75, c.ar))
            by_class.add_row(c.name, str(c.objects), *values)
        tables.append(by_class)
    return render(tables, width)


def make_numbers_table(title: str, numbers: Mapping[str, float]) -> Table:
    """Make a table with one row of named numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*map(format_number, numbers.values()))
    return table


def render(tables: Sequence[Table], width: int = 100) -> str:
    """Render rich tables as plain text, without trailing blanks."""
    text = io.StringIO()
    console = PlainConsole(file=text, width=width, color_system=None)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n") + "\n"


def format_number(value: float) -> str:
    """Format a number with three digits after the point; "-" if it is not defined."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def format_voc_table(evaluation: VocEvaluation, width: int = 100) -> str:
    """Format VOC's average precisions, a row a class and their mean, as text.

    Args:
        evaluation: Result of `evaluate_voc`.
        width: Columns of the terminal or file.

    Returns:
        Lines of plain text; "-" stands for a number that is not defined.
    """
    table = Table(
        title=f"VOC AP at IoU {evaluation.iou_threshold:g}, "
        f"{pluralize(evaluation.images, 'image')}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("class")
    for name in ("objects", "AP", "11-point AP"):
        table.add_column(name, justify="right", no_wrap=True)
    for c in evaluation.classes:
        table.add_row(c.name, str(c.objects), format_number(c.ap), format_number(c.ap11))
    table.add_section()
    objects = str(sum(c.objects for c in evaluation.classes))
    table.add_row(
        "mean", objects, format_number(evaluation.mean_ap), format_number(evaluation.mean_ap11)
    )
    return render([table], width)
