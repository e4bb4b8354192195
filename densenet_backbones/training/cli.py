"""The command line of training: short flags over Lightning's, one YAML an experiment.

`train_det` is what ``tools/train_det.py`` and the console script ``densenet-train-det`` call, and
`train_seg` and `train_cls` the same for segmentation and classification; they differ in their
`Task`.
"""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.condensenet import find_learned_groups
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders.guarded import describe_dead_worker
from densenet_backbones.file_writing import remove_drafts, save_text
from densenet_backbones.messages import one_sentence, quote_word
from densenet_backbones.reporting.console import (
    fail,
    has_terminal,
    is_first_process,
    log_to,
    quiet_libraries,
    say,
)
from densenet_backbones.training import report
from densenet_backbones.training.arguments import (
    DEFAULT_CONFIG,
    RUN_OPTIONS,
    SHORT_FLAGS,
    expand_short_flags,
    find_config,
)
from densenet_backbones.training.callbacks import (
    EMA,
    TrainingPictures,
    UnusableImageLines,
    make_checkpoint_callbacks,
)
from densenet_backbones.training.condensation import Condensation
from densenet_backbones.training.memory_choice import settle_memory
from densenet_backbones.training.model_arguments import settle_model_arguments
from densenet_backbones.training.precision import PrecisionTrainer
from densenet_backbones.training.profiling import PartsProfiler, profile_training
from densenet_backbones.training.progress.budget import NEVER, BudgetEnd, parse_budget
from densenet_backbones.training.progress.clock import RunClock
from densenet_backbones.training.progress.lines import EpochLines, RunProgressBar
from densenet_backbones.training.progress.patience import Patience
from densenet_backbones.training.progress.summary import RunSummary
from densenet_backbones.training.recipes.batch import (
    describe_choices,
    explain_out_of_memory,
    is_out_of_memory,
    settle_batch,
)
from densenet_backbones.training.recipes.choice import insert_recipe
from densenet_backbones.training.resuming.checkpoint_files import (
    State,
    WholeCheckpoints,
    read_newest_state,
    read_training_state,
)
from densenet_backbones.training.resuming.lock import hold_run_folder, release_run_folders
from densenet_backbones.training.resuming.run_logs import make_loggers, start_loggers
from densenet_backbones.training.resuming.same_run import check_same_model, compare_training
from densenet_backbones.training.resuming.stopping import OrderlyStop, watch_signals
from densenet_backbones.training.resuming.weights import start_from
from densenet_backbones.training.run_folder import (
    RunFolder,
    RunFolderError,
    choose_run_folder,
    forget_run_folder,
    get_run_folder,
    is_plain_name,
    write_environment,
)
from densenet_backbones.training.tasks.classification import ClassificationTask
from densenet_backbones.training.tasks.detection import DetectionTask
from densenet_backbones.training.tasks.segmentation import SegmentationTask
from densenet_backbones.training.tasks.task import AnyTask, NonFiniteLossError


def train_det(argv: Sequence[str] | None = None) -> None:
    """Train a detector; see `train`."""
    train(DetectionTask, argv)


def train_seg(argv: Sequence[str] | None = None) -> None:
    """Train a segmentation model; see `train`."""
    train(SegmentationTask, argv)


def train_cls(argv: Sequence[str] | None = None) -> None:
    """Train an image classifier; see `train`."""
    train(ClassificationTask, argv)


def train(task_type: type[AnyTask], argv: Sequence[str] | None = None) -> None:
    """Run a training from the arguments of a command line.

    Args:
        task_type: What is trained.
        argv: Arguments; None takes the command line's.

    Raises:
        SystemExit: 2 for wrong usage, 1 for wrong data, 143 after a termination signal; with one
            line of explanation on standard error.
    """
    try:
        start_training(task_type, list(sys.argv[1:] if argv is None else argv))
    except argparse.ArgumentError as error:
        fail(one_sentence(str(error), lambda: list_keys(task_type)), 2)
    except (RunFolderError, MisconfigurationException) as error:
        fail(one_sentence(str(error)), 2)
    except (DataError, CheckpointError, ValueError, OSError, RuntimeError, MemoryError) as error:
        dead_worker = describe_dead_worker(error, "--data.num_workers", "--batch-size")
        is_expected = dead_worker or not isinstance(error, RuntimeError)
        if os.environ.get("DENSENET_BACKBONES_TRACEBACK") or not (
            is_expected or isinstance(error, NonFiniteLossError)
        ):
            raise
        fail(dead_worker or error, 1)
    except (KeyboardInterrupt, SIGTERMException) as stop:  # outside of the training itself
        sys.exit(130 if isinstance(stop, KeyboardInterrupt) else 143)


