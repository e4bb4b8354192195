"""Chooses which groups of images are held out, so that both parts have every class in proportion.

The method is iterative stratification: K. Sechidis, G. Tsoumakas and I. Vlahavas, "On the
Stratification of Multi-Label Data" (ECML PKDD 2011), algorithm 1. Groups of images stand for its
examples. Besides, a class that two groups or more have is to be in both parts, however rare it is.

Legend: G groups, K labels, of which a group has those of its images.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TRAIN, VAL, OPEN = 0, 1, -1
_TIE = 1e-9  # of numbers of images: the sums of shares that are equal but for rounding


@dataclass(frozen=True)
class Group:
    """Images that stay together.

    Attributes:
        size: Number of its images.
        labels: (k,) int64, those that an image of it has, each once.
        counts: (k,) int64 number of its images that have each of them.
    """

    size: int
    labels: np.ndarray
    counts: np.ndarray


def assign_sides(
    groups: Sequence[Group], fraction: float, seed: int = 0, sides: np.ndarray | None = None
) -> np.ndarray:
    """Assign each group to one of the two parts.

    Args:
        groups: G groups.
        fraction: Share of the images that are held out.
        seed: Chooses among groups that would do as well.
        sides: (G,) of `TRAIN`, `VAL` and `OPEN`: only open groups are assigned, others stay.

    Returns:
        (G,) of `TRAIN` and `VAL`; both occur if there are two groups or more and one of them was
        open.
    """
    sides = np.full(len(groups), OPEN) if sides is None else sides.copy()
    movable = np.flatnonzero(sides == OPEN)
    wanted = _Wanted(groups, fraction)
    for n in np.flatnonzero(sides != OPEN).tolist():
        wanted.assign(groups[n], int(sides[n]))
    # Large groups first, as small ones fill what they leave; chance decides among equal ones.
    order = np.random.default_rng(seed).permutation(movable).tolist()
    order.sort(key=lambda n: -groups[n].size)
    members: dict[int, list[int]] = {}
    for n in order:
        for label in groups[n].labels.tolist():
            members.setdefault(label, []).append(n)
    # The label with the fewest groups left takes its groups first; it has the least choice.
    left = {label: len(own) for label, own in members.items()}
    heap = sorted((count, label) for label, count in left.items())
    while heap:
        count, label = heapq.heappop(heap)
        if count != left[label]:  # others have taken some of its groups since
            heapq.heappush(heap, (left[label], label))
            continue
        for n in members[label]:
            if sides[n] == OPEN:
                sides[n] = wanted.choose_side(label)
                wanted.assign(groups[n], int(sides[n]))
                for other in groups[n].labels.tolist():
                    left[other] -= 1
    for n in order:
        if sides[n] == OPEN:  # images without any label
            sides[n] = wanted.choose_side(None)
            wanted.assign(groups[n], int(sides[n]))
    _fill_empty_part(groups, sides, movable)
    _spread_missing_labels(groups, sides, movable)
    return sides


class _Wanted:
    """Images that each part still wants, of each label and in all."""

    def __init__(self, groups: Sequence[Group], fraction: float) -> None:
        size = 1 + max((int(g.labels.max()) for g in groups if len(g.labels)), default=0)
        total, owners = np.zeros(size), np.zeros(size, np.int64)
        for group in groups:
            total[group.labels] += group.counts
            owners[group.labels] += 1
        # One image at least where several groups have the label; none where one group alone has
        # it, since a class that is never trained on is worse than one that is not measured.
        held_out = np.where(owners > 1, np.maximum(fraction * total, 1), 0)
        self.of_label = np.stack((total - held_out, held_out))  # (2, K)
        images = sum(group.size for group in groups)
        self.in_all = np.array((images - max(1, fraction * images), max(1, fraction * images)))

    def choose_side(self, label: int | None) -> int:
        """Return the part that wants an image of a label more, or any image where they tie."""
        wishes = [self.in_all] if label is None else [self.of_label[:, label], self.in_all]
        for train, val in wishes:
            if abs(train - val) > _TIE:
                return TRAIN if train > val else VAL
        return VAL

    def assign(self, group: Group, side: int) -> None:
        """Take the images of a group off the wishes of its part."""
        self.of_label[side, group.labels] -= group.counts
        self.in_all[side] -= group.size


def _fill_empty_part(groups: Sequence[Group], sides: np.ndarray, movable: np.ndarray) -> None:
    """Move the smallest group into a part that got none."""
    for side in (TRAIN, VAL):
        if len(groups) > 1 and len(movable) and side not in sides:
            sides[min(movable.tolist(), key=lambda n: groups[n].size)] = side


def _spread_missing_labels(groups: Sequence[Group], sides: np.ndarray, movable: np.ndarray) -> None:
    """Move groups, one after the other, as long as that brings more labels into both parts."""
    size = 1 + max((int(g.labels.max()) for g in groups if len(g.labels)), default=0)
    owners = np.zeros((2, size), np.int64)  # groups of each part that have each label
    for group, side in zip(groups, sides.tolist(), strict=True):
        owners[side, group.labels] += 1
    members: dict[int, list[int]] = {}
    for n in movable.tolist():
        for label in groups[n].labels.tolist():
            members.setdefault(label, []).append(n)
    parts = np.bincount(sides, minlength=2)
    while True:
        missing = (owners == 0) & (owners.sum(axis=0) > 1)  # (2, K)
        # Moving a group out of `side` adds what the other part lacks, and may empty its own.
        lacking = np.flatnonzero(missing.any(axis=0)).tolist()
        candidates = sorted({n for label in lacking for n in members.get(label, ())})
        gains = {
            n: int(missing[1 - side, labels].sum() - (owners[side, labels] == 1).sum())
            for n in candidates
            for side, labels in [(int(sides[n]), groups[n].labels)]
            if parts[side] > 1
        }
        best = max(gains, key=lambda n: (gains[n], -groups[n].size), default=None)
        if best is None or gains[best] <= 0:
            return
        side, labels = int(sides[best]), groups[best].labels
        owners[side, labels] -= 1
        owners[1 - side, labels] += 1
        parts += np.where(np.arange(2) == side, -1, 1)
        sides[best] = 1 - side
