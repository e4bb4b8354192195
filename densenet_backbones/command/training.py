"""`densenet train`: a detector, a segmenter or a classifier, as words, config or data say."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from densenet_backbones.messages import CommandParser
from densenet_backbones.training import arguments
from densenet_backbones.training.arguments import (
    CLASSIFICATION_FORM,
    DETECTION_FORM,
    EITHER_FORM,
    SEGMENTATION_FORM,
    ShortForm,
)
from densenet_backbones.untrusted.plain_yaml import read_yaml

__all__ = ["choose_task", "make_parser", "train"]

Task = Literal["detection", "segmentation", "classification"]

_FORMS: dict[Task, ShortForm] = {
    "detection": DETECTION_FORM,
    "segmentation": SEGMENTATION_FORM,
    "classification": CLASSIFICATION_FORM,
}
_KEYS: dict[str, Task] = {
    "detector": "detection",
    "segmenter": "segmentation",
    "classifier": "classification",
}
_FOLDERS: dict[str, Task] = {
    "det": "detection",
    "seg": "segmentation",
    "cls": "classification",
}


def train(argv: Sequence[str]) -> None:
    """Run `train_det`, `train_seg` or `train_cls` with the words of the command line.

    Raises:
        SystemExit: Theirs; 0 after ``--help``.
    """
    parser = make_parser()
    options, engine = parser.parse_known_args(argv)
    task = choose_task(options, engine)
    from densenet_backbones.training import cli

    trains = {"segmentation": cli.train_seg, "classification": cli.train_cls}
    trains.get(task, cli.train_det)(take_out_task(argv))


def take_out_task(argv: Sequence[str]) -> list[str]:
    """Return the words without ``--task``, which the trainings do not know."""
    only_task = _make_part_parser()
    only_task.add_argument("--task")
    return only_task.parse_known_args(argv)[1]


def _make_part_parser() -> CommandParser:
    """Return a parser that picks words from those of a training, which checks the others."""
    parser = CommandParser(add_help=False, allow_abbrev=False)
    parser.handed_on = None
    return parser


def make_parser() -> CommandParser:
    """Return the parser of the short flags of all trainings."""
    parser = arguments.make_parser(EITHER_FORM)
    parser.add_argument(
        "--task",
        choices=tuple(_FORMS),
        help="which of them, where neither config nor data say it (detection)",
    )
    return parser


def choose_task(options: argparse.Namespace, engine: Sequence[str]) -> Task:
    """Return the kind of training that is meant.

    Args:
        options: Short flags.
        engine: Words for the engine.
    """
    if options.task:
        task: Task = options.task
        return task
    for word in engine:
        for key, task in _KEYS.items():
            if word.lstrip("-").partition("=")[0] == f"model.{key}":
                return task
    configs = options.config or []
    if not configs and (own := arguments.choose_config(options)) != arguments.DEFAULT_CONFIG:
        configs = [own]  # of the run to go on with
    tasks = [said for said in map(_read_task, configs) if said]
    if tasks:
        return tasks[-1]
    parser = _make_part_parser()
    parser.add_argument("--data.root", dest="root", default=options.data)
    parser.add_argument("--data.layout", dest="layout", default="auto")
    data = parser.parse_known_args(engine)[0]
    return _recognize_task(data.root, data.layout) if data.root else "detection"


def _recognize_task(data: str, layout: str) -> Task:
    """Return what data can teach: boxes, unless it has masks alone, or classes of images alone."""
    if not Path(data).exists():  # as the training says, before it imports anything heavy
        return "detection"
    from densenet_backbones.data.classification.reading import ClassLayout, recognize_classes
    from densenet_backbones.data.faults import DataError
    from densenet_backbones.data.recognition.recognize import recognize

    if layout in set(get_args(ClassLayout)) - {"auto", "csv"}:
        return "segmentation" if layout == "folders" and _has_masks(data) else "classification"

    try:
        recognize(data, "detection", layout=layout)
    except (DataError, OSError) as error:
        # Several readings, which the training shows; otherwise there are no boxes.
        if len(error.args) == 1:
            with suppress(DataError, OSError):  # the training says what lies there
                recognize(data, "segmentation", layout=layout)
                return "segmentation"
            with suppress(DataError, OSError):
                recognize_classes(data, layout)  # type: ignore[arg-type]
                return "classification"
    return "detection"


def _has_masks(data: str) -> bool:
    """Return True for folders of images and masks, which "folders" means to a segmenter."""
    from densenet_backbones.data.faults import DataError
    from densenet_backbones.data.recognition.recognize import recognize

    try:
        recognize(data, "segmentation", layout="folders")
    except DataError:
        return False
    return True


def _read_task(name: str) -> Task | None:
    """Return the task of an experiment, a file or one that ships; None where nothing says it."""
    path = Path(name)
    if path.is_file():
        try:
            content = read_yaml(path, ValueError)
        except ValueError:  # whose sentence the training says
            return None
        model = content.get("model") if isinstance(content, dict) else None
        for key, task in _KEYS.items():
            if isinstance(model, dict) and key in model:
                return task
    elif path.parent.name not in _FOLDERS:
        homes = [task for task, f in _FORMS.items() if path.stem in arguments.list_configs(f)]
        return homes[0] if len(homes) == 1 else None
    return _FOLDERS.get(path.parent.name)