def start_training(task_type: type[AnyTask], arguments: Sequence[str]) -> Path:
    """Run a training; what `train` says in a line is raised as it comes.

    Args:
        task_type: What is trained.
        arguments: As typed.

    Returns:
        Folder of the run.

    Raises:
        SystemExit: The training was stopped; see `fit`.
    """
    quiet_libraries()
    try:
        with watch_signals():
            full = expand_short_flags(arguments, task_type.form)
            find = partial(find_config, form=task_type.form)
            run_training(task_type, *insert_recipe(full, task_type.data_type, find))
        return get_run_folder()
    finally:
        release_run_folders()
        forget_run_folder()
        log_to(None)


class TrainingCLI(LightningCLI):
    """Lightning's command line with the run's own options."""

    stop: OrderlyStop | None = None
    summary: RunSummary | None = None

    def __init__(self, task_type: type[AnyTask], arguments: Sequence[str]) -> None:
        self.task_type = task_type
        super().__init__(
            task_type,
            task_type.data_type,
            trainer_class=PrecisionTrainer,
            args=settle_model_arguments(arguments, *task_type.name_model()),
            run=False,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            load_from_checkpoint_support=False,
            trainer_defaults={"enable_model_summary": False},  # ours says more
            parser_kwargs={"exit_on_error": False, "dump_header": None},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that belong to the run rather than to model, data or trainer."""
        for name, (kind, default, text) in RUN_OPTIONS.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
        self.task_type.link_arguments(parser)

    def before_instantiate_classes(self) -> None:
        """Choose the folder before anything is written."""
        config = self.config
        files = config.get("config") or [DEFAULT_CONFIG]
        file = Path(str(files[-1]))
        name = file.stem if file.stem != "config" else file.resolve().parent.name
        self.name = name = config.name or name
        # What cannot work together is refused before a folder is made for it.
        if config.budget is not None:
            try:
                parse_budget(config.budget)
            except ValueError as error:
                raise RunFolderError(str(error)) from error
            config.trainer.max_epochs, config.trainer.max_steps = -1, -1
            config.trainer.check_val_every_n_epoch = None
            config.trainer.val_check_interval = NEVER
        elif (config.trainer.max_epochs or 0) < 1 and (config.trainer.max_steps or 0) < 1:
            raise RunFolderError(
                "trainer.max_epochs (--epochs) must be given, at least 1: the learning rate is "
                f"planned over the whole run; got {config.trainer.max_epochs}"
            )
        if config.ckpt_path and config.init_from:
            raise RunFolderError(
                "--ckpt_path goes on with a run and --init_from starts a new one: give one of them"
            )
        if config.name and not is_plain_name(config.name):
            raise RunFolderError(
                f"--name must be the name of a folder below runs/, without /, got {config.name}; "
                "--run-dir takes any path"
            )
        if config.logger and config.trainer.logger not in (None, True):
            raise RunFolderError("--logger and trainer.logger are both loggers: give one")
        if config.profile and config.trainer.profiler:
            raise RunFolderError("--profile and trainer.profiler are both profilers: give one")
        self.folder = choose_run_folder(config.run_dir, name, config.ckpt_path)
        self.resumed: State | None = None
        self.lines: list[str] = []
        key = self.task_type.spec_type.key
        # A folder with files in it is that of the run to go on with: nobody else does so now.
        if self.writes and not self.folder.is_new:
            hold_run_folder(self.folder.path)
        if config.ckpt_path == "last":
            self.folder, self.resumed, self.lines = read_newest_state(self.folder, key)
        elif self.folder.resume_from:
            self.resumed = read_training_state(self.folder.resume_from, key)

    @property
    def writes(self) -> bool:
        """True in the process that writes the run's files, unless it is a dry run."""
        return is_first_process() and not self.config.trainer.fast_dev_run

    def describe_experiment(self) -> str:
        """Return the configuration of this start as YAML, which starts a new run of its kind."""
        config = self.config.clone()
        config.run_dir = config.ckpt_path = config.name = None
        config.profile = False
        config.pop("config", None)
        return str(self.parser.dump(config, skip_none=False))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Return the trainer with this run's checkpoints, loggers and pictures."""
        # A dry run leaves no files: no checkpoints, no pictures, no loggers.
        trainer = self.config_init.trainer
        clock = RunClock()
        callbacks: list[pl.Callback] = [EpochLines(clock), UnusableImageLines()]
        if trainer.enable_progress_bar is None:  # a file keeps every state of a bar
            kwargs["enable_progress_bar"] = has_terminal()
        if kwargs.get("enable_progress_bar", trainer.enable_progress_bar):
            callbacks.append(RunProgressBar())
        if self.config.ema_decay is not None:
            callbacks.append(EMA(self.config.ema_decay))
        given = trainer.callbacks or []
        own = any(isinstance(callback, Condensation) for callback in given)
        if any(find_learned_groups(self.model)) and not own:
            callbacks.append(Condensation())
        if self.config.budget is not None and not trainer.fast_dev_run:
            budget = BudgetEnd(parse_budget(self.config.budget), clock, self.config.evaluations)
            self.model.place = budget.place
            callbacks.append(budget)
        if self.config.patience is not None:
            callbacks.append(Patience(self.config.patience, self.model.monitor))
        if not trainer.fast_dev_run:
            self.stop, self.summary = OrderlyStop(), RunSummary(self.folder, clock)
            callbacks += [TrainingPictures(self.folder), self.summary, self.stop]
            callbacks += make_checkpoint_callbacks(self.folder, self.model.monitor)
        self.trainer_defaults["callbacks"] = callbacks
        if not trainer.fast_dev_run:
            step = self.resumed["global_step"] if self.resumed else None
            wanted = self.config.logger or trainer.logger
            kwargs["logger"] = make_loggers(wanted, self.folder.path, until_step=step)
        plugins = trainer.plugins if isinstance(trainer.plugins, list) else [trainer.plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, WholeCheckpoints(self.describe_experiment())]
        kwargs["plugins"] = [plugin for plugin in plugins if plugin is not None]
        if self.config_init.profile:
            kwargs["profiler"] = PartsProfiler()
        return super().instantiate_trainer(default_root_dir=str(self.folder.path), **kwargs)


def run_training(
    task_type: type[AnyTask], arguments: Sequence[str], lines: Sequence[str] = ()
) -> None:
    """Run one training from the engine's arguments to the report; see `train`.

    Args:
        task_type: What is trained.
        arguments: The engine's.
        lines: Lines to say before its plan.
    """
    while (batch := run_training_once(task_type, arguments, lines)) is not None:
        # Nothing of the start that failed is held any more: all is as if it had begun with half.
        gc.collect()
        torch.cuda.empty_cache()
        arguments = [*arguments, f"--data.batch_size={batch}"]
        lines = [f"Out of memory: starts anew with {batch} images a step and process."]


def run_training_once(
    task_type: type[AnyTask], arguments: Sequence[str], lines: Sequence[str]
) -> int | None:
    """Run one training; return the images a step to start anew with if its memory ran out."""
    cli = TrainingCLI(task_type, arguments)
    task, data, trainer, folder = cli.model, cli.datamodule, cli.trainer, cli.folder
    data.split_folders = [folder.path]
    task.prepare(data)
    # Faults end the run before anything is written.
    _ = data.val_set
    data.setup("fit")
    lines = [*lines, *cli.lines]
    lines += start_from(task, cli.config.init_from) if cli.config.init_from else []
    if cli.resumed:
        check_same_model(task, cli.resumed, folder)
        lines += compare_training(task, trainer, cli.describe_experiment(), cli.resumed, folder)
    if cli.writes:
        prepare_folder(cli)
        data.store_split()
        start_loggers(trainer)
    for line in lines:
        say(line)
    # Batch and mode before the plan, which says what they keep.
    settle_batch(task, data, trainer, cli.resumed)
    memory = [*settle_memory(task, data, trainer), *describe_choices(task, data, trainer)]
    report.print_plan(task, data, trainer, folder, cli.resumed, memory)
    if cli.summary:
        steps = cli.resumed["global_step"] if cli.resumed else None
        cli.summary.describe(task, data, trainer, cli.name, steps)
    try:
        fit(cli)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if data.batch_size == "auto" and data.batch > 2 and can_start_anew(cli):
            half: int = max(2, data.batch // 2)  # batch norms need two
            return half
        raise DataError(explain_out_of_memory(data, trainer, folder.path)) from error
    if cli.config.trainer.fast_dev_run:
        say("Dry run done: one batch was trained on and one evaluated.", style="green")
        return None
    evaluations = cli.summary.content["evaluations"] if cli.summary else ()
    report.report_results(task, data, trainer, folder, evaluations)
    return None


def can_start_anew(cli: TrainingCLI) -> bool:
    """Return True if nothing is lost by another start: no checkpoint, and one process alone."""
    has_checkpoint = (cli.folder.checkpoints / "last.ckpt").exists()
    return cli.trainer.world_size == 1 and cli.resumed is None and not has_checkpoint


def fit(cli: TrainingCLI) -> None:
    """Train; a stop by the user or by a signal keeps the checkpoint and says how to go on.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after a termination signal; 0 in a machine's other
            processes.
    """
    trainer, resume = cli.trainer, cli.folder.resume_from
    try:
        with profile_training(trainer, cli.model, name_start_file(cli, "profile.txt")):
            trainer.fit(cli.model, cli.datamodule, ckpt_path=resume, weights_only=True)
    except (SystemExit, RuntimeError, DataError, MemoryError) as error:
        # Lightning leaves with 1 on Ctrl-C and with 0 on SIGTERM; where the signal reached the
        # loader's workers first, their death is a RuntimeError.
        received = cli.stop.received if cli.stop else 0
        is_stop = isinstance(error, SystemExit) or bool(received)
        # So is a worker's that the system killed. An image that cannot be used is no programming
        # error either, and all three leave a run that can go on.
        data = cli.datamodule
        if not is_stop and not (
            describe_dead_worker(error, "", "")
            or error in (data.replaced.fatal, data.left_out.fatal)
        ):
            raise
        run_dir = quote_word(cli.folder.path)
        how = f"the same command and --run-dir {run_dir} --resume go on"
        if not (cli.folder.checkpoints / "last.ckpt").is_file():
            how = "there is no checkpoint yet"
        say(f"Stopped at step {trainer.global_step}; {how}", style="yellow")
        if not is_stop:
            raise
        if trainer.local_rank:
            # Lightning kills the first process, busy with its last words or not, when another that
            # it started ends with anything but 0.
            sys.exit(0)
        terminated = received == signal.SIGTERM or isinstance(error, SIGTERMException)
        sys.exit(143 if terminated else 130)


def prepare_folder(cli: TrainingCLI) -> None:
    """Write the configuration and the environment before anything runs."""
    folder: RunFolder = cli.folder
    hold_run_folder(folder.path, folder.is_new)
    remove_drafts(folder.path)
    folder.pictures.mkdir(parents=True, exist_ok=True)
    if cli.resumed is None:  # of a start that ran out of memory
        for file in folder.path.glob("events.out.tfevents.*"):
            file.unlink()
    log_to(folder.path / "log.txt")
    save_text(name_start_file(cli, "config.yaml"), cli.describe_experiment())
    write_environment(folder)


def name_start_file(cli: TrainingCLI, name: str) -> Path:
    """Return a file of this start in the run's folder: each resume adds its own to the first."""
    file = cli.folder.path / name
    since = f"_from_step_{cli.resumed['global_step']}" if cli.resumed else ""
    return file.with_stem(f"{file.stem}{since}")


def list_keys(task_type: type[AnyTask]) -> list[str]:
    """Return every option of the command line, the engine's by their dotted keys."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(PrecisionTrainer, "trainer")
    parser.add_lightning_class_args(task_type, "model")
    parser.add_lightning_class_args(task_type.data_type, "data")
    keys = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
    keys += [*RUN_OPTIONS, "seed_everything", "device", "seed"]
    return keys + [name.replace("_", "-") for name in SHORT_FLAGS]
