"""Report on a detector's errors: table, bars and CSV file of their kinds, the worst images.

Colors of the kinds are Okabe and Ito's (https://jfly.uni-koeln.de/color), which people of any color
vision can tell apart.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.file_writing import save_csv
from densenet_backbones.metrics.error_kinds import (
    IGNORED,
    KINDS,
    RIGHT,
    ErrorAnalysis,
    ImageErrors,
)
from densenet_backbones.reporting.colors import RGB
from densenet_backbones.reporting.legends import append_legend
from densenet_backbones.reporting.pictures import (
    LARGEST_CELL,
    SMALLEST_CELL,
    draw_detections,
    make_sheet,
    save_picture,
    scale_image,
)
from densenet_backbones.reporting.plots import plot_bars
from densenet_backbones.reporting.tables import format_number, render

WORST_IMAGES = 12

_MISSED = len(KINDS) - 1
_COLORS: dict[int, RGB] = {
    RIGHT: (0, 158, 115),
    IGNORED: (150, 150, 150),
    **dict(
        enumerate(
            (
                (204, 121, 167),
                (0, 114, 178),
                (86, 180, 233),
                (230, 159, 0),
                (213, 94, 0),
                (240, 228, 66),
            )
        )
    ),
}
_ANNOTATED: RGB = (232, 232, 232)
KIND_LEGEND: tuple[tuple[str, RGB], ...] = (
    ("annotated", _ANNOTATED),
    ("right", _COLORS[RIGHT]),
    *((name, _COLORS[number]) for number, name in enumerate(KINDS)),
)
"""Colors of pictures of errors."""


def format_errors_table(
    analysis: ErrorAnalysis, score: float, width: int = 100, *, of_masks: bool = False
) -> str:
    """Return the kinds of errors, their numbers and what they cost, as text.

    Args:
        analysis: The errors.
        score: Errors of detections from this score on are counted besides.
        width: Columns of the terminal or file.
        of_masks: True if masks were compared, which the title says.
    """
    what = "errors of masks" if of_masks else "errors"
    table = Table(
        title=f"Kinds of {what} at IoU 0.5, and the AP50 that each costs (TIDE)",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("kind")
    for name in ("AP lost", "errors", f"from score {score:.2f} on"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = _count_shown(analysis, score)
    for kind in analysis.kinds:
        cells = format_number(kind.lost_ap), str(kind.count), str(shown[kind.name])
        table.add_row(kind.name, *cells, end_section=kind.name == KINDS[-1])
    for name, lost in (
        ("all wrong detections", analysis.wrong_ap),
        ("all objects not detected", analysis.missed_ap),
    ):
        table.add_row(name, format_number(lost), "", "")
    return render([table], width) + (
        f"From score {score:.2f} on every object without a right detection is missed.\n"
    )


def _count_shown(analysis: ErrorAnalysis, score: float) -> dict[str, int]:
    """Return the errors of each kind that one sees from a score on; objects for "missed"."""
    shown = np.zeros(len(KINDS), np.int64)
    for image in analysis.images:
        kinds = image.kinds[(image.scores >= score) & (image.kinds >= 0)]
        shown += np.bincount(kinds, minlength=len(KINDS))
        shown[_MISSED] += image.count(score)[2]
    return dict(zip(KINDS, shown.tolist(), strict=True))


def write_errors(analysis: ErrorAnalysis, part: DetectionSet, folder: Path, score: float) -> None:
    """Write a table of the images, a picture of the kinds and one of the worst images.

    Args:
        analysis: The errors.
        part: The images that were evaluated.
        folder: Gets ``images.csv``, ``error_kinds.png`` and, if there are errors and images can be
            read, ``worst_images.png``.
        score: Detections below it are left out.
    """
    records = {record.image_id: record for record in part.records}
    head = ["image_id", "file", "objects", "right", "wrong", "missed", "F1", "score_thresh"]
    rows: list[list[object]] = [[*head]]
    for image in analysis.images:
        counts = image.count(score)
        objects, file = int(image.counted.sum()), str(records[image.image_id].path)
        f1 = round(image.measure_f1(score), 6)
        rows.append([image.image_id, file, objects, *counts, f1, round(score, 6)])
    save_csv(folder / "images.csv", rows)
    plot_kinds(analysis, folder / "error_kinds.png")
    worst = find_worst(analysis, score)
    if worst:
        pairs = [(image, records[image.image_id]) for image in worst]
        sheet = draw_errors(pairs, score, part.categories.names)
        if sheet is not None:
            save_picture(folder / "worst_images.png", sheet)


def plot_kinds(analysis: ErrorAnalysis, file: Path) -> None:
    """Draw what each kind of error costs."""
    colors = [_COLORS[number] for number in range(len(KINDS))]
    lost = [kind.lost_ap for kind in analysis.kinds]
    plot_bars(KINDS, lost, colors, "AP50 lost by each kind of error", file)


def find_worst(analysis: ErrorAnalysis, score: float) -> list[ImageErrors]:
    """Return the images with most wrong detections and missed objects, the worst first."""
    errors = [sum(image.count(score)[1:]) for image in analysis.images]
    order = np.argsort(-np.array(errors, int), kind="stable")[:WORST_IMAGES]
    return [analysis.images[i] for i in order.tolist() if errors[i]]


def draw_errors(
    images: Sequence[tuple[ImageErrors, ImageRecord]], score: float, names: Sequence[str]
) -> np.ndarray | None:
    """Draw pairs of pictures: the annotated objects, and the detections in their kinds' colors.

    Returns None if no image can be read.

    Args:
        images: Errors and record of each image.
        score: Detections below it are not drawn, and their objects are missed.
        names: Class names in label order.

    Returns:
        (H, W, 3) uint8, with a legend below; images that cannot be read are left out.
    """
    drawn, titles = [], []
    for errors, record in images:
        try:
            image = read_image(record.path)
        except DataError:  # detections made elsewhere are evaluated without images, too
            continue
        drawn += [draw_truth(image, errors, names), draw_kinds(image, errors, score, names)]
        right, wrong, missed = errors.count(score)
        titles += [record.path.name, f"{right} right, {wrong} wrong, {missed} missed"]
    if not drawn:
        return None
    sheet = make_sheet(drawn, 4 if len(images) > 2 else 2, titles)
    return append_legend(sheet, KIND_LEGEND)


def draw_truth(image: np.ndarray, errors: ImageErrors, names: Sequence[str]) -> np.ndarray:
    """Draw the objects of an image that count, at a size for a sheet."""
    canvas, factor = _fit_cell(image)
    boxes = errors.true_boxes[errors.counted] * factor
    labels = errors.true_labels[errors.counted]
    # One color for all: classes have the colors of kinds.
    return draw_detections(canvas, boxes, labels, names, colors=[_ANNOTATED] * len(labels))


def _fit_cell(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return an image at the size it has in a sheet, where lines and letters are sharp."""
    longer = max(image.shape[:2])
    factor = min(max(longer, SMALLEST_CELL), LARGEST_CELL) / longer
    return scale_image(image, factor), factor


