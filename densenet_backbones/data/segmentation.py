"""Segmentation data on the command line: the Lightning data module of images with masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from densenet_backbones.data.augment.listed_masks import ListedMaskAugmentation
from densenet_backbones.data.augment.listing import build_steps
from densenet_backbones.data.augment.seeding import draw_other
from densenet_backbones.data.augment.segmentation import MaskPreset, SegmentationAugmentation
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.image_sources import Sources
from densenet_backbones.data.images import read_image
from densenet_backbones.data.loading import BatchSize, ImageData
from densenet_backbones.data.mask_samples import MaskClasses, MaskSample, MaskTask, SegmentationSet
from densenet_backbones.data.masks.statistics import check_masks, thin_out
from densenet_backbones.data.readers.masks.classes_file import CLASSES_FILE
from densenet_backbones.data.readers.masks.files import has_unknown_classes
from densenet_backbones.data.readers.segmentation_sources import MaskLayout, read_segmentation
from densenet_backbones.data.recognition.recognize import Recognized, recognize
from densenet_backbones.file_writing import save_bytes

MIN_CROP = 32  # pixels; a net of five halvings sees nothing in less


class SegmentationImages(Dataset[MaskSample]):
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
        augmentation: SegmentationAugmentation | ListedMaskAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.segmentation_set = segmentation_set
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.segmentation_set)

    def __getitem__(self, key: int | tuple[int, int]) -> MaskSample:
        """Return the sample of an index, or of an ``(epoch, index)`` pair as `EpochSampler` gives.

        Raises:
            DataError: If the image or the mask cannot be read, or they differ in size.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.segmentation_set.records[index]
        image, mask = self._read(index)
        height, width = image.shape[:2]
        sample_key = (self.seed, epoch, index)
        if isinstance(self.augmentation, ListedMaskAugmentation):

            def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
                return self._read(draw_other(index, len(self), rng))

            image, mask = self.augmentation(image, mask, sample_key, draw, str(record.path))
        elif self.augmentation is not None:
            image, mask = self.augmentation(image, mask, sample_key)
        return MaskSample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            mask=torch.from_numpy(np.ascontiguousarray(mask)),
            image_id=record.image_id,
            index=index,
            size=(height, width),
        )

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        record = self.segmentation_set.records[index]
        # Sizes are checked at each reading, since a file may have changed since the set was made.
        return read_image(record.path, (record.width, record.height)), record.read_mask()


@dataclass(eq=False, repr=False)
class SegmentationData(ImageData[SegmentationSet, MaskSample]):
    """Images with masks in one of the known layouts, or the quick start's generated scenes.

    Batches are lists of `MaskSample`: crops of one size can be stacked, full-size images differ.

    Args:
        layout: "folders" of images and masks (CamVid's, or any with a `classes.yaml`), "voc"
            (`SegmentationClass`), "sbd", "coco_panoptic", or outlines of objects: "coco_instances",
            "yolo", "labelme", "cvat", "via"; "auto" recognizes it.
        task: "multiclass", "binary" (two classes, one output) or "multilabel" (COCO instances).
        augmentation: "light", "scale_crop", "fcdensenet_crop", "full_size" or "none"; or a list of
            transforms of albumentations like {name: HorizontalFlip, p: 0.5}.
        crop: (H, W) of training images in pixels, for the first three augmentations and lists.
        write_classes: Write the `classes.yaml` that is proposed for images and masks without one,
            in which classes can be named.
        check_masks: Read every mask before training. None does so for sets of up to 2000 images,
            and looks at 200 masks of larger ones, whose other faults end the run when they are met.
            Files that were checked once are not read again until they change.
    """

    batch_size: BatchSize = 8
    layout: MaskLayout = "auto"
    task: MaskTask = "multiclass"
    augmentation: MaskPreset | list[dict[str, Any]] = "light"
    crop: tuple[int, int] = (224, 224)
    write_classes: bool = False
    check_masks: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.crop) != 2 or min(self.crop) < MIN_CROP:
            raise DataError(f"data.crop must be (H, W), each at least {MIN_CROP}, got {self.crop}")
        if not isinstance(self.augmentation, str):
            build_steps(self.augmentation)  # wrong entries are known before any data is read

    @property
    def train_set(self) -> SegmentationSet:
        """The training images (read at first use), or those to overfit on."""
        first_use = "train" not in self._sets
        data_set = super().train_set
        if first_use and self.overfit_images is not None:
            self.keep_first(lambda record: True)
            data_set = super().train_set
        return data_set

    @property
    def mask_classes(self) -> MaskClasses:
        """Classes of the training set."""
        return self.train_set.classes

    def name_classes(self, data_set: SegmentationSet) -> tuple[str, ...]:
        """Return the names in the order of the labels from 0 on."""
        return data_set.classes.names

    def use_classes(self, classes: MaskClasses) -> None:
        """Read the evaluated split with the classes that a trained model knows."""
        self.use_class_names(classes.names)

    def recognize_data(self, path: str) -> Recognized:
        """Recognize what lies at a path; see `recognize`."""
        recognized = recognize(
            path,
            "segmentation",
            layout=self.layout,
            annotation_file=self.annotation_file,
            image_folder=self.image_folder,
        )
        proposal = recognized.splits[0].source.get("classes_yaml")
        if self.write_classes and proposal is not None:
            # It is read again, so that a name that is no text must not be spelled in it.
            save_bytes(recognized.root / CLASSES_FILE, proposal.encode("utf-8"))
        return recognized

    def read_set(self, sources: Sources, classes: Sequence[str] | None) -> SegmentationSet:
        """Read one split, or several sources, and check its masks; see `read_segmentation`."""
        data_set = self.leave_out_unreadable(
            lambda: read_segmentation(
                sources, layout=self.layout, task=self.task, classes=classes, strict=self.strict
            )
        )
        skip, part = self.bad_images == "skip", thin_out(data_set)
        is_small = self.check_masks is None and part is data_set
        # Classes that the model does not know must not be met in the middle of a training.
        if self.check_masks or is_small or has_unknown_classes(data_set):
            data_set = check_masks(data_set, skip=skip)
        elif self.check_masks is None and not skip:
            check_masks(part)
        return self.look_at_images(data_set)

    def make_training_images(self) -> SegmentationImages:
        """Return crops of one size, or images of their own, as `augmentation` says."""
        preset = "none" if self.overfit_images is not None else self.augmentation
        fill = self.known_input.fill_color
        augmentation: SegmentationAugmentation | ListedMaskAugmentation
        if isinstance(preset, str):
            augmentation = SegmentationAugmentation(preset, self.crop, fill=fill)
        else:
            augmentation = ListedMaskAugmentation(
                preset, self.crop, fill=fill, has_planes=self.task == "multilabel"
            )
        return SegmentationImages(self.train_set, augmentation, self.seed)

    def make_evaluated_images(self) -> SegmentationImages:
        """Return images of their own size."""
        return SegmentationImages(self.val_set)
