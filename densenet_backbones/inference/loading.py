"""Load a trained model of any kind: ``load(file).predict(image)``.

`load` takes what the tools write: a run's folder, its checkpoints, and exported ONNX and OpenVINO
files. What it returns predicts images of every kind, one or many::

    from densenet_backbones import load

    model = load("runs/mine")
    result = model.predict("photo.jpg")          # a file, an address, an array, a tensor, a picture
    results = model.predict(["a.jpg", "b.jpg"])  # a list; of a generator, a generator
    for name, score, *box in result:
        print(name, score, box)
    result.plot()                                # RGB array; a notebook draws the result itself
    result.save("photo-detected.png")            # .json, .csv, .xml (VOC) and .txt (YOLO) too
"""

from pathlib import Path

import torch

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.inference.classifier import ClassifierSpec, ImageClassifier
from densenet_backbones.inference.detector import Detector, DetectorSpec
from densenet_backbones.inference.exported.models import (
    ExportedClassifier,
    ExportedDetector,
    ExportedSegmenter,
    read_exported,
)
from densenet_backbones.inference.exported.runtimes import SUFFIXES
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.inference.model_file import read_model_file
from densenet_backbones.inference.segmenter import SegmentationModel, SegmenterSpec


def load(
    path: str | Path, device: torch.device | str = "cpu"
) -> Detector | SegmentationModel | ImageClassifier:
    """Load a detector, a segmenter or a classifier that the tools wrote.

    Args:
        path: Folder of a run, `*.safetensors`, `*.ckpt`, or an exported `*.onnx` or `*.xml`
            (OpenVINO), which run on the CPU.
        device: Where to run it.

    Returns:
        A model whose `predict` gives `Detections`, a `Segmentation` or a `Classification`; several
        threads may use it.

    Raises:
        CheckpointError: The file is missing, needs unpickling of code, or holds no such model.
        ValueError: There is no such device here.
    """
    device = check_device(device)
    path = find_model_file(path)
    if path.suffix.lower() in SUFFIXES:
        described, module = read_exported(path)
        if device.type != "cpu":
            raise CheckpointError(f"{path}: exported models run on the CPU here, not on {device}")
        if isinstance(module, ExportedClassifier):
            assert isinstance(described, ClassifierSpec)
            return ImageClassifier(described, module, device)
        if isinstance(module, ExportedSegmenter):
            assert isinstance(described, SegmenterSpec)
            return SegmentationModel(described, module, device)
        assert isinstance(described, DetectorSpec) and isinstance(module, ExportedDetector)
        return Detector(described, module, device)
    spec, weights = read_model_file(path, (DetectorSpec, SegmenterSpec, ClassifierSpec))
    model = spec.restore(weights, path)
    if isinstance(spec, SegmenterSpec):
        return SegmentationModel(spec, model, device)
    if isinstance(spec, ClassifierSpec):
        return ImageClassifier(spec, model, device)
    assert isinstance(spec, DetectorSpec)
    return Detector(spec, model, device)


def check_device(device: torch.device | str) -> torch.device:
    """Return a device, if it is there.

    Raises:
        ValueError: There is no such device here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch says both
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device}: {reason}; 'cpu' is always there") from error
