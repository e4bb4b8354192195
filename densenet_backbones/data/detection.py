"""From detection sets to batches: the data set, its loaders and the Lightning data module."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from densenet_backbones.data.images import read_image
from densenet_backbones.data.samplers import EpochSampler, ShardSampler
from densenet_backbones.data.samples import Categories, DataError, DetectionSet, ImageRecord, Sample
from densenet_backbones.data.scenes import generate
from densenet_backbones.data.sources import check_images, read_detection, subset
from densenet_backbones.data.transforms import Augmentation, Preset


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


class ResumableLoader(DataLoader[list[Sample]]):
    """A training loader that goes on in the middle of an epoch.

    The order of an epoch is a function of (seed, epoch) alone, so all that resuming needs is how
    many batches of the epoch are done; `batches_done` says so when the first batch is asked for.
    It is asked that late because a trainer creates the iterator before it knows the epoch.

    Args:
        batches_done: Returns the number of batches of the current epoch already trained on.
        between_batches: Called when a batch is asked for, that is when the one before is done
            with; a run that is to stop raises there.
        **kwargs: `DataLoader`'s own; `sampler` must be an `EpochSampler`.
    """

    def __init__(
        self,
        *args: Any,
        batches_done: Callable[[], int],
        between_batches: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batches_done, self.between_batches = batches_done, between_batches

    def __iter__(self) -> Iterator[list[Sample]]:  # type: ignore[override]
        sampler = self.sampler
        assert isinstance(sampler, EpochSampler)
        sampler.start = min(self.batches_done() * (self.batch_size or 1), len(sampler))
        try:
            for batch in super().__iter__():
                self.between_batches()
                yield batch
        finally:
            sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """Nothing: the trainer's counters say it all. Lightning asks whether a loader has one."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Inverse of `state_dict`."""


def _as_list(samples: list[Sample]) -> list[Sample]:
    return samples  # images differ in size: a batch is a list


def _quiet_worker(_: int) -> None:
    cv2.setNumThreads(0)  # each worker is a process: threads of its own would fight for the cores


@dataclass
class Source:
    """One folder and one split of it, for training sets made of several (VOC07+12)."""

    root: str
    split: str


@dataclass
class Scenes:
    """The generated data set of the quick start.

    Attributes:
        folder: Where it is drawn.
        train: Number of training images.
        val: Number of held-out images.
        size: Side of the square images, in pixels.
        seed: Same seed, same scenes.
    """

    folder: str = "datasets/scenes"
    train: int = 480
    val: int = 120
    size: int = 160
    seed: int = 0


