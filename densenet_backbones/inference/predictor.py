"""Base of the models that `load` returns: one image, a list or a generator of them in one call."""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from densenet_backbones.inference.inputs.image_tensors import ImageInput
from densenet_backbones.inference.model_file import ModelSpec
from densenet_backbones.messages import pluralize, show_controls

_SHOWN = 5  # names of classes
R = TypeVar("R")


class Predictor:
    """A model on a device, ready to predict; several threads may use it at once.

    Attributes:
        device: Device that it runs on.
        model: The network in evaluation mode.
        spec: Description of the model.
        running: Held while the network runs. Test-time augmentation changes its settings for a
            while, and layers keep what they computed last, so that one image goes through at a
            time; reading and drawing go on beside it.
    """

    spec: ModelSpec

    def __init__(self, model: nn.Module, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.running = threading.RLock()

    def __repr__(self) -> str:
        """Return the kind, the network and the first classes."""
        names = self.spec.class_names
        shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        return show_controls(
            f"<{type(self).__name__} {self.spec.name} on {self.device}, "
            f"{pluralize(len(names), 'class')}: {shown}>"
        )


def predict_each(
    predict: Callable[[ImageInput], R], images: ImageInput | Iterable[ImageInput]
) -> R | list[R] | Iterator[R]:
    """Return the result of an image, the list of a list's, or the generator of a generator's."""
    if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
        return predict(images)
    if isinstance(images, Iterator):
        return (predict(image) for image in images)
    if isinstance(images, Iterable):
        return [predict(image) for image in images]
    return predict(images)  # which says what an image is
