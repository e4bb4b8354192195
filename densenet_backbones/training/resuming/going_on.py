"""Ways for a training that another tool runs to go on: by what an earlier start left behind."""

import shutil
from pathlib import Path

from densenet_backbones.training.progress.summary import read_summary

__all__ = ["prepare_to_go_on"]


def prepare_to_go_on(run: Path) -> list[str] | None:
    """Return further words of a training, by what is in its folder.

    A folder without a checkpoint is removed, for the training to begin anew.

    Args:
        run: Folder that the tool has given to this training alone.

    Returns:
        ``--resume`` where there is a checkpoint; None if the training has finished.
    """
    if (run / "model.safetensors").is_file() and "finished" in read_summary(run).get("ended", ""):
        return None
    if any((run / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "best")):
        return ["--resume"]
    if run.exists():
        shutil.rmtree(run)
    return []
