"""Messages before and after a training: the data, the model and the plan; results and files."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.checks.remarks import remark_on_data
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.loading import AnyData
from densenet_backbones.file_writing import find_unused_folder
from densenet_backbones.inference.model_file import save_model
from densenet_backbones.messages import pluralize, quote_word
from densenet_backbones.reporting.console import is_first_process, say
from densenet_backbones.reporting.plots import plot_training_curves
from densenet_backbones.training.optimization import count_images_per_step
from densenet_backbones.training.precision import name_precision, remark_on_precision
from densenet_backbones.training.progress.budget import get_budget
from densenet_backbones.training.resuming.checkpoint_files import is_whole
from densenet_backbones.training.resuming.run_logs import tell_curves
from densenet_backbones.training.run_folder import RunFolder
from densenet_backbones.training.tasks.task import AnyTask

FAULTS_SHOWN = 5


def print_plan(
    task: AnyTask,
    data: AnyData,
    trainer: pl.Trainer,
    folder: RunFolder,
    resumed: Mapping[str, Any] | None,
    memory: Sequence[str] = (),
) -> None:
    """Print what a person should know before a long training.

    Args:
        task: The training.
        data: Its data.
        trainer: Its trainer.
        folder: Where output goes.
        resumed: The checkpoint that it goes on from.
        memory: Lines about the memory mode.
    """
    if not is_first_process():
        return
    for line in (*data.lines, *data.notes):
        say(line)
    say(task.tabulate_data(data))
    # The data and its faults first: they are what a person can still correct.
    say_faults(data.train_set, data.val_set)
    for line in (*task.remark_on(data), *describe_plan(task, data, trainer), *memory):
        say(line)
    say(f"Output goes to {folder.path}/")
    if resumed is not None:
        done = resumed["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        say(
            f"Going on from {folder.resume_from}: {pluralize(done, 'epoch')} done, "
            f"step {resumed['global_step']}."
        )
        if done >= (trainer.max_epochs or 0) > 0:
            say("The run has all its epochs already; --epochs N with a larger N goes on.")


def say_faults(train: AnySet | None, val: AnySet) -> None:
    """Print what is wrong in single entries of the data, and in the data as a whole.

    Args:
        train: Training set; None where there is none.
        val: Evaluated set.
    """
    strictly = "" if train is None else " (data.strict refuses them)"
    for name, problems in _list_problems(val if train is None else train, val):
        say(f"{pluralize(len(problems), 'fault')} in {name}{strictly}:")
        for problem in problems[:FAULTS_SHOWN]:
            say(f"  {problem}")
    for line in dict.fromkeys(remark_on_data(train, val)):  # both may be one folder
        say(f"warning: {line}", style="yellow")


def _list_problems(train: AnySet, val: AnySet) -> Iterator[tuple[str, list[Problem]]]:
    """Yield the parts of the data that have problems, and these; each problem once.

    The parts of data without splits have all problems of the whole, and so have those that a
    reader finds amid all splits.
    """
    # Counted, as one set may have two objects of which the same is said.
    ahead, behind = Counter(train.problems), Counter(val.problems)
    shared = ahead & behind
    own = ((train.name, ahead - shared), (val.name, behind - shared))
    name = train.name if train is val else f"{train.name} and {val.name}"
    for where, problems in ((name, shared), *own):
        if problems:
            yield where, list(problems.elements())


def describe_plan(task: AnyTask, data: AnyData, trainer: pl.Trainer) -> Iterator[str]:
    """Yield sentences about the model's size, the steps and the learning rate."""
    cost = task.measure_cost(data)
    frozen = f" ({cost.trained:,} trained)" if cost.trained < cost.parameters else ""
    height, width = cost.size
    macs = f"{cost.macs / 1e9:.2f} GMAC at {width}x{height}"
    yield f"{task.spec.name}: {cost.parameters:,} parameters{frozen}, {macs}."
    options = task.optimizer_options
    batch = count_images_per_step(data, trainer)
    budget, epochs = get_budget(trainer), trainer.max_epochs or 0
    length = (
        f", {budget.budget}" if budget else f", {pluralize(epochs, 'epoch')}" if epochs > 0 else ""
    )
    images = pluralize(batch, "image")
    yield f"{options.name}, {images} a step{length}, precision {name_precision(trainer)}."
    yield from remark_on_precision(trainer)
    if options.base_batch:
        yield (
            f"Learning rate {options.scale_lr(batch):.3g} = {options.lr:.3g} x {batch}/"
            f"{pluralize(options.base_batch, 'image')}."
        )
    else:
        yield f"Learning rate {options.lr:.3g}, not scaled to the batch."


