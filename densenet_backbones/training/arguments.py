"""Short command line of a training: a page of flags over the engine's hundreds of options."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from densenet_backbones.messages import CommandParser, nearest, read_version
from densenet_backbones.untrusted.limits import MAX_YAML_FILE
from densenet_backbones.untrusted.plain_yaml import parse_yaml, read_yaml
from densenet_backbones.untrusted.reading import read_text

DEFAULT_CONFIG = "quickstart"
RECIPE = "recipe"
"""In the place of a config that the data will decide on; see `training.recipes`."""
_NO_TEXT = re.compile("[\ud800-\udfff]")

SIZE = "--size"
"""Option that `model_arguments` takes out again: the engine's depends on the model."""

SHORT_FLAGS = {
    "data": "--data.root",
    "layout": "--data.layout",
    "annotation_file": "--data.annotation_file",
    "image_folder": "--data.image_folder",
    "epochs": "--trainer.max_epochs",
    "batch_size": "--data.batch_size",
    "overfit": "--data.overfit_images",
    "memory": "--model.memory",
    "lr": "--model.optimizer.lr",
    "workers": "--data.num_workers",
    "precision": "--trainer.precision",
    "size": SIZE,
}
"""Short flag -> the engine's own."""

NUMBERS = {
    "epochs": "int or null",
    "batch_size": "int or one of 'auto'",
    "overfit": "int or null",
    "lr": "float",
    "workers": "int or null",
    "patience": "int or null",
    "evaluations": "int",
}
"""Short flag that takes a number -> what the engine takes, in its words."""

EVALUATIONS = 4
"""Evaluations within a budget, unless the user says otherwise."""
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
DEVICES = r"auto|cpu|mps|cuda(:\d+(,\d+)*)?"


RUN_OPTIONS: dict[str, tuple[Any, object, str]] = {
    "run_dir": (str | None, None, "Folder of this run; by default runs/ and the config's name."),
    "name": (str | None, None, "Name of the run's folder below runs/; by default the config's."),
    "logger": (
        Literal[LOGGERS] | None,
        None,
        "Where numbers go beside metrics.csv; by default to TensorBoard's files.",
    ),
    "ckpt_path": (
        str | None,
        None,
        "Checkpoint to go on from: a file, or 'last' of the run folder.",
    ),
    "init_from": (
        str | None,
        None,
        "Weights to start from: what fits is taken, the rest is listed.",
    ),
    "ema_decay": (
        float | None,
        None,
        "Evaluate and keep an average of the weights with this decay.",
    ),
    "patience": (
        int | None,
        None,
        "End the run after this many evaluations that brought no better number.",
    ),
    "budget": (
        str | None,
        None,
        "Length of the run in the place of epochs: 500steps, 90min, 8h, or 2cpumin of processor "
        "time. The schedule ends with it.",
    ),
    "evaluations": (int, EVALUATIONS, "Evaluations within a budget, evenly spread."),
    "profile": (
        bool,
        False,
        "Write each part's share of the training's time to profile.txt and profile.json.",
    ),
}
"""Options that belong to the run rather than to model, data or trainer: type, default, help."""


@dataclass(frozen=True)
class ShortForm:
    """Texts and configs of a kind of training on its short command line.

    Attributes:
        description: First lines of the help.
        data: What the folder of the data may be.
        configs: Packages of the experiments that ship with it.
    """

    description: str
    data: str
    configs: tuple[str, ...]


DATA_HELP = "folder, annotation file or zip of the data, in any known layout"
DETECTION_FORM = ShortForm(
    "Train a detector. Without arguments: draw a small data set and train on it.",
    DATA_HELP,
    ("densenet_backbones.configs.det",),
)
SEGMENTATION_FORM = ShortForm(
    "Train a segmentation model. Without arguments: draw a small data set and train on it.",
    DATA_HELP,
    ("densenet_backbones.configs.seg",),
)
CLASSIFICATION_FORM = ShortForm(
    "Train an image classifier. Without arguments: draw a small data set and train on it.",
    "folder with a folder of images for each class, table (CSV) or zip archive, or CIFAR's files",
    ("densenet_backbones.configs.cls",),
)
EITHER_FORM = ShortForm(
    "Train a detector, a segmentation model or a classifier, whichever the config or the data are "
    "of. Without arguments: draw a small data set and train a detector on it.",
    DATA_HELP,
    DETECTION_FORM.configs + SEGMENTATION_FORM.configs + CLASSIFICATION_FORM.configs,
)
"""Of `densenet train`."""


