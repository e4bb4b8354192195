"""Detect objects, segment or classify, as the command line of `predict` says."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders.guarded import refuse_unusable
from densenet_backbones.data.sets.classes import parse_names
from densenet_backbones.deploy import deploy, is_deployable
from densenet_backbones.inference.classifier import ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.inputs.clips import open_clip
from densenet_backbones.inference.inputs.downloads import fetch, is_url
from densenet_backbones.inference.inputs.image_tensors import convert_image
from densenet_backbones.inference.inputs.sources import Source
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.merging.detection_views import parse_views, resize_images_to
from densenet_backbones.inference.merging.tiling import Tiling
from densenet_backbones.inference.options import PRECISIONS, SEGMENTER_TILE
from densenet_backbones.inference.readers import (
    ClassifierReader,
    DetectorReader,
    Reader,
    SegmenterReader,
    TileReader,
    attempt,
)
from densenet_backbones.inference.results.outputs import Frame, Outputs
from densenet_backbones.inference.results.savers import OF_CLASSIFIERS, OF_SEGMENTERS
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.messages import check_choice, check_whole
from densenet_backbones.reporting.console import say


def predict_sources(
    sources: Sequence[Source], stems: Mapping[Source, Path], options: argparse.Namespace
) -> None:
    """Predict images and videos, and write the results of each as soon as it is done.

    Args:
        sources: What to predict.
        stems: Path of each source's results without endings.
        options: The command line.

    Raises:
        DataError: Images could not be used; the others are done.
    """
    torch.set_float32_matmul_precision("high")  # tensor cores on GPUs that have them
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load(options.checkpoint, device)
    if is_deployable(model.model) and not options.no_deploy:
        model.model = deploy(model.model)
    reader = _prepare(model, options)
    autocast = PRECISIONS[options.precision]
    dtype, faults = getattr(torch, autocast) if autocast else None, list[str]()
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
        if options.size is not None:
            raise ValueError("--size is for detectors and segmenters; leave it out")
        if options.tile is not None:
            raise ValueError("--tile is for detectors and segmenters; leave it out")
        return ClassifierReader(model)
    if isinstance(model, SegmentationModel):
        parse_views(options, None)  # refuses what is for detectors
        more = ", and its masks are PNG files"
        _refuse_for_detectors(options, "a segmenter", OF_SEGMENTERS, more)
        tile = SEGMENTER_TILE if options.tile is None else options.tile
        Tiling(tile, options.overlap)  # refuses sizes that no image could be cut into
        if options.size is not None:
            check_whole("--size", options.size)
            model.size = options.size
        return SegmenterReader(model, tile, options.overlap)
    classes = _choose_classes(options.classes or (), model.categories.names)
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
        return TileReader(model, classes, Tiling(options.tile, options.overlap))
    return DetectorReader(model, classes)


def _choose_classes(words: Sequence[str], known: Sequence[str]) -> list[str] | None:
    """Return the chosen classes, None for all; a word with commas is several unless it is one."""
    chosen = [name for word in words for name in ([word] if word in known else parse_names(word))]
    for name in chosen:
        check_choice("--classes", name, known)
    return chosen or None


def _refuse_for_detectors(
    options: argparse.Namespace, kind: str, formats: Sequence[str], more: str = ""
) -> None:
    """Raise a `ValueError` for options that only detectors have."""
    if options.classes:
        raise ValueError("--classes is for detectors; leave it out")
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
