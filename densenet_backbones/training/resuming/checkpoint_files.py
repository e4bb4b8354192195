"""Checkpoints as files: written whole, and read from the newest one that is."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from densenet_backbones.checkpoints import CheckpointError, read_checkpoint
from densenet_backbones.checkpoints.integrity import list_tensors, refuse_unusable
from densenet_backbones.file_writing import save_bytes, save_text
from densenet_backbones.messages import pluralize
from densenet_backbones.reporting.console import say
from densenet_backbones.training.run_folder import RunFolder
from densenet_backbones.untrusted.plain_yaml import parse_yaml

EXPERIMENT = "experiment"
"""Entry of a checkpoint with the configuration of its run."""

State = Mapping[str, Any]
"""Content of a checkpoint from which a training can go on."""


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's plugin for checkpoint files, whose files appear whole or not at all.

    Lightning's own writes in the folder for temporary files and moves the file from there, which
    copies it under its final name where that folder is on another disk.

    Args:
        experiment: Configuration of the run as YAML, kept in every checkpoint: a run whose
            `config.yaml` is damaged goes on with it.
    """

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; see `save_bytes`."""
        content = io.BytesIO()  # torch's errors of a full disk name neither disk nor file
        torch.save({**checkpoint, EXPERIMENT: self.experiment}, content)
        save_bytes(path, content.getbuffer())


def read_newest_state(folder: RunFolder, key: str) -> tuple[RunFolder, State, list[str]]:
    """Read the newest checkpoint of a run that is whole: `last.ckpt`, or else one beside it.

    Args:
        folder: The run.
        key: Entry of the checkpoint that describes the model.

    Returns:
        The run with the file that was read, its content, and a line for each damaged one.

    Raises:
        CheckpointError: None can be read; the message is of the first.
    """
    damaged: list[str] = []
    for file in list_checkpoints(folder.path):
        try:
            state = read_training_state(file, key)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        return replace(folder, resume_from=file), state, [f"Left aside: {e}" for e in damaged]
    raise CheckpointError(damaged[0])


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, `last.ckpt` first, then the newest."""
    files = (run_dir / "checkpoints").glob("*.ckpt")
    return sorted(files, key=lambda file: (file.name != "last.ckpt", -file.stat().st_mtime))


def restore_config(run_dir: Path, file: Path) -> None:
    """Write a run's damaged config again, from the newest checkpoint that holds one."""
    for checkpoint in list_checkpoints(run_dir):
        try:
            experiment = read_checkpoint(checkpoint)[EXPERIMENT]
            parse_yaml(experiment, checkpoint, CheckpointError)
        except (CheckpointError, KeyError):
            continue
        save_text(file, experiment)
        say(f"{file} was damaged, and is restored from {checkpoint}.", style="yellow")
        return
    say(f"{file} is damaged, and left aside; --config names another.", style="yellow")


def is_whole(file: Path) -> bool:
    """Return True if a file is a checkpoint that can be read."""
    try:
        read_checkpoint(file)
    except CheckpointError:
        return False
    return True


def read_training_state(file: Path, key: str) -> dict[str, Any]:
    """Read a checkpoint from which a training can go on.

    Raises:
        CheckpointError: The file cannot be read safely, or holds no state of a training.
    """
    state = read_checkpoint(file)
    entries = set(state) if isinstance(state, dict) else set()
    missing = {key, "state_dict", "loops", "optimizer_states", "global_step"} - entries
    if missing:
        raise CheckpointError(
            f"{file}: no training can go on from it (there is no {', '.join(sorted(missing))}); "
            "start one from its weights with --init-from"
        )
    _check_trained_values(state, file)
    return dict(state)


def _check_trained_values(state: State, file: Path) -> None:
    """Refuse weights and optimizers that are not finite, empty, or not as torch saves them."""
    optimizers = state["optimizer_states"]
    needed = "state", "param_groups"
    if not isinstance(optimizers, list) or not all(
        isinstance(o, dict) and o.keys() >= {*needed} for o in optimizers
    ):
        raise CheckpointError(
            f"{file}: its optimizer_states are not as torch saves them; start anew from its "
            "weights with --init-from"
        )
    steps = state["global_step"]
    groups = [group for optimizer in optimizers for group in optimizer["param_groups"]]
    remembers = any(group.get("momentum") or "betas" in group for group in groups) or not groups
    if steps and remembers and not any(optimizer["state"] for optimizer in optimizers):
        raise CheckpointError(
            f"{file}: its optimizer's state is empty after {pluralize(steps, 'step')}, so the "
            "training would not go on as it was; start anew from its weights with --init-from"
        )
    for entry in ("state_dict", "optimizer_states"):
        refuse_unusable(dict(list_tensors(state[entry])), f"{file}: {entry}")