def expand_short_flags(arguments: Sequence[str], form: ShortForm = DETECTION_FORM) -> list[str]:
    """Turn the short flags into the engine's, and find the config file.

    Args:
        arguments: As typed.
        form: Of the kind of training.

    Returns:
        Arguments for `TrainingCLI`.

    Raises:
        ArgumentError: One is no text, which the run's own config could not hold.
    """
    for argument in arguments:
        if _NO_TEXT.search(argument):
            raise argparse.ArgumentError(
                None, f"{argument!r} has bytes that are no UTF-8; rename the file or folder"
            )
    known, rest = make_parser(form).parse_known_args(arguments)
    if known.data == "":  # an unset variable of a shell, which would mean the folder one is in
        raise argparse.ArgumentError(None, "--data must be a path, got an empty word")
    # The config first, then what was typed: later arguments of the engine win.
    files = known.config or [choose_config(known)]
    full = [f"--config={RECIPE if name == RECIPE else find_config(name, form)}" for name in files]
    full += rest
    for name, target in SHORT_FLAGS.items():
        if getattr(known, name) is not None:
            full.append(f"{target}={getattr(known, name)}")
    if known.device is not None:
        accelerator, devices = split_device(known.device)
        full += [f"--trainer.accelerator={accelerator}", f"--trainer.devices={devices}"]
    if known.seed is not None:
        full += [f"--seed_everything={known.seed}", f"--data.seed={known.seed}"]
    for name in ("run_dir", "name", "logger", "patience", "budget", "evaluations"):
        full += [f"--{name}={getattr(known, name)}"] if getattr(known, name) else []
    full += [f"--init_from={known.init_from}"] if known.init_from else []
    typed = {word.partition("=")[0] for word in full[len(files) :]}
    if known.budget is None and typed & {"--trainer.max_epochs", "--trainer.max_steps"}:
        full.append("--budget=null")  # a config's, in place of which this length was typed
    if known.resume:
        full.append("--ckpt_path=last")
        full += [] if known.init_from else ["--init_from=null"]  # the run's config may have one
    full += ["--trainer.fast_dev_run=true"] if known.dry_run else []
    full += ["--profile=true"] if known.profile else []
    full += ["--help"] if known.help_all else []
    if known.print_config is not None:
        full.append(
            f"--print_config={known.print_config}" if known.print_config else "--print_config"
        )
    return full


def split_device(device: str) -> tuple[str, str]:
    """Return Lightning's accelerator and devices for a device by torch's name.

    Raises:
        ArgumentError: It is none.
    """
    if not re.fullmatch(DEVICES, device):
        raise argparse.ArgumentError(
            None, f"--device must be cpu, cuda, cuda:1, cuda:0,1, mps or auto, got {device}"
        )
    kind, _, numbers = device.partition(":")
    devices = {"auto": "auto", "cpu": "auto"}.get(kind, f"[{numbers}]" if numbers else "1")
    return kind, devices


def make_parser(form: ShortForm) -> CommandParser:
    """Return the parser of the short flags, whose help is one page."""
    parser = CommandParser(
        usage="%(prog)s [OPTION [VALUE]] ...",
        description=form.description,
        epilog="Any other option of the engine works too, such as --trainer.devices 2; --help-all "
        "lists them. --model.args '{min_size: 480}' (or --model.args.min_size 480) joins the "
        "config's arguments of the model; --model.args null forgets those.",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=34),
        allow_abbrev=False,
    )
    parser.handed_on = (
        "--model.args",
        "--model.optimizer",
        "--model.detector",
        "--model.classifier",
    )
    # No groups, whose titles would make it longer than a page.
    _add_data_flags(parser, form)
    _add_training_flags(parser)
    _add_machine_flags(parser)
    _add_run_flags(parser)
    _add_helps(parser)
    return parser


def _add_data_flags(parser: CommandParser, form: ShortForm) -> None:
    parser.add_argument("--data", metavar="PATH", help=form.data)
    parser.add_argument("--layout", metavar="NAME", help="layout of the data; auto looks")
    parser.add_argument("--annotation-file", metavar="FILE", help="COCO's JSON, of several")
    parser.add_argument("--image-folder", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--workers", metavar="N", help="processes that read images")
    parser.add_argument(
        "--overfit", metavar="N", help="train and evaluate on N images, to test a set-up"
    )


def _add_training_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="experiment: a YAML file, or one that ships, such as quickstart (densenet list)",
    )
    parser.add_argument("--epochs", metavar="N", help="length of the training")
    parser.add_argument(
        "--budget", metavar="N", help="length in its place: 500steps, 90min, 8h, 2cpumin"
    )
    parser.add_argument("--evaluations", metavar="N", help=argparse.SUPPRESS)
    parser.add_argument(
        "--batch-size", metavar="N", help="images a step and process, or auto: what fits"
    )
    parser.add_argument(
        "--lr", metavar="X", help="learning rate, at the config's number of images a step"
    )
    parser.add_argument(
        "--size",
        metavar="N",
        help="pixels of the shorter side; of both for SSD, DSOD, classifiers",
    )
    parser.add_argument("--seed", metavar="N", help="of weights, order and augmentation")
    parser.add_argument(
        "--patience", metavar="N", help="end after N evaluations without a better number"
    )
    parser.add_argument(
        "--init-from",
        "--init_from",
        metavar="FILE|RUN",
        help="start from these weights; other classes are fine",
    )


