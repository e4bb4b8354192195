"""Untrained models for the demo's page: a tiny detector and segmenter with nasty class names."""

import numpy as np
import torch
from PIL import Image
from tiny_classifiers import NET
from tiny_runs import DETECTOR_ARGS
from tiny_segmenters import UNET_ARGS

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.demo.answers import Model
from densenet_backbones.inference.classifier import ClassifierSpec
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.model_file import save_model
from densenet_backbones.inference.segmenter import SegmenterSpec

NASTY = "<img src=x onerror=alert(1)>"


def save_models(folder):
    """Write the two models; returns their files."""
    torch.manual_seed(0)
    detector = DetectorSpec("dsod_tiny", DETECTOR_ARGS, Categories.from_names(["dog", NASTY]))
    colors = ((0, 0, 0), (200, 0, 0), (0, 0, 200))
    classes = MaskClasses(("ground", "road", NASTY), colors, (0, 1, 2))
    specs = {"boxes": detector, "masks": SegmenterSpec("unet", UNET_ARGS, classes)}
    files = []
    for name, spec in specs.items():
        files.append(folder / name / "model.safetensors")
        save_model(files[-1], spec, spec.build())
    return files


def save_classifier(folder):
    """Write a classifier of six classes; returns its file."""
    torch.manual_seed(0)
    names = ["dog", NASTY, "cat", "cow", "hen", "owl"]
    spec = ClassifierSpec("densenet40_k12", NET, Categories.from_names(names))
    save_model(folder / "kinds" / "model.safetensors", spec, spec.build())
    return folder / "kinds" / "model.safetensors"


def load_models(files):
    """Load what `save_models` wrote, for a page."""
    from densenet_backbones.inference.loading import load

    return [Model(file.parent.name, load(file)) for file in files]


def save_noise(file, size=(96, 64)):
    """Write a picture, (width, height), in which an untrained detector finds a lot."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file
