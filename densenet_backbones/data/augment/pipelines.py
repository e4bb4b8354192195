"""Runs pipelines of albumentations that come from a list, which may be given other images.

Legend: H x W pixels.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A
import numpy as np

from densenet_backbones.data.augment.seeding import make_generator, reseed
from densenet_backbones.data.faults import DataError
from densenet_backbones.messages import describe_error, one_sentence

Key = tuple[int, ...]
MAX_REASON = 300  # letters; OpenCV's errors are pages


class Others(Sequence[dict[str, Any]]):
    """Other images for `A.Mosaic`, read when they are asked for.

    Args:
        read: Reads one, which random numbers choose.
        pipeline: What holds the mosaics; there are as many images as its largest grid takes.
        key: Decides which are read.
    """

    def __init__(
        self, read: Callable[[np.random.Generator], dict[str, Any]], pipeline: A.Compose, key: Key
    ) -> None:
        self.read, self.key = read, key
        self._length = _count_cells(pipeline) - 1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, n: Any) -> Any:
        """Read the nth image."""
        if not 0 <= n < self._length:
            raise IndexError(n)
        return self.read(make_generator((*self.key, n)))


def compose(steps: Sequence[Any], has_objects: bool = False) -> A.Compose:
    """Compose steps; with objects, boxes and keypoints have numbers, ``rows`` and ``points``."""
    options: dict[str, Any] = {}
    if has_objects:
        # Boxes and keypoints carry their row numbers, so that labels and dtypes are ours to keep.
        options["bbox_params"] = A.BboxParams(
            format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True
        )
        options["keypoint_params"] = A.KeypointParams(
            format="xy", label_fields=["points"], remove_invisible=False
        )
    with warnings.catch_warnings():  # of lists that change colors only: nothing moves boxes
        warnings.simplefilter("ignore")
        return A.Compose(list(steps), **options)


def run(pipeline: A.Compose, data: dict[str, Any], key: Key, name: str) -> dict[str, Any]:
    """Run a pipeline, its choices a function of the key.

    Args:
        pipeline: What to run.
        data: What it takes, by the names of albumentations.
        key: Whole numbers of at least 0.
        name: Of the image, for errors.

    Raises:
        DataError: If it fails on this image, or gives one that is not (H, W, 3) uint8.
    """
    height, width = data["image"].shape[:2]
    where = f"{name}: data.augmentation fails on this image of {width}x{height} pixels"
    reseed(pipeline, key)
    try:
        result: dict[str, Any] = pipeline(**data)
    except DataError:  # of another image, which names its own file
        raise
    except Exception as error:  # third-party code meets any image
        why = one_sentence(describe_error(error))
        if isinstance(error, KeyError):
            why = f"a transform needs {why}, which training has not"
        raise DataError(f"{where}: {why[:MAX_REASON]}; change the list") from error
    pixels = result["image"]
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DataError(
            f"{where}: what comes out is {pixels.shape} {pixels.dtype}, not (H, W, 3) uint8; leave "
            "out what changes the kind of the pixels"
        )
    return result


def _count_cells(steps: Any) -> int:
    """Return the number of cells of the largest mosaic in some steps, at least 1."""
    counts = [1]
    for step in steps:
        if isinstance(step, A.Mosaic):
            counts.append(step.grid_yx[0] * step.grid_yx[1])
        elif isinstance(step, A.BaseCompose):
            counts.append(_count_cells(step))
    return max(counts)
