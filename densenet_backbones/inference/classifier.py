"""Predict with a trained classifier, and describe it for its file.

Legend: N images, K classes, H x W pixels, S pixels of the network's side.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from densenet_backbones.checkpoints.reach import OfflineError
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.classification.fitting import fit_image
from densenet_backbones.heads.classification.classifier import create_classifier
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.inference.inputs.image_tensors import (
    ImageInput,
    ReadImage,
    convert_image,
    read_for_model,
    to_float,
)
from densenet_backbones.inference.model_file import JsonDict, ModelSpec
from densenet_backbones.inference.predictor import Predictor, predict_each
from densenet_backbones.inference.results.classification import Classification

__all__ = ["Classification", "ClassifierSpec", "ImageClassifier"]


@dataclass(frozen=True)
class ClassifierSpec(ModelSpec):
    """Description that turns weights back into a classifier.

    Attributes:
        name: Name of the network, see `create_classifier`.
        args: JSON-able keyword arguments of `create_classifier`.
        categories: Classes it was trained on, whose labels count from 1; logits count from 0.
        preprocessing: `ImageNormalization.to_dict()`, or None where the builder's own holds.
    """

    key = "densenet_backbones.classifier"
    kind = "classifier"

    name: str
    args: JsonDict
    categories: Categories
    preprocessing: JsonDict | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits."""
        return self.categories.names

    def classes_to_dict(self) -> JsonDict:
        """Return the entry of the classes."""
        return {"categories": self.categories.to_dict()}

    @classmethod
    def from_entries(cls, state: JsonDict) -> "ClassifierSpec":
        """Make a spec from the entries of `to_dict`, unchecked; `from_dict` calls it."""
        categories = Categories.from_dict(state["categories"])
        return cls(state["name"], dict(state["args"]), categories, state["preprocessing"])

    def without_downloads(self) -> JsonDict:
        """Return overrides for `build` when all weights are at hand: none is downloaded."""
        return {"weights": None} if self.args.get("weights") else {}

    def build(self, **overrides: object) -> nn.Module:
        """Build the model with fresh weights; `overrides` replace single arguments.

        Raises:
            ValueError: An argument is wrong, or weights are out of reach.
        """
        args: dict[str, Any] = {**self.args, **overrides}
        try:
            model = create_classifier(self.name, len(self.categories.names), **args)
        except (TypeError, OfflineError) as error:
            raise ValueError(f"{self.name}: {' '.join(str(error).split())[:300]}") from error
        if self.preprocessing is not None:
            model.normalization = ImageNormalization(**self.preprocessing, channels=model.in_chans)
        return model


class ImageClassifier(Predictor):
    """A classifier with its classes, ready to predict; made by `load`.

    Attributes:
        size: S.
        crop_pct: See `fit_image`.
    """

    spec: ClassifierSpec

    def __init__(self, spec: ClassifierSpec, model: nn.Module, device: torch.device | str) -> None:
        super().__init__(model, device)
        self.spec = spec
        self.categories = spec.categories
        self.size, self.crop_pct = int(model.image_size), float(model.crop_pct)  # type: ignore[arg-type]

    @overload
    def predict(self, image: ImageInput) -> Classification: ...  # type: ignore[overload-overlap] # a text is a sequence of texts, too
    @overload
    def predict(self, image: Iterator[ImageInput]) -> Iterator[Classification]: ...
    @overload
    def predict(self, image: Sequence[ImageInput]) -> list[Classification]: ...
    def predict(
        self, image: ImageInput | Iterable[ImageInput]
    ) -> Classification | list[Classification] | Iterator[Classification]:
        """Classify an image, or several one after the other.

        Args:
            image: A file or its http(s) address, a picture of Pillow, (H, W, 3) uint8 RGB pixels,
                or a tensor (3, H, W) RGB of uint8 or of floats in [0, 1]. A list gives a list, a
                generator a generator, which takes an image when its result is asked for.

        Raises:
            DataError: The file is missing or cannot be decoded.
            ValueError: The image is of another kind, shape or type.
        """
        return predict_each(lambda one: self.predict_batch([one])[0], image)

    __call__ = predict

    def read(self, file: str | Path, content: bytes | None = None) -> ReadImage:
        """Read an image file no larger than the classifier can use.

        Args:
            file: The file, or its http(s) address.
            content: Its bytes where they are at hand.

        Raises:
            DataError: The file is missing or cannot be decoded.
        """
        side = round(2 * self.size / self.crop_pct)
        return read_for_model(file, (side, side), content)

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[ImageInput | ReadImage]) -> list[Classification]:
        """Classify some images at once."""
        read = [self._take(image) for image in images]
        squares = [fit_image(one.pixels, self.size, self.crop_pct) for one in read]
        pixels = torch.from_numpy(np.stack(squares).transpose(0, 3, 1, 2).copy())
        with self.running:
            scores = self.compute_probabilities(pixels.to(self.device)).cpu().numpy()
        names = self.categories.names
        return [Classification(row, names, one) for row, one in zip(scores, read, strict=True)]

    def compute_probabilities(self, pixels: Tensor) -> Tensor:
        """Return (N, K) float32 probabilities of uint8 images (N, 3, S, S)."""
        probabilities: Tensor = self.model(to_float(pixels)).float().softmax(1)
        return probabilities

    def _take(self, image: ImageInput | ReadImage) -> ReadImage:
        if isinstance(image, ReadImage):
            return image
        return self.read(image) if isinstance(image, str | Path) else convert_image(image)
