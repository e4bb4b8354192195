"""Inspect a file of weights: its network, whose names it uses, and values that look wrong."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.keys import find_place, to_ours
from densenet_backbones.checkpoints.reading import read_weights_file
from densenet_backbones.checkpoints.recognition import ROWS, Recognized, recognize
from densenet_backbones.checkpoints.statistics import (
    TOLERANCE,
    BlockStatistics,
    compare_block_statistics,
    count_batches,
    find_layers_updated_twice,
)
from densenet_backbones.messages import pluralize

__all__ = ["Inspection", "inspect_file"]

_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Inspection:
    """Contents of a file of weights.

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
        """Return a report for people, line by line."""
        types = ", ".join(f"{name} ({count})" for name, count in self.dtypes.items())
        return [
            *_write_row("file", f"{self.path} ({self.size:,} bytes, {self.format})"),
            *_write_row("weights", self._place()),
            *_write_row("names", self.naming or "of no DenseNet"),
            *self._architecture(),
            *_write_row("parameters", f"{self.parameters:,}"),
            *_write_row("tensors", f"{self.entries}: {types}"),
            *_write_row("statistics", *self._statistics()),
            *_write_row("batches", *self._batches()),
            *_write_row("not finite", *_describe_counts(self.non_finite, "NaN or infinite")),
            *_write_row("variances", *_describe_counts(self.negative_variances, "below zero")),
        ]

    def _place(self) -> str:
        entry = f"entry {self.entry!r}" if self.entry else "bare"
        others = f"; also there: {', '.join(self.other_entries)}" if self.other_entries else ""
        if self.prefix is None:
            return entry + others
        prefix = f"prefix {self.prefix!r}" if self.prefix else "no prefix"
        outside = f", {_count_in_words(self.outside, 'tensor')} outside it" if self.outside else ""
        return f"{entry}, {prefix}{outside}{others}"

    def _architecture(self) -> Iterator[str]:
        network = self.recognized
        if network is None:
            yield from _write_row("network", f"not recognized: {self.reason}")
            return
        known = network.classes
        classes = "no classifier" if known is None else pluralize(known, "class")
        chans = "no stem" if network.in_chans is None else f"{network.in_chans} image channels"
        yield from _write_row("network", f"{network.describe()}, {classes}, {chans}")
        levels = (f"{row:<11}{' '.join(network.levels[row]) or 'none'}" for row in ROWS)
        yield from _write_row("levels", *levels)
        yield from _write_row("missing", *_shorten(network.missing))
        yield from _write_row("unexpected", *_shorten(network.unexpected))

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
                f"  {first} and {second}: {_count_in_words(channels, 'channel')}"
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
        if layers := find_layers_updated_twice(self.batch_counts):
            yield (
                "norm1 counted twice the batches of norm2 in "
                f"{_count_in_words(len(layers), 'layer')}: it was updated twice a batch, as under "
                "activation checkpointing"
            )

    def to_dict(self) -> dict[str, object]:
        """Return all fields as plain values, for JSON; ``recognized.spec`` is a dictionary too."""
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
    """Read a file of weights and inspect all of it.

    Args:
        path: File.
        prefix: Prefix of the network where there are several; see `to_ours`.
        entry: Entry of a training checkpoint; see `read_state_dict`.

    Raises:
        CheckpointError: As `read_state_dict` and `to_ours`. A file without a DenseNet is none.
    """
    # The file, then the DenseNet in it: it may be a part of a bigger model.
    path = Path(path)
    file = read_weights_file(path, entry=entry)
    try:
        place = find_place(file.weights, prefix)
        ours = to_ours(file.weights, prefix)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # A file without a known network still has entries, types and odd values to report.
    network, reason = _try_to_recognize(ours)
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
        recognized=network,
        reason=reason,
        parameters=sum(value.numel() for value in learned),
        dtypes=dict(dtypes.most_common()),
        blocks=() if network is None else compare_block_statistics(ours, network),
        batch_counts=count_batches(ours),
        non_finite=_count_values(file.weights, _count_non_finite),
        negative_variances=_count_values(file.weights, _count_negative_variances),
    )


def _try_to_recognize(ours: Mapping[str, Tensor]) -> tuple[Recognized | None, str | None]:
    try:
        return recognize(ours), None
    except CheckpointError as error:
        return None, str(error)


def _count_values(
    weights: Mapping[str, Tensor], find: Callable[[str, Tensor], int]
) -> dict[str, int]:
    counts = {key: find(key, value) for key, value in weights.items()}
    return {key: count for key, count in counts.items() if count}


def _count_non_finite(_: str, value: Tensor) -> int:
    if not (value.is_floating_point() or value.is_complex()):
        return 0
    if value.is_floating_point() and value.element_size() < 4:  # torch's checks lack 8-bit types
        value = value.float()
    return int((~torch.isfinite(value)).sum())


def _count_negative_variances(key: str, value: Tensor) -> int:
    return int((value < 0).sum()) if key.endswith(".running_var") else 0


# ------------------------------------------------------------------------------ text


def _write_row(title: str, *values: str) -> Iterator[str]:
    for i, value in enumerate(values):
        yield f"{title if i == 0 else '':<12}{value}"


def _count_in_words(count: int, thing: str) -> str:
    return pluralize(count, thing)


def _shorten(names: Iterable[str]) -> list[str]:
    names = list(names)
    listed = names[:_SHOWN]
    return (
        listed if len(names) == len(listed) else [*listed, f"and {len(names) - len(listed)} more"]
    )


def _describe_counts(counts: Mapping[str, int], what: str) -> list[str]:
    return _shorten(
        f"{name}: {_count_in_words(count, 'value')} {what}" for name, count in counts.items()
    )
