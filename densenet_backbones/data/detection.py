"""Detection data on the command line: the Lightning data module of boxes, masks and keypoints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from densenet_backbones.data.augment.listing import Entries, build_steps
from densenet_backbones.data.augment.presets import (
    AnyPreset,
    choose_augmentation,
    scales_images,
)
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.detection_images import DetectionImages
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.image_sources import Sources
from densenet_backbones.data.instances import (
    TargetType,
    keep_images_with_keypoints,
    keep_learnable_objects,
    order_keypoints,
)
from densenet_backbones.data.loaders.image_checks import check_present_sizes
from densenet_backbones.data.loading import ImageData
from densenet_backbones.data.mask_samples import MaskRecord
from densenet_backbones.data.readers.detection_sources import Layout, read_detection
from densenet_backbones.data.recognition.recognize import Recognized, recognize
from densenet_backbones.data.samples import DetectionSet, ImageRecord, Sample


@dataclass(eq=False, repr=False)
class DetectionData(ImageData[DetectionSet, Sample]):
    """Detection data in any layout, or the quick start's generated scenes.

    Args:
        layout: "coco" (JSON), "voc" (XML), "yolo", "labelme", "cvat" (XML), "via" or "csv"; "auto"
            recognizes it.
        augmentation: "ssd" (zoom-out, seven-sampler crop, photometric, flip) or "light", for boxes
            and detectors of one image size; "flip"; for detectors that take images of any size
            "multiscale" (shortest side 0.8 to 1 of the detector's own, flip); "lsj" (large-scale
            jitter: 0.1 to 2 times the size, on a canvas of one size, flip); "none"; or a list of
            transforms of albumentations like {name: HorizontalFlip, p: 0.5}, Mosaic, and MixUp.
        copy_paste: With "lsj" and masks: paste objects of another image on each.
        jitter_size: Side of the square canvas of "lsj" in pixels. None takes the detector's image
            size, or 1024 for a shortest side of 800 and in proportion.
        target_types: Annotations to train on and evaluate: "boxes", and "masks" or "keypoints".
            Images on which no keypoint is labelled teach none, and are left out of that training.
        group_by_shape: Make batches of portrait and of landscape images apart. None does so where
            the detector is given images of their own shapes.

    Attributes:
        needs_images: False reads annotations whose image files may be missing; those that are there
            have the sizes that the annotations say.
    """

    layout: Layout = "auto"
    augmentation: AnyPreset | list[dict[str, Any]] = "ssd"
    copy_paste: bool = False
    jitter_size: int | None = None
    target_types: Sequence[TargetType] = ("boxes",)
    group_by_shape: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jitter_size is not None and self.jitter_size < 1:
            raise DataError(f"data.jitter_size must be at least 1 pixel, got {self.jitter_size}")
        if not isinstance(self.augmentation, str):
            build_steps(self.augmentation)  # wrong entries are known before any data is read
        self.target_types = tuple(self.target_types)
        self.needs_images = True

    @property
    def train_set(self) -> DetectionSet:
        """The training images (read at first use)."""
        first_use = "train" not in self._sets
        data_set = super().train_set
        if first_use and "keypoints" in self.target_types:
            data_set = self._sets["train"] = keep_images_with_keypoints(data_set)
        return data_set

    @property
    def val_set(self) -> DetectionSet:
        """The evaluated images (read at first use): labels and keypoints are the training's."""
        first_use = "val" not in self._sets
        data_set = super().val_set
        if first_use and self.overfit_images is None:
            data_set = self._sets["val"] = self._name_keypoints(data_set, self.categories)
        return data_set

    @property
    def categories(self) -> Categories:
        """Classes of the training set."""
        return self.train_set.categories

    def name_classes(self, data_set: DetectionSet) -> tuple[str, ...]:
        """Return the names in the order of the labels from 1 on."""
        return data_set.categories.names

    def use_classes(self, categories: Categories) -> None:
        """Read the evaluated split with the classes that a trained detector knows."""
        self.use_class_names(categories.names)
        self._sets["val"] = self._name_keypoints(self._sets["val"], categories)

    def _name_keypoints(self, data_set: DetectionSet, model: Categories) -> DetectionSet:
        """Put a set's keypoints in the model's order, if they are learned."""
        learned = "keypoints" in self.target_types
        return order_keypoints(data_set, model) if learned else data_set

    def recognize_data(self, path: str) -> Recognized:
        """Recognize what lies at a path; see `recognize`."""
        return recognize(
            path,
            "detection",
            layout=self.layout,
            annotation_file=self.annotation_file,
            image_folder=self.image_folder,
        )

    def read_set(self, sources: Sources, classes: Sequence[str] | None) -> DetectionSet:
        """Read one split, or several sources; see `read_detection`."""
        data_set = self.leave_out_unreadable(
            lambda: read_detection(
                sources,
                layout=self.layout,
                classes=classes,
                strict=self.strict,
                masks="masks" in self.target_types,
                keypoints="keypoints" in self.target_types,
                need_images=self.needs_images,
            )
        )
        data_set = keep_learnable_objects(data_set, self.target_types, self.strict)
        if self.needs_images:
            return self.look_at_images(data_set)
        check_present_sizes(data_set)
        return data_set

    def keep_for_overfitting(
        self, has_all_matched: Callable[[ImageRecord], bool] | None = None
    ) -> None:
        """Reduce the training set to the `overfit_images` first images that have objects.

        Args:
            has_all_matched: Returns True if a prior of the detector matches every object of an
                image; other images are passed over. None for detectors that can match any object.
        """

        def is_usable(record: ImageRecord | MaskRecord) -> bool:
            assert isinstance(record, ImageRecord)
            return len(record.boxes) > 0 and (has_all_matched is None or has_all_matched(record))

        prior = " of which a prior matches every one" if has_all_matched else ""
        self.keep_first(is_usable, f" with objects{prior}")

    def make_training_images(self) -> DetectionImages:
        """Return images of the model's size, of their own, or as the augmentation scales them.

        Raises:
            DataError: If the model learns what the data was not read with, or the augmentation
                does not fit it.
        """
        # The model says what it learns from; the data can give only what was read.
        target_types = self.known_input.target_types or tuple(self.target_types)
        missing = [name for name in target_types if name not in self.target_types]
        if missing:
            raise DataError(
                f"the detector learns {' and '.join(target_types)}, but data.target_types is "
                f"{list(self.target_types)}; add {' and '.join(missing)}"
            )
        augmentation = choose_augmentation(
            self.known_input,
            self._training_preset,
            target_types,
            jitter_size=self.jitter_size,
            other_side=self.categories.mirrored_keypoints,
        )
        copy_paste = self.copy_paste and self.overfit_images is None
        return DetectionImages(self.train_set, augmentation, self.seed, target_types, copy_paste)

    def make_evaluated_images(self) -> DetectionImages:
        """Return images of their own size, or smaller where the model would make them so."""
        kinds = tuple(self.target_types)
        at_least = self.model_input.choose_read_size(kinds) if self.model_input else None
        return DetectionImages(self.val_set, target_types=kinds, at_least=at_least)

    def group_images(self) -> Sequence[int] | None:
        """Return 1 for each portrait, 0 for others, where batches are not to mix them."""
        own_shapes = self.known_input.size is None and self._training_preset != "lsj"
        grouped = own_shapes if self.group_by_shape is None else self.group_by_shape
        width, height = self.train_set.packed.columns.sizes.T
        return (height > width).astype(int).tolist() if grouped else None

    @property
    def scales_training_images(self) -> bool:
        """True if the augmentation scales images, so that the model must not in training."""
        return scales_images(self.known_input, self._training_preset)

    @property
    def _training_preset(self) -> AnyPreset | Entries:
        return "none" if self.overfit_images is not None else self.augmentation
