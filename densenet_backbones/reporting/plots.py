"""Plot curves and matrices to PNG files.

Figures are made without pyplot: that needs no display and leaves no global state behind.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from densenet_backbones.messages import pluralize
from densenet_backbones.metrics.coco_summary import CURVE_IOUS, RECALLS, CocoEvaluation
from densenet_backbones.metrics.confusion import normalize_rows
from densenet_backbones.metrics.undefined import mean_of_defined
from densenet_backbones.metrics.voc import VocClass, VocEvaluation
from densenet_backbones.reporting.colors import RGB, get_class_color
from densenet_backbones.reporting.figures import (
    GRAY,
    escape_name,
    make_figure,
    save_figure,
    to_floats,
)

_LEGEND_LIMIT = 24  # classes; more of them are drawn without names
_SCORES = {"AP", "AP50", "AP75", "APs", "APm", "APl"}
_SCORES |= {f"{what}_{name}" for what in ("mask", "keypoint") for name in ("AP", "AP50", "AP75")}
_SCORES |= {"accuracy", "top5", "mean_recall", "macro_F1", "ECE"}
_SCORES |= {"mIoU", "pixel_accuracy", "class_accuracy", "boundary_F"}


def plot_pr_curves(evaluation: CocoEvaluation, path: str | Path) -> None:
    """Plot precision against recall at IoU .50 and .75: each class, and their mean in black.

    Args:
        evaluation: Result of `evaluate_coco`.
        path: The PNG file.
    """
    figure, axes = make_figure(1, 2, width=11.5, height=4.6)
    named = len(evaluation.classes) <= _LEGEND_LIMIT
    for axis, iou, curves in zip(axes, CURVE_IOUS, evaluation.precision, strict=True):
        for label, (result, curve) in enumerate(
            zip(evaluation.classes, curves, strict=True), start=1
        ):
            if np.isnan(curve).all():
                continue
            axis.plot(
                *(RECALLS, curve),
                color=to_floats(get_class_color(label)),
                linewidth=1.4 if named else 0.7,
                alpha=1.0 if named else 0.25,
                label=f"{escape_name(result.name)}  {np.mean(curve):.3f}" if named else None,
            )
        _plot_mean(axis, RECALLS, curves, f"all classes  {mean_of_defined(curves):.3f}")
        _scale_to_unit(axis, "recall", "precision", f"IoU {iou:.2f}")
        _put_legend_beside(axis, "class  AP")
    save_figure(figure, path)


def plot_confidence_curves(
    evaluation: VocEvaluation, path: str | Path, score: float | None = None
) -> None:
    """Plot precision, recall and F1 of the detections from a score on, against that score.

    The mean over the classes is drawn in black.

    Args:
        evaluation: Result of `evaluate_voc`; classes without objects are left out.
        path: The PNG file.
        score: Score to mark, such as that of `CocoEvaluation.find_best_score`.
    """
    figure, axes = make_figure(1, 3, width=14.5, height=4.4)
    scores = np.linspace(0, 1, 501)
    classes = [(i, c) for i, c in enumerate(evaluation.classes, start=1) if c.objects]
    named = len(classes) <= _LEGEND_LIMIT
    # Precision, recall and F1 of every class on one grid of scores, so that they can be averaged.
    curves = np.full((3, len(classes), len(scores)), np.nan)
    for row, (_, result) in enumerate(classes):
        curves[:, row] = _compute_confidence_curves(result, scores)
    for axis, title, panel in zip(axes, ("precision", "recall", "F1"), curves, strict=True):
        for (label, result), curve in zip(classes, panel, strict=True):
            axis.plot(
                *(scores, curve),
                color=to_floats(get_class_color(label)),
                linewidth=1.2 if named else 0.7,
                alpha=1.0 if named else 0.25,
                label=escape_name(result.name) if named else None,
            )
        # The mean last, above all classes.
        mean = _plot_mean(axis, scores, panel, "all classes")
        _scale_to_unit(axis, "score", title, title)
        if score is not None and mean is not None:
            axis.axvline(score, color=GRAY, linestyle=":", linewidth=1)
            at_score = mean[np.argmin(abs(scores - score))]
            axis.set_title(f"{title}, {at_score:.2f} from score {score:.2f} on", loc="left")
    _put_legend_beside(axes[-1], f"IoU {evaluation.iou_threshold:g}")
    save_figure(figure, path)


def _compute_confidence_curves(result: VocClass, scores: np.ndarray) -> np.ndarray:
    """Return (3, S): precision, recall and F1 of a class's detections from each score on."""
    curves = np.full((3, len(scores)), np.nan)
    # Number of detections whose score is at least s; the class's scores fall.
    number = np.searchsorted(-result.scores, -scores, side="right")
    some = number > 0
    curves[0, some] = result.precision[number[some] - 1]
    curves[1] = np.where(some, np.append(result.recall, 0.0)[number - 1], 0.0)
    precision, recall = np.nan_to_num(curves[0]), curves[1]
    curves[2] = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return curves


