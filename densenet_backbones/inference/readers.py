"""Ways of `predict` to read images: whole or by tiles, for each kind of model."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from densenet_backbones.data.faults import DataError
from densenet_backbones.inference.classifier import Classification, ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.inference.inputs.image_windows import ImageWindows
from densenet_backbones.inference.merging.detection_tiles import detect_in_tiles
from densenet_backbones.inference.merging.tiling import Tiling
from densenet_backbones.inference.results.detections import Detections
from densenet_backbones.inference.results.outputs import Frame
from densenet_backbones.inference.results.segmentation import Segmentation
from densenet_backbones.inference.segmenter import SegmentationModel

R = TypeVar("R")


class Reader:
    """Reads images for a model and predicts them; one class for each way to do it."""

    def read(self, name: str, content: bytes | None = None) -> ReadImage | ImageWindows:
        """Read a file, or its bytes."""
        raise NotImplementedError

    def take(self, image: ReadImage) -> ReadImage | ImageWindows:
        """Take an image that was read at full size."""
        return image

    def infer(
        self, frames: Sequence[Frame]
    ) -> list[Detections] | list[Segmentation] | list[Classification]:
        """Predict some frames."""
        raise NotImplementedError

    def infer_all(
        self, frames: Iterator[Frame], batch_size: int, faults: list[str]
    ) -> Iterator[tuple[Frame, Detections | Segmentation | Classification]]:
        """Yield frames with their results: batch by batch, or one by one where that fails.

        Those that cannot be used are left out, and sentences about them added to `faults`.
        """
        for frame in frames:
            batch = [frame]
            while len(batch) < batch_size and (further := next(frames, None)) is not None:
                batch.append(further)
            try:
                results = self.infer(batch)
            except (ValueError, RuntimeError, MemoryError):
                for one in batch:
                    run = partial(self.infer, [one])
                    if (alone := attempt(run, one.source.name, faults)) is not None:
                        yield one, alone[0]
            else:
                yield from zip(batch, results, strict=True)


class DetectorReader(Reader):
    """Whole images for a detector.

    Args:
        detector: The detector.
        classes: Names of the classes to give; None for all.
    """

    def __init__(self, detector: Detector, classes: Sequence[str] | None) -> None:
        self.detector, self.classes = detector, classes

    def read(self, name: str, content: bytes | None = None) -> ReadImage | ImageWindows:
        """Read a file no larger than the detector can use."""
        return self.detector.read(name, content)

    def infer(self, frames: Sequence[Frame]) -> list[Detections]:
        """Detect in some frames at once."""
        images = [frame.image for frame in frames if isinstance(frame.image, ReadImage)]
        detections = self.detector.predict_batch(images, self.detector.score_thresh)
        return [self.choose(result) for result in detections]

    def choose(self, detections: Detections) -> Detections:
        """Return the detections of the chosen classes."""
        if self.classes is None:
            return detections
        return detections[[name in self.classes for name in detections.names]]


class TileReader(DetectorReader):
    """Tiles for a detector; see `DetectorReader`."""

    def __init__(self, detector: Detector, classes: Sequence[str] | None, tiling: Tiling) -> None:
        super().__init__(detector, classes)
        self.tiling = tiling

    def read(self, name: str, content: bytes | None = None) -> ReadImage | ImageWindows:
        """Open a file to read its windows."""
        return ImageWindows(name, content)

    def take(self, image: ReadImage) -> ReadImage | ImageWindows:
        """Take an image that was read at full size."""
        return ImageWindows(image.pixels, name=image.name)

    def infer(self, frames: Sequence[Frame]) -> list[Detections]:
        """Detect in some frames, some tiles at once."""
        images = [frame.image for frame in frames if isinstance(frame.image, ImageWindows)]
        run = partial(detect_in_tiles, self.detector, tiling=self.tiling, batch_size=4)
        return [self.choose(run(image)) for image in images]


class SegmenterReader(Reader):
    """Images for a segmenter, larger ones by tiles.

    Args:
        model: The segmenter.
        tile: Side of the tiles.
        overlap: Pixels that tiles share.
    """

    def __init__(self, model: SegmentationModel, tile: int, overlap: int | None) -> None:
        self.model, self.tile, self.overlap = model, tile, overlap

    def read(self, name: str, content: bytes | None = None) -> ReadImage | ImageWindows:
        """Open a file to read its windows, or read it no larger than the segmenter can use."""
        return (
            ImageWindows(name, content)
            if self.model.size is None
            else self.model.read(name, content)
        )

    def take(self, image: ReadImage) -> ReadImage | ImageWindows:
        """Take an image that was read at full size."""
        return image if self.model.size else ImageWindows(image.pixels, name=image.name)

    def infer(self, frames: Sequence[Frame]) -> list[Segmentation]:
        """Segment some frames."""
        return [self._segment(frame.image) for frame in frames]

    def _segment(self, image: ReadImage | ImageWindows) -> Segmentation:
        if isinstance(image, ReadImage):
            return self.model.predict_reduced(image, self.tile, self.overlap)
        return self.model.predict_windows(image, self.tile, self.overlap)


class ClassifierReader(Reader):
    """Whole images for a classifier.

    Args:
        model: The classifier.
    """

    def __init__(self, model: ImageClassifier) -> None:
        self.model = model

    def read(self, name: str, content: bytes | None = None) -> ReadImage | ImageWindows:
        """Read a file no larger than the classifier can use."""
        return self.model.read(name, content)

    def infer(self, frames: Sequence[Frame]) -> list[Classification]:
        """Classify some frames at once."""
        images = [frame.image for frame in frames if isinstance(frame.image, ReadImage)]
        return self.model.predict_batch(images)


def attempt(function: Callable[[], R], name: str, faults: list[str]) -> R | None:
    """Return a function's result, or None and one more sentence in `faults` if an image is why."""
    try:
        return function()
    except DataError as error:
        faults.append(str(error))
    except (ValueError, RuntimeError, MemoryError) as error:
        # A model that cannot take this image, or memory that runs out with it.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        faults.append(reason if reason.startswith(name) else f"{name}: {reason}")
    return None
