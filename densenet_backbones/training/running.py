"""Run a training from its command line to its report: plan, folder, steps, stops."""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders.cores import count_cores
from densenet_backbones.data.loaders.guarded import describe_dead_worker
from densenet_backbones.file_writing import remove_drafts, save_text
from densenet_backbones.messages import one_sentence, pluralize, quote_word
from densenet_backbones.reporting.console import (
    fail,
    is_first_process,
    log_to,
    quiet_libraries,
    say,
)
from densenet_backbones.training import report
from densenet_backbones.training.arguments import expand_short_flags, find_config
from densenet_backbones.training.engine import TrainingCLI
from densenet_backbones.training.memory_choice import settle_memory
from densenet_backbones.training.options.names import list_options
from densenet_backbones.training.profiling import profile_training
from densenet_backbones.training.recipes.batch import (
    describe_choices,
    explain_out_of_memory,
    is_out_of_memory,
    settle_batch,
)
from densenet_backbones.training.recipes.choice import insert_recipe
from densenet_backbones.training.resuming.lock import (
    hold_run_folder,
    release_run_folders,
    remove_run_folder,
    try_run_folder,
)
from densenet_backbones.training.resuming.run_logs import start_loggers
from densenet_backbones.training.resuming.same_run import check_same_model, compare_training
from densenet_backbones.training.resuming.stopping import watch_signals
from densenet_backbones.training.resuming.weights import start_from
from densenet_backbones.training.run_folder import (
    RunFolder,
    RunFolderError,
    forget_run_folder,
    get_run_folder,
    write_environment,
)
from densenet_backbones.training.tasks.classification import ClassificationTask
from densenet_backbones.training.tasks.detection import DetectionTask
from densenet_backbones.training.tasks.segmentation import SegmentationTask
from densenet_backbones.training.tasks.task import AnyTask, NonFiniteLossError

TASKS: dict[str, type[AnyTask]] = {
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
    "classification": ClassificationTask,
}


def train(kind: str, arguments: Sequence[str]) -> None:
    """Run a training from the arguments of a command line.

    Args:
        kind: What is trained, of `TASKS`.
        arguments: As typed.

    Raises:
        SystemExit: 2 for wrong usage, 1 for wrong data, 143 after a termination signal; with one
            line of explanation on standard error.
    """
    task_type = TASKS[kind]
    try:
        start_training(task_type, arguments)
    except argparse.ArgumentError as error:
        fail(one_sentence(str(error), lambda: list_options(kind)), 2)
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
    torch.set_float32_matmul_precision("high")  # tensor cores on GPUs that have them
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
        lines = [f"Out of memory: starts anew with {pluralize(batch, 'image')} a step and process."]


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
    try:
        with open_folder(cli):
            plan(cli, lines)
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


def plan(cli: TrainingCLI, lines: Sequence[str]) -> None:
    """Settle what is chosen for this machine, and say what will be trained."""
    task, data, trainer = cli.model, cli.datamodule, cli.trainer
    for line in lines:
        say(line)
    # Batch and mode before the plan, which says what they keep.
    settle_batch(task, data, trainer, cli.resumed)
    memory = [*settle_memory(task, data, trainer), *describe_choices(task, data, trainer)]
    report.print_plan(task, data, trainer, cli.folder, cli.resumed, memory)
    if cli.summary:
        steps = cli.resumed["global_step"] if cli.resumed else None
        cli.summary.describe(task, data, trainer, cli.name, steps)


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
    limit_threads()
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
            how = "there is no checkpoint yet, start anew"
        say(f"Stopped at step {trainer.global_step}; {how}", style="yellow")
        if not is_stop:
            raise
        if trainer.local_rank:
            # Lightning kills the first process, busy with its last words or not, when another that
            # it started ends with anything but 0.
            sys.exit(0)
        terminated = received == signal.SIGTERM or isinstance(error, SIGTERMException)
        sys.exit(143 if terminated else 130)


def limit_threads() -> None:
    """Have torch compute on no more threads than this process has cores.

    torch sees every core of a container's host. ``OMP_NUM_THREADS`` in the environment is kept.
    """
    cores = count_cores()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


@contextmanager
def open_folder(cli: TrainingCLI) -> Iterator[None]:
    """Write the configuration and the environment before anything runs.

    The folder of a new run that ends before its first step is taken away again, so that the same
    command, corrected, finds its place free.
    """
    if not cli.writes:
        if is_first_process():  # of a dry run, which says what would stop the run
            try_run_folder(cli.folder.path)
        yield
        return
    folder: RunFolder = cli.folder
    was_there = folder.path.exists()
    hold_run_folder(folder.path, folder.is_new)
    try:
        remove_drafts(folder.path)
        folder.pictures.mkdir(parents=True, exist_ok=True)
        if cli.resumed is None:  # of a start that ran out of memory
            for file in folder.path.glob("events.out.tfevents.*"):
                file.unlink()
        log_to(folder.path / "log.txt")
        save_text(name_start_file(cli, "config.yaml"), cli.describe_experiment())
        write_environment(folder)
        cli.datamodule.store_split()
        start_loggers(cli.trainer)
        yield
    except BaseException:
        is_empty = cli.trainer.global_step == 0 and not any(folder.checkpoints.glob("*.ckpt"))
        if folder.is_new and is_empty:
            log_to(None)
            remove_run_folder(folder.path, keep_empty=was_there)
        raise


def name_start_file(cli: TrainingCLI, name: str) -> Path:
    """Return a file of this start in the run's folder: each resume adds its own to the first."""
    file = cli.folder.path / name
    since = f"_from_step_{cli.resumed['global_step']}" if cli.resumed else ""
    return file.with_stem(f"{file.stem}{since}")