def plot_confusion(
    matrix: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    background: str | None = "background",
) -> None:
    """Plot a confusion matrix as counts and as shares of each true class.

    Args:
        matrix: (C + 1, C + 1) as `confusion_matrix` returns it, the background last.
        names: C class names.
        path: The PNG file.
        background: Name of the last row and column; None for a matrix (C, C) without them.

    Raises:
        ValueError: If names and matrix do not fit.
    """
    labels = [*map(escape_name, names), *([background] if background else [])]
    size = len(labels)
    if matrix.shape != (size, size):
        raise ValueError(
            f"the matrix must be {size} x {size} for {pluralize(len(names), 'name')}"
            f"{' and the background' if background else ''}, got "
            f"{' x '.join(map(str, matrix.shape))}"
        )
    written = size <= _LEGEND_LIMIT + 1  # the numbers would not fit into smaller cells
    side = max(3.4, 0.42 * size + 1.2) if written else 0.15 * size + 2
    figure, axes = make_figure(1, 2, width=2 * side + 1.4, height=side + 0.5)
    figure.set_layout_engine("compressed")  # for axes of a fixed shape
    shares = normalize_rows(matrix)
    # A few large counts (the background's) would leave all the rest white: the root spreads them.
    for axis, values, shade, title in (
        (axes[0], matrix, np.sqrt(matrix / max(1, matrix.max())), "count"),
        (axes[1], shares, np.nan_to_num(shares), "share of the true class"),
    ):
        axis.imshow(shade, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        font = 8.5 if written else 6
        axis.set_xticks(range(size), labels, rotation=90 if size > 6 else 30, fontsize=font)
        if size <= 6:
            for text in axis.get_xticklabels():
                text.set_horizontalalignment("right")
                text.set_rotation_mode("anchor")
        axis.set_yticks(range(size), labels, fontsize=font)
        axis.set(xlabel="predicted", ylabel="true")
        axis.set_title(title, loc="left")
        axis.tick_params(which="both", length=0)
        axis.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="white", linewidth=0.8)
        axis.grid(which="major", visible=False)
        if written:
            _write_cells(axis, values, shade)
    save_figure(figure, path)


def plot_bars(
    names: Sequence[str],
    values: Sequence[float],
    colors: Sequence[RGB],
    title: str,
    path: str | Path,
) -> None:
    """Plot numbers as bars with their values, the first one on top.

    Args:
        names: Name of each bar.
        values: Length of each; NaN, for what is not defined, has no bar.
        colors: RGB of each bar.
        title: Line above.
        path: The PNG file.
    """
    figure, (axis,) = make_figure(1, 1, width=6.5, height=0.42 * len(names) + 0.9)
    lengths = np.nan_to_num(np.asarray(values, float))
    bars = axis.barh(range(len(names)), lengths, color=[to_floats(color) for color in colors])
    axis.bar_label(bars, [f"{v:.3f}" if v == v else "-" for v in values], padding=4, fontsize=8.5)
    axis.set_yticks(range(len(names)), [escape_name(name) for name in names])
    axis.set_xlim(0, 1.15 * max(lengths.max(initial=0), 1e-3))
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_title(title, loc="left")
    save_figure(figure, path)


