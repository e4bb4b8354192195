"""Short training of every shipped experiment: do its loss and its metric end where they belong?

The metric is the AP of detectors, the mIoU of segmenters and the top-1 accuracy of classifiers.
``python tests/quick_schedules/run.py`` trains all, ``run.py NAME ...`` some (``det/quickstart``),
and ``--accept`` stores new intervals in `intervals.csv`. Each experiment keeps its recipe (the
optimizer, schedule, loss, augmentation) and trains a small form of its network on drawn scenes from
random weights, for a number of epochs that takes an idle machine less than a minute. Lengths are
numbers of steps, so that other machines train the same. They differ in rounding, which a training
amplifies as it does another seed, so intervals are wide: from half to twice of what was gained over
a network that has learned nothing, which lies outside of one of them. That one is the loss where a
published schedule, made for days, brings no AP in a minute.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from densenet_backbones.data.classification.crops import prepare_crops
from densenet_backbones.data.scenes.generation import generate_scenes
from densenet_backbones.training.arguments import (
    CLASSIFICATION_FORM,
    DETECTION_FORM,
    SEGMENTATION_FORM,
    list_configs,
)

PROJECT = Path(__file__).resolve().parents[2]
INTERVALS = Path(__file__).with_name("intervals.csv")
FORMS = {"cls": CLASSIFICATION_FORM, "det": DETECTION_FORM, "seg": SEGMENTATION_FORM}
METRICS = {"cls": "top-1", "det": "AP", "seg": "mIoU"}

TRAIN, VAL, SIZE = 160, 32, 128  # drawn scenes, and their side in pixels
LARGEST_BATCH = {"cls": 32, "det": 8, "seg": 8}
LEAST_GAIN = 0.02  # of the metric: with less, the loss alone says that something was learned
SHORT_WARMUP = 0.1  # of the steps, where a published one would be shorter than these
LEAST_WARMUP, LEAST_WARMUP_OF_RCNN = 0.5, 2.0  # steps; losses of proposals diverge sooner
LEAST_FALL = 0.05  # of the loss, as a share of the first steps'

BODY = {"growth_rate": [16, 32, 48, 48], "block_config": [2, 3, 3, 3], "num_init_features": 16}
NO_WEIGHTS = {"weights_backbone": None, "backbone_kwargs": BODY}
PYRAMID = {**NO_WEIGHTS, "out_channels": 64, "min_size": SIZE, "max_size": 2 * SIZE}
RCNN = {
    **PYRAMID,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_post_nms_top_n_train": 100,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 50,
    "box_batch_size_per_image": 64,
}
FCDENSENET = {"growth_rate": 8, "block_config": [2] * 6, "num_init_features": 16}
DECODER = {"decoder_channels": [64, 48, 32, 16, 16]}
CIFAR = {"image_size": 32, "block_config": [3, 3, 3]}
# Options of small forms, by the first word of the network's name, and epochs.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "condensenet86": (CIFAR, 4),
    "densenet40": (CIFAR, 4),
    "densenet40bc": (CIFAR, 4),
    "densenet100bc": (CIFAR, 4),
    "densenet121": ({"image_size": 64, **BODY}, 4),
    "dsod": ({"image_size": SIZE}, 8),
    "dsod300": ({"image_size": SIZE, "adapter_channels": [64] * 4, "backbone_kwargs": BODY}, 6),
    "ssd300": ({**NO_WEIGHTS, "image_size": SIZE}, 6),
    "retinanet": (PYRAMID, 3),
    "fcos": (PYRAMID, 3),
    "fasterrcnn": (RCNN, 3),
    "maskrcnn": (RCNN, 3),
    "keypointrcnn": (RCNN, 3),
    "unet": ({**NO_WEIGHTS, **DECODER}, 6),
    "fcdensenet56": (FCDENSENET, 3),
    "fcdensenet103": (FCDENSENET, 3),
    "smp:DeepLabV3Plus": ({"encoder_weights": None, "decoder_channels": 64}, 6),
    "smp:Unet": ({**DECODER, "encoder_name": "resnet18"}, 6),
}


@dataclass(frozen=True)
class Experiment:
    """Shipped experiment: the folder of its file, its name, and what the file says."""

    kind: str
    name: str
    written: dict[str, Any]

    @property
    def key(self) -> str:
        """Folder and name, as in `intervals.csv`."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Result:
    """End of a training.

    Attributes:
        reached: AP, mIoU or accuracy.
        untrained: The same of a network that has learned nothing.
        loss: Mean loss of the last quarter of the steps, as a share of the first five steps'.
        seconds: Of the processor, which another program's load changes least.
    """

    reached: float
    untrained: float
    loss: float
    seconds: float

    @property
    def gain(self) -> float:
        """Part of the metric that was learned."""
        return self.reached - self.untrained

    def make_intervals(self) -> "Intervals":
        """Make intervals from half to twice of what was gained and of the fall of the loss."""
        low = self.untrained + self.gain / 2 if self.gain >= LEAST_GAIN else 0.0
        high = self.untrained + 2 * max(self.gain, LEAST_GAIN)
        fall = 1 - self.loss
        return Intervals(low, min(high, 1.0), max(1 - 2 * fall, self.loss / 2), 1 - fall / 2)


