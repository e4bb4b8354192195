"""Load a trained model of any kind: ``load(file).predict(image)``."""

from pathlib import Path

import torch

from densenet_backbones.inference.detector import Detector, DetectorSpec
from densenet_backbones.inference.model_file import read_model_file
from densenet_backbones.inference.segmenter import SegmentationModel, SegmenterSpec


def load(path: str | Path, device: torch.device | str = "cpu") -> Detector | SegmentationModel:
    """Load a detector or a segmenter from a training checkpoint or a slim file.

    Args:
        path: `*.ckpt` or `*.safetensors` written by the training tools.
        device: Where to run it.

    Raises:
        CheckpointError: The file is missing, needs unpickling of code, or holds no such model.
    """
    spec, weights = read_model_file(path, (DetectorSpec, SegmenterSpec))
    model = spec.restore(weights, path)
    if isinstance(spec, SegmenterSpec):
        return SegmentationModel(spec, model, device)
    assert isinstance(spec, DetectorSpec)
    return Detector(spec, model, device)
