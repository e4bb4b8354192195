"""Detect objects or segment: ``python tools/predict.py CHECKPOINT IMAGE_OR_FOLDER…``."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.progress import track

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.data.loaders.guarded import refuse_unusable
from densenet_backbones.data.samples import DataError
from densenet_backbones.deploy import deploy, is_deployable
from densenet_backbones.file_writing import GrowingList, check_output
from densenet_backbones.inference.detection_views import add_view_options, parse_views
from densenet_backbones.inference.detector import Detections, Detector
from densenet_backbones.inference.image_tensors import ReadImage, read_for_model
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.model_file import JsonDict
from densenet_backbones.inference.predict_masks import ENDINGS, LARGEST_PICTURE, predict_mask
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.inference.tiling import Tiling
from densenet_backbones.messages import CommandParser, check_interval, check_whole
from densenet_backbones.reporting.console import fail, quiet_libraries, say
from densenet_backbones.reporting.instance_pictures import (
    DrawnInstances,
    draw_instances,
    mark_visible,
)
from densenet_backbones.reporting.pictures import save_picture

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
R = TypeVar("R")


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Draw what a trained detector or segmenter finds in pictures. A detector's "
        "objects go to predictions.json, with masks as COCO's run-length codes and keypoints where "
        "it gives them; a segmenter writes a PNG of class indices for each "
        "picture, and a summary as JSON."
    )
    parser.add_argument("checkpoint", help="*.ckpt of a run or its model.safetensors")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="where pictures and predictions.json go (%(default)s)",
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        metavar="S",
        help="detector: leave out detections below this score, 0 to 1 (%(default)s)",
    )
    add_view_options(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument(
        "--precision",
        choices=_AUTOCAST,
        default="32-true",
        help="mixed ones are faster where the device computes in them (%(default)s)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=2048,
        metavar="N",
        help="segmenter: cut larger images into overlapping tiles of N pixels (%(default)s)",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="N",
        help="segmenter: pixels that tiles share (a quarter of a tile)",
    )
    parser.add_argument(
        "--no-deploy",
        action="store_true",
        help="run the network as it was trained, not its faster folded form",
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing")
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    return make_parser().parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``tools/predict.py`` and ``densenet-predict``.

    Raises:
        SystemExit: 1 with one line on standard error for wrong input, or one for each image that
            could not be used, when all others are done; 130 after Ctrl-C.
    """
    quiet_libraries()
    options = parse_arguments(argv)
    try:
        predict(options)
    except KeyboardInterrupt:
        say(f"Stopped; what was done is in {options.out}/", style="yellow")
        sys.exit(130)
    except (CheckpointError, DataError, ValueError, OSError, MemoryError) as error:
        fail(error, 1)


def predict(options: argparse.Namespace) -> None:
    """Predict as the command line says, and write the results of each image as soon as it is done.

    Raises:
        DataError: Images could not be used; the others are done.
    """
    check_whole("--batch-size", options.batch_size)
    check_interval("--score", options.score, "[0, 1]")
    # All that can be wrong with files and names, before the model is loaded.
    files = list(find_images(options.images))
    stems = choose_stems(options.out, files)
    check_output(options.out, "--out")
    model = load(options.checkpoint, check_device(options.device))
    if is_deployable(model.model) and not options.no_deploy:
        model.model = deploy(model.model)
    # A segmenter or a detector, each with the options that are for it.
    dtype = _AUTOCAST[options.precision]
    faults: list[str] = []
    if isinstance(model, SegmentationModel):
        parse_views(options, None)  # refuses what is for detectors
        Tiling(options.tile, options.overlap)  # and sizes that no image could be cut into
        rows = segment(model, files, stems, options, faults)
    else:
        mirrored = model.categories.mirrored_keypoints
        model.views = parse_views(options, model.model, mirrored)
        rows = detect(model, files, stems, options, faults)
    results, objects = GrowingList(options.out / "predictions.json"), 0
    with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
        for row in rows:
            results.append(row)
            objects += len(row.get("detections", ()))
    results.close()
    done = f"{len(files) - len(faults)} images"
    summary = (
        f"{done} segmented"
        if isinstance(model, SegmentationModel)
        else f"{objects} objects in {done}"
    )
    say(f"{summary}; written to {options.out}/")
    refuse_unusable(faults, len(files))


def detect(
    detector: Detector,
    files: Sequence[Path],
    stems: Mapping[Path, Path],
    options: argparse.Namespace,
    faults: list[str],
) -> Iterator[JsonDict]:
    """Detect objects in every file, draw them, and yield the entries of the JSON file.

    Images that cannot be used are left out, and sentences about them added to `faults`.
    """
    for first in track(range(0, len(files), options.batch_size), "Detecting", transient=True):
        batch = {
            file: image
            for file in files[first : first + options.batch_size]
            if (image := attempt(partial(detector.read, file), file, faults))
        }
        for file, detections in detect_batch(detector, batch, options.score, faults):
            image = batch[file]
            picture = None if options.no_pictures else Path(f"{stems[file]}.png")
            if picture:
                save_picture(picture, draw(detector, file, image, detections))
            yield to_json(file, picture, image.size[1], image.size[0], detections)


