"""Checks before a run goes on: what may have changed since its checkpoint, and what may not."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from densenet_backbones.messages import quote_word
from densenet_backbones.training.optimization import OPTIONS_OF_A_START
from densenet_backbones.training.resuming.checkpoint_files import EXPERIMENT, State
from densenet_backbones.training.run_folder import RunFolder, RunFolderError
from densenet_backbones.training.tasks.task import AnyTask
from densenet_backbones.untrusted.limits import MAX_VALUES
from densenet_backbones.untrusted.plain_yaml import parse_yaml
from densenet_backbones.untrusted.reading import measure_values


def check_same_model(task: AnyTask, state: State, folder: RunFolder) -> None:
    """Refuse to go on with another model or other classes than the run began with.

    Raises:
        RunFolderError: Names what differs.
    """
    before, now = state[task.spec.key], task.spec.to_dict()
    if measure_values(before) > MAX_VALUES or not {
        "name",
        "args",
        *task.spec.classes_to_dict(),
    } <= {*before}:
        raise RunFolderError(
            f"cannot go on from {folder.resume_from}: its description of the {task.spec.kind} is "
            "damaged; start anew from its weights with --init-from"
        )
    for name in ("name", "args", *task.spec.classes_to_dict()):
        if _without_ids(before[name]) != _without_ids(now[name]):
            raise RunFolderError(
                f"cannot go on from {folder.resume_from}: the {task.spec.kind}'s {name} was "
                f"{before[name]} and is {now[name]} now; leave out --config and give "
                f"--run-dir {quote_word(folder.path)} --resume, or start anew with --init-from"
            )


def _without_ids(entry: object) -> object:
    """Return an entry of a description without ids of classes: they are the data file's alone."""
    if not isinstance(entry, Mapping):
        return entry
    return {key: value for key, value in entry.items() if key != "ids"}


def compare_training(
    task: AnyTask, trainer: pl.Trainer, experiment: str, state: State, folder: RunFolder
) -> list[str]:
    """Compare the options of this start with those that the checkpoint was trained with.

    Args:
        task: Of this start.
        trainer: Of this start.
        experiment: Configuration of this start, as YAML.
        state: The checkpoint.
        folder: The run.

    Returns:
        A line for each option that is another from here on.

    Raises:
        RunFolderError: The checkpoint's state cannot serve this start; names the option.
    """
    # Checkpoints from before they held it have no options to compare.
    file = folder.resume_from or folder.path
    texts = (state.get(EXPERIMENT, "{}"), experiment)
    before, now = (_flatten(parse_yaml(text, file, RunFolderError)) for text in texts)
    precision, count = "trainer.precision", "trainer.accumulate_grad_batches"
    if "precision" in state:  # what "auto" chose
        before[precision], now[precision] = state["precision"], trainer.precision
    optimizer, name = "model.optimizer.name", task.optimizer_options.name
    fault = _find_fault_of_optimizer(task, state)
    if str(before.get(optimizer, name)).lower() != name.lower():
        fault = f"its optimizer is {before[optimizer]}, not {name}"
    elif "averaging_state" in state and now["ema_decay"] is None:
        fault = f"its weights were averaged (ema_decay {before.get('ema_decay', '?')})"
    elif before.get(count, now[count]) != now[count] and _is_within_epoch(task, state):
        fault = f"it is in the middle of an epoch with {count} {before[count]}, now {now[count]}"
    if fault:
        raise RunFolderError(
            f"cannot go on from {folder.resume_from}: {fault}; give the same options again, or "
            "start anew from its weights with --init-from"
        )
    return [
        f"From here on {name} is {now[name]}; it was {value}."
        for name, value in before.items()
        if name in now and now[name] != value
    ]


def _find_fault_of_optimizer(task: AnyTask, state: State) -> str | None:
    """Explain why an optimizer's state is not one of this start's optimizer; None if it is."""
    name = task.optimizer_options.name
    optimizer = task.optimizer_options.build(task.model, 1)
    fresh = [_select_fixed(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state["optimizer_states"][0])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        return f"its optimizer has other parameters than {name} here ({error})"
    loaded = [_select_fixed(group) for group in optimizer.param_groups]
    for own, old in zip(fresh, loaded, strict=True):
        for key in sorted({*own, *old}):
            if own.get(key) != old.get(key):
                values = f"{key} is {own.get(key)}, and was {old.get(key)}"
                return f"its optimizer is another than {name}, whose {values}"
    return None


def _select_fixed(group: Mapping[str, Any]) -> dict[str, object]:
    """Return the options of a group that a start takes from the checkpoint, by name."""
    # The form it is computed in goes on as it began: the same update but for rounding.
    left_out = ("params", "lr", "initial_lr", "fused")
    fixed = {k: v for k, v in group.items() if k not in left_out}
    # Of those that a start may change, that they are there: an optimizer without them is another.
    return {k: "there" if k in OPTIONS_OF_A_START else v for k, v in fixed.items()}


def _is_within_epoch(task: AnyTask, state: State) -> bool:
    data = state.get(task.data_type.__qualname__, {})
    return bool(data.get("batches_done", 0))


def _flatten(options: Any, name: str = "") -> dict[str, Any]:
    """Return nested options as one level, by dotted names."""
    if not isinstance(options, Mapping) or not options:
        return {name: options} if name else {}
    parts = (
        _flatten(value, f"{name}.{key}" if name else str(key)) for key, value in options.items()
    )
    return {key: value for part in parts for key, value in part.items()}