def plot_training_curves(metrics: str | Path, path: str | Path) -> None:
    """Plot losses, the evaluation's scores and learning rate against the epoch.

    Args:
        metrics: ``metrics.csv`` of Lightning's CSVLogger: columns `epoch`, `step`, ``train/...`` or
            names with "loss" for the losses, ``.../AP...`` or segmentation's scores, and names
            that begin with "lr".
        path: The PNG file; a panel without any number says so.

    Raises:
        ValueError: If the file has no `epoch` and `step` columns.
    """
    columns = _read_columns(Path(metrics))
    if not {"epoch", "step"} <= columns.keys():
        raise ValueError(
            f"{metrics}: has no columns 'epoch' and 'step'; give the metrics.csv of a CSVLogger"
        )
    epochs = (columns["step"] + 1) / _find_steps_per_epoch(columns["epoch"], columns["step"])
    segmented = any(name.endswith(("/mIoU", "/accuracy")) for name in columns)
    scores = "scores" if segmented else "average precision"

    # Each column goes to the panel that its name asks for.
    panels: dict[str, dict[str, np.ndarray]] = {"loss": {}, scores: {}, "learning rate": {}}
    for name, values in sorted(columns.items()):
        if np.isnan(values).all():
            continue
        if name.startswith("lr"):
            panels["learning rate"][name] = values
        elif "loss" in name or name.startswith("train/"):
            panels["loss"][name] = values
        elif name.rsplit("/", 1)[-1] in _SCORES:
            panels[scores][name] = values

    figure, axes = make_figure(1, 3, width=14.5, height=4.2)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        axis.set(xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(title, loc="left")
        if not curves:
            axis.text(0.5, 0.5, "nothing logged", transform=axis.transAxes, ha="center", color=GRAY)
            continue
        _plot_logged(axis, epochs, curves, all_bold=title == "learning rate")
        if title == scores:
            axis.set_ylim(bottom=0)
        else:
            _make_logarithmic_if_wide(axis, np.concatenate(list(curves.values())))
        axis.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _plot_logged(
    axis: Axes, epochs: np.ndarray, curves: Mapping[str, np.ndarray], all_bold: bool
) -> None:
    """Plot the logged values of one panel; totals and headline scores are black and bold."""
    for number, (name, values) in enumerate(curves.items(), start=1):
        logged = ~np.isnan(values)
        bold = all_bold or name.rsplit("/", 1)[-1] in ("loss", "AP", "mIoU", "accuracy")
        axis.plot(
            *(epochs[logged], values[logged]),
            color="black" if bold else to_floats(get_class_color(number)),
            linewidth=1.8 if bold else 1.1,
            marker="o" if logged.sum() <= 40 else None,
            markersize=3,
            label=escape_name(name),
        )


def _plot_mean(axis: Axes, x: np.ndarray, curves: np.ndarray, name: str) -> np.ndarray | None:
    """Draw the mean of the (C, points) curves that are defined, and return it."""
    defined = (~np.isnan(curves)).sum(axis=0)
    if not len(curves) or not defined.any():
        return None
    mean: np.ndarray = np.nansum(curves, axis=0) / np.where(defined > 0, defined, np.nan)
    axis.plot(x, mean, color="black", linewidth=2.2, label=name)
    return mean


def _scale_to_unit(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
    axis.set_title(title, loc="left")


def _put_legend_beside(axis: Axes, title: str) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(
            *(handles, labels),
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
            fontsize=8,
            title=title,
            title_fontsize=8,
            alignment="left",
        )


def _write_cells(axis: Axes, values: np.ndarray, shade: np.ndarray) -> None:
    counts = np.issubdtype(values.dtype, np.integer)
    for row, column in np.argwhere(np.nan_to_num(values) > 0):
        value = values[row, column]
        axis.text(
            *(column, row, _shorten_count(int(value)) if counts else f"{value:.2f}"),
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if shade[row, column] > 0.55 else "#20242c",
        )


def _shorten_count(count: int) -> str:
    # Pixels are counted in millions.
    return str(count) if count < 100_000 else f"{count:.1e}".replace("e+0", "e")


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    """Read columns of a CSV file as floats, NaN for a cell that is empty or no number."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows: list[dict[str, str]] = []
        names: Sequence[str] = ()
        with suppress(csv.Error):  # of a damaged file, what stands before
            names = reader.fieldnames or ()
            rows.extend(reader)

    def parse_number(text: str | None) -> float:
        try:
            return float(text or "nan")
        except ValueError:
            return math.nan

    return {name: np.array([parse_number(row[name]) for row in rows], float) for name in names}


def _find_steps_per_epoch(epochs: np.ndarray, steps: np.ndarray) -> float:
    """Return the smallest number of steps an epoch that puts every row's step in its epoch."""
    known = ~np.isnan(epochs) & ~np.isnan(steps)
    if not known.any():
        return 1.0
    # Epoch e holds the steps e n to (e + 1) n - 1; the last row of an epoch makes this exact.
    return float(np.max(np.floor(steps[known] / (epochs[known] + 1)) + 1))


def _make_logarithmic_if_wide(axis: Axes, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() / values.min() > 30:
        axis.set_yscale("log")
