"""Images that turn out unusable while a loader reads them: they end the run in one line, or not.

Workers hand faults over as values, not as exceptions: torch would raise these again with the whole
traceback of the worker as their message.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch.utils.data import Dataset

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import ImageSizeError
from densenet_backbones.messages import pluralize

BadImages = Literal["stop", "skip"]
MOST_IN_A_ROW = 100  # unusable images that are passed over for one that is not: 1 in 100 is none
_DEAD = "DataLoader worker"  # so torch's own errors begin
_SECONDS_TO_DIE = 5.0  # as long as torch waits until it looks whether a worker lives


@dataclass
class FaultyImage:
    """Stand-in for a sample whose image or annotation cannot be used.

    Attributes:
        error: Why; names the file.
        is_fatal: True if the run has to end.
        substitute: Sample that takes its place in training; None in evaluation.
    """

    error: DataError | MemoryError
    is_fatal: bool
    substitute: Any = None


class GuardedImages(Dataset[Any]):
    """Samples of a data set, with a `FaultyImage` for each that cannot be made.

    In training the following image that can be used takes the place: a function of the data alone,
    so that neither workers nor resuming change it.

    Args:
        images: The data set.
        bad_images: "stop" makes every fault fatal; "skip" does not, but for sizes that contradict
            annotations, which are a fault of these, and memory that runs out.
    """

    def __init__(self, images: Dataset[Any], bad_images: BadImages) -> None:
        self.images, self.bad_images = images, bad_images

    def __len__(self) -> int:
        return len(cast(Sized, self.images))

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        """Return a sample of an index (evaluation) or ``(epoch, index)`` pair (training)."""
        try:
            return self.images[key]
        except MemoryError as error:
            return FaultyImage(error, is_fatal=True)
        except DataError as error:
            if isinstance(error, ImageSizeError):
                return FaultyImage(error, is_fatal=True)
            if self.bad_images == "stop":
                message = f"{error}; data.bad_images skip goes on without such images"
                return FaultyImage(DataError(message), is_fatal=True)
            if isinstance(key, int):
                return FaultyImage(error, is_fatal=False)
            return self._substitute(error, *key)

    def _substitute(self, error: DataError, epoch: int, index: int) -> FaultyImage:
        most = min(MOST_IN_A_ROW, len(self))
        for step in range(1, most):
            try:
                sample = self.images[epoch, (index + step) % len(self)]
            except (ImageSizeError, MemoryError) as other:
                return FaultyImage(other, is_fatal=True)
            except DataError:
                continue
            return FaultyImage(error, is_fatal=False, substitute=sample)
        row = DataError(
            f"{pluralize(most, 'image')} in a row cannot be used, the first of them: {error}"
        )
        return FaultyImage(row, is_fatal=True)


class UnusableImages:
    """Images that loaders could not use so far, counted by what is wrong with them.

    Attributes:
        counts: How often each was met, by its sentence.
        fatal: Error that was raised; None before.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.fatal: DataError | MemoryError | None = None

    def take_usable(self, batch: Sequence[Any]) -> list[Any]:
        """Return the samples of a batch, or their substitutes, and count the images without.

        Raises:
            DataError: An image cannot be used, and the run is to end then.
            MemoryError: There was not enough for an image.
        """
        usable = []
        for sample in batch:
            if not isinstance(sample, FaultyImage):
                usable.append(sample)
                continue
            if sample.is_fatal:
                self.fatal = sample.error
                raise sample.error
            self.counts[str(sample.error)] += 1
            if sample.substitute is not None:
                usable.append(sample.substitute)
        return usable


def refuse_unusable(faults: Sequence[str], total: int) -> None:
    """Raise one `DataError` that lists images that could not be used, when the others are done.

    Args:
        faults: A sentence about each.
        total: Number of all images.
    """
    what = f"{len(faults)} of {pluralize(total, 'image')} could not be used; the others are done:"
    if faults:
        raise DataError(*([f"{what} {faults[0]}"] if len(faults) == 1 else [what, *faults]))


def describe_dead_worker(error: BaseException, workers: str, batch: str) -> str | None:
    """Describe in one sentence that a process of a loader was killed; None for other errors.

    Args:
        error: Error of a loader's main process.
        workers: Option that sets the number of processes.
        batch: Option that sets the batch size.
    """
    if not isinstance(error, RuntimeError) or _DEAD not in str(error):
        return None
    return (
        "a loader process was killed, most often by the system as memory ran out (in containers "
        f"also shared memory, /dev/shm): give fewer with {workers}, where 0 loads in the main "
        f"process, or a smaller {batch}"
    )


@contextmanager
def notice_dead_workers() -> Iterator[None]:
    """Raise torch's error about a dead worker for a batch whose tensors died with it, too."""
    try:
        yield
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # the worker's socket
        # torch raises its own where the signal of the death is handled: here, and not in the midst
        # of what is done about this one.
        time.sleep(_SECONDS_TO_DIE)
        raise RuntimeError(f"{_DEAD} died: {error}") from error
