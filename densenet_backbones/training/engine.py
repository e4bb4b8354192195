"""The training's command line: Lightning's, with options of the run, one YAML an experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO

from densenet_backbones.condensenet import find_learned_groups
from densenet_backbones.reporting.console import has_terminal, is_first_process
from densenet_backbones.training.arguments import DEFAULT_CONFIG, RUN_OPTIONS
from densenet_backbones.training.callbacks import (
    EMA,
    TrainingPictures,
    UnusableImageLines,
    make_checkpoint_callbacks,
)
from densenet_backbones.training.condensation import Condensation
from densenet_backbones.training.options.model_arguments import settle_model_arguments
from densenet_backbones.training.precision import PrecisionTrainer
from densenet_backbones.training.profiling import PartsProfiler
from densenet_backbones.training.progress.budget import NEVER, BudgetEnd, parse_budget
from densenet_backbones.training.progress.clock import RunClock
from densenet_backbones.training.progress.lines import EpochLines, RunProgressBar
from densenet_backbones.training.progress.patience import Patience
from densenet_backbones.training.progress.summary import RunSummary
from densenet_backbones.training.resuming.checkpoint_files import (
    State,
    WholeCheckpoints,
    read_newest_state,
    read_training_state,
)
from densenet_backbones.training.resuming.lock import hold_run_folder
from densenet_backbones.training.resuming.run_logs import make_loggers
from densenet_backbones.training.resuming.stopping import OrderlyStop
from densenet_backbones.training.run_folder import RunFolderError, choose_run_folder, is_plain_name
from densenet_backbones.training.tasks.task import AnyTask

__all__ = ["TrainingCLI"]

WITHIN_BUDGET = {
    "max_epochs": -1,
    "max_steps": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": NEVER,
}
"""Settings of the trainer while a budget decides when a run evaluates and ends."""


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
        self.planned = {name: config.trainer[name] for name in WITHIN_BUDGET}
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
            for setting, value in WITHIN_BUDGET.items():
                config.trainer[setting] = value
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
        for setting, value in self.planned.items():  # holds again where no budget is asked for
            config.trainer[setting] = value
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