class Intervals(NamedTuple):
    """Bounds of the metric, and of the loss as a share of its beginning."""

    low: float
    high: float
    loss_low: float
    loss_high: float


def list_experiments() -> dict[str, Experiment]:
    """List every file of `configs/` by its key."""
    found = [
        Experiment(kind, name, yaml.safe_load(file.read_text()))
        for kind, form in FORMS.items()
        for name, file in list_configs(form).items()
    ]
    return {experiment.key: experiment for experiment in found}


def choose_options(experiment: Experiment, scenes: Path) -> dict[str, Any]:
    """Choose data, size and length; the recipe stays that of the file."""
    data, model = experiment.written["data"], experiment.written["model"]
    name = str(model.get("detector") or model.get("segmenter") or model["classifier"])
    args, epochs = SMALL[name if ":" in name else name.partition("_")[0]]
    own_args = model.get("args", {})
    if "weights_backbone" in own_args:  # published ones, which a test does not fetch
        args = {**args, "weights_backbone": None}
    if experiment.name == "quickstart":
        args = {key: value for key, value in args.items() if key == "image_size"}  # small already
    if not str(own_args.get("backbone", "_features")).endswith("_features"):
        args = {**args, "backbone_kwargs": None, "backbone": "resnet18"}
    largest = LARGEST_BATCH[experiment.kind]
    options: dict[str, Any] = {
        "data": scenes,
        "epochs": epochs,
        "batch-size": largest if data["batch_size"] == "auto" else min(data["batch_size"], largest),
        "data.train_split": "train",
        "data.val_split": "val",
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.precision": "32-true",  # bfloat16 rounds by the processor's rules
        "trainer.accumulate_grad_batches": 1,
        "model.optimizer.base_batch": 0,  # the full rate, for so few steps
        "trainer.check_val_every_n_epoch": epochs,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": False,
    }
    warmup = model.get("schedule", {}).get("warmup", 0)
    steps = warmup * epochs * TRAIN / options["batch-size"]
    if warmup and steps < (LEAST_WARMUP_OF_RCNN if "rcnn" in name else LEAST_WARMUP):
        # The full rate at once diverges, and so does that of 16 images on four.
        options["model.schedule.warmup"] = SHORT_WARMUP
        del options["model.optimizer.base_batch"]
    if experiment.kind == "cls":
        options["data"] = prepare_crops(scenes)[0]
    if experiment.kind == "seg":
        options["data.crop"] = [SIZE, SIZE]
        if data.get("layout") != "coco_instances":
            options |= {"data": scenes / "VOC", "data.layout": "voc"}
    return options | {f"model.args.{key}": value for key, value in args.items()}