def draw_kinds(
    image: np.ndarray, errors: ImageErrors, score: float, names: Sequence[str]
) -> np.ndarray:
    """Draw the detections and the missed objects of an image, each in the color of its kind.

    Args:
        image: (H, W, 3) uint8 RGB.
        errors: Its detections.
        score: Detections below it are not drawn, and their objects are missed.
        names: Class names in label order.
    """
    canvas, factor = _fit_cell(image)
    shown = errors.scores >= score
    lost = errors.counted & (errors.taken < score)
    boxes = np.concatenate([errors.true_boxes[lost], errors.boxes[shown]]) * factor
    kinds = [_MISSED] * int(lost.sum()) + errors.kinds[shown].tolist()
    labels = [*errors.true_labels[lost].tolist(), *errors.labels[shown].tolist()]
    # Detections are drawn over the objects that they miss.
    scores = np.concatenate([np.zeros(int(lost.sum())), errors.scores[shown]])
    texts = [
        names[label - 1] if kind == _MISSED else f"{names[label - 1]} {value:.2f}"
        for kind, label, value in zip(kinds, labels, scores.tolist(), strict=True)
    ]
    order = np.argsort(-scores, kind="stable")
    return draw_detections(
        canvas,
        boxes[order],
        np.arange(1, len(order) + 1),
        [texts[i] for i in order.tolist()],
        colors=[_COLORS[kinds[i]] for i in order.tolist()],
    )
