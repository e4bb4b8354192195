"""Make samples of the records of a detection set: read, augment, and turn into tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from densenet_backbones.data.augment.copy_paste import paste_objects
from densenet_backbones.data.augment.detection import Augmentation
from densenet_backbones.data.augment.instances import InstanceAugmentation
from densenet_backbones.data.augment.listed import ListedAugmentation
from densenet_backbones.data.augment.seeding import draw_other, make_generator
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_reduced_image
from densenet_backbones.data.instances import Instances, read_instances
from densenet_backbones.data.samples import DetectionSet, ImageRecord, Sample


class DetectionImages(Dataset[Sample]):
    """Reads, augments and hands out the images of a `DetectionSet`.

    Args:
        detection_set: What to read.
        augmentation: Of the image and its objects, by a key; None hands out images as they are,
            which is what evaluation needs (the model resizes, as it does in use).
        seed: First part of the augmentation's key; the others are the epoch and the index, so
            that a sample depends on nothing else (workers, ranks and resuming change nothing).
        target_types: What samples have besides labels: "boxes", "masks", "keypoints".
        copy_paste: Paste objects of another image on each; needs masks, and an augmentation that
            makes images of one size.
        at_least: Without augmentation: (H, W) that images need not exceed, so that larger ones may
            be handed out at a half, a quarter, … of their size; None for their full size.

    Raises:
        DataError: If masks or keypoints meet an augmentation that knows boxes only, or
            `copy_paste` lacks what it needs.
    """

    def __init__(
        self,
        detection_set: DetectionSet,
        augmentation: Augmentation | InstanceAugmentation | ListedAugmentation | None = None,
        seed: int = 0,
        target_types: Sequence[str] = ("boxes",),
        copy_paste: bool = False,
        at_least: tuple[int, int] | None = None,
    ) -> None:
        if isinstance(augmentation, Augmentation) and {"masks", "keypoints"} & set(target_types):
            raise DataError(
                f"data.augmentation {augmentation.preset!r} knows boxes only, but the detector "
                f"learns {' and '.join(target_types)}; choose flip, lsj or none"
            )
        jitters = isinstance(augmentation, InstanceAugmentation) and augmentation.preset == "lsj"
        if copy_paste and not (jitters and "masks" in target_types):
            raise DataError(
                "data.copy_paste needs a detector that learns masks and data.augmentation 'lsj'; "
                "give both, or leave it out"
            )
        self.detection_set = detection_set
        self.augmentation = augmentation
        self.seed = seed
        self.target_types, self.copy_paste = tuple(target_types), copy_paste
        self.at_least = at_least if augmentation is None else None

    def __len__(self) -> int:
        return len(self.detection_set)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the sample of an index, or of an ``(epoch, index)`` pair as `EpochSampler` gives.

        Raises:
            DataError: If the image or a mask cannot be read, or has another size than promised.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        factor = 1
        if self.augmentation is None:
            image, objects, factor = self._read(self.detection_set.records[index])
        else:
            image, objects = self._augmented(index, (self.seed, epoch, index))
        if self.copy_paste:
            rng = make_generator((self.seed, epoch, index, 1))
            other = draw_other(index, len(self), rng)
            partner = self._augmented(other, (self.seed, epoch, index, 2))
            image, objects = paste_objects(image, objects, *partner, rng)
        masks, keypoints = objects.masks, objects.keypoints
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            boxes=torch.from_numpy(np.asarray(objects.boxes, np.float32).reshape(-1, 4).copy()),
            labels=torch.from_numpy(np.asarray(objects.labels, np.int64).copy()),
            image_id=self.detection_set.records[index].image_id,
            index=index,
            masks=None if masks is None else torch.from_numpy(masks),
            keypoints=None if keypoints is None else torch.from_numpy(keypoints),
            factor=factor,
        )

    def _augmented(self, index: int, key: tuple[int, ...]) -> tuple[np.ndarray, Instances]:
        image, objects, _ = self._read(self.detection_set.records[index])
        if isinstance(self.augmentation, InstanceAugmentation):
            return self.augmentation(image, objects, key)
        if isinstance(self.augmentation, ListedAugmentation):
            name = str(self.detection_set.records[index].path)

            def draw(rng: np.random.Generator) -> tuple[np.ndarray, Instances]:
                return self._read(self.detection_set.records[draw_other(index, len(self), rng)])[:2]

            return self.augmentation(image, objects, key, draw, name)
        assert self.augmentation is not None
        image, boxes, labels = self.augmentation(image, objects.boxes, objects.labels, key)
        return image, Instances(boxes, labels)

    def _read(self, record: ImageRecord) -> tuple[np.ndarray, Instances, int]:
        """Return an image, its objects in the image's own pixels, and the factor of its sides."""
        promised = (record.width, record.height)
        if isinstance(self.augmentation, Augmentation):  # boxes alone, and a size that is known
            at_least = self.augmentation.source_size
            image, factor = read_reduced_image(record.path, at_least, promised)
            return image, Instances(record.boxes / np.float32(factor), record.labels), factor
        image, factor = read_reduced_image(record.path, self.at_least, promised, in_any_format=True)
        known = self.detection_set.categories
        positions = known.keypoint_positions
        objects = read_instances(record, self.target_types, len(known.keypoints), positions)
        if factor > 1:
            objects.boxes = objects.boxes / np.float32(factor)
            if objects.keypoints is not None:
                objects.keypoints[..., :2] /= factor
        return image, objects, factor
