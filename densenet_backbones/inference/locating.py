"""Find the file of a model, before anything is imported that could read it."""

from pathlib import Path

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.hub_name import is_on_hub
from densenet_backbones.messages import describe_missing

_NOT_LOADED = {
    ".bin": "it holds the weights of OpenVINO's IR; give the .xml beside it",
    ".pt2": "it is a program of torch.export, which `torch.export.load` runs; give the model that "
    "was exported, or export it as ONNX",
}
"""What our own exports leave that is no model by itself, by the ending."""

_OF_A_RUN = ("model.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt")


def find_model_file(path: str | Path) -> Path:
    """Return the file of a model: the path itself, or the best one in a run's folder.

    Args:
        path: A file, a folder, or a name on the Hub, which stays as it is.

    Raises:
        CheckpointError: There is nothing, or a folder has no model.
    """
    path = Path(path)
    is_part = path.suffix != ".bin" or path.with_suffix(".xml").is_file()
    if path.is_file() and is_part and path.suffix in _NOT_LOADED:
        raise CheckpointError(f"{path}: {_NOT_LOADED[path.suffix]}")
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
