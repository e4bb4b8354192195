"""Labelled images on the command line: the Lightning data module of classifiers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from densenet_backbones.data.augment.listing import build_steps
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.classification.augmentation import (
    ClassAugmentation,
    ClassPreset,
)
from densenet_backbones.data.classification.fitting import fit_image
from densenet_backbones.data.classification.reading import (
    ClassLayout,
    read_classes,
    recognize_classes,
)
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.image_sources import Sources
from densenet_backbones.data.images import read_reduced_image
from densenet_backbones.data.loading import BatchSize, ImageData, NamedBy
from densenet_backbones.data.recognition.recognize import Recognized
from densenet_backbones.data.samples import DetectionSet, Sample
from densenet_backbones.data.sets.splitting import select_images


class LabelledImages(Dataset[Sample]):
    """Reads, augments and hands out labelled images, all of one size.

    Args:
        labelled: What to read.
        size: Pixels of the square's side.
        crop_pct: See `fit_image`.
        augmentation: Called as ``(image, key, name)``; None fits images as evaluation does.
        seed: First part of the augmentation's key; the others are the epoch and the index.
    """

    def __init__(
        self,
        labelled: DetectionSet,
        size: int,
        crop_pct: float,
        augmentation: ClassAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.labelled, self.size, self.crop_pct = labelled, size, crop_pct
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the sample of an index, or of an ``(epoch, index)`` pair as `EpochSampler` gives.

        Raises:
            DataError: If the image cannot be read, or the augmentation fails on it.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.labelled.records[index]
        side = round(2 * self.size / self.crop_pct)  # photos need not be decoded any larger
        promised = (record.width, record.height)
        image, _ = read_reduced_image(record.path, (side, side), promised)
        if self.augmentation is None:
            image = fit_image(image, self.size, self.crop_pct)
        else:
            image = self.augmentation(image, (self.seed, epoch, index), str(record.path))
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            boxes=torch.tensor([[0.0, 0.0, image.shape[1], image.shape[0]]]),
            labels=torch.from_numpy(record.labels[:1].copy()),
            image_id=record.image_id,
            index=index,
        )


@dataclass(eq=False, repr=False)
class ClassificationData(ImageData[DetectionSet, Sample]):
    """Labelled images in one of the known layouts, or the objects of the quick start's scenes.

    Args:
        layout: "folders" (a folder of images for each class, with or without splits above them),
            "csv" (a table with the columns image and class, perhaps split), "cifar" (CIFAR-10 and
            CIFAR-100 as published, pickles or binary), or "crops" (the boxes of detection data);
            "auto" recognizes the first three.
        augmentation: "cifar", "light", "imagenet" or "none", see `ClassAugmentation`; or a list of
            transforms of albumentations like {name: HorizontalFlip, p: 0.5}.
    """

    batch_size: BatchSize = 64
    layout: ClassLayout = "auto"
    augmentation: ClassPreset | list[dict[str, Any]] = "light"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.augmentation, str):
            build_steps(self.augmentation)  # wrong entries are known before any data is read

    @property
    def train_set(self) -> DetectionSet:
        """The training images (read at first use), or those to overfit on."""
        first_use = "train" not in self._sets
        data_set = super().train_set
        if first_use and self.overfit_images is not None:
            self.keep_first(lambda record: True)
            data_set = super().train_set
        return data_set

    @property
    def categories(self) -> Categories:
        """Classes of the training set."""
        return self.train_set.categories

    def name_classes(self, data_set: DetectionSet) -> tuple[str, ...]:
        """Return the names in label order."""
        return data_set.categories.names

    def use_classes(self, names: Sequence[str]) -> None:
        """Read the evaluated split with the classes that a trained model knows."""
        self.use_class_names(names)

    def recognize_data(self, path: str) -> Recognized:
        """Recognize what lies at a path; the drawn scenes give crops."""
        layout: ClassLayout = "crops" if self.root is None else self.layout
        return recognize_classes(path, layout, self.annotation_file)

    def read_set(self, sources: Sources, classes: Sequence[str] | None) -> DetectionSet:
        """Read one split, or several sources; see `read_classes`."""
        plain = [dict(source) for source in sources]
        labelled = self.leave_out_unreadable(
            lambda: read_classes(plain, self.layout, classes, self.strict)
        )
        return self.look_at_images(labelled)

    def read_changed(
        self,
        sources: Sources,
        classes: Sequence[str] | None,
        *,
        named_by: NamedBy = "training",
    ) -> DetectionSet:
        """Read splits; images of classes that the options leave out go with them."""
        labelled = super().read_changed(sources, classes, named_by=named_by)
        counts = np.diff(labelled.packed.columns.box_ends, prepend=0)
        return labelled if counts.all() else select_images(labelled, np.flatnonzero(counts))

    def make_training_images(self) -> LabelledImages:
        """Return augmented squares of the network's size."""
        size, crop_pct = self._take_input()
        preset = "none" if self.overfit_images is not None else self.augmentation
        augmentation = ClassAugmentation(preset, size, crop_pct)
        return LabelledImages(self.train_set, size, crop_pct, augmentation, self.seed)

    def make_evaluated_images(self) -> LabelledImages:
        """Return the middle square of each image."""
        return LabelledImages(self.val_set, *self._take_input())

    def _take_input(self) -> tuple[int, float]:
        size = self.known_input.size
        if size is None:
            raise DataError("a classifier says the size of its images")
        return size[0], self.known_input.crop_pct
