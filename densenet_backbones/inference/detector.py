"""Predict with a trained detector, and describe it for its file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import torch
from torch import nn

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.masks.run_lengths import Detections as RawDetections
from densenet_backbones.heads.renamed_options import rename_options, rename_transform
from densenet_backbones.inference.detector_facts import read_model_input, read_target_types
from densenet_backbones.inference.inputs.image_tensors import (
    ImageInput,
    ReadImage,
    convert_image,
    read_for_model,
    to_image_tensor,
)
from densenet_backbones.inference.merging.detection_views import (
    DetectionViews,
    detect,
    enlarge,
    select_rows,
)
from densenet_backbones.inference.model_file import JsonDict, ModelSpec, build_registered
from densenet_backbones.inference.predictor import Predictor, predict_each
from densenet_backbones.inference.results.detections import Detections
from densenet_backbones.messages import check_interval

__all__ = ["DEFAULT_SCORE", "Detector", "DetectorSpec"]

DEFAULT_SCORE = 0.5
"""Score from which detections are given by models that were never evaluated."""


@dataclass(frozen=True)
class DetectorSpec(ModelSpec):
    """Description that turns weights back into a detector.

    Attributes:
        name: Name in torchvision's registry of one of our detectors (`dsod300`, …) or of its own.
        args: JSON-able keyword arguments of its builder, without `num_classes`.
        categories: Classes it was trained on.
        preprocessing: `DetectionTransform.to_dict()`, or None where the builder's own holds.
        best_score: Score from which its detections were best on the evaluated data (see
            `CocoEvaluation.find_best_score`), or None where that is not known.
    """

    key = "densenet_backbones.detector"
    kind = "detector"

    name: str
    args: JsonDict
    categories: Categories
    preprocessing: JsonDict | None = None
    best_score: float | None = None

    def __post_init__(self) -> None:
        if self.best_score is not None:
            check_interval("best_score", self.best_score, "[0, 1]")
        object.__setattr__(self, "args", rename_options(self.args))
        object.__setattr__(self, "preprocessing", rename_transform(self.preprocessing))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels from 1 on."""
        return self.categories.names

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of an object's keypoints, in the model's order."""
        return self.categories.keypoints

    def classes_to_dict(self) -> JsonDict:
        """Return the entries of the categories, and of the best score where it is known."""
        best = {} if self.best_score is None else {"best_score": self.best_score}
        return {"categories": self.categories.to_dict(), **best}

    @classmethod
    def from_entries(cls, state: JsonDict) -> "DetectorSpec":
        """Make a spec from the entries of `to_dict`, unchecked; `from_dict` calls it."""
        return cls(
            state["name"],
            dict(state["args"]),
            Categories.from_dict(state["categories"]),
            state["preprocessing"],
            state.get("best_score"),
        )

    def build(self, **overrides: object) -> nn.Module:
        """Build the model with fresh weights; `overrides` replace single arguments."""
        args = {**self.args, **overrides}
        model = build_registered(self.kind, self.name, self.categories.num_classes, args)
        if self.preprocessing is not None:
            model.set_transform(self.preprocessing)  # type: ignore[operator]
        return model


class Detector(Predictor):
    """A detector with its classes, ready to predict; made by `load`.

    Attributes:
        views: Views of an image to run the model on (test-time augmentation, Soft-NMS), or None
            for the image as it is. May be set.
        score_thresh: Detections below it are left out unless a call says otherwise: the score that
            was best on the data that the model was evaluated on, else 0.5. May be set.
    """

    spec: DetectorSpec

    def __init__(self, spec: DetectorSpec, model: nn.Module, device: torch.device | str) -> None:
        super().__init__(model, device)
        self.spec = spec
        self.categories = spec.categories
        self.views: DetectionViews | None = None
        self.score_thresh = DEFAULT_SCORE if spec.best_score is None else spec.best_score

    def read(self, file: str | Path, content: bytes | None = None) -> ReadImage:
        """Read an image file for this detector: at full size, unless that is far above its own.

        Args:
            file: The file, or its http(s) address.
            content: Its bytes where they are at hand.

        Raises:
            DataError: The file is missing or cannot be decoded.
        """
        facts = replace(
            read_model_input(self.model),
            largest_view=max(self.views.scales) if self.views else 1.0,
        )
        scales = getattr(self.model, "transform", None) is not None
        kinds = read_target_types(self.model)
        return read_for_model(file, facts.choose_read_size(kinds) if scales else None, content)

    @overload
    def predict(  # type: ignore[overload-overlap] # a text is a sequence of texts, too
        self, image: ImageInput, score_thresh: float | None = None
    ) -> Detections: ...
    @overload
    def predict(
        self, image: Iterator[ImageInput], score_thresh: float | None = None
    ) -> Iterator[Detections]: ...
    @overload
    def predict(
        self, image: Sequence[ImageInput], score_thresh: float | None = None
    ) -> list[Detections]: ...
    def predict(
        self, image: ImageInput | Iterable[ImageInput], score_thresh: float | None = None
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect objects in an image, or in several one after the other.

        Args:
            image: A file or its http(s) address, a picture of Pillow, (H, W, 3) uint8 RGB pixels,
                or a tensor (3, H, W) RGB of uint8 or of floats in [0, 1]. A list gives a list, a
                generator a generator, which takes an image when its result is asked for.
            score_thresh: Detections below it are left out, in [0, 1]; None for `score_thresh` of
                the detector.

        Raises:
            DataError: The file is missing or cannot be decoded.
            ValueError: The image is of another kind, shape or type.
        """
        return predict_each(lambda one: self.predict_batch([one], score_thresh)[0], image)

    __call__ = predict

    @torch.inference_mode()
    def predict_batch(
        self, images: Sequence[ImageInput | ReadImage], score_thresh: float | None = None
    ) -> list[Detections]:
        """Detect objects in several images at once; see `predict`. `read` makes a `ReadImage`."""
        score_thresh = self.score_thresh if score_thresh is None else score_thresh
        check_interval("score_thresh", score_thresh, "[0, 1]")
        read = [
            image
            if isinstance(image, ReadImage)
            else self.read(image)
            if isinstance(image, str | Path)
            else convert_image(image)
            for image in images
        ]
        pixels = [to_image_tensor(image.pixels, self.device) for image in read]
        with self.running:
            detections = detect(self.model, pixels, self.views)
        return [
            self.select(enlarge(rows, image.factor, image.size), image, score_thresh)
            for rows, image in zip(detections, read, strict=True)
        ]

    def select(
        self, detections: RawDetections, image: ReadImage, score_thresh: float
    ) -> Detections:
        """Return the detections from a score on, best first, on the CPU."""
        # Stable, so that equal scores stay in the detector's order on every device.
        order = detections["scores"].argsort(descending=True, stable=True)
        order = order[detections["scores"][order] >= score_thresh]
        rows = select_rows(detections, order)
        labels = rows["labels"].cpu()
        points, point_scores = (rows.get(name) for name in ("keypoints", "keypoints_scores"))
        return Detections(
            boxes=rows["boxes"].float().cpu(),
            labels=labels,
            scores=rows["scores"].float().cpu(),
            names=[self.categories.name_of_label(int(label)) for label in labels],
            masks=rows.get("masks"),
            keypoints=None if points is None else points.float().cpu(),
            keypoint_scores=None if point_scores is None else point_scores.float().cpu(),
            categories=self.categories,
            image=image,
        )
