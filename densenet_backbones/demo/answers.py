"""Run the page's models on an uploaded file, and draw what they found from a score on.

A model runs once on a file. Another score or other classes only choose among what it found.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image, read_image_size
from densenet_backbones.data.mask_samples import IGNORED
from densenet_backbones.file_writing import save_json
from densenet_backbones.inference.classifier import ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.inputs.image_tensors import convert_image
from densenet_backbones.inference.results.base import ImageResult
from densenet_backbones.inference.results.classification import Classification, describe_classes
from densenet_backbones.inference.results.detections import Detections
from densenet_backbones.inference.results.formats import to_json
from densenet_backbones.inference.results.segmentation import Segmentation, describe_regions
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.reporting.pictures import save_picture, scale_image

MOST_BYTES = 100 * 2**20
"""Bytes of a file: photographs have 10 MB, a minute of a phone's video 60 to 100."""

MOST_PIXELS = 25_000_000
"""Pixels of a picture: what a model found in it is held in memory, 8 bytes a pixel and model."""

LARGEST_PICTURE = 2048
"""Most pixels of the longer side of a drawn picture."""

_SMALLEST_PICTURE = 640  # pixels of the longer side, so that names can be read
AnyPredictor = Detector | SegmentationModel | ImageClassifier
_TILE = 2048  # sides of the parts in which a segmenter takes a larger picture


@dataclass(frozen=True)
class Model:
    """A model of the page.

    Attributes:
        title: Its name on the page.
        predictor: The model itself.
    """

    title: str
    predictor: AnyPredictor

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its classes."""
        return self.predictor.spec.class_names

    @property
    def default_score(self) -> float:
        """Score that it is shown from at first; only detectors find what is better left out."""
        return self.predictor.score_thresh if isinstance(self.predictor, Detector) else 0.0


@dataclass(frozen=True)
class Answer:
    """All that the models found in a picture or a video.

    Attributes:
        file: The file.
        frames: Results of each frame, one a model; of a picture one frame. Those of a video are
            without their images, which are read again to be drawn on.
        step: Every how many frames of a video were looked at; None for a picture.
    """

    file: Path
    frames: tuple[tuple[ImageResult, ...], ...]
    step: int | None = None


def find_in_picture(models: Sequence[Model], file: Path) -> Answer:
    """Run the models on a picture.

    Raises:
        DataError: The file cannot be decoded, or has too many pixels.
    """
    width, height = read_image_size(file)
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{file}: has {width}x{height} pixels, this page takes up to "
            f"{MOST_PIXELS // 1_000_000} million; save it smaller"
        )
    return Answer(file, (tuple(_predict(model.predictor, file) for model in models),))


def _predict(predictor: AnyPredictor, file: Path) -> ImageResult:
    if isinstance(predictor, Detector):
        return predictor.predict(file, 0.0)
    if isinstance(predictor, ImageClassifier):
        return predictor.predict(file)
    return predictor.predict(read_image(file), _TILE)


def select(result: ImageResult, score: float, classes: Collection[str]) -> ImageResult:
    """Return what was found from a score on.

    Args:
        result: All of it.
        score: In [0, 1]. Of a segmentation, pixels below it are left as they are; of a
            classification, less probable classes are left out.
        classes: Names of the classes to keep; none for all.
    """
    if isinstance(result, Detections):
        rows = zip(result.names, result.scores.tolist(), strict=True)
        return result[[s >= score and (not classes or name in classes) for name, s in rows]]
    if isinstance(result, Classification):
        kept = [not classes or name in classes for name in result.names]
        return replace(result, scores=np.where(kept & (result.scores >= score), result.scores, 0))
    assert isinstance(result, Segmentation)
    hidden = [label for label, name in enumerate(result.names) if classes and name not in classes]
    if result.labels.ndim == 3:
        labels = np.where(result.scores < score, 0, result.labels).astype(np.uint8)
        labels[hidden] = 0
    else:
        left_out = (result.scores < score) | np.isin(result.labels, hidden)
        labels = np.where(left_out, IGNORED, result.labels).astype(np.uint8)
    return replace(result, labels=labels)


def draw(result: ImageResult) -> np.ndarray:
    """Return the picture of a result; small images are enlarged before they are drawn on."""
    times = _SMALLEST_PICTURE // max(result.size)
    if times < 2 or result.image is None:
        return result.plot(largest=LARGEST_PICTURE)
    image = convert_image(scale_image(result.image.read_whole(), times))
    if isinstance(result, Detections):
        points = result.keypoints
        if points is not None:
            points = points * torch.tensor([times, times, 1])
        larger = replace(result, boxes=result.boxes * times, keypoints=points, image=image)
        return larger.plot()  # which fits masks to the picture
    if isinstance(result, Classification):
        return replace(result, image=image).plot()
    assert isinstance(result, Segmentation)
    labels, scores = (
        values.repeat(times, axis=-1).repeat(times, axis=-2)
        for values in (result.labels, result.scores)
    )
    return replace(result, labels=labels, scores=scores, image=image).plot()


def summarize(result: ImageResult) -> str:
    """Return a line about what was found: ``3 dog, 1 cat``."""
    classes = ", ".join(f"{count} {name}" for name, count in result.count_classes().items())
    return classes or "nothing from this score on"


def describe(result: ImageResult) -> dict[str, Any]:
    """Return a result for JSON."""
    if isinstance(result, Detections):
        return {"detections": to_json(result)["detections"]}
    if isinstance(result, Classification):
        return {"classes": describe_classes(result)}
    assert isinstance(result, Segmentation)
    return {"classes": describe_regions(result)}


def save_answer(
    answer: Answer, number: int, score: float, classes: Collection[str], stem: Path
) -> tuple[Path, Path, str]:
    """Write what a model found in a picture, from a score on.

    Args:
        answer: All that was found.
        number: Place of the model.
        score: See `select`.
        classes: See `select`.
        stem: Path of the files without their endings.

    Returns:
        The picture, the JSON file, and a line about what was found.
    """
    chosen = select(answer.frames[0][number], score, classes)
    picture, described = Path(f"{stem}.png"), Path(f"{stem}.json")
    save_picture(picture, draw(chosen))
    height, width = chosen.size
    entry = {"file": answer.file.name, "width": width, "height": height, "score_from": score}
    save_json(described, {**entry, **describe(chosen)})
    return picture, described, summarize(chosen)
