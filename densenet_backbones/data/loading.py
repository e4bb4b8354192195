"""Data modules: from records to batches, for detection and segmentation alike.

Legend: a sample is one image as a model is given it; a batch is a list of samples, because images
may differ in size.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import lightning.pytorch as pl
from torch.utils.data import Dataset

from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.checks.contents import refuse_unlearnable
from densenet_backbones.data.checks.likeness import refuse_shared
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.image_sources import ImageSources, SetT, Sources
from densenet_backbones.data.loaders.batches import (
    EvaluationLoader,
    LoaderOptions,
    ResumableLoader,
    keep_list,
    quiet_worker,
)
from densenet_backbones.data.loaders.cores import count_cores
from densenet_backbones.data.loaders.guarded import BadImages, GuardedImages, UnusableImages
from densenet_backbones.data.loaders.image_checks import check_images, leave_out_unreadable
from densenet_backbones.data.loaders.samplers import EpochSampler, GroupedSampler, ShardSampler
from densenet_backbones.data.mask_samples import MaskRecord, MaskSample
from densenet_backbones.data.samples import ImageRecord, Sample
from densenet_backbones.data.sets.classes import (
    ClassChanges,
    change_classes,
    refuse_new_classes,
    refuse_unknown_changes,
)
from densenet_backbones.data.sets.splitting import sample_subset
from densenet_backbones.messages import pluralize

SampleT = TypeVar("SampleT", Sample, MaskSample)
BatchSize = int | Literal["auto"]
NamedBy = Literal["person", "model", "training"]


@dataclass(eq=False, repr=False)
class ImageData(ImageSources[SetT], pl.LightningDataModule, Generic[SetT, SampleT]):
    """Training and evaluated images in one or several folders, or the quick start's scenes.

    The options of the command line (``--data.NAME``) are the fields of this class and of its
    subclass. A subclass reads sets (`read_set`), knows their classes (`name_classes`) and makes
    data sets of samples from them (`make_training_images`, `make_evaluated_images`).

    Args:
        classes: Class names in label order; needed where sources differ, optional elsewhere.
        batch_size: Images a step and process, at least 1; "auto" lets the training choose.
        num_workers: Loader processes; None takes half of the cores, at most 8.
        fraction: Share of the training images used, from above 0 to 1.
        allow_shared_images: Go on where evaluated images are trained on.
        rename: New names of classes; those of one name are merged.
        drop: Names of classes (after the renaming) that are left out; "*" for all that `classes`
            does not name.
        overfit_images: Train on the first N images (by id) without augmentation, and evaluate on
            the same N. A detector with priors takes images of which they match every object.
        strict: Refuse data with faults instead of leaving the faulty annotations out.
        check_images: Decode every image before training. Without it every file's ends are looked
            at, sizes compared by headers, and few images decoded.
        bad_images: "stop" ends the run at an image that cannot be decoded, before training where
            that shows at once; "skip" names and counts such images, trains on the next one of the
            data set in their place, and leaves them out of evaluation; those without a size or
            with a damaged mask it leaves out from the start.

    Attributes:
        batch: Images a step and process; the training sets it where it is to be chosen.
        model_input: What the model takes; the task says so before training images are made.
        between_batches: Called before each batch of a training; a run that is to stop raises there.
        notes: Sentences about what the set-up for a training did not look at.
        replaced: Training images that could not be used, so far.
        left_out: Evaluated images that could not be used, so far.

    Raises:
        DataError: An option is out of its range.
    """

    _: KW_ONLY
    classes: list[str] | None = None
    batch_size: BatchSize = 16
    num_workers: int | None = None
    fraction: float = 1.0
    allow_shared_images: bool = False
    rename: dict[str, str] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)
    overfit_images: int | None = None
    strict: bool = False
    check_images: bool = False
    bad_images: BadImages = "stop"

    def __post_init__(self) -> None:
        # The dataclass has set the fields; `super().__init__()` would be that of `ImageSources`.
        pl.LightningDataModule.__init__(self)
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise DataError(f"data.fraction must lie in (0, 1], got {self.fraction}")
        smallest = {"batch_size": 1, "overfit_images": 1, "num_workers": 0, "seed": 0}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value not in (None, "auto") and value < least:
                raise DataError(f"data.{name} must be at least {least}, got {value}")
        self.batch = 2 if self.batch_size == "auto" else self.batch_size
        self.workers = choose_workers() if self.num_workers is None else self.num_workers
        self.model_input: ModelInput | None = None
        self.between_batches: Callable[[], None] = lambda: None
        self.notes: list[str] = []
        self._is_compared = self.allow_shared_images
        self.replaced, self.left_out = UnusableImages(), UnusableImages()
        self._sets: dict[str, SetT] = {}

    @abstractmethod
    def read_set(self, sources: Sources, classes: Sequence[str] | None) -> SetT:
        """Read the splits of one folder or several as one set."""

    @abstractmethod
    def name_classes(self, data_set: SetT) -> tuple[str, ...]:
        """Return the names of a set's classes, in label order."""

    @abstractmethod
    def make_training_images(self) -> Dataset[SampleT]:
        """Return samples of the training set, augmented, by ``(epoch, index)``."""

    @abstractmethod
    def make_evaluated_images(self) -> Dataset[SampleT]:
        """Return samples of the evaluated set as they are, by index."""

    def group_images(self) -> Sequence[int] | None:
        """Return the group of each training image, where batches are to be of one group."""
        return None

    def setup(self, stage: str) -> None:
        """Refuse training data that teaches nothing, or that is evaluated too."""
        if stage == "fit":
            refuse_unlearnable(self.train_set)
            if not self._is_compared and self.val_set is not self.train_set:
                self.notes += refuse_shared(self.train_set, self.val_set)
            self._is_compared = True  # a trainer sets up, too

    @property
    def known_input(self) -> ModelInput:
        """Input of the model; an error before the task has set it."""
        assert self.model_input is not None, "a task sets model_input before images are read"
        return self.model_input

    @property
    def train_set(self) -> SetT:
        """The training images (read at first use)."""
        if "train" not in self._sets:
            unsplit = self._find_unsplit()
            if unsplit is not None and self.overfit_images is None:
                whole = self.read_changed([{**unsplit.source}], self.classes, named_by="person")
                refuse_unlearnable(whole)  # before its classes decide what is held out
                full = self._split_data(whole).train
            else:
                sources = self._name_train_sources()
                full = self.read_changed(sources, self.classes, named_by="person")
            self._sets["train"] = sample_subset(full, self.fraction, seed=self.seed)
        return self._sets["train"]

    @property
    def val_set(self) -> SetT:
        """The evaluated images (read at first use); its classes are the training set's."""
        if self.overfit_images is not None:
            return self.train_set
        if "val" not in self._sets:
            names = self.name_classes(self.train_set)
            if self._split is not None:
                self._sets["val"] = self._choose_part(self._split)
            else:
                self._sets["val"] = self.read_changed(self._name_val_sources(), names)
        return self._sets["val"]

    def leave_out_unreadable(self, read: Callable[[], SetT]) -> SetT:
        """Read a set; under `bad_images` skip, without images whose size cannot be read."""
        return leave_out_unreadable(read) if self.bad_images == "skip" else read()

    def look_at_images(self, data_set: SetT) -> SetT:
        """Look for image files that cannot be used; those that are passed over become problems.

        Raises:
            DataError: As `check_images`.
        """
        skip = self.bad_images == "skip"
        problems: tuple[Problem, ...] = check_images(data_set, decode=self.check_images, skip=skip)
        return replace(data_set, problems=(*data_set.problems, *problems))

    def use_class_names(self, names: Sequence[str]) -> None:
        """Read the evaluated split with the classes that a trained model knows."""
        self.classes = list(names)
        self._read_evaluated()

    def use_own_classes(self) -> None:
        """Read the evaluated split with the classes that it names itself."""
        self._read_evaluated()

    def _read_evaluated(self) -> None:
        """Read the evaluated split alone; of data without splits its stored part, else all."""
        whole = self._find_unsplit()
        is_split = any(file.is_file() for file in self._list_split_files())
        sources: Sources = self._name_val_sources() if whole is None else [{**whole.source}]
        found = self.read_changed(sources, self.classes, named_by="model")
        if whole is not None and is_split:
            found = self._choose_part(self._split_data(found))
        self._sets["val"] = found

    def read_changed(
        self,
        sources: Sources,
        classes: Sequence[str] | None,
        *,
        named_by: NamedBy = "training",
    ) -> SetT:
        """Read splits as one set, whose classes are renamed and left out as the options say.

        Args:
            sources: The splits.
            classes: Names in label order; None for the set's own.
            named_by: Who chose these names: a person, whose slips among them are refused; a model;
                or the training set. Only the latter may have classes that are renamed or left out
                and that this set does not have.

        Raises:
            DataError: A name that is renamed, left out or chosen is none of the set's classes.
        """
        changes = ClassChanges(self.rename, self.drop)
        if not changes:
            return self.read_set(sources, classes)
        whole = self.read_set(sources, None)
        if named_by != "training":
            refuse_unknown_changes(whole, changes)
        if named_by == "person":
            refuse_new_classes([whole], changes, classes)
        return change_classes(whole, changes, classes)

    def keep_first(
        self, is_usable: Callable[[ImageRecord | MaskRecord], bool], such: str = ""
    ) -> None:
        """Reduce the training set to its first `overfit_images` usable images, by id.

        Raises:
            DataError: If there are fewer; `such` says what those have.
        """
        assert self.overfit_images is not None
        records = sorted(self.train_set.records, key=lambda record: record.image_id)
        selected = [record for record in records if is_usable(record)][: self.overfit_images]
        if len(selected) < self.overfit_images:
            raise DataError(
                f"data.overfit_images is {self.overfit_images}, but the data has only "
                f"{pluralize(len(selected), 'training image')}{such}; ask for fewer"
            )
        self._sets["train"] = replace(self.train_set, records=tuple(selected))

    def train_dataloader(self) -> ResumableLoader[SampleT]:
        """Return augmented batches; all processes take the same number of them."""
        trainer = self._its_trainer()
        place = trainer.world_size, trainer.global_rank
        groups = self.group_images()
        sampler = (
            EpochSampler(self.train_set, *place, seed=self.seed)
            if groups is None
            else GroupedSampler(groups, self.batch, *place, seed=self.seed)
        )
        return ResumableLoader(
            GuardedImages(self.make_training_images(), self.bad_images),
            sampler,
            batches_done=self._count_batches_done,
            between_batches=lambda: self.between_batches(),
            # A last batch of one image would leave batch normalization without a variance.
            drop_last=len(sampler) >= self.batch,
            unusable=self.replaced,
            **self._loader_options(),
        )

    def val_dataloader(self) -> EvaluationLoader[SampleT]:
        """Return images as they are; every one goes to exactly one process.

        Where there are fewer images than processes, those without get the others' as well, because
        all evaluate together (`DistributedDataParallel` talks at the first batch): the task does
        not count them.
        """
        trainer = self._its_trainer()
        sampler = ShardSampler(self.val_set, trainer.world_size, trainer.global_rank)
        if not len(sampler):
            sampler = ShardSampler(self.val_set, 1, 0)
        images = GuardedImages(self.make_evaluated_images(), self.bad_images)
        return EvaluationLoader(images, sampler, self.left_out, **self._loader_options())

    def state_dict(self) -> dict[str, int]:
        """Return what the order of the epoch in progress depends on, for the checkpoint."""
        trainer = self._its_trainer()
        ended = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return {
            "batches_done": 0 if ended else self._count_batches_done(),
            "images": len(self.train_set),
            "batch_size": self.batch,
            "processes": trainer.world_size,
            "seed": self.seed,
            "grouping": int(self.group_images() is not None),
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

    def _its_trainer(self) -> pl.Trainer:
        assert self.trainer is not None, "a trainer asks for loaders"
        return self.trainer

    def _count_batches_done(self) -> int:
        return int(self._its_trainer().fit_loop.epoch_loop.batch_progress.current.ready)

    def _loader_options(self) -> LoaderOptions:
        return {
            "batch_size": self.batch,
            "num_workers": self.workers,
            "collate_fn": keep_list,
            "worker_init_fn": quiet_worker,
            "persistent_workers": self.workers > 0,
            # Lightning copies pinned batches to a GPU without waiting for them.
            "pin_memory": self._its_trainer().strategy.root_device.type == "cuda",
        }


AnyData = ImageData[Any, Any]
"""Data module of any kind of set and sample."""


def choose_workers() -> int:
    """Return half of this process's cores, at most 8: the other half is the model's."""
    return min(8, max(1, count_cores() // 2))
