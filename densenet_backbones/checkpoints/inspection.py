"""Everything that can be said about a file of weights without building its network."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.keys import find_place, to_ours
from densenet_backbones.checkpoints.reading import read_weights_file
from densenet_backbones.checkpoints.recognition import ROWS, Recognized, recognize
from densenet_backbones.checkpoints.statistics import (
    TOLERANCE,
    BlockStatistics,
    batch_counts,
    block_statistics,
    updated_twice,
)

__all__ = ["Inspection", "inspect_file"]

_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a file of weights holds.

    Attributes:
        path: File.
        size: Bytes of the file.
        format: ``safetensors``, ``torch (zip)`` or ``torch (legacy)``.
        entry: Entry of a training checkpoint that holds the weights; empty for bare weights.
        other_entries: Other entries that may hold weights, averaged ones for instance.
        prefix: What stands before the names of the network; None if there is no DenseNet.
        naming: Whose names they are; None if there is no DenseNet.
        entries: Tensors in that entry.
        outside: How many of them do not belong to the DenseNet.
        recognized: Its architecture; None if it is not known.
        reason: Why it is not known.
        parameters: Learnable values of the network, classifier included (norms that are frozen
            count too); of everything if there is no DenseNet.
        dtypes: Number of tensors of each type.
        blocks: Agreement of running statistics, by block.
        batch_counts: Norms by the number of batches they counted.
        non_finite: Names, as saved, to their number of NaN and infinite values.
        negative_variances: Names, as saved, to their number of negative running variances.
    """

    path: str
    size: int
    format: str
    entry: str
    other_entries: tuple[str, ...]
    prefix: str | None
    naming: str | None
    entries: int
    outside: int
    recognized: Recognized | None
    reason: str | None
    parameters: int
    dtypes: dict[str, int]
    blocks: tuple[BlockStatistics, ...]
    batch_counts: dict[int, tuple[str, ...]]
    non_finite: dict[str, int]
    negative_variances: dict[str, int]

    def lines(self) -> list[str]:
        """A report for people, line by line."""
        types = ", ".join(f"{name} ({count})" for name, count in self.dtypes.items())
        return [
            *_row("file", f"{self.path} ({self.size:,} bytes, {self.format})"),
            *_row("weights", self._place()),
            *_row("names", self.naming or "of no DenseNet"),
            *self._architecture(),
            *_row("parameters", f"{self.parameters:,}"),
            *_row("tensors", f"{self.entries}: {types}"),
            *_row("statistics", *self._statistics()),
            *_row("batches", *self._batches()),
            *_row("not finite", *_counted(self.non_finite, "NaN or infinite")),
            *_row("variances", *_counted(self.negative_variances, "below zero")),
        ]

    def _place(self) -> str:
        entry = f"entry {self.entry!r}" if self.entry else "bare"
        others = f"; also there: {', '.join(self.other_entries)}" if self.other_entries else ""
        if self.prefix is None:
            return entry + others
        prefix = f"prefix {self.prefix!r}" if self.prefix else "no prefix"
        outside = f", {_number(self.outside, 'tensor')} outside it" if self.outside else ""
        return f"{entry}, {prefix}{outside}{others}"

    def _architecture(self) -> Iterator[str]:
        found = self.recognized
        if found is None:
            yield from _row("network", f"not recognized: {self.reason}")
            return
        classes = "no classifier" if found.classes is None else f"{found.classes} classes"
        chans = "no stem" if found.in_chans is None else f"{found.in_chans} image channels"
        yield from _row("network", f"{found.describe()}, {classes}, {chans}")
        levels = (f"{row:<11}{' '.join(found.levels[row]) or 'none'}" for row in ROWS)
        yield from _row("levels", *levels)
        yield from _row("missing", *_named(found.missing))
        yield from _row("unexpected", *_named(found.unexpected))

    def _statistics(self) -> Iterator[str]:
        for block in self.blocks:
            name = f"denseblock{block.block}"
            if not block.differing:
                yield f"{name}: alike in all layers"
                continue
            yield (
                f"{name}: differ by up to {block.mean_difference:.2g} (mean) and "
                f"{block.variance_difference:.2g} (variance), relative; tolerance {TOLERANCE:g}"
            )
            yield from (
                f"  {first} and {second}: {_number(channels, 'channel')}"
                for first, second, channels in block.differing
            )
        if self.recognized is not None and not self.blocks:
            yield "none to compare"

    def _batches(self) -> Iterator[str]:
        for count, norms in self.batch_counts.items():
            if len(self.batch_counts) == 1:
                yield f"{count} counted by all norms"
            else:
                yield f"{count} counted by {len(norms)} norms: {', '.join(norms[:3])}" + (
                    ", ..." if len(norms) > 3 else ""
                )
        if layers := updated_twice(self.batch_counts):
            yield (
                f"norm1 counted twice the batches of norm2 in {_number(len(layers), 'layer')}: it "
                "was updated twice a batch, as under activation checkpointing"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON; ``recognized.spec`` as `DenseNetSpec.to_dict`."""
        values = dataclasses.asdict(self)
        values["batch_counts"] = {
            str(count): list(norms) for count, norms in self.batch_counts.items()
        }
        if self.recognized is not None:
            values["recognized"]["complete_to"] = self.recognized.complete_to
        return values


def inspect_file(
    path: str | Path, prefix: str | None = None, entry: str | None = None
) -> Inspection:
    """Reads a file of weights and looks at all of it.

    Args:
        path: File.
        prefix: Prefix of the network where there are several; see `to_ours`.
        entry: Entry of a training checkpoint; see `read_state_dict`.

    Raises:
        CheckpointError: As `read_state_dict` and `to_ours`. A file without a DenseNet is none.
    """
    path = Path(path)
    file = read_weights_file(path, entry=entry)
    try:
        place = find_place(file.weights, prefix)
        ours = to_ours(file.weights, prefix)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    found, reason = _recognized(ours)
    learned = (value for key, value in ours.items() if not key.endswith(_BUFFERS))
    dtypes = Counter(str(v.dtype).removeprefix("torch.") for v in file.weights.values())
    return Inspection(
        path=str(path),
        size=path.stat().st_size,
        format=file.format,
        entry=file.entry,
        other_entries=file.other_entries,
        prefix=place.prefix if place else None,
        naming=place.naming if place else None,
        entries=len(file.weights),
        outside=len(file.weights) - len(ours),
        recognized=found,
        reason=reason,
        parameters=sum(value.numel() for value in learned),
        dtypes=dict(dtypes.most_common()),
        blocks=() if found is None else block_statistics(ours, found),
        batch_counts=batch_counts(ours),
        non_finite=_count(file.weights, _not_finite),
        negative_variances=_count(file.weights, _negative_variances),
    )


def _recognized(ours: Mapping[str, Tensor]) -> tuple[Recognized | None, str | None]:
    try:
        return recognize(ours), None
    except CheckpointError as error:
        return None, str(error)


def _count(weights: Mapping[str, Tensor], find: Any) -> dict[str, int]:
    counts = {key: int(find(key, value)) for key, value in weights.items()}
    return {key: count for key, count in counts.items() if count}


def _not_finite(_: str, value: Tensor) -> int:
    if not (value.is_floating_point() or value.is_complex()):
        return 0
    if value.is_floating_point() and value.element_size() < 4:  # torch's checks lack 8-bit types
        value = value.float()
    return int((~torch.isfinite(value)).sum())


def _negative_variances(key: str, value: Tensor) -> int:
    return int((value < 0).sum()) if key.endswith(".running_var") else 0


# ------------------------------------------------------------------------------ text


def _row(title: str, *values: str) -> Iterator[str]:
    for i, value in enumerate(values):
        yield f"{title if i == 0 else '':<12}{value}"


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _named(names: Iterable[str]) -> list[str]:
    names = list(names)
    shown = names[:_SHOWN]
    return shown if len(names) == len(shown) else [*shown, f"and {len(names) - len(shown)} more"]


def _counted(counts: Mapping[str, int], what: str) -> list[str]:
    return _named(f"{name}: {_number(count, 'value')} {what}" for name, count in counts.items())
