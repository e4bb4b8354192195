"""Detect objects, segment or classify: ``python tools/predict.py MODEL IMAGE_OR_FOLDER…``."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders.guarded import refuse_unusable
from densenet_backbones.deploy import deploy, is_deployable
from densenet_backbones.file_writing import check_output
from densenet_backbones.inference.classifier import ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.inputs.clips import open_clip
from densenet_backbones.inference.inputs.downloads import fetch, is_url
from densenet_backbones.inference.inputs.image_tensors import convert_image
from densenet_backbones.inference.inputs.sources import Source, choose_stems, list_sources
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.merging.detection_views import (
    add_view_options,
    parse_views,
    resize_images_to,
)
from densenet_backbones.inference.merging.tiling import Tiling
from densenet_backbones.inference.readers import (
    ClassifierReader,
    DetectorReader,
    Reader,
    SegmenterReader,
    TileReader,
    attempt,
)
from densenet_backbones.inference.results.outputs import ENDINGS, Frame, Outputs
from densenet_backbones.inference.results.savers import OF_CLASSIFIERS, OF_SEGMENTERS, SAVERS
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.messages import CommandParser, check_choice, check_interval, check_whole
from densenet_backbones.reporting.console import fail, quiet_libraries, say

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_SEGMENTER_TILE = 2048


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Draw what a trained model finds in pictures and videos. A "
        "detector's objects go to predictions.json, with masks as COCO's run-length codes and "
        "keypoints where it gives them; a segmenter writes a PNG of class indices for each "
        "picture, and a summary as JSON; a classifier the most probable classes of each. Videos, "
        "cameras and animations come out as MP4."
    )
    parser.add_argument(
        "checkpoint", help="a run's folder, its model.safetensors or *.ckpt, or an exported file"
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="files, folders, 'patterns*.jpg', addresses, videos, lists (.txt or @FILE), camera",
    )
    parser.add_argument("--recursive", action="store_true", help="take folders in folders too")
    parser.add_argument(
        "--stride", type=int, default=1, metavar="N", help="take every Nth frame of a video"
    )
    _add_output_options(parser.add_argument_group("output"))
    _add_detector_options(parser.add_argument_group("detectors"))
    _add_tile_options(parser.add_argument_group("large images"))
    _add_machine_options(parser.add_argument_group("machine"))
    return parser


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="where pictures and predictions.json go (%(default)s)",
    )
    group.add_argument(
        "--save",
        nargs="+",
        choices=SAVERS,
        default=["json"],
        metavar="FORMAT",
        help=f"one or more of {', '.join(SAVERS)} (json)",
    )
    group.add_argument("--no-pictures", action="store_true", help="draw nothing")


def _add_detector_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--score",
        type=float,
        metavar="S",
        help="leave out detections below this score, 0 to 1 (the one that was best when the model "
        "was evaluated, else 0.5)",
    )
    group.add_argument("--classes", nargs="+", metavar="NAME", help="give only these classes")
    group.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="pixels of the shorter side that it resizes images to (as in training)",
    )
    add_view_options(group)


def _add_tile_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="cut larger images into overlapping tiles of N pixels (segmenters: "
        f"{_SEGMENTER_TILE}; detectors: none)",
    )
    group.add_argument(
        "--overlap", type=int, metavar="N", help="pixels that tiles share (a quarter of a tile)"
    )


def _add_machine_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.add_argument("--batch-size", type=int, default=8, metavar="N")
    group.add_argument(
        "--precision",
        choices=_AUTOCAST,
        default="32-true",
        help="mixed ones are faster where the device computes in them (%(default)s)",
    )
    group.add_argument(
        "--no-deploy",
        action="store_true",
        help="run the network as it was trained, not its faster folded form",
    )


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
    for name in ("--batch-size", "--stride"):
        check_whole(name, getattr(options, name[2:].replace("-", "_")))
    if options.score is not None:
        check_interval("--score", options.score, "[0, 1]")
    # All that can be wrong with files and names, before the model is loaded.
    sources = list_sources(options.images, options.recursive)
    stems = choose_stems(options.out, sources, ENDINGS)
    check_output(options.out, "--out")
    model = load(options.checkpoint, check_device(options.device))
    if is_deployable(model.model) and not options.no_deploy:
        model.model = deploy(model.model)
    reader = _prepare(model, options)
    dtype, faults = _AUTOCAST[options.precision], list[str]()
    outputs = Outputs(options.out, options.save, stems, pictures=not options.no_pictures)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), transient=True) as progress,
        torch.autocast(model.device.type, dtype, enabled=dtype is not None),
    ):
        frames = read_frames(sources, reader, options.stride, faults, progress)
        try:
            for frame, result in reader.infer_all(frames, options.batch_size, faults):
                outputs.add(frame, result)
        finally:  # videos and files of one piece end well after Ctrl-C, too
            outputs.close()
    say(f"{outputs.summarize()}; written to {options.out}/")
    refuse_unusable(faults, len(sources))


def _prepare(
    model: Detector | SegmentationModel | ImageClassifier, options: argparse.Namespace
) -> Reader:
    """Set a model up as the command line says, and return what reads images for it."""
    if isinstance(model, ImageClassifier):
        parse_views(options, None)  # refuses what is for detectors
        _refuse_for_detectors(options, "a classifier", OF_CLASSIFIERS)
        if options.tile is not None:
            raise ValueError("--tile is for detectors and segmenters; leave it out")
        return ClassifierReader(model)
    if isinstance(model, SegmentationModel):
        parse_views(options, None)  # refuses what is for detectors
        more = ", and its masks are PNG files"
        _refuse_for_detectors(options, "a segmenter", OF_SEGMENTERS, more)
        tile = _SEGMENTER_TILE if options.tile is None else options.tile
        Tiling(tile, options.overlap)  # refuses sizes that no image could be cut into
        return SegmenterReader(model, tile, options.overlap)
    for name in options.classes or ():
        check_choice("--classes", name, model.categories.names)
    if options.size is not None:
        check_whole("--size", options.size)
        resize_images_to(model.model, options.size)
    model.views = parse_views(options, model.model, model.categories.mirrored_keypoints)
    if options.score is None:
        known = model.spec.best_score is not None
        why = "the best on the evaluated data; " if known else ""
        say(f"Detections with a score from {model.score_thresh:g} on ({why}--score S sets another)")
    else:
        model.score_thresh = options.score
    if options.tile is not None:
        return TileReader(model, options.classes, Tiling(options.tile, options.overlap))
    return DetectorReader(model, options.classes)


def _refuse_for_detectors(
    options: argparse.Namespace, kind: str, formats: Sequence[str], more: str = ""
) -> None:
    """Raise a `ValueError` for options that only detectors have."""
    if options.classes or options.size:
        raise ValueError("--classes and --size are for detectors; leave them out")
    for name in options.save:
        if name not in formats:
            raise ValueError(
                f"--save {name} is for detectors; {kind} has {', '.join(formats)}{more}"
            )


# -- reading --------------------------------------------------------------------------------------


def read_frames(
    sources: Sequence[Source], reader: Reader, stride: int, faults: list[str], progress: Progress
) -> Iterator[Frame]:
    """Yield the images and the frames of videos, one by one.

    Those that cannot be used are left out, and sentences about them added to `faults`.
    """
    images = progress.add_task("Predicting", total=len(sources))
    for source in sources:
        run = partial(fetch, source.name) if is_url(source.name) else lambda: None
        before = len(faults)
        content = attempt(run, source.name, faults)
        if len(faults) > before:
            pass
        elif source.kind == "clip":
            yield from _read_clip(source, content, reader, stride, faults, progress)
        else:
            image = attempt(partial(reader.read, source.name, content), source.name, faults)
            if image is not None:
                yield Frame(source, image)
        progress.advance(images)


def _read_clip(
    source: Source,
    content: bytes | None,
    reader: Reader,
    stride: int,
    faults: list[str],
    progress: Progress,
) -> Iterator[Frame]:
    """Yield every `stride`-th frame of a video; a fault ends it, with the frames before it done."""
    camera = int(source.name.partition(":")[2]) if source.is_camera else None
    try:
        with open_clip(source.name, content, camera) as clip:
            bar = progress.add_task("  frames", total=clip.length)
            for number, pixels in enumerate(clip.frames):
                progress.advance(bar)
                if number % stride == 0:
                    image = convert_image(pixels)._replace(name=source.name)
                    yield Frame(source, reader.take(image), number, clip.rate / stride)
            progress.remove_task(bar)
    except (DataError, MemoryError) as error:
        faults.append(str(error))


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