def _add_machine_flags(parser: CommandParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, cuda:0,1 or mps")
    parser.add_argument(
        "--precision", metavar="P", help="32-true, bf16-mixed, 16-mixed, or auto: what is fast"
    )
    parser.add_argument(
        "--memory",
        metavar="MODE",
        help="what dense blocks keep for the backward pass: auto (the fastest that fits), none, "
        "shared, ...; left out, the fastest",
    )


def _add_run_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--run-dir", "--run_dir", metavar="DIR", help="where output goes (runs/NAME)"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="name of the run's folder below runs/ (the config's)"
    )
    parser.add_argument(
        "--logger",
        metavar="NAME",
        choices=LOGGERS,
        help=f"where numbers go beside metrics.csv: {', '.join(LOGGERS)}",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the last run")
    parser.add_argument("--dry-run", action="store_true", help="one batch of everything, then stop")
    parser.add_argument(
        "--profile", action="store_true", help="a table of where the training's time went"
    )


def _add_helps(parser: CommandParser) -> None:
    parser.add_argument("--version", action="version", version=read_version(), help="print it")
    parser.add_argument("--help-all", action="store_true", help="every option of the engine")
    parser.add_argument(
        "--print_config",
        nargs="?",
        const="",
        metavar="FLAGS",
        help="print the resolved experiment and stop",
    )


def list_configs(form: ShortForm = DETECTION_FORM) -> dict[str, Path]:
    """Return the experiments that come with the package, by name."""
    folders = map(_find_folder, form.configs)
    files = [Path(str(f)) for folder in folders for f in folder.iterdir()]
    return {file.stem: file for file in sorted(files) if file.suffix == ".yaml"}


def _find_folder(package: str) -> Traversable:
    """Return the folder of a package of experiments."""
    try:
        return resources.files(package)
    except ModuleNotFoundError:  # a bare checkout, where configs/ lies beside the package
        return Path(__file__).parents[2] / "configs" / package.rpartition(".")[2]


def choose_config(known: argparse.Namespace) -> str:
    """Return the config of the run to go on with, where none is named.

    Else it is the data's to decide, or the quick start's without data.
    """
    if known.resume and known.name and not known.run_dir:
        from densenet_backbones.training.run_folder import find_latest_folder

        known.run_dir = str(find_latest_folder(known.name))
    if not (known.resume and known.run_dir):
        return RECIPE if known.data else DEFAULT_CONFIG
    # A run goes on with what it last ran with, which may differ from what it began with.
    later = Path(known.run_dir).glob("config_from_step_*.yaml")
    resumed = sorted(later, key=lambda file: int(file.stem.rpartition("_")[2]))
    files = [
        file for file in (*resumed[::-1], Path(known.run_dir, "config.yaml")) if file.is_file()
    ]
    if files and not is_whole_config(files[0]):
        from densenet_backbones.training.resuming.checkpoint_files import restore_config

        restore_config(Path(known.run_dir), files[0])
    return next((str(file) for file in files if is_whole_config(file)), DEFAULT_CONFIG)


def is_whole_config(file: Path) -> bool:
    """Return True unless a run's config is damaged or cut off; a part of one can be read too."""
    try:
        text = read_text(file, MAX_YAML_FILE, ValueError)
        options = parse_yaml(text, file, ValueError)
    except ValueError:
        return False
    # The run's own options are the last ones.
    return isinstance(options, dict) and "ema_decay" in options and text.endswith("\n")


def find_config(name: str, form: ShortForm = DETECTION_FORM) -> Path:
    """Return a config file by path, or a shipped one by name or by its path in the repository."""
    if Path(name).is_file():
        read_config(Path(name))  # what the engine's parser takes no care of
        return Path(name)
    shipped = list_configs(form)
    if Path(name).stem in shipped:
        return shipped[Path(name).stem]
    raise argparse.ArgumentError(
        None,
        f"--config: there is no file {name}{nearest(Path(name).stem, shipped)} "
        f"(shipped: {', '.join(shipped)}); give one of these, or a file",
    )


def read_config(file: Path) -> dict[str, Any]:
    """Return the content of an experiment.

    Raises:
        ArgumentError: It is no YAML, or no mapping.
    """
    try:
        content = read_yaml(file, ValueError)
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from error
    if not isinstance(content, dict):
        raise argparse.ArgumentError(
            None, f"{file}: must be a mapping of options, as --print_config prints one"
        )
    return content
