"""Loaders: one that goes on in the middle of an epoch, and one of evaluated images."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypedDict, TypeVar, Unpack

import cv2
from torch.utils.data import DataLoader, Dataset

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders.guarded import UnusableImages, notice_dead_workers
from densenet_backbones.data.loaders.samplers import EpochSampler, ShardSampler

T = TypeVar("T")


class LoaderOptions(TypedDict):
    """Options that training and evaluation loaders share; see torch's `DataLoader`."""

    batch_size: int
    num_workers: int
    collate_fn: Callable[[list[Any]], list[Any]]
    worker_init_fn: Callable[[int], None]
    persistent_workers: bool
    pin_memory: bool


class ResumableLoader(DataLoader[T]):
    """A training loader that goes on in the middle of an epoch.

    The order of an epoch is a function of (seed, epoch) alone, so all that resuming needs is how
    many batches of the epoch are done; `batches_done` says so when the first batch is asked for.
    It is asked that late because a trainer creates the iterator before it knows the epoch.
    (torchdata's StatefulDataLoader saves the state of its workers instead, and goes on with the
    same number of them only.)

    Args:
        dataset: Samples by ``(epoch, index)``.
        sampler: The order of the epoch.
        batches_done: Returns the number of batches of the current epoch already trained on.
        between_batches: Called when a batch is asked for, that is when the one before is done
            with; a run that is to stop raises there.
        drop_last: Leave out a last batch that is not full.
        unusable: Takes note of images that cannot be used.
        **options: `DataLoader`'s own.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        sampler: EpochSampler,
        batches_done: Callable[[], int],
        between_batches: Callable[[], None],
        drop_last: bool = False,
        unusable: UnusableImages | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(dataset, sampler=sampler, drop_last=drop_last, **options)
        self.epoch_sampler = sampler
        self.batches_done, self.between_batches = batches_done, between_batches
        self.unusable = unusable or UnusableImages()

    def __iter__(self) -> Iterator[list[T]]:  # type: ignore[override]
        """Yield the rest of the epoch."""
        # Start behind the images that were trained on; the next epoch is a whole one again.
        done = self.batches_done() * (self.batch_size or 1)
        self.epoch_sampler.start = min(done, len(self.epoch_sampler))
        try:
            with closing(read_batches(super().__iter__())) as batches:
                for batch in batches:
                    self.between_batches()
                    yield self.unusable.take_usable(batch)
        except DataError:
            self._iterator = None  # torch's, which keeps workers from epoch to epoch
            raise
        finally:
            self.epoch_sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """Return nothing: the trainer's counters say it all. Lightning asks if there is a state."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take what `state_dict` returned."""


class EvaluationLoader(DataLoader[T]):
    """A loader of evaluated images, each once; those that cannot be used are left out.

    A batch may have become empty.

    Args:
        dataset: Samples by index.
        sampler: Share of this process.
        unusable: Takes note of images that cannot be used.
        **options: `DataLoader`'s own.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        sampler: ShardSampler,
        unusable: UnusableImages,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(dataset, sampler=sampler, **options)
        self.unusable = unusable

    def __iter__(self) -> Iterator[list[T]]:  # type: ignore[override]
        """Yield the batches."""
        try:
            with closing(read_batches(super().__iter__())) as batches:
                yield from map(self.unusable.take_usable, batches)
        except DataError:
            self._iterator = None  # torch's, which keeps workers from epoch to epoch
            raise


def read_batches(batches: Iterator[T]) -> Generator[T, None, None]:
    """Yield the batches of torch's iterator, whose workers may die.

    Close it where a batch turns out unusable: the workers end at once, where the garbage collector
    waits five seconds for each.
    """
    while True:
        with notice_dead_workers():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def keep_list(samples: list[Any]) -> list[Any]:
    """Return a batch as it is; loaders call it."""
    return samples  # images differ in size: a batch is a list


def quiet_worker(_: int) -> None:
    """Set up a loader process; loaders call it."""
    cv2.setNumThreads(0)  # each worker is a process: threads of its own would fight for the cores
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when that of the loader does, killed or not.

    torch's worker looks whether it has got another parent. Where a server forks the workers (the
    default since Python 3.14) their parent is the server, which lives as long as they do.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
