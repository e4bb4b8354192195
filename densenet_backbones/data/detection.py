"""From detection sets to batches: the Lightning data module."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch.utils.data import Dataset

from densenet_backbones.data.augment.presets import (
    AnyPreset,
    augmentation_for,
    image_size_of,
)
from densenet_backbones.data.detection_images import DetectionImages
from densenet_backbones.data.instances import (
    TargetType,
    keep_images_with_keypoints,
    keep_learnable_objects,
)
from densenet_backbones.data.loading import (
    ImageData,
    ResumableLoader,
    Scenes,
    Source,
    default_workers,
)
from densenet_backbones.data.readers.detection_sources import check_images, read_detection
from densenet_backbones.data.samples import Categories, DataError, DetectionSet, ImageRecord

__all__ = [
    "DetectionData",
    "DetectionImages",
    "ResumableLoader",
    "Scenes",
    "Source",
    "default_workers",
]


class DetectionData(ImageData[DetectionSet]):
    """Detection data in COCO or VOC layout, or the quick start's generated scenes.

    Args:
        root: Folder of the data set: COCO (`annotations/instances_*.json`) or VOC layout
            (`Annotations`, `ImageSets`, `JPEGImages`, or a VOCdevkit). None draws `scenes`.
        train_split: Name of the training split under `root`.
        val_split: Name of the split that is evaluated.
        train: Several (root, split) taken together as the training set, instead of `root` and
            `train_split`; their classes are unified by name.
        layout: "coco" or "voc"; "auto" recognizes it.
        classes: Class names in label order; needed where sources differ, optional elsewhere.
        batch_size: Images a step and process.
        num_workers: Loader processes; None takes half of the cores, at most 8.
        augmentation: "ssd" (zoom-out, seven-sampler crop, photometric, flip) or "light", for boxes
            and detectors of one image size; "flip"; for detectors that take images of any size
            "multiscale" (shortest side 0.8 to 1 of the detector's own, flip); "lsj" (large-scale
            jitter: 0.1 to 2 times the size, on a canvas of one size, flip); or "none".
        copy_paste: With "lsj" and masks: paste objects of another image on each.
        jitter_size: Side of the square canvas of "lsj" in pixels. None takes the detector's image
            size, or 1024 for a shortest side of 800 and in proportion.
        target_types: Annotations to train on and evaluate: "boxes", and "masks" or "keypoints";
            None: boxes.
            Images on which no keypoint is labelled teach none, and are left out of that training.
        group_by_shape: Make batches of portrait and of landscape images apart. None does so where
            the detector is given images of their own shapes.
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
        augmentation: AnyPreset = "ssd",
        copy_paste: bool = False,
        jitter_size: int | None = None,
        target_types: list[TargetType] | None = None,
        group_by_shape: bool | None = None,
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
        if jitter_size is not None and jitter_size < 1:
            raise DataError(f"data.jitter_size must be at least 1 pixel, got {jitter_size}")
        self.layout, self.preset = layout, augmentation
        self.copy_paste, self.jitter_size = copy_paste, jitter_size
        self.target_types, self.group_by_shape = tuple(target_types or ("boxes",)), group_by_shape
        self.strict, self.check_images = strict, check_images

    @property
    def train_set(self) -> DetectionSet:
        """The training images (read at first use)."""
        first_use = "train" not in self._sets
        found = super().train_set
        if first_use and "keypoints" in self.target_types:
            found = self._sets["train"] = keep_images_with_keypoints(found)
        return found

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
            masks="masks" in self.target_types,
            keypoints="keypoints" in self.target_types,
        )
        found = keep_learnable_objects(found, self.target_types, self.strict)
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
        """Images of the model's size, of their own, or as the augmentation scales them.

        Raises:
            DataError: If the model learns what the data was not read with, or the augmentation
                does not fit it.
        """
        target_types = tuple(getattr(self._model, "target_types", self.target_types))
        missing = [what for what in target_types if what not in self.target_types]
        if missing:
            raise DataError(
                f"the detector learns {' and '.join(target_types)}, but data.target_types is "
                f"{list(self.target_types)}; add {' and '.join(missing)}"
            )
        augmentation = augmentation_for(
            self._model,
            self._training_preset,
            target_types,
            jitter_size=self.jitter_size,
            other_side=self.categories.mirrored_keypoints,
        )
        copy_paste = self.copy_paste and self.overfit_images is None
        return DetectionImages(self.train_set, augmentation, self.seed, target_types, copy_paste)

    def evaluated_images(self) -> Dataset[Any]:
        """Images of their own size."""
        return DetectionImages(self.val_set, target_types=self.target_types)

    def groups(self) -> Sequence[int] | None:
        """1 for each portrait, 0 for others, where batches are not to mix them."""
        own_shapes = image_size_of(self._model) is None and self._training_preset != "lsj"
        grouped = own_shapes if self.group_by_shape is None else self.group_by_shape
        return [int(r.height > r.width) for r in self.train_set.records] if grouped else None

    @property
    def _model(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module.model

    @property
    def _training_preset(self) -> AnyPreset:
        return "none" if self.overfit_images is not None else self.preset
