"""From detection sets to batches: the data set and the Lightning data module."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from densenet_backbones.data.images import read_image
from densenet_backbones.data.loading import (
    ImageData,
    ResumableLoader,
    Scenes,
    Source,
    default_workers,
)
from densenet_backbones.data.samples import Categories, DetectionSet, ImageRecord, Sample
from densenet_backbones.data.sources import check_images, read_detection
from densenet_backbones.data.transforms import Augmentation, Preset

__all__ = [
    "DetectionData",
    "DetectionImages",
    "ResumableLoader",
    "Scenes",
    "Source",
    "default_workers",
]


class DetectionImages(Dataset[Any]):
    """Reads, augments and hands out the images of a `DetectionSet`.

    Args:
        detection_set: What to read.
        augmentation: Called as ``(image, boxes, labels, key)``; None hands out images as they are,
            which is what evaluation needs (the model resizes, as it does in use).
        seed: First part of the augmentation's key; the others are the epoch and the index, so
            that a sample depends on nothing else (workers, ranks and resuming change nothing).
    """

    def __init__(
        self,
        detection_set: DetectionSet,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.detection_set = detection_set
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.detection_set)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """The sample of an index, or of an ``(epoch, index)`` pair as `EpochSampler` gives."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.detection_set.records[index]
        image, boxes, labels = read_image(record.path), record.boxes, record.labels
        if self.augmentation is not None:
            image, boxes, labels = self.augmentation(
                image, boxes, labels, (self.seed, epoch, index)
            )
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            boxes=torch.from_numpy(np.asarray(boxes, np.float32).reshape(-1, 4).copy()),
            labels=torch.from_numpy(np.asarray(labels, np.int64).copy()),
            image_id=record.image_id,
            index=index,
        )


class DetectionData(ImageData[DetectionSet]):
    """Detection data in COCO or VOC layout, or the quick start's generated scenes.

    Args:
        root: Folder of the data set: COCO (`annotations/instances_*.json`) or VOC layout
            (`Annotations`, `ImageSets`, `JPEGImages`, or a VOCdevkit). None draws `scenes`.
        train_split: Name of the training split under `root`.
        val_split: Name of the split that is evaluated.
        train: Several (root, split) taken together as the training set, instead of `root` and
            `train_split`; their classes are unified by name.
        layout: "coco" or "voc"; "auto" recognises it.
        classes: Class names in label order; needed where sources differ, optional elsewhere.
        batch_size: Images a step and process.
        num_workers: Loader processes; None takes half of the cores, at most 8.
        augmentation: "ssd" (zoom-out, seven-sampler crop, photometric, flip), "light" or "none".
        seed: Order and augmentation are functions of (seed, epoch, index).
        fraction: Share of the training images used, from above 0 to 1.
        overfit_images: Train on the first N images (by id) of which a prior matches every object,
            without augmentation, and evaluate on the same N.
        strict: Refuse data with faulty boxes instead of leaving those out.
        check_images: Decode every image before training.
        scenes: What to draw when `root` is None.
    """

    def __init__(
        self,
        root: str | None = None,
        train_split: str = "train",
        val_split: str = "val",
        train: list[Source] | None = None,
        layout: Literal["auto", "coco", "voc"] = "auto",
        classes: list[str] | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        augmentation: Preset = "ssd",
        seed: int = 0,
        fraction: float = 1.0,
        overfit_images: int | None = None,
        strict: bool = False,
        check_images: bool = False,
        scenes: Scenes = Scenes(),  # noqa: B008 - never changed; lets --help show the defaults
    ) -> None:
        super().__init__(
            root=root,
            train_split=train_split,
            val_split=val_split,
            train=train,
            classes=classes,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            fraction=fraction,
            overfit_images=overfit_images,
            scenes=scenes,
        )
        self.layout, self.preset = layout, augmentation
        self.strict, self.check_images = strict, check_images

    @property
    def categories(self) -> Categories:
        """Classes of the training set."""
        return self.train_set.categories

    def class_names(self, data_set: DetectionSet) -> tuple[str, ...]:
        """Names in the order of the labels from 1 on."""
        return data_set.categories.names

    def use_classes(self, categories: Categories) -> None:
        """Read the evaluated split with the classes that a trained detector knows."""
        self.use_class_names(categories.names)

    def read_set(self, root: Any, split: str | None, classes: Sequence[str] | None) -> DetectionSet:
        """Read one split, or several sources; see `read_detection`."""
        found = read_detection(
            root,
            split,
            layout=self.layout,
            classes=classes,
            strict=self.strict,
            masks=False,  # boxes are all that is trained on and evaluated here
        )
        if self.check_images:
            check_images(found)
        return found

    def keep_for_overfitting(self, matched: Callable[[ImageRecord], bool]) -> None:
        """Reduce the training set to the `overfit_images` first images with `matched` objects."""
        self.keep_first(
            lambda record: len(record.boxes) > 0 and matched(record),
            "have objects of which a prior matches every one",
        )

    def training_images(self) -> Dataset[Any]:
        """Images of the model's size."""
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module.model
        preset: Preset = "none" if self.overfit_images is not None else self.preset
        augmentation = Augmentation(preset, model.image_size, fill=model.preprocessing.fill_color)
        return DetectionImages(self.train_set, augmentation, self.seed)

    def evaluated_images(self) -> Dataset[Any]:
        """Images of their own size."""
        return DetectionImages(self.val_set)