def detect_batch(
    detector: Detector, batch: Mapping[Path, ReadImage], score: float, faults: list[str]
) -> Iterator[tuple[Path, Detections]]:
    """Yield files with their detections: of all at once, or one by one where that fails."""
    try:
        detections = detector.predict_batch(list(batch.values()), score)
    except (ValueError, RuntimeError, MemoryError):
        for file in batch:
            run = partial(detector.predict_batch, [batch[file]], score)
            if predictions := attempt(run, file, faults):
                yield file, predictions[0]
    else:
        yield from zip(batch, detections, strict=True)


def attempt(function: Callable[[], R], file: Path, faults: list[str]) -> R | None:
    """Return a function's result, or None and one more sentence in `faults` if an image is why."""
    try:
        return function()
    except DataError as error:
        faults.append(str(error))
    except (ValueError, RuntimeError, MemoryError) as error:
        # A model that cannot take this image, or memory that runs out with it.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        faults.append(reason if reason.startswith(str(file)) else f"{file}: {reason}")
    return None


def draw(detector: Detector, file: Path, image: ReadImage, detections: Detections) -> np.ndarray:
    """Return an image with its detections, its longer side at most `LARGEST_PICTURE` pixels."""
    # The detector's own reading may be smaller than a picture should be.
    if image.factor > 1 or max(image.size) > LARGEST_PICTURE:
        shrink = 1
        while max(image.size) > LARGEST_PICTURE * shrink:
            shrink *= 2
        image = read_for_model(file, (image.size[0] // shrink or 1, image.size[1] // shrink or 1))
    drawn = to_instances(detections).scale(1 / image.factor)
    names, skeleton = detector.categories.names, detector.categories.skeleton
    return draw_instances(image.pixels, drawn, names, skeleton)


def segment(
    model: SegmentationModel,
    files: Sequence[Path],
    stems: Mapping[Path, Path],
    options: argparse.Namespace,
    faults: list[str],
) -> Iterator[JsonDict]:
    """Segment every file, write masks and overlays, and yield the entries of the JSON file.

    Images that cannot be used are left out, and sentences about them added to `faults`.
    """
    for file in track(files, "Segmenting", transient=True):
        run = partial(
            predict_mask,
            model,
            file,
            stems[file],
            tile=options.tile,
            overlap=options.overlap,
            picture=not options.no_pictures,
        )
        if row := attempt(run, file, faults):
            yield row


def find_images(arguments: Sequence[str]) -> Iterator[Path]:
    """Yield the image files that are named, and those in the folders that are named.

    Raises:
        DataError: A path does not exist, or a folder holds no image.
    """
    for argument in arguments:
        path = Path(argument)
        if path.is_file():
            yield path
        elif path.is_dir():
            # Folders may have such names, too; hidden files are what systems leave beside others.
            files = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not file.name.startswith(".")
                and file.is_file()
            )
            if not files:
                known = " ".join(sorted(IMAGE_SUFFIXES))
                raise DataError(f"{path}: no images here; give files, or a folder of {known}")
            yield from files
        else:
            raise DataError(f"{path}: there is no such file or folder; check the path")


def check_device(name: str) -> torch.device:
    """Return a device by its name.

    Raises:
        ValueError: There is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch says both
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {name}: {reason}; 'cpu' is always there") from error


def choose_stems(out: Path, files: Sequence[Path]) -> dict[Path, Path]:
    """Choose where each file's results go: ``OUT/NAME``, numbered where a name is taken.

    Raises:
        DataError: A result would replace one of the images.
    """
    inputs = {os.path.realpath(file) for file in files}
    paths: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in files:
        if file in paths:
            continue
        stems = chain([file.stem], (f"{file.stem}_{number}" for number in count(2)))
        stem = next(s for s in stems if not taken & {f"{s}{end}".lower() for end in ENDINGS})
        paths[file] = out / stem
        for ending in ENDINGS:
            taken.add(f"{stem}{ending}".lower())  # some file systems do not tell cases apart
            result = out / f"{stem}{ending}"
            if os.path.realpath(result) in inputs:
                raise DataError(f"{result} would be overwritten; name another folder with --out")
    return paths


def to_instances(detections: Detections) -> DrawnInstances:
    """Return what to draw of the detections of an image."""
    points = detections.keypoints
    return DrawnInstances(
        detections.boxes.numpy(),
        detections.labels.numpy(),
        detections.scores.numpy(),
        detections.masks,
        None if points is None else mark_visible(points.numpy()),
    )


def to_json(
    file: Path, picture: Path | None, width: int, height: int, detections: Detections
) -> JsonDict:
    """Return the detections of an image as an entry of the JSON file.

    Boxes are xyxy in pixels of the image as shown, masks COCO's run-length codes, keypoints lists
    of x, y and score (the higher the surer; no probabilities) in the order of the training data.
    """
    return {
        "file": str(file),
        "picture": str(picture) if picture else None,
        "width": width,
        "height": height,
        "detections": [_describe(detections, number) for number in range(len(detections))],
    }


def _describe(detections: Detections, number: int) -> JsonDict:
    entry: JsonDict = {
        "name": detections.names[number],
        "score": round(float(detections.scores[number]), 4),
        "box": [round(v, 2) for v in detections.boxes[number].tolist()],
    }
    if detections.masks is not None:
        entry["mask"] = detections.masks[number]
    if detections.keypoints is not None:
        points, point_scores = detections.keypoints[number], detections.keypoint_scores
        scores = points[:, 2] if point_scores is None else point_scores[number]
        places = points[:, :2].tolist()
        entry["keypoints"] = [
            [round(x, 2), round(y, 2), round(score, 4)]
            for (x, y), score in zip(places, scores.tolist(), strict=True)
        ]
    return entry
