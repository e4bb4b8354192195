"""Measure the detection input pipeline on one core, beside the training step that it feeds.

    python tools/benchmark.py input --data VOCdevkit/VOC2007 --split trainval

Loader workers are processes of one thread each, so what one core does tells how many of them a
training needs. Not in the numbers: handing batches from worker to trainer, and a cold disk (the
files are read once before the first counted turn).
"""

import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import cv2
import torch
import torchvision
from torch import Tensor, nn

import densenet_backbones.torchvision_models  # noqa: F401 - registers the detectors
from densenet_backbones.benchmark.measuring import Timing, get_synchronize, interleave
from densenet_backbones.benchmark.report import Cell, Column, Table
from densenet_backbones.data.augment.detection import Augmentation, Preset
from densenet_backbones.data.detection_images import DetectionImages
from densenet_backbones.data.images import read_image
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.scenes.generation import generate_scenes
from densenet_backbones.data.sets.splitting import sample_subset
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.messages import nearest, pluralize

Precision = Literal["32-true", "bf16-mixed"]
STEP = "training step"


class _FixedSizeDetector(nn.Module):
    """Type of a detector that resizes every image to one size."""

    image_size: tuple[int, int]
    transform: DetectionTransform


DRAWN_SIZE = (480, 640)  # (H, W): a common size of photographs in COCO and VOC


def measure(
    root: str | None,
    split: str,
    *,
    images: int,
    turns: int,
    detector: str,
    batch: int,
    precision: Precision,
    device: torch.device,
) -> Table:
    """Time decoding and augmentation on one core beside a training step.

    Args:
        root: Folder in COCO or VOC layout; None draws scenes of `DRAWN_SIZE`.
        split: Part of `root`.
        images: Number of images a turn, at least 1; all of the data's where it has fewer.
        turns: Counted rounds, at least 1.
        detector: A name of torchvision's registry whose model has an `image_size`.
        batch: Images a training step, at least 2.
        precision: Of the step, in Lightning's words.
        device: Of the step.

    Returns:
        `build_input_table`.

    Raises:
        ValueError: A number is out of its range, the detector is not ours, or the data is wrong.
        RuntimeError: The training step's loss is not finite.
    """
    if images < 1 or batch < 2:
        raise ValueError(f"--images must be >= 1 and --batch >= 2, got {images} and {batch}")
    with TemporaryDirectory() as folder:
        dataset = read_detection(
            root or _draw_scenes(Path(folder), images), split if root else "train"
        )
        dataset = sample_subset(dataset, number=min(images, len(dataset)))
        model = _build_detector(detector, dataset.categories.num_classes).to(device)
        train = build_training_step(model, dataset, batch, precision)
        train()  # starts its threads before this one is pinned to a core
        contenders = {**build_pipelines(dataset, model), STEP: train}
        timings = interleave(contenders, turns, get_synchronize(device))
    pinned = "one core" if _get_cores() else "one thread (this system pins no process to a core)"
    height, width = model.image_size
    title = (
        f"{pluralize(len(dataset), 'image')} a turn of {dataset.name}, at {width}x{height} on "
        f"{pinned}; {STEP}: {detector}, batch {batch}, {precision}, {device}; {turns} turns"
    )
    return build_input_table(title, timings, len(dataset), batch)


def build_input_table(title: str, timings: Sequence[Timing], images: int, batch: int) -> Table:
    """Build the table: images a second of each pipeline, and workers that keep up with a step.

    Args:
        title: What was measured.
        timings: Of the pipelines, each turn over `images` images, and of `STEP`.
        images: Images a turn.
        batch: Images a training step.

    Returns:
        A row a pipeline: images a second; the time of a batch on one core in training steps, turn
        by turn; the loader workers that keep up with it, each on a core of its own.
    """
    step = next(timing for timing in timings if timing.name == STEP)
    share = "batch on one core / step"
    columns = (
        *(Column(""), Column("ms", ".1f"), Column("images/s", ".1f", spread=True)),
        *(Column(share, ".3f", spread=True), Column("workers to keep up")),
    )
    rows: list[tuple[Cell, ...]] = []
    for timing in timings:
        count = batch if timing is step else images
        speeds = tuple(count / seconds for seconds in timing.seconds)
        shares = tuple(ratio * batch / images for ratio in timing.compute_ratios(step))
        cells = (None, None) if timing is step else (shares, math.ceil(statistics.median(shares)))
        rows.append((timing.name, timing.milliseconds, speeds, *cells))
    return Table(title, columns, tuple(rows), "ms: of all images of a turn, or of a step")


def _draw_scenes(folder: Path, images: int) -> Path:
    return generate_scenes(folder / "scenes", train=images, val=1, size=DRAWN_SIZE, progress=False)


def _build_detector(name: str, num_classes: int) -> _FixedSizeDetector:
    """Build a detector in training mode, its maps laid out as in training."""
    known = torchvision.models.list_models()
    if name not in known:
        raise ValueError(f"no detector is called {name!r}{nearest(name, known)}")
    model: _FixedSizeDetector = torchvision.models.get_model(name, num_classes=num_classes)
    if not hasattr(model, "image_size") or not hasattr(model, "transform"):
        raise ValueError(f"{name} has no one size of its input; give dsod300 or another of ours")
    return model.train().to(memory_format=torch.channels_last)


def build_pipelines(
    dataset: DetectionSet, model: _FixedSizeDetector
) -> dict[str, Callable[[], None]]:
    """Build steps that decode alone, and with each augmentation up to a worker's sample."""

    def decode() -> None:
        for record in dataset.records:
            read_image(record.path)

    def augmented(preset: Preset) -> Callable[[], None]:
        fill = model.transform.fill_color
        samples = DetectionImages(dataset, Augmentation(preset, model.image_size, fill=fill))
        epochs = count()  # each turn draws anew

        def step() -> None:
            epoch = next(epochs)
            for index in range(len(samples)):
                samples[epoch, index]

        return step

    named = {f"decode + {preset}": augmented(preset) for preset in get_args(Preset)}
    return {name: _run_on_one_core(step) for name, step in {"decode": decode, **named}.items()}


def build_training_step(
    model: _FixedSizeDetector, dataset: DetectionSet, batch: int, precision: Precision
) -> Callable[[], None]:
    """Build a step (forward, backward, update) on a batch already on the model's device."""
    device = next(model.parameters()).device
    source = DetectionImages(dataset, Augmentation("none", model.image_size))
    samples = [source[index % len(source)] for index in range(batch)]
    images = [sample.image.to(device).float() / 255 for sample in samples]
    targets = [
        {"boxes": sample.boxes.to(device), "labels": sample.labels.to(device)} for sample in samples
    ]
    # A rate so small that the loss stays finite without a schedule; the time is the same.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            losses: dict[str, Tensor] = model(images, targets)
            loss = torch.stack(list(losses.values())).sum()
        if not loss.isfinite():
            raise RuntimeError(f"the training step's loss is {loss.item()}; its time says nothing")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def _get_cores() -> set[int]:
    """Return the cores that this thread may use; none if the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@contextmanager
def _pin_to_one_core() -> Iterator[None]:
    """Keep this thread on one core, and OpenCV without threads, as in a loader worker."""
    cores, threads = _get_cores(), cv2.getNumThreads()
    if cores:
        os.sched_setaffinity(0, {max(cores)})  # the first core serves most interrupts
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def _run_on_one_core(step: Callable[[], None]) -> Callable[[], None]:
    def pinned() -> None:
        with _pin_to_one_core():
            step()

    return pinned
