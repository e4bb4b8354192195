"""Messages before and after a training: the data, the model and the plan; results and files."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from densenet_backbones.analysis.plan import plan_inputs
from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.checks.remarks import remark_on_data
from densenet_backbones.data.loading import AnyData
from densenet_backbones.inference.model_file import save_model
from densenet_backbones.messages import quote_word
from densenet_backbones.reporting.console import is_first_process, say
from densenet_backbones.reporting.plots import plot_training_curves
from densenet_backbones.training.optimization import count_images_per_step
from densenet_backbones.training.precision import name_precision, remark_on_precision
from densenet_backbones.training.resuming.checkpoint_files import is_whole
from densenet_backbones.training.run_folder import RunFolder
from densenet_backbones.training.task import AnyTask

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
    for line in data.lines:
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
            f"Going on from {folder.resume_from}: {done} epochs done, "
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
    for part in (val,) if train is None or train is val else (train, val):
        if part.problems:
            say(f"{len(part.problems)} faults in {part.name}{strictly}:")
        for problem in part.problems[:FAULTS_SHOWN]:
            say(f"  {problem}")
    for line in dict.fromkeys(remark_on_data(train, val)):  # both may be one folder
        say(f"warning: {line}", style="yellow")


def describe_plan(task: AnyTask, data: AnyData, trainer: pl.Trainer) -> Iterator[str]:
    """Yield sentences about the model's size, the steps and the learning rate."""
    model = task.model
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f" ({trained:,} trained)" if trained < parameters else ""
    # Planned at the size that is trained on, which sets both time and memory.
    images, (height, width) = task.make_example(data)
    macs = f"{plan_inputs(model, images).macs / 1e9:.2f} GMAC at {width}x{height}"
    yield f"{task.spec.name}: {parameters:,} parameters{frozen}, {macs}."
    options = task.optimizer_options
    batch = count_images_per_step(data, trainer)
    epochs = (
        f", {trainer.max_epochs} epochs" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    )
    yield f"{options.name}, {batch} images a step{epochs}, precision {name_precision(trainer)}."
    yield from remark_on_precision(trainer)
    if options.base_batch:
        yield (
            f"Learning rate {options.scale_lr(batch):.3g} = {options.lr:.3g} x {batch}/"
            f"{options.base_batch} images."
        )
    else:
        yield f"Learning rate {options.lr:.3g}, not scaled to the batch."


def report_results(task: AnyTask, data: AnyData, trainer: pl.Trainer, folder: RunFolder) -> None:
    """Evaluate the best weights, write everything down, and say how to go on."""
    # Without a validation there are no best weights, and the last ones stand in.
    best = folder.checkpoints / "best.ckpt"
    source = best if is_whole(best) else folder.checkpoints / "last.ckpt"
    task.load_state_dict(read_checkpoint(source)["state_dict"])
    trainer.loggers = []  # the curves are those of the training; this is no further epoch
    trainer.validate(task, data, verbose=False)
    if not is_first_process():
        return
    say("", f"Best weights ({source}) on {data.val_set.name}:")
    task.write_evaluation(data, folder.evaluation)
    save_model(folder.slim, task.describe_evaluated(), task.model)
    if (folder.path / "metrics.csv").is_file():
        plot_training_curves(folder.path / "metrics.csv", folder.pictures / "training_curves.png")
    for what, where in (
        (f"Trained {task.spec.kind}", folder.slim),
        ("Checkpoints", folder.checkpoints),
        ("Pictures", folder.pictures),
        ("Evaluation", folder.evaluation),
        ("Curves", f"tensorboard --logdir {quote_word(folder.path)}"),
    ):
        say(f"{what + ':':20}{where}")
    # Commands to copy: on the run's own file and the first evaluated image.
    image, weights = (quote_word(path) for path in (data.val_set.records[0].path, folder.slim))
    config, others = task.suggest_config()
    say("", f"{task.use + ':':21}{name_command('predict')} {weights} {image}")
    say(f"Evaluate again:      {name_command('evaluate')} {weights} --data DIR")
    say(
        f"Train on your own:   {name_command(task.tool)} --config {config} --data DIR",
        f"                     ({others}; --init-from {weights} starts from these weights)",
    )


def name_command(tool: str) -> str:
    """Return how this process's user calls a tool: as a command, a script, or a file."""
    program = Path(sys.argv[0])
    if program.name in ("densenet", "__main__.py"):
        words = "densenet" if program.stem == "densenet" else "python -m densenet_backbones"
        return f"{words} {tool.partition('_')[0]}"
    if program.suffix == ".py":
        return f"python tools/{tool}.py"
    return f"densenet-{tool.replace('_', '-')}"
