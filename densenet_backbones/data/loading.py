"""From records to batches: what the data modules of detection and segmentation share.

Legend: a sample is one image as a model is given it; a batch is a list of samples, because images
may differ in size.
"""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import lightning.pytorch as pl
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.readers.detection_sources import sample_subset
from densenet_backbones.data.samplers import EpochSampler, GroupedSampler, ShardSampler
from densenet_backbones.data.samples import DataError, DetectionSet
from densenet_backbones.data.scenes.generation import generate_scenes

S = TypeVar("S", DetectionSet, SegmentationSet)


class ResumableLoader(DataLoader[list[Any]]):
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

    def __iter__(self) -> Iterator[list[Any]]:  # type: ignore[override]
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


def _as_list(samples: list[Any]) -> list[Any]:
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


class ImageData(pl.LightningDataModule, Generic[S]):
    """Training and evaluated images in one or several folders, or the quick start's scenes.

    A subclass reads sets (`read_set`), knows their classes (`class_names`) and makes data sets of
    samples from them (`training_images`, `evaluated_images`).

    Args:
        root: Folder of the data set; None draws `scenes`.
        train_split: Name of the training split under `root`.
        val_split: Name of the split that is evaluated.
        train: Several (root, split) as the training set, instead of `root` and `train_split`.
        classes: Class names in label order, or None.
        batch_size: Images a step and process, at least 1.
        num_workers: Loader processes; None takes half of the cores, at most 8.
        seed: At least 0; order and augmentation are functions of (seed, epoch, index).
        fraction: Share of the training images used, from above 0 to 1.
        overfit_images: Number of images to train and evaluate on, or None.
        scenes: What to draw when `root` is None.

    Raises:
        DataError: An option is out of its range.
    """

    def __init__(
        self,
        *,
        root: str | None,
        train_split: str,
        val_split: str,
        train: list[Source] | None,
        classes: list[str] | None,
        batch_size: int,
        num_workers: int | None,
        seed: int,
        fraction: float,
        overfit_images: int | None,
        scenes: Scenes,
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
        self.train_sources, self.classes = train, classes
        self.batch_size, self.seed = batch_size, seed
        self.num_workers = num_workers if num_workers is not None else default_workers()
        self.fraction, self.overfit_images, self.scenes = fraction, overfit_images, scenes
        self.between_batches: Callable[[], None] = lambda: None  # training may set it
        self._sets: dict[str, S] = {}

    @abstractmethod
    def read_set(self, root: Any, split: str | None, classes: Sequence[str] | None) -> S:
        """Read a split of a root, or a list of (root, split) when `split` is None."""

    @abstractmethod
    def class_names(self, data_set: S) -> tuple[str, ...]:
        """Names of a set's classes, in label order."""

    @abstractmethod
    def training_images(self) -> Dataset[Any]:
        """Samples of the training set, augmented, by ``(epoch, index)``."""

    @abstractmethod
    def evaluated_images(self) -> Dataset[Any]:
        """Samples of the evaluated set as they are, by index."""

    def groups(self) -> Sequence[int] | None:
        """The group of each training image, where batches are to be of one group."""
        return None

    @property
    def train_set(self) -> S:
        """The training images (read at first use)."""
        if "train" not in self._sets:
            sources = [(s.root, s.split) for s in self.train_sources or ()]
            split = None if sources else self.train_split
            full = self.read_set(sources or self._root(), split, self.classes)
            self._sets["train"] = sample_subset(full, self.fraction, seed=self.seed)
        return self._sets["train"]

    @property
    def val_set(self) -> S:
        """The evaluated images (read at first use); its classes are the training set's."""
        if self.overfit_images is not None:
            return self.train_set
        if "val" not in self._sets:
            root = self._root()
            if root is None:
                raise DataError("data.root is needed: it holds the split that is evaluated")
            names = self.class_names(self.train_set)
            self._sets["val"] = self.read_set(root, self.val_split, names)
        return self._sets["val"]

    def use_class_names(self, names: Sequence[str]) -> None:
        """Read the evaluated split with the classes that a trained model knows."""
        self.classes = list(names)
        self._sets["val"] = self.read_set(self._root(), self.val_split, names)

    def _root(self) -> str | None:
        if self.root is None and not self.train_sources:
            s = self.scenes
            folder = Path(s.folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):  # several processes may ask
                generate_scenes(folder, train=s.train, val=s.val, size=s.size, seed=s.seed)
            return s.folder
        return self.root

    def keep_first(self, usable: Callable[[Any], bool], complaint: str) -> None:
        """Reduce the training set to its first `overfit_images` usable images, by id.

        Raises:
            DataError: If there are fewer; `complaint` says of those what they have.
        """
        assert self.overfit_images is not None
        records = sorted(self.train_set.records, key=lambda r: r.image_id)
        kept = [r for r in records if usable(r)][: self.overfit_images]
        if len(kept) < self.overfit_images:
            raise DataError(
                f"data.overfit_images is {self.overfit_images}, but only {len(kept)} training "
                f"images {complaint}; ask for fewer"
            )
        self._sets["train"] = replace(self.train_set, records=tuple(kept))

    def train_dataloader(self) -> DataLoader[list[Any]]:
        """Augmented batches; all processes take the same number of them."""
        assert self.trainer is not None
        dataset: Any = self.training_images()
        place = self.trainer.world_size, self.trainer.global_rank
        groups = self.groups()
        sampler = (
            EpochSampler(dataset, *place, seed=self.seed)
            if groups is None
            else GroupedSampler(groups, self.batch_size, *place, seed=self.seed)
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

    def val_dataloader(self) -> DataLoader[list[Any]]:
        """Images as they are; every one goes to exactly one process."""
        assert self.trainer is not None
        dataset: Any = self.evaluated_images()
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
            "grouping": int(self.groups() is not None),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Refuse to go on in the middle of an epoch in an order that it did not begin with.

        Raises:
            DataError: Names what was changed.
        """
        for name, now in self.state_dict().items():
            before = state.get(name, 0)  # checkpoints from before there was grouping
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
        assert self.trainer is not None
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": _as_list,
            "worker_init_fn": _quiet_worker,
            "persistent_workers": self.num_workers > 0,
            # Lightning copies pinned batches to a GPU without waiting for them.
            "pin_memory": self.trainer.strategy.root_device.type == "cuda",
        }


def default_workers() -> int:
    """Half of the cores, at most 8: the other half is the model's."""
    return min(8, max(1, (os.cpu_count() or 2) // 2))
