"""Train from Python as the command line does: ``densenet_backbones.train(data="photos")``."""

import argparse
import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch

from densenet_backbones.command.training import choose_task, make_parser, take_out_task
from densenet_backbones.inference.classifier import ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.messages import one_sentence, to_plain
from densenet_backbones.sharing.run_record import read_run
from densenet_backbones.training.arguments import expand_short_flags
from densenet_backbones.training.options.names import list_options

__all__ = ["TrainingResult", "make_words", "train"]

_GROUPS = ("model", "data", "trainer")
OF_TERMINALS = ("help", "help_all", "print_config", "version")
"""Flags that print something and stop."""


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        folder: Folder of the run; `tools/README.md` says what is in it.
        numbers: Evaluation of the best weights: AP, AP50, … of a detector, mIoU, … of a segmenter,
            accuracy, … of a classifier, None where a number is not defined. Those of masks and
            keypoints begin with ``segm_`` and ``keypoints_``. Empty after a dry run.
    """

    folder: Path
    numbers: Mapping[str, float | None]

    @property
    def model_file(self) -> Path:
        """File of the trained model: its best weights, and all that is needed to predict."""
        return self.folder / "model.safetensors"

    def model(
        self, device: torch.device | str = "cpu"
    ) -> Detector | SegmentationModel | ImageClassifier:
        """Load the trained model; see `load`.

        Raises:
            CheckpointError: There is none, as after a dry run.
        """
        return load(self.model_file, device)


def train(
    data: str | PathLike[str] | Mapping[str, Any] | None = None,
    config: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    epochs: int | None = None,
    *,
    task: str | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a model of any kind, exactly as ``densenet train`` does with the same flags.

    Every flag of the command is a keyword, with ``_`` for ``-``: ``batch_size=8, run_dir="runs/a",
    init_from="runs/b/model.safetensors", dry_run=True``. The engine's dotted options are
    dictionaries: ``model={"detector": "dsod_tiny"}, trainer={"precision": "bf16-mixed"}``, or names
    with dots, ``**{"model.optimizer.lr": 0.01}``. None leaves an option as the config has it.

    Args:
        data: Data set; without it and a config, a small one is drawn.
        config: Experiment: name of one that ships with the package, or a YAML file, or several.
        epochs: Length of the training.
        task: "detection", "segmentation" or "classification", where neither config nor data say it.
        **options: All other flags.

    Returns:
        The run's folder, its numbers and its model.

    Raises:
        ValueError: An option or the data is not as it must be, a checkpoint cannot be read, or the
            run folder is taken; in the words of the command line, flags included.
        OSError: A file cannot be read or written.
        RuntimeError: Of torch, as in any training; the loss is not finite.
        KeyboardInterrupt: The training was stopped; its folder has a checkpoint to go on from.
    """
    words = make_words({"data": data, "config": config, "epochs": epochs, "task": task, **options})
    with _raising_sentences():
        kind = choose_task(*make_parser().parse_known_args(words))
    words = take_out_task(words)
    # Imported here: words that are wrong are refused before Lightning is there.
    from densenet_backbones.training.running import TASKS, start_training

    task_type = TASKS[kind]
    try:
        with _raising_sentences():
            expand_short_flags(words, task_type.form)
        with _raising_stops():
            folder = start_training(task_type, words)
    except argparse.ArgumentError as error:
        raise ValueError(one_sentence(str(error), lambda: list_options(kind))) from error
    numbers: dict[str, float | None] = {}
    for kind_of_result, part in read_run(folder / "model.safetensors").list_evaluations():
        prefix = "" if not numbers else f"{kind_of_result}_"
        numbers |= {f"{prefix}{name}": value for name, value in part["numbers"].items()}
    return TrainingResult(folder, numbers)


def make_words(options: Mapping[str, Any]) -> list[str]:
    """Return the words of the command line that keyword arguments stand for.

    Raises:
        ValueError: One is for terminals alone, or a flag without a value has one.
    """
    flags = {action.dest: action for action in make_parser()._actions if action.option_strings}
    words: list[str] = []
    for name, value in options.items():
        flag = flags.get(name)
        if value is None:
            continue
        if name in OF_TERMINALS:
            raise ValueError(f"{name} is for the command line alone; leave it out")
        if name in _GROUPS and isinstance(value, Mapping):
            words += [f"--{name}.{key}={_write(entry)}" for key, entry in value.items()]
        elif flag is not None and flag.nargs == 0:
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
            words += [flag.option_strings[0]] if value else []
        else:
            word = flag.option_strings[0] if flag is not None else f"--{name}"
            is_list = name == "config" and isinstance(value, list | tuple)
            words += [f"{word}={_write(entry)}" for entry in (value if is_list else [value])]
    return words


def _write(value: object) -> str:
    """Return a value as it is typed: text as it is, all else as JSON, which YAML reads as well."""
    if isinstance(value, str | PathLike):
        return fspath(value)
    return json.dumps(to_plain(value), default=fspath)


@contextlib.contextmanager
def _raising_sentences() -> Iterator[None]:
    """Raise what a parser of words would print and exit with."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as end:
        sentence = printed.getvalue().strip().removeprefix("error: ")
        raise ValueError(sentence or "these options are refused") from end


@contextlib.contextmanager
def _raising_stops() -> Iterator[None]:
    """Raise the stop of a training, which has ended with its checkpoint, as Python's own."""
    try:
        yield
    except SystemExit as end:
        raise KeyboardInterrupt("the training was stopped") from end