def report_results(
    task: AnyTask,
    data: AnyData,
    trainer: pl.Trainer,
    folder: RunFolder,
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Evaluate the best weights, write everything down, and say what to do next.

    Args:
        task: The training that has ended.
        data: Its data.
        trainer: Its trainer.
        folder: Where output goes; an evaluation of an earlier start stays.
        evaluations: Those of the run, as `RunSummary` has them.
    """
    # Without a validation there are no best weights, and the last ones stand in.
    best = folder.checkpoints / "best.ckpt"
    source = best if is_whole(best) else folder.checkpoints / "last.ckpt"
    task.load_state_dict(read_checkpoint(source)["state_dict"])
    curves = tell_curves(trainer.loggers, folder.path, folder.pictures)
    trainer.loggers = []  # the curves are those of the training; this is no further epoch
    trainer.validate(task, data, verbose=False)
    if not is_first_process():
        return
    say("", f"Best weights ({source}) on {data.val_set.name}:")
    evaluation = find_unused_folder(folder.evaluation)
    task.write_evaluation(data, evaluation)
    save_model(folder.slim, task.describe_evaluated(), task.model)
    if (folder.path / "metrics.csv").is_file():
        plot_training_curves(folder.path / "metrics.csv", folder.pictures / "training_curves.png")
    for what, where in (
        (f"Trained {task.spec.kind}", folder.slim),
        ("Checkpoints", folder.checkpoints),
        ("Pictures", folder.pictures),
        ("Evaluation", evaluation),
        ("Curves", curves),
    ):
        say(f"{what + ':':20}{where}")
    say("", "Next:")
    for what, command in list_next_commands(task, data, trainer, folder, evaluations):
        say(f"  {what}", f"    {command}")


def list_next_commands(
    task: AnyTask,
    data: AnyData,
    trainer: pl.Trainer,
    folder: RunFolder,
    evaluations: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, str]]:
    """Yield what can be done with the result of this run: a reason, and a command to copy."""
    image, weights = (quote_word(path) for path in (data.val_set.records[0].path, folder.slim))
    yield f"{task.use}:", f"{name_command('predict')} {weights} {image}"
    if data.root is None:
        yield "Train on photos of your own:", f"{name_command(task.tool)} --data DIR"
        return
    root, train = quote_word(data.root), name_command(task.tool)
    if has_test_split(data):
        command = f"{name_command('evaluate')} {weights} --data {root} --split test"
        yield "Evaluate on the test images, which had no part in the training:", command
    if not hasattr(task.model, "roi_heads"):  # two-stage detectors are not exported
        command = f"{name_command('export')} {weights} --check-image {image}"
        yield "Export to ONNX, for use without this package:", command
    # The last part of the curve says whether more training, or more data, would help.
    epochs, monitor = trainer.max_epochs or 0, task.monitor.partition("/")[2]
    scores = [e["numbers"].get(monitor) or 0.0 for e in evaluations]
    if len(scores) < 3 or epochs < 1:
        return
    best = scores.index(max(scores))
    ended_early = trainer.current_epoch < epochs
    if best == len(scores) - 1 and scores[-1] > 1.02 * scores[-2] and not ended_early:
        more = epochs + max(1, epochs // 2)
        command = f"{train} --data {root} --run-dir {quote_word(folder.path)} --resume"
        yield f"{monitor} was still rising; train for longer:", f"{command} --epochs {more}"
    elif scores[-1] < 0.95 * scores[best]:
        yield (
            f"{monitor} was best at epoch {evaluations[best]['epoch']} and fell to "
            f"{scores[-1]:.3f}: the photos are learned by heart. Add photos, or end in time:",
            f"{train} --data {root} --init-from {weights} --patience 3",
        )


def has_test_split(data: AnyData) -> bool:
    """Return True if the data has a split "test" that had no part in the training."""
    if "test" in (data.train_split, data.val_split) or data.train or data.overfit_images:
        return False
    try:
        test = replace(data, val_split="test").val_set
    except (DataError, OSError):
        return False
    # Of data without splits, the held-out part answers to this name as well.
    used = {record.path for part in (data.train_set, data.val_set) for record in part.records}
    return len(test) > 0 and used.isdisjoint(record.path for record in test.records)


def name_command(tool: str) -> str:
    """Return how this process's user calls a tool: as a command, a script, or a file."""
    program = Path(sys.argv[0])
    if program.name == "densenet" or program.parts[-2:] == ("densenet_backbones", "__main__.py"):
        words = "densenet" if program.stem == "densenet" else "python -m densenet_backbones"
        return f"{words} {tool.partition('_')[0]}"
    if program.suffix == ".py":
        return f"python tools/{tool}.py"
    return f"densenet-{tool.replace('_', '-')}"
