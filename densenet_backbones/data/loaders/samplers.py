"""Samplers that share a data set's images among processes: two to train, one to evaluate.

All are `DistributedSampler` subclasses, because Lightning leaves those as they are; it wraps every
other sampler in one that pads, which would count images twice in evaluation.

Legend: D images of the data set, R processes (replicas), r the rank of this one.
"""

import math
from collections.abc import Iterator, Sequence, Sized
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset, DistributedSampler

from densenet_backbones.messages import check_whole


def _place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """(R, r) as given; where not given the process group's, or one process without a group."""
    grouped = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if grouped else 1
    if rank is None:
        rank = dist.get_rank() if grouped else 0
    if num_replicas < 1 or not 0 <= rank < num_replicas:
        raise ValueError(
            "rank must lie in [0, num_replicas - 1] and num_replicas be at least 1, "
            f"got rank {rank} and num_replicas {num_replicas}"
        )
    return num_replicas, rank


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Training order: yields ``(epoch, index)`` pairs, a function of (seed, epoch) alone.

    The pair lets a data set key its augmentation on the epoch without the worker processes having
    to be told of it. All processes draw the same permutation of the D indices and take every R-th
    of it from their rank on, so they have equally many samples, ``len(sampler)``: without that,
    distributed training waits for ever for the process that has run out. Where R does not divide D,
    the permutation is continued from its start (up to R - 1 images are seen twice in the epoch),
    or its tail is left out when `drop_last` is set.

    To go on in the middle of an epoch set `start` to the number of samples that *this process* has
    been through; the next iterator begins there. `len` stays that of the whole epoch, because
    trainers count the batches of an epoch by it.

    Args:
        dataset: Anything with a length D.
        num_replicas: R; None asks the process group, and is 1 where there is none.
        rank: r, in ``[0, R - 1]``; None asks the process group, and is 0 where there is none.
        shuffle: Whether to permute; False gives the indices in order in every epoch.
        seed: At least 0. Same seed and epoch, same order, on any number of processes.
        drop_last: Leave out the tail that cannot be shared evenly instead of repeating images.

    Raises:
        ValueError: If rank, num_replicas or seed is out of range.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_whole("seed", seed, least=0)
        replicas, r = _place(num_replicas, rank)
        super().__init__(cast(Dataset[object], dataset), replicas, r, shuffle, seed, drop_last)
        if drop_last:
            # torch rounds (D - R) / R up, which is -1 or 0 samples for D < R: never below 0.
            self.num_samples = len(dataset) // replicas
            self.total_size = self.num_samples * replicas
        self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The rest of the epoch from `start` on, for this process."""
        if not 0 <= self.start <= self.num_samples:
            raise ValueError(
                f"start must lie in [0, {self.num_samples}], the samples of one process and epoch, "
                f"got {self.start}"
            )
        mine = self.deck()[self.rank :: self.num_replicas].tolist()
        return iter([(self.epoch, index) for index in mine[self.start :]])

    def deck(self) -> torch.Tensor:
        """(R * len,) int64: the indices of this epoch as they are dealt, one a process in turn."""
        order = self.order()
        if 0 < len(order) < self.total_size:
            order = order.repeat(math.ceil(self.total_size / len(order)))
        return order[: self.total_size]

    def order(self) -> torch.Tensor:
        """(D,) int64: the indices in this epoch's order, before they are shared out."""
        size = len(cast(Sized, self.dataset))
        if not self.shuffle:
            return torch.arange(size)
        # seed + epoch (torch's own rule) would give seed 1 the epochs of seed 0, one later.
        key = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        return torch.randperm(size, generator=torch.Generator().manual_seed(int(key[0])))


class GroupedSampler(EpochSampler):
    """`EpochSampler`, with the images of an epoch arranged so that batches are of one group.

    A detector pads the images of a batch to one size: where portrait and landscape pictures come
    in batches of their own, less of what it computes is border (torchvision and detectron2 group
    so, too). An epoch sees the images that `EpochSampler` would show, in full batches that are of
    one group each but for the last few: those take what is left over of every group, so that each
    image keeps its chance and a group may be smaller than a batch. With G groups at most G - 1
    batches of an epoch are mixed, over all processes, and the last one where it is not full.

    The order is a function of (seed, epoch, R, `batch_size`) alone, and `start` works as it does
    there.

    Args:
        groups: (D,) the group of each image, any integers.
        batch_size: Images of a batch and process, at least 1.
        num_replicas: R; None asks the process group, and is 1 where there is none.
        rank: r, in ``[0, R - 1]``; None asks the process group, and is 0 where there is none.
        seed: At least 0.

    Raises:
        ValueError: If rank, num_replicas, seed or batch_size is out of range.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        check_whole("batch_size", batch_size)
        super().__init__(groups, num_replicas, rank, seed=seed)
        self.groups, self.batch_size = torch.as_tensor(groups, dtype=torch.int64), batch_size

    def deck(self) -> torch.Tensor:
        """(R * len,) int64, arranged so that every process takes batches of one group."""
        deck, size = super().deck(), self.batch_size
        rounds = self.num_samples // size
        if not rounds:
            return deck
        full = deck[: rounds * size * self.num_replicas]
        # (rounds, R, size) batches; dealing goes through a round's batches side by side.
        batches = self._batches(full).reshape(rounds, self.num_replicas, size)
        return torch.cat((batches.transpose(1, 2).reshape(-1), deck[len(full) :]))

    def _batches(self, indices: torch.Tensor) -> torch.Tensor:
        """(n * size,) indices to (n, size): as its batch fills up, each group's; then the rest."""
        size, groups = self.batch_size, self.groups[indices]
        whole: list[tuple[int, torch.Tensor]] = []  # where a batch became full, and its places
        rest = [indices.new_empty(0)]
        for group in sorted(set(groups.tolist())):
            places = (groups == group).nonzero()[:, 0]
            count = len(places) // size * size
            whole += [(int(batch[-1]), batch) for batch in places[:count].split(size) if count]
            rest.append(places[count:])
        whole.sort(key=lambda pair: pair[0])
        last = torch.cat(rest).sort().values
        return indices[torch.cat([*(batch for _, batch in whole), last])].reshape(-1, size)


class ShardSampler(DistributedSampler[int]):
    """Evaluation order: process r gets the indices r, r + R, r + 2R, ..., and no image comes twice.

    The processes' shares are disjoint and together the whole data set, so they may differ by one in
    length (and be empty where D < R). Do nothing collective once a batch; gather at the end.

    Args:
        dataset: Anything with a length D.
        num_replicas: R; None asks the process group, and is 1 where there is none.
        rank: r, in ``[0, R - 1]``; None asks the process group, and is 0 where there is none.

    Raises:
        ValueError: If rank or num_replicas is out of range.
    """

    def __init__(
        self, dataset: Sized, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        replicas, r = _place(num_replicas, rank)
        super().__init__(cast(Dataset[object], dataset), replicas, r, shuffle=False)
        self.num_samples = len(range(r, len(dataset), replicas))
        self.total_size = len(dataset)

    def __iter__(self) -> Iterator[int]:
        """This process's share, in the data set's order."""
        return iter(range(self.rank, self.total_size, self.num_replicas))
