"""Find the file of a model, before anything is imported that could read it."""

from pathlib import Path

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.hub_name import is_on_hub
from densenet_backbones.messages import describe_missing

_OF_A_RUN = ("model.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt")


def find_model_file(path: str | Path) -> Path:
    """Return the file of a model: the path itself, or the best one in a run's folder.

    Args:
        path: A file, a folder, or a name on the Hub, which stays as it is.

    Raises:
        CheckpointError: There is nothing, or a folder has no model.
    """
    path = Path(path)
    if path.is_file() or is_on_hub(path):
        return path
    if not path.is_dir():
        raise CheckpointError(describe_missing(path))
    for name in _OF_A_RUN:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path}: no run's folder, it has none of {', '.join(_OF_A_RUN)}; give the folder of a "
        "training, or a model's file"
    )
