"""Inspects, converts and cleans a data set, as the command line asks."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.writers.writing import write_data_set
from densenet_backbones.file_writing import check_output, save_json, save_text
from densenet_backbones.inspection.defects import Defect, list_defects
from densenet_backbones.inspection.fixing import clean_data
from densenet_backbones.inspection.looking import Looks, look_at_images
from densenet_backbones.inspection.measuring import match_priors, measure
from densenet_backbones.inspection.page import make_page
from densenet_backbones.inspection.reading import InspectedData, read_data
from densenet_backbones.inspection.sheets import (
    CLASSES_CROPPED,
    choose_samples,
    draw_crops,
    draw_pair,
    draw_samples,
)
from densenet_backbones.messages import pluralize
from densenet_backbones.reporting.console import say

PAIRS_SHOWN = 8
CLASSES_PRINTED = 15
CHANGES_PRINTED = 12


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        DataError: The data cannot be read or written.
    """
    data = read_data(options)
    say(*data.found.lines)
    for split, reason in data.refused.items():
        say(f"{split}: cannot be read: {reason}", style="red")
    if options.to or options.fix:
        convert(data, options)
    else:
        inspect(data, options)


def convert(data: InspectedData, options: argparse.Namespace) -> None:
    """Write the data in another layout, or a clean copy of it.

    Raises:
        DataError: A split cannot be read, so that it would be missing.
    """
    if data.refused:
        split, reason = next(iter(data.refused.items()))
        raise DataError(f"{split} would be missing in what is written: {reason}")
    layout = options.to or ("voc" if data.has_masks_of_classes else "coco")
    if not options.fix:
        for part in data.parts.values():
            if part.problems:
                shown = (f"  {problem}" for problem in part.problems[:CHANGES_PRINTED])
                say(f"{pluralize(len(part.problems), 'fault')} in {part.name}:", *shown)
        say(*write_data_set(data.parts, options.out, layout))
        return
    clean = clean_data(data.parts)
    say(f"{len(clean.changes)} changes" + ":" * bool(clean.changes))
    say(*(f"  {line}" for line in clean.changes[:CHANGES_PRINTED]))
    if len(clean.changes) > CHANGES_PRINTED:
        say(f"  and {len(clean.changes) - CHANGES_PRINTED} more, in changes.txt")
    lines = write_data_set(
        clean.parts, options.fix, layout, upright=clean.upright, changes=clean.changes
    )
    say(*lines)


def inspect(data: InspectedData, options: argparse.Namespace) -> None:
    """Write the report and print its numbers."""
    name = re.sub(r"[^\w.-]+", "-", data.found.root.resolve().name) or "data"
    folder = options.report or Path("runs") / f"inspect-{name}"
    check_output(folder, "--report")
    looks = look_at_images(data.parts, options.images)
    report = measure(data.parts)
    defects = list_defects(data, looks)
    report = {
        "name": data.found.root.resolve().name,
        "path": str(options.data),
        "layout": data.found.layout,
        "lines": [*data.found.lines, describe_looks(looks)],
        **report,
        "priors": match_priors(data.parts, options.detector),
        "defects": [defect.to_dict() for defect in defects],
        "copies": [[show_place(data, place) for place in same] for same in looks.copies],
        "alike": [[show_place(data, place) for place in pair] for pair in looks.alike],
    }
    save_json(folder / "report.json", report)
    save_text(folder / "report.html", draw_page(data, looks, report))
    say(tabulate(report), *describe_defects(defects))
    if report["priors"]:
        p = report["priors"]
        boxes = pluralize(p["of"], "box")
        say(
            f"No prior of {p['detector']} matches {p['missed']} of {boxes}."
            if p["missed"]
            else f"Priors of {p['detector']} match all of {boxes}."
        )
    say(describe_looks(looks), f"Report: {folder / 'report.html'} (numbers: report.json)")


def describe_looks(looks: Looks) -> str:
    """Say how many images were decoded."""
    decoded = len(looks.images)
    if decoded == looks.total:
        return f"All {decoded} images were decoded." if decoded > 1 else "The image was decoded."
    return (
        f"{decoded} of {pluralize(looks.total, 'image')} were decoded, spread evenly (--images N "
        "decodes more); all files were compared."
    )


def show_place(data: InspectedData, place: tuple[str, int]) -> list[str]:
    """Return the split and the file of an image."""
    split, position = place
    return [split, str(data.parts[split].records[position].path)]


def draw_page(data: InspectedData, looks: Looks, report: dict[str, Any]) -> str:
    """Draw the pictures and make the page."""
    samples = {
        split: sheet
        for split, part in data.parts.items()
        if (sheet := draw_samples(part, choose_samples(part))) is not None
    }
    crops = {}
    first = next(iter(data.parts.values()))
    if isinstance(first, DetectionSet):
        for label, name in enumerate(first.categories.names[:CLASSES_CROPPED], start=1):
            if (row := draw_crops(first, label)) is not None:
                crops[name] = row
    # Pairs that lie in two splits first: they make scores too good.
    couples = [(same[0], same[1]) for same in looks.copies] + looks.alike
    couples.sort(key=lambda pair: pair[0][0] == pair[1][0])
    pairs = [draw_pair(data.parts, *pair) for pair in couples[:PAIRS_SHOWN]]
    return make_page(report, samples, crops, [pair for pair in pairs if pair is not None])


def tabulate(report: dict[str, Any]) -> Table:
    """Return a table of the classes, or of the first of them."""
    table = Table(box=box.SIMPLE_HEAD, title_justify="left")
    unit = "objects" if "boxes" in report else "share"
    table.add_column("objects" if unit == "objects" else "pixels")
    for split in report["images"]:
        table.add_column(split, justify="right")
        table.add_column("images", justify="right", style="dim")
    for row in report["classes"][:CLASSES_PRINTED]:
        cells = []
        for split in report["images"]:
            numbers = row.get(split, {})
            value = numbers.get(unit, 0)
            cells += [f"{value:.2%}" if unit == "share" else str(value)]
            cells += [str(numbers.get("images", 0))]
        table.add_row(row["name"], *cells)
    more = len(report["classes"]) - CLASSES_PRINTED
    if more > 0:
        table.add_row(f"{more} more", *[""] * (2 * len(report["images"])))
    return table


def describe_defects(defects: Sequence[Defect]) -> list[str]:
    """Return a line for each kind of fault."""
    if not defects:
        return ["No faults were found."]
    return [f"{d.count:>7} {d.kind} ({d.examples[0]})" for d in defects]