class DetectionData(pl.LightningDataModule):
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
        super().__init__()
        if batch_size < 1:
            raise DataError(f"data.batch_size must be at least 1, got {batch_size}")
        if not 0 < fraction <= 1:
            raise DataError(f"data.fraction must lie in (0, 1], got {fraction}")
        if overfit_images is not None and overfit_images < 1:
            raise DataError(f"data.overfit_images must be at least 1, got {overfit_images}")
        if num_workers is not None and num_workers < 0:
            raise DataError(f"data.num_workers must be at least 0, got {num_workers}")
        if seed < 0:
            raise DataError(f"data.seed must be at least 0, got {seed}")
        self.root, self.train_split, self.val_split = root, train_split, val_split
        self.train_sources, self.layout, self.classes = train, layout, classes
        self.batch_size, self.preset, self.seed = batch_size, augmentation, seed
        self.num_workers = num_workers if num_workers is not None else default_workers()
        self.fraction, self.overfit_images = fraction, overfit_images
        self.strict, self.check_images, self.scenes = strict, check_images, scenes
        self.between_batches: Callable[[], None] = lambda: None  # training may set it
        self._sets: dict[str, DetectionSet] = {}

    @property
    def train_set(self) -> DetectionSet:
        """The training images (read at first use)."""
        if "train" not in self._sets:
            sources = [(s.root, s.split) for s in self.train_sources or ()]
            full = self._read(sources or self._root(), None if sources else self.train_split)
            self._sets["train"] = subset(full, self.fraction, seed=self.seed)
        return self._sets["train"]

    @property
    def val_set(self) -> DetectionSet:
        """The evaluated images (read at first use); its classes are the training set's."""
        if self.overfit_images is not None:
            return self.train_set
        if "val" not in self._sets:
            root = self._root()
            if root is None:
                raise DataError("data.root is needed: it holds the split that is evaluated")
            self._sets["val"] = self._read(root, self.val_split, self.categories.names)
        return self._sets["val"]

    @property
    def categories(self) -> Categories:
        """Classes of the training set."""
        return self.train_set.categories

    def use_classes(self, categories: Categories) -> None:
        """Read the evaluated split with the classes that a trained detector knows."""
        self.classes = list(categories.names)
        self._sets["val"] = self._read(self._root(), self.val_split)

    def _root(self) -> str | None:
        if self.root is None and not self.train_sources:
            s = self.scenes
            folder = Path(s.folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):  # several processes may ask
                generate(folder, train=s.train, val=s.val, size=s.size, seed=s.seed)
            return s.folder
        return self.root

    def _read(
        self, root: Any, split: str | None, classes: Sequence[str] | None = None
    ) -> DetectionSet:
        found = read_detection(
            root,
            split,
            layout=self.layout,
            classes=classes or self.classes,
            strict=self.strict,
            masks=False,  # boxes are all that is trained on and evaluated here
        )
        if self.check_images:
            check_images(found)
        return found

    def keep_for_overfitting(self, matched: Callable[[ImageRecord], bool]) -> None:
        """Reduce the training set to the `overfit_images` first images with `matched` objects."""
        assert self.overfit_images is not None
        records = sorted(self.train_set.records, key=lambda r: r.image_id)
        kept = [r for r in records if len(r.boxes) and matched(r)][: self.overfit_images]
        if len(kept) < self.overfit_images:
            raise DataError(
                f"data.overfit_images is {self.overfit_images}, but only {len(kept)} training "
                "images have objects of which a prior matches every one; ask for fewer"
            )
        self._sets["train"] = replace(self.train_set, records=tuple(kept))

    def train_dataloader(self) -> DataLoader[list[Sample]]:
        """Augmented batches; all processes take the same number of them."""
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module.model
        preset: Preset = "none" if self.overfit_images is not None else self.preset
        augmentation = Augmentation(preset, model.image_size, fill=model.preprocessing.fill_color)
        dataset = DetectionImages(self.train_set, augmentation, self.seed)
        sampler = EpochSampler(
            dataset,
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
            seed=self.seed,
        )
        return ResumableLoader(
            dataset,
            batches_done=self._batches_done,
            between_batches=lambda: self.between_batches(),
            sampler=sampler,
            # A last batch of one image would leave batch normalisation without a variance.
            drop_last=len(sampler) >= self.batch_size,
            **self._loader_options(),
        )

    def val_dataloader(self) -> DataLoader[list[Sample]]:
        """Images as they are; every one goes to exactly one process."""
        assert self.trainer is not None
        dataset = DetectionImages(self.val_set)
        sampler = ShardSampler(dataset, self.trainer.world_size, self.trainer.global_rank)
        return DataLoader(dataset, sampler=sampler, **self._loader_options())

    def state_dict(self) -> dict[str, int]:
        """What the order of the epoch in progress depends on, for the checkpoint."""
        assert self.trainer is not None
        ended = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return {
            "batches_done": 0 if ended else self._batches_done(),
            "images": len(self.train_set),
            "batch_size": self.batch_size,
            "processes": self.trainer.world_size,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Refuse to go on in the middle of an epoch in an order that it did not begin with.

        Raises:
            DataError: Names what was changed.
        """
        for name, now in self.state_dict().items():
            before = state[name]
            if name != "batches_done" and before != now and state["batches_done"] > 0:
                raise DataError(
                    f"cannot resume in the middle of an epoch: {name.replace('_', ' ')} was "
                    f"{before} when it began and is {now} now; give {before} again, or start from "
                    "the weights alone with --init-from"
                )

    def _batches_done(self) -> int:
        assert self.trainer is not None
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": _as_list,
            "worker_init_fn": _quiet_worker,
            "persistent_workers": self.num_workers > 0,
        }


def default_workers() -> int:
    """Half of the cores, at most 8: the other half is the model's."""
    return min(8, max(1, (os.cpu_count() or 2) // 2))
