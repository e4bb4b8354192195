"""From segmentation sets to batches: the data set and the Lightning data module."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from densenet_backbones.data.augment.segmentation import MaskPreset, SegmentationAugmentation
from densenet_backbones.data.images import read_image
from densenet_backbones.data.loading import ImageData, Scenes, Source
from densenet_backbones.data.mask_samples import MaskClasses, MaskSample, MaskTask, SegmentationSet
from densenet_backbones.data.mask_statistics import CHECKED_UP_TO, check_masks
from densenet_backbones.data.readers.detection_sources import check_images
from densenet_backbones.data.readers.segmentation_sources import MaskLayout, read_segmentation
from densenet_backbones.data.samples import DataError

MIN_CROP = 32  # pixels; a net of five halvings sees nothing in less


class SegmentationImages(Dataset[Any]):
    """Reads, augments and hands out the images and masks of a `SegmentationSet`.

    Args:
        segmentation_set: What to read.
        augmentation: Called as ``(image, mask, key)``; None hands out images as they are.
        seed: First part of the augmentation's key; the others are the epoch and the index, so
            that a sample depends on nothing else (workers, ranks and resuming change nothing).
    """

    def __init__(
        self,
        segmentation_set: SegmentationSet,
        augmentation: SegmentationAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.segmentation_set = segmentation_set
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.segmentation_set)

    def __getitem__(self, key: int | tuple[int, int]) -> MaskSample:
        """The sample of an index, or of an ``(epoch, index)`` pair as `EpochSampler` gives.

        Raises:
            DataError: If the image or the mask cannot be read, or they differ in size.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.segmentation_set.records[index]
        image, mask = read_image(record.path), record.read_mask()
        height, width = image.shape[:2]
        if (width, height) != (record.width, record.height):
            raise DataError(
                f"{record.path}: is {width}x{height} pixels as shown, its annotations say "
                f"{record.width}x{record.height}; annotate the image as it is shown"
            )
        if self.augmentation is not None:
            image, mask = self.augmentation(image, mask, (self.seed, epoch, index))
        return MaskSample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            mask=torch.from_numpy(np.ascontiguousarray(mask)),
            image_id=record.image_id,
            index=index,
            size=(height, width),
        )


class SegmentationData(ImageData[SegmentationSet]):
    """Images with masks in one of the known layouts, or the quick start's generated scenes.

    Batches are lists of `MaskSample`: crops of one size can be stacked, full-size images differ.

    Args:
        root: Folder of the data set: VOC's `SegmentationClass`, SBD, COCO instances or panoptic, or
            folders of images and masks (CamVid's, or any with a `classes.yaml`). None draws
            `scenes`.
        train_split: Name of the training split under `root`.
        val_split: Name of the split that is evaluated.
        train: Several (root, split) taken together as the training set, instead of `root` and
            `train_split`; their classes are unified by name.
        layout: "folders", "voc", "sbd", "coco_panoptic" or "coco_instances"; "auto" recognizes it.
        task: "multiclass", "binary" (two classes, one output) or "multilabel" (COCO instances).
        classes: Class names in label order; needed where sources differ, optional elsewhere.
        batch_size: Images a step and process.
        num_workers: Loader processes; None takes half of the cores, at most 8.
        augmentation: "light", "scale_crop", "fcdensenet_crop", "full_size" or "none".
        crop: (H, W) of training images in pixels, for the first three augmentations.
        seed: Order and augmentation are functions of (seed, epoch, index).
        fraction: Share of the training images used, from above 0 to 1.
        overfit_images: Train on the first N images (by id) without augmentation, and evaluate on
            the same N.
        strict: Refuse data with faults instead of working around them.
        check_masks: Read every mask before training. None does so for sets of up to 2000 images;
            faults of larger ones end the run when they are met. Files that were checked once are
            not read again until they change.
        check_images: Decode every image before training.
        scenes: What to draw when `root` is None.
    """

    def __init__(
        self,
        root: str | None = None,
        train_split: str = "train",
        val_split: str = "val",
        train: list[Source] | None = None,
        layout: MaskLayout = "auto",
        task: MaskTask = "multiclass",
        classes: list[str] | None = None,
        batch_size: int = 8,
        num_workers: int | None = None,
        augmentation: MaskPreset = "light",
        crop: tuple[int, int] = (224, 224),
        seed: int = 0,
        fraction: float = 1.0,
        overfit_images: int | None = None,
        strict: bool = False,
        check_masks: bool | None = None,
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
        if len(crop) != 2 or min(crop) < MIN_CROP:
            raise DataError(f"data.crop must be (H, W), each at least {MIN_CROP}, got {crop}")
        self.layout, self.task, self.preset, self.crop = layout, task, augmentation, crop
        self.strict = strict
        self.check_masks, self.check_images = check_masks, check_images

    @property
    def train_set(self) -> SegmentationSet:
        """The training images (read at first use), or those to overfit on."""
        first_use = "train" not in self._sets
        found = super().train_set
        if first_use and self.overfit_images is not None:
            self.keep_first(lambda record: True, "are there")
            found = super().train_set
        return found

    @property
    def mask_classes(self) -> MaskClasses:
        """Classes of the training set."""
        return self.train_set.classes

    def class_names(self, data_set: SegmentationSet) -> tuple[str, ...]:
        """Names in the order of the labels from 0 on."""
        return data_set.classes.names

    def use_classes(self, classes: MaskClasses) -> None:
        """Read the evaluated split with the classes that a trained model knows."""
        self.use_class_names(classes.names)

    def read_set(
        self, root: Any, split: str | None, classes: Sequence[str] | None
    ) -> SegmentationSet:
        """Read one split, or several sources, and check its masks; see `read_segmentation`."""
        found = read_segmentation(
            root, split, self.layout, task=self.task, classes=classes, strict=self.strict
        )
        if self.check_masks or (self.check_masks is None and len(found) <= CHECKED_UP_TO):
            check_masks(found)
        if self.check_images:
            check_images(found)
        return found

    def training_images(self) -> Dataset[Any]:
        """Crops of one size, or images of their own, as `augmentation` says."""
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module.model
        preset: MaskPreset = "none" if self.overfit_images is not None else self.preset
        augmentation = SegmentationAugmentation(
            preset, self.crop, fill=model.normalization.fill_color
        )
        return SegmentationImages(self.train_set, augmentation, self.seed)

    def evaluated_images(self) -> Dataset[Any]:
        """Images of their own size."""
        return SegmentationImages(self.val_set)
