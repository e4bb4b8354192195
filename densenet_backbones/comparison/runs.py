"""Reading of a run's folder for a comparison, of one from before there were summaries, too."""

import csv
import io
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densenet_backbones.comparison.locating import find_run
from densenet_backbones.messages import describe_error
from densenet_backbones.training.progress.summary import NAME as SUMMARY
from densenet_backbones.training.progress.summary import read_summary
from densenet_backbones.untrusted.limits import MAX_LOG_FILE
from densenet_backbones.untrusted.plain_yaml import read_yaml
from densenet_backbones.untrusted.reading import read_text

MONITORS = ("keypoint_AP", "mask_AP", "AP", "mIoU")
"""Numbers that say how good a model is; of several the first."""
_SIZE = re.compile(r": ([\d,]+) parameters(?: \([\d,]+ trained\))?, ([\d.]+) GMAC")
_NOT_COMPARED = ("run_dir", "ckpt_path", "profile", "config")


@dataclass(frozen=True)
class Run:
    """A run as far as its files tell; None, or nothing, for what they do not.

    Attributes:
        name: Name of its folder.
        path: Its folder.
        options: Its configuration by dotted names.
        monitor: Name of the number that says how good its model is.
        curve: That number at each evaluation: epoch from 1, value.
        parameters: Learnable values.
        macs: Multiply-adds of one image.
        seconds: Wall time of the training.
        images_per_second: Images trained on a second.
        peak_bytes: Most memory: of the GPU, or else of the process.
        ended: How it ended.
        kept_bytes: What the network keeps for the backward pass of a batch.
        step_seconds: Wall time of an optimizer step.
        step_cpu_seconds: Processor time of an optimizer step.
        faults: A sentence about each of its files that is there and damaged.
    """

    name: str
    path: Path
    options: Mapping[str, Any]
    monitor: str | None = None
    curve: tuple[tuple[float, float], ...] = ()
    parameters: int | None = None
    macs: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    peak_bytes: int | None = None
    ended: str | None = None
    kept_bytes: int | None = None
    step_seconds: float | None = None
    step_cpu_seconds: float | None = None
    faults: tuple[str, ...] = ()

    @property
    def best(self) -> tuple[float, float] | None:
        """Epoch and value of the best evaluation."""
        return max(self.curve, key=lambda point: point[1], default=None)


def read_run(place: str | Path) -> Run:
    """Read a run.

    Args:
        place: Its folder, or a file in it, such as its model.

    Raises:
        ValueError: There is no run; names the place.
    """
    path = find_run(place)
    faults: list[str] = []
    options = _read_options(path, faults)
    summary = read_summary(path)
    try:
        run = _take_summary(path, options, summary or {})
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        run = _piece_together(path, options)
        if (path / SUMMARY).is_file():
            faults.append(
                f"{path / SUMMARY}: is damaged; the numbers are those of metrics.csv and log.txt, "
                "which say less"
            )
    return replace(run, faults=tuple(faults))


def _take_summary(path: Path, options: Mapping[str, Any], summary: Mapping[str, Any]) -> Run:
    monitor, memory = str(summary["monitor"]), summary["memory"]
    points = ((e["epoch"], e["numbers"].get(monitor)) for e in summary["evaluations"])
    time, experiment = summary["time"], summary["experiment"]
    rate = _read_number(time.get("images_per_second"))
    peak = memory.get("peak_cuda_bytes", memory.get("peak_rss_bytes"))
    return Run(
        path.resolve().name,
        path,
        options,
        monitor,
        tuple((float(epoch), float(value)) for epoch, value in points if value is not None),
        _read_count(summary["parameters"]),
        _read_number(summary["macs"]),
        _read_number(time.get("wall_seconds")),
        rate,
        _read_count(peak),
        str(summary["ended"]),
        _read_count(experiment.get("memory_kept_bytes")),
        experiment["images_per_step"] / rate if rate else None,
        _read_number(time.get("step_cpu_seconds")),
    )


def _read_number(value: Any) -> float | None:
    """Return a number of a summary, None where there is none; refuse what is no finite one."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return None if value is None else float(value)


def _read_count(value: Any) -> int | None:
    number = _read_number(value)
    return None if number is None else int(number)


def _piece_together(path: Path, options: Mapping[str, Any]) -> Run:
    """Read a run without a summary from its table and its log."""
    monitor, curve = _read_curve(path / "metrics.csv")
    size = _SIZE.search(_read_if_there(path / "log.txt"))
    return Run(
        path.resolve().name,
        path,
        options,
        monitor,
        curve,
        int(size[1].replace(",", "")) if size else None,
        float(size[2]) * 1e9 if size else None,
    )


def _read_options(path: Path, faults: list[str]) -> dict[str, Any]:
    """Return the options of a run's last start that can be read, by dotted names."""
    later = sorted(
        path.glob("config_from_step_*.yaml"), key=lambda f: int("0" + f.stem.rpartition("_")[2])
    )
    for file in (*later[::-1], path / "config.yaml"):
        try:
            content = read_yaml(file, ValueError)
        except (ValueError, OSError) as error:
            if file.exists():
                faults.append(f"{describe_error(error)}; these options are not compared")
            continue
        if isinstance(content, Mapping):
            options = flatten(content)
            return {k: v for k, v in options.items() if k not in _NOT_COMPARED}
    return {}


def flatten(options: object, name: str = "") -> dict[str, Any]:
    """Return nested options as one level, by dotted names."""
    if not isinstance(options, Mapping) or not options:
        return {name: options} if name else {}
    parts = (
        flatten(value, f"{name}.{key}" if name else str(key)) for key, value in options.items()
    )
    return {key: value for part in parts for key, value in part.items()}


def _read_curve(file: Path) -> tuple[str | None, tuple[tuple[float, float], ...]]:
    curves: dict[str, list[tuple[float, float]]] = {monitor: [] for monitor in MONITORS}
    with suppress(csv.Error):  # of a damaged file, what stands before
        for row in csv.DictReader(io.StringIO(_read_if_there(file), newline="")):
            epoch = _parse(row.get("epoch")) + 1  # Lightning counts from 0
            for monitor, curve in curves.items():
                value = _parse(row.get(f"val/{monitor}"))
                if math.isfinite(epoch) and math.isfinite(value):
                    curve.append((epoch, value))
    return next(((m, tuple(curve)) for m, curve in curves.items() if curve), (None, ()))


def _parse(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _read_if_there(file: Path) -> str:
    try:
        return read_text(file, MAX_LOG_FILE, ValueError)
    except (ValueError, OSError):
        return ""


def find_differences(runs: list[Run]) -> dict[str, list[str]]:
    """Return the options that are not the same in all runs, each with its value in every run."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    values = {name: [_show(run.options.get(name, "-")) for run in runs] for name in names}
    return {name: of_runs for name, of_runs in values.items() if len(set(of_runs)) > 1}


def _show(value: object) -> str:
    return "null" if value is None else str(value)
