"""Tell names of models from paths, before anything is imported that knows the models."""

from pathlib import Path

from densenet_backbones.checkpoints.hub_name import is_on_hub
from densenet_backbones.messages import describe_missing

_OF_FILES = (".safetensors", ".ckpt", ".pth", ".pt", ".onnx", ".xml")


def refuse_missing(*sources: str | None) -> None:
    """Refuse a file of weights that is not there; a name of a model may be one of many libraries'.

    Raises:
        ValueError: There is no such file.
    """
    for source in filter(None, sources):
        path = Path(source)
        if path.suffix in _OF_FILES and not (is_on_hub(source) or path.exists()):
            raise ValueError(describe_missing(path))
