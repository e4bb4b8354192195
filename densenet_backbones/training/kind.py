"""What one kind of training differs in from another; the engine does all the rest."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.table import Table

from densenet_backbones.inference.model_file import ModelSpec
from densenet_backbones.training.arguments import ShortForm
from densenet_backbones.training.task import Task


@dataclass(frozen=True)
class Kind:
    """One kind of training.

    Attributes:
        form: Its short command line.
        task: Its Lightning module.
        data: Its Lightning data module, with `train_set` and `val_set`.
        spec: What describes its models in files.
        told_by_data: Properties of the data that are arguments of the task by the same name.
        told_by_model: Property of the data -> option of the task it follows from, and how: known
            before either is built.
        prepare: Called with task and data before anything is written.
        data_table: Classes and their numbers in both parts, from the data.
        remarks: Further lines to read before a long training, from task and data.
        write_evaluation: Prints and writes what a finished evaluation found, from the task, the
            evaluated set and the folder.
        doing: What a trained model does, for the last lines of a run.
        tool: The command that trains it.
        own_data: How to train on data of one's own, likewise: from the task the config, and what
            else there is.
    """

    form: ShortForm
    task: type[Task]
    data: type[pl.LightningDataModule]
    spec: type[ModelSpec]
    told_by_data: tuple[str, ...]
    told_by_model: Mapping[str, tuple[str, Callable[[Any], Any]]]
    prepare: Callable[[Any, Any], None]
    data_table: Callable[[Any], Table]
    remarks: Callable[[Any, Any], Iterable[str]]
    write_evaluation: Callable[[Any, Any, Path], None]
    doing: str
    tool: str
    own_data: Callable[[Any], tuple[str, str]]