def train(experiment: Experiment, folder: Path) -> Result:
    """Train an experiment by the project's own tool, and read what it reached.

    Raises:
        RuntimeError: The training failed; with the end of what it said.
    """
    run = folder / experiment.kind / experiment.name
    command = [sys.executable, str(PROJECT / "tools" / f"train_{experiment.kind}.py")]
    command += ["--config", experiment.name, "--run-dir", str(run)]
    for key, value in choose_options(experiment, folder / "scenes").items():
        text = value if isinstance(value, str | Path) else json.dumps(value)
        command += [f"--{key}", str(text)] if key in SHORT else [f"--{key}={text}"]
    before = sum(os.times()[2:4])  # of child processes
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    seconds = sum(os.times()[2:4]) - before
    report = json.loads((run / "evaluation/metrics.json").read_text())
    loss = read_loss(run / "metrics.csv")
    if experiment.kind == "det":
        return Result(report["coco"]["numbers"]["AP"], 0.0, loss, seconds)
    # Whoever says the commonest class everywhere is right in its share of images or of pixels,
    # which is its IoU; the other classes have an IoU of 0.
    counts = [sum(row) for row in report["confusion_matrix"]]
    share = max(counts) / sum(counts)
    if experiment.kind == "cls":
        return Result(report["numbers"]["accuracy"], share, loss, seconds)
    return Result(report["numbers"]["mIoU"], share / len(counts), loss, seconds)


def read_loss(file: Path) -> float:
    """Read the mean loss of the last quarter of the steps, as a share of the first five steps'."""
    with file.open(newline="") as rows:
        losses = [float(row["train/loss"]) for row in csv.DictReader(rows) if row["train/loss"]]
    return fmean(losses[-len(losses) // 4 :]) / fmean(losses[:5])


SHORT = ("data", "epochs", "batch-size")


def read_intervals() -> dict[str, Intervals]:
    """Read the stored intervals by the experiment's key."""
    with INTERVALS.open(newline="") as file:
        rows = csv.DictReader(file)
        return {
            row["experiment"]: Intervals(*(float(row[field]) for field in Intervals._fields))
            for row in rows
        }


def write_intervals(intervals: dict[str, Intervals]) -> None:
    """Write all intervals, in the order of their keys."""
    with INTERVALS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["experiment", *Intervals._fields])
        for key in sorted(intervals):
            writer.writerow([key, *(f"{bound:.3f}" for bound in intervals[key])])


def judge(result: Result, intervals: Intervals | None) -> str:
    """Say whether a result lies where it belongs."""
    if not result.loss <= 1 - LEAST_FALL:  # NaN too
        return "LEARNED NOTHING"
    if intervals is None:
        return "NO INTERVAL"
    low, high, loss_low, loss_high = intervals
    inside = low <= result.reached <= high and loss_low <= result.loss <= loss_high
    return "ok" if inside else "OUTSIDE"


ROW = "{:38s} {:5s} {:>8s}  {:15s} {:>5s}  {:15s} {:>5s}  {}"


def describe(
    experiment: Experiment, result: Result, intervals: Intervals | None, verdict: str
) -> str:
    """Describe a result in a row of the table."""
    low, high, loss_low, loss_high = intervals or Intervals(*[float("nan")] * 4)
    return ROW.format(
        experiment.key,
        METRICS[experiment.kind],
        f"{result.reached:.3f}",
        f"{low:.3f} .. {high:.3f}",
        f"{result.loss:.2f}",
        f"{loss_low:.2f} .. {loss_high:.2f}",
        f"{result.seconds:.0f}",
        verdict,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print a table; return 1 if a training failed or ended outside of its interval."""
    experiments = list_experiments()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(experiments)}")
    parser.add_argument("--accept", action="store_true", help="store intervals around the results")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in experiments]
    if unknown:
        parser.error(f"there is no experiment {unknown[0]}")
    intervals = read_intervals() if INTERVALS.is_file() else {}
    verdicts, seconds = {}, 0.0
    print(ROW.format("experiment", "", "reached", "interval", "loss", "interval", "s", ""))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate_scenes(root / "scenes", train=TRAIN, val=VAL, size=SIZE, seed=0, progress=False)
        for key in options.names or experiments:
            try:
                result = train(experiments[key], root)
            except RuntimeError as error:  # the others still train
                verdicts[key] = "FAILED"
                print(f"{key}: failed\n{error}", flush=True)
                continue
            if options.accept and result.loss <= 1 - LEAST_FALL:
                intervals[key] = result.make_intervals()
                write_intervals(intervals)
            seconds += result.seconds
            verdicts[key] = judge(result, intervals.get(key))
            print(describe(experiments[key], result, intervals.get(key), verdicts[key]), flush=True)
    print(f"{seconds / 60:.1f} minutes of the processor")
    return int(any(verdict != "ok" for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
