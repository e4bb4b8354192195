"""The command line of training: short flags over Lightning's, one YAML an experiment.

`train_det` is what ``tools/train_det.py`` and the console script ``densenet-train-det`` call.
"""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from densenet_backbones.checkpoints import CheckpointError, read_checkpoint
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.files import nearest
from densenet_backbones.data.samples import DataError
from densenet_backbones.training import report, summary
from densenet_backbones.training.callbacks import (
    EMA,
    EpochLines,
    TrainingPictures,
    checkpoint_callbacks,
)
from densenet_backbones.training.console import is_first_process, log_to, say
from densenet_backbones.training.detection_task import DetectionTask, NonFiniteLossError
from densenet_backbones.training.detector import fitting_weights, read_weights
from densenet_backbones.training.run_folder import (
    ContinuedCSVLogger,
    RunFolder,
    RunFolderError,
    choose_run_folder,
    forget_run_folder,
    write_environment,
)

DEFAULT_CONFIG = "quickstart"

SHORT_FLAGS = {
    "data": ("--data.root", "DIR", "folder of the data set, COCO or VOC layout"),
    "epochs": ("--trainer.max_epochs", "N", "length of the training"),
    "batch_size": ("--data.batch_size", "N", "images a step and process"),
    "overfit": ("--data.overfit_images", "N", "train and evaluate on N images, to test a set-up"),
}
"""Short flag -> the engine's own, what it takes and what it is."""


def train_det(argv: Sequence[str] | None = None) -> None:
    """Train a detector; the entry point of the command line.

    Args:
        argv: Arguments; None takes the command line's.

    Raises:
        SystemExit: 2 for wrong usage, 1 for wrong data, 143 after a termination signal; with one
            line of explanation on standard error.
    """
    quiet_libraries()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        run_training(short_to_full(arguments))
    except argparse.ArgumentError as error:
        fail(_one_line(str(error)), 2)
    except (RunFolderError, MisconfigurationException) as error:
        fail(str(error), 2)
    except (DataError, CheckpointError, NonFiniteLossError, ValueError) as error:
        if os.environ.get("DENSENET_BACKBONES_TRACEBACK"):
            raise
        fail(str(error), 1)
    finally:
        forget_run_folder()


def short_to_full(arguments: Sequence[str]) -> list[str]:
    """Turn the short flags into the engine's, and find the config file.

    Args:
        arguments: As typed.

    Returns:
        Arguments for `DetectionCLI`.
    """
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description="Train a detector. Without arguments: draw a small data set and train on it.",
        epilog="Any other option of the engine works too, e.g. --model.optimizer.lr 0.05, "
        "--trainer.devices 2, --trainer.precision bf16-mixed; --help-all lists them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help=f"experiment: a YAML file or one of {', '.join(shipped_configs())}",
    )
    for name, (_, metavar, text) in SHORT_FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=metavar, help=text)
    parser.add_argument(
        "--run-dir", "--run_dir", metavar="DIR", help="where output goes (runs/NAME)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the last run")
    parser.add_argument(
        "--init-from",
        "--init_from",
        metavar="FILE",
        help="start from these weights; other classes are fine",
    )
    parser.add_argument("--dry-run", action="store_true", help="one batch of everything, then stop")
    parser.add_argument("--help-all", action="store_true", help="every option of the engine")
    parser.add_argument(
        "--print_config",
        nargs="?",
        const="",
        metavar="FLAGS",
        help="print the resolved experiment and stop",
    )
    known, rest = parser.parse_known_args(arguments)
    full = [f"--config={find_config(name)}" for name in known.config or [DEFAULT_CONFIG]]
    full += rest
    for name, (target, _, _) in SHORT_FLAGS.items():
        if getattr(known, name) is not None:
            full.append(f"{target}={getattr(known, name)}")
    full += [f"--run_dir={known.run_dir}"] if known.run_dir else []
    full += [f"--init_from={known.init_from}"] if known.init_from else []
    full += ["--ckpt_path=last"] if known.resume else []
    full += ["--trainer.fast_dev_run=true"] if known.dry_run else []
    full += ["--help"] if known.help_all else []
    if known.print_config is not None:
        full.append(
            f"--print_config={known.print_config}" if known.print_config else "--print_config"
        )
    return full


def shipped_configs() -> dict[str, Path]:
    """The experiments that come with the package, by name."""
    folder = resources.files("densenet_backbones.configs.det")
    files = [Path(str(f)) for f in folder.iterdir() if f.name.endswith(".yaml")]
    return {file.stem: file for file in sorted(files)}


def find_config(name: str) -> Path:
    """A config file by path, or a shipped one by name or by its path in the repository."""
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    if Path(name).stem in shipped:
        return shipped[Path(name).stem]
    raise argparse.ArgumentError(
        None,
        f"--config: there is no file {name}{nearest(Path(name).stem, shipped)} "
        f"(shipped: {', '.join(shipped)})",
    )


