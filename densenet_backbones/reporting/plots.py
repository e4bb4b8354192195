"""Curves and matrices as PNG files (matplotlib's Agg canvas: no display, no global state)."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from densenet_backbones.file_writing import save_bytes
from densenet_backbones.metrics.coco_summary import CURVE_IOUS, RECALLS, CocoEvaluation
from densenet_backbones.metrics.confusion import normalize_rows
from densenet_backbones.metrics.undefined import mean_of_defined
from densenet_backbones.metrics.voc import VocEvaluation

_LEGEND_LIMIT = 24  # classes; more of them are drawn without names
_GREY = "#5b6068"
_SCORES = {"AP", "AP50", "AP75", "APs", "APm", "APl"}
_SCORES |= {f"{what}_{name}" for what in ("mask", "keypoint") for name in ("AP", "AP50", "AP75")}
_SCORES |= {"mIoU", "pixel_accuracy", "class_accuracy", "boundary_F"}


def get_class_color(label: int) -> tuple[int, int, int]:
    """The colour of a class in every picture: RGB in 0..255.

    Hues go round by the golden angle, so that neighbouring labels differ most; the OKLCH space
    (B. Ottosson, "A perceptual color space for image processing", 2020) keeps them equally strong.

    Args:
        label: 1 .. K - 1 (any integer will do).
    """
    lightness = (0.72, 0.62, 0.82)[label % 3]
    hue = math.radians(25 + 137.508 * (label - 1))
    a, b = 0.17 * math.cos(hue), 0.17 * math.sin(hue)
    lms = np.array(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_rgb @ lms**3, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(v) for v in np.round(255 * curved))
    return red, green, blue


def plot_pr_curves(evaluation: CocoEvaluation, path: str | Path) -> None:
    """Precision against recall at IoU .50 and .75: each class, and their mean in black.

    Args:
        evaluation: What `evaluate_coco` returned.
        path: The PNG file.
    """
    figure, axes = _figure(1, 2, width=11.5, height=4.6)
    named = len(evaluation.classes) <= _LEGEND_LIMIT
    for axis, iou, curves in zip(axes, CURVE_IOUS, evaluation.precision, strict=True):
        for label, (one, curve) in enumerate(zip(evaluation.classes, curves, strict=True), start=1):
            if np.isnan(curve).all():
                continue
            axis.plot(
                *(RECALLS, curve),
                color=_unit(get_class_color(label)),
                linewidth=1.4 if named else 0.7,
                alpha=1.0 if named else 0.25,
                label=f"{_plain(one.name)}  {np.mean(curve):.3f}" if named else None,
            )
        _mean_curve(axis, RECALLS, curves, f"all classes  {mean_of_defined(curves):.3f}")
        _unit_axes(axis, "recall", "precision", f"IoU {iou:.2f}")
        _legend_beside(axis, "class  AP")
    _save(figure, path)


def plot_confidence_curves(evaluation: VocEvaluation, path: str | Path) -> None:
    """Precision, recall and F1 of the detections from a score on, against that score.

    The mean over the classes is drawn in black, and the score at which its F1 is highest marked:
    a good threshold for use.

    Args:
        evaluation: What `evaluate_voc` returned; classes without objects are left out.
        path: The PNG file.
    """
    figure, axes = _figure(1, 3, width=14.5, height=4.4)
    scores = np.linspace(0, 1, 501)
    classes = [(i, c) for i, c in enumerate(evaluation.classes, start=1) if c.objects]
    named = len(classes) <= _LEGEND_LIMIT
    curves = np.full((3, len(classes), len(scores)), np.nan)
    for row, (_, one) in enumerate(classes):
        # Detections whose score is at least s; the curves' scores fall.
        number = np.searchsorted(-one.scores, -scores, side="right")
        some = number > 0
        curves[0, row, some] = one.precision[number[some] - 1]
        curves[1, row] = np.where(some, np.append(one.recall, 0.0)[number - 1], 0.0)
        precision, recall = np.nan_to_num(curves[0, row]), curves[1, row]
        curves[2, row] = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    for axis, title, panel in zip(axes, ("precision", "recall", "F1"), curves, strict=True):
        for (label, one), curve in zip(classes, panel, strict=True):
            axis.plot(
                *(scores, curve),
                color=_unit(get_class_color(label)),
                linewidth=1.2 if named else 0.7,
                alpha=1.0 if named else 0.25,
                label=_plain(one.name) if named else None,
            )
        mean = _mean_curve(axis, scores, panel, "all classes")
        _unit_axes(axis, "score", title, title)
        if title == "F1" and mean is not None:
            best = int(np.argmax(mean))
            axis.axvline(scores[best], color=_GREY, linestyle=":", linewidth=1)
            axis.set_title(
                f"F1, at best {mean[best]:.2f} from score {scores[best]:.2f} on", loc="left"
            )
    _legend_beside(axes[-1], f"IoU {evaluation.iou_threshold:g}")
    _save(figure, path)


def plot_confusion(
    matrix: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    background: str | None = "background",
) -> None:
    """A confusion matrix as counts and as shares of each true class.

    Args:
        matrix: (C + 1, C + 1) as `confusion_matrix` returns it, the background last.
        names: The C class names.
        path: The PNG file.
        background: Name of the last row and column; None where there is none, and the matrix is
            (C, C).

    Raises:
        ValueError: If names and matrix do not fit.
    """
    labels = [*map(_plain, names), *([background] if background else [])]
    size = len(labels)
    if matrix.shape != (size, size):
        raise ValueError(
            f"the matrix must be {size} x {size} for {len(names)} names"
            f"{' and the background' if background else ''}, got "
            f"{' x '.join(map(str, matrix.shape))}"
        )
    written = size <= _LEGEND_LIMIT + 1  # the numbers would not fit into smaller cells
    side = max(3.4, 0.42 * size + 1.2) if written else 0.15 * size + 2
    figure, axes = _figure(1, 2, width=2 * side + 1.4, height=side + 0.5)
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
    _save(figure, path)


def plot_training_curves(metrics: str | Path, path: str | Path) -> None:
    """Losses, the evaluation's scores and learning rate against the epoch.

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
    epochs = (columns["step"] + 1) / _steps_per_epoch(columns["epoch"], columns["step"])
    figure, axes = _figure(1, 3, width=14.5, height=4.2)
    segmented = any(name.endswith("/mIoU") for name in columns)
    scores = "scores" if segmented else "average precision"
    chosen: dict[str, list[str]] = {"loss": [], scores: [], "learning rate": []}
    for name in columns:
        last = name.rsplit("/", 1)[-1]
        if name.startswith("lr"):
            chosen["learning rate"].append(name)
        elif "loss" in name or name.startswith("train/"):
            chosen["loss"].append(name)
        elif last in _SCORES:
            chosen[scores].append(name)
    for axis, (title, names) in zip(axes, chosen.items(), strict=True):
        drawn = [(name, ~np.isnan(columns[name])) for name in sorted(names)]
        drawn = [(name, there) for name, there in drawn if there.any()]
        for number, (name, there) in enumerate(drawn, start=1):
            few = there.sum() <= 40
            total = name.rsplit("/", 1)[-1] in ("loss", "AP", "mIoU") or title == "learning rate"
            axis.plot(
                *(epochs[there], columns[name][there]),
                color="black" if total else _unit(get_class_color(number)),
                linewidth=1.8 if total else 1.1,
                marker="o" if few else None,
                markersize=3,
                label=_plain(name),
            )
        axis.set(xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(title, loc="left")
        if not drawn:
            axis.text(
                0.5, 0.5, "nothing logged", transform=axis.transAxes, ha="center", color=_GREY
            )
            continue
        if title == scores:
            axis.set_ylim(bottom=0)
        else:
            _logarithmic_if_wide(axis, np.concatenate([columns[n][t] for n, t in drawn]))
        axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """An empty figure in the house style; sizes in inches of 110 pixels."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#b8bcc4")
        axis.tick_params(colors=_GREY, labelsize=8.5)
        axis.grid(color="#e8eaee", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.1)
    save_bytes(path, buffer.getvalue())


def _unit(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _plain(name: str) -> str:
    """A name that matplotlib takes as it is: $ begins a formula, and a leading _ hides a label."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _mean_curve(axis: Axes, x: np.ndarray, curves: np.ndarray, name: str) -> np.ndarray | None:
    """Draw the mean of the (C, points) curves that are defined, and return it."""
    defined = (~np.isnan(curves)).sum(axis=0)
    if not len(curves) or not defined.any():
        return None
    mean = np.nansum(curves, axis=0) / np.where(defined > 0, defined, np.nan)
    axis.plot(x, mean, color="black", linewidth=2.2, label=name)
    return mean


def _unit_axes(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
    axis.set_title(title, loc="left")


def _legend_beside(axis: Axes, title: str) -> None:
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
            *(column, row, _short(int(value)) if counts else f"{value:.2f}"),
            ha="center",
            va="center",
            fontsize=7.5,
            color="white" if shade[row, column] > 0.55 else "#20242c",
        )


def _short(count: int) -> str:
    # Pixels are counted in millions.
    return str(count) if count < 100_000 else f"{count:.1e}".replace("e+0", "e")


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file as floats, NaN where a cell is empty or no number."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames or ()

    def number(text: str | None) -> float:
        try:
            return float(text or "nan")
        except ValueError:
            return math.nan

    return {name: np.array([number(row[name]) for row in rows], float) for name in names}


def _steps_per_epoch(epochs: np.ndarray, steps: np.ndarray) -> float:
    """The smallest number of steps an epoch for which every row's step lies in its epoch."""
    known = ~np.isnan(epochs) & ~np.isnan(steps)
    if not known.any():
        return 1.0
    # Epoch e holds the steps e n to (e + 1) n - 1; the last row of an epoch makes this exact.
    return float(np.max(np.floor(steps[known] / (epochs[known] + 1)) + 1))


def _logarithmic_if_wide(axis: Axes, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() / values.min() > 30:
        axis.set_yscale("log")
