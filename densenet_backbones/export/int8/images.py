"""Images that an exported file is calibrated on."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import track_progress
from densenet_backbones.inference.classifier import ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.exported.models import fit_images
from densenet_backbones.inference.inputs.image_tensors import to_float
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.messages import pluralize
from densenet_backbones.reporting.console import say
from densenet_backbones.training.evaluation.evaluating import plan_evaluation


class CalibrationImages:
    """Inputs of an exported file, (1, 3, H, W) float32 RGB in 0..1; read anew at each pass.

    So memory does not grow with their number.

    Args:
        samples: Images by index, as an evaluation reads them.
        chosen: Indices of those to take.
        size: (H, W) of all inputs; None for the images' own.
    """

    def __init__(self, samples: Any, chosen: Sequence[int], size: Sequence[int] | None) -> None:
        self.samples, self.chosen = samples, tuple(chosen)
        self.size = None if size is None else (size[0], size[1])

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> np.ndarray:
        image = to_float(self.samples[self.chosen[place]].image)[None]
        return fit_images(image, self.size).numpy()

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[place] for place in range(len(self)))


def choose_images(
    model: Detector | SegmentationModel | ImageClassifier,
    options: Namespace,
    folders: list[Path],
    *,
    count: int,
    seed: int,
    size: Sequence[int] | None,
) -> CalibrationImages:
    """Choose images of a split at random, and leave out those that cannot be used.

    Args:
        model: The trained model, whose pre-processing decides how images are read.
        options: Options of an evaluation of the split.
        folders: As of `plan_evaluation`.
        count: Most images.
        seed: Of the choice.
        size: As of `CalibrationImages`.

    Raises:
        DataError: The data is wrong, or none of its images can be used.
    """
    task, data, _ = plan_evaluation(model, options, folders)
    data.model_input = task.describe_input()
    samples: Any = data.make_evaluated_images()
    order = np.random.default_rng(seed).permutation(len(samples))[:count].tolist()
    usable, faults = [], []
    for index in track_progress(order, "Reading images", from_count=16):
        try:
            samples[index]
        except DataError as error:
            faults.append(str(error))
        else:
            usable.append(index)
    if not usable:
        raise DataError(
            f"{data.val_set.name}: none of {pluralize(len(order), 'image')} can be used to "
            f"calibrate{': ' + faults[0] if faults else ''}"
        )
    say(*(f"left out: {fault}" for fault in faults[:5]))
    say(
        f"Calibrated on {len(usable)} of {pluralize(len(samples), 'image')} of {data.val_set.name}."
    )
    return CalibrationImages(samples, usable, size)