class DetectionCLI(LightningCLI):
    """Lightning's command line with the run's own options."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that belong to the run rather than to model, data or trainer."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of this run; by default runs/ and the config's name.",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Checkpoint to go on from: a file, or 'last' of the run folder.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Weights to start from: what fits is taken, the rest is listed.",
        )
        parser.add_argument(
            "--ema_decay",
            type=float | None,
            default=None,
            help="Evaluate and keep an average of the weights with this decay.",
        )
        parser.link_arguments("data.categories", "model.categories", apply_on="instantiate")
        parser.link_arguments("data.seed", "model.seed")

    def before_instantiate_classes(self) -> None:
        """Choose the folder before anything is written."""
        config = self.config
        files = config.get("config") or [DEFAULT_CONFIG]
        name = Path(str(files[-1])).stem
        if config.ckpt_path and config.init_from:
            raise RunFolderError(
                "--ckpt_path goes on with a run and --init_from starts a new one: give one of them"
            )
        self.folder = choose_run_folder(config.run_dir, name, config.ckpt_path)
        self.resumed = read_checkpoint(self.folder.resume_from) if self.folder.resume_from else None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with this run's checkpoints, loggers and pictures."""
        trainer = self.config_init.trainer
        callbacks: list[pl.Callback] = [TrainingPictures(self.folder), EpochLines()]
        if not trainer.fast_dev_run:
            callbacks += checkpoint_callbacks(self.folder)
        if self.config.ema_decay is not None:
            callbacks.append(EMA(self.config.ema_decay))
        self.trainer_defaults["callbacks"] = callbacks
        if trainer.logger in (None, True) and not trainer.fast_dev_run:
            step = self.resumed["global_step"] if self.resumed else None
            kwargs["logger"] = [
                TensorBoardLogger(self.folder.path, name="", version=""),
                ContinuedCSVLogger(self.folder.path, until_step=step),
            ]
        return super().instantiate_trainer(default_root_dir=str(self.folder.path), **kwargs)


def run_training(arguments: Sequence[str]) -> None:
    """One training from the engine's arguments to the report; see `train_det`."""
    cli = DetectionCLI(
        DetectionTask,
        DetectionData,
        args=list(arguments),
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        load_from_checkpoint_support=False,
        trainer_defaults={"enable_model_summary": False},  # ours says more
        parser_kwargs={"exit_on_error": False, "dump_header": None},
    )
    task, data, trainer, folder = cli.model, cli.datamodule, cli.trainer, cli.folder
    if data.overfit_images is not None:
        data.keep_for_overfitting(summary.all_objects_matched(task.model))
    if cli.config.init_from:
        start_from(task, cli.config.init_from)
    if is_first_process() and not cli.config.trainer.fast_dev_run:
        prepare_folder(cli)
    summary.before_training(task, data, trainer, folder, cli.resumed)
    fit(cli)
    if cli.config.trainer.fast_dev_run:
        say("Dry run done: one batch was trained on and one evaluated.", style="green")
        return
    report.after_training(task, data, trainer, folder)


def fit(cli: DetectionCLI) -> None:
    """Train; a stop by the user or by a signal keeps the checkpoint and says how to go on.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after a termination signal.
    """
    trainer, resume = cli.trainer, cli.folder.resume_from
    try:
        trainer.fit(cli.model, cli.datamodule, ckpt_path=resume, weights_only=True)
    except (SystemExit, RuntimeError) as stop:
        # Lightning leaves with 1 on Ctrl-C and with 0 on SIGTERM; where the signal reached the
        # loader's workers first, their death is a RuntimeError. In each case last.ckpt is written.
        if isinstance(stop, RuntimeError) and not trainer.received_sigterm:
            raise
        say(
            f"Stopped; go on with the same command and --run-dir {cli.folder.path} --resume",
            style="yellow",
        )
        sys.exit(143 if trainer.received_sigterm else 130)


def prepare_folder(cli: DetectionCLI) -> None:
    """Write what was asked for before anything runs."""
    folder: RunFolder = cli.folder
    folder.pictures.mkdir(parents=True, exist_ok=True)
    log_to(folder.path / "log.txt")
    config = cli.config.clone()
    config.run_dir = config.ckpt_path = None  # so that the file starts a new run of the same kind
    config.pop("config", None)
    cli.parser.save(
        config, folder.path / "config.yaml", skip_none=False, overwrite=True, multifile=False
    )
    write_environment(folder)


def start_from(task: DetectionTask, file: str) -> None:
    """Take the weights of a file that fit the model, and say which do not.

    Raises:
        CheckpointError: The file cannot be read safely, or nothing in it fits.
    """
    kept, left = fitting_weights(task.model, weights := read_weights(file))
    if not kept:
        raise CheckpointError(
            f"{file}: none of its {len(weights)} weights fits {task.spec.name}; "
            f"first: {', '.join(list(weights)[:3])}"
        )
    task.model.load_state_dict(kept, strict=False)
    say(f"Started from {file}: {len(kept)} of {len(task.model.state_dict())} tensors taken.")
    for line in left:
        say(f"  left out: {line}")


def fail(message: str, code: int) -> NoReturn:
    """Print one error and leave."""
    if is_first_process():
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(message: str) -> str:
    """Jsonargparse's message without the dump of usage, with the nearest right key."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    text = " ".join(lines)
    unknown = re.search(
        r"(?:Unrecognized arguments: -*|does not accept option '|Key ')([\w.]+)", text
    )
    if unknown:
        text += nearest(unknown.group(1), _known_keys())
    return text


def _known_keys() -> list[str]:
    """Every dotted key of the command line."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    parser.add_lightning_class_args(DetectionTask, "model")
    parser.add_lightning_class_args(DetectionData, "data")
    keys = [a.dest for a in parser._actions if a.dest not in ("help", "config")]
    return [*keys, "run_dir", "ckpt_path", "init_from", "ema_decay", "seed_everything"]


def quiet_libraries() -> None:
    """Silence what concerns nobody: adverts and deprecations inside the libraries."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*litlogger.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")  # rows are kept
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    adverts = ("litlogger", "Loading `train_dataloader`", "TPU available", "HPU available")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(text in record.getMessage() for text in adverts)
    )
    torch.set_float32_matmul_precision("high")  # tensor cores on GPUs that have them
