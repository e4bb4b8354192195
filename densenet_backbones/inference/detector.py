"""Predict with a trained detector, and describe it for its file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from densenet_backbones.data.run_lengths import Detections as RawDetections
from densenet_backbones.data.run_lengths import decode_mask
from densenet_backbones.data.samples import Categories, RunLengths
from densenet_backbones.heads.renamed_options import rename_options, rename_transform
from densenet_backbones.inference.detection_views import (
    DetectionViews,
    detect,
    enlarge,
    select_rows,
)
from densenet_backbones.inference.detector_facts import read_model_input, read_target_types
from densenet_backbones.inference.image_tensors import ReadImage, read_for_model, to_image_tensor
from densenet_backbones.inference.model_file import JsonDict, ModelSpec, build_registered
from densenet_backbones.messages import check_interval


@dataclass(frozen=True)
class DetectorSpec(ModelSpec):
    """Description that turns weights back into a detector.

    Attributes:
        name: Name in torchvision's registry of one of our detectors (`dsod300`, …) or of its own.
        args: JSON-able keyword arguments of its builder, without `num_classes`.
        categories: Classes it was trained on.
        preprocessing: `DetectionTransform.to_dict()`, or None where the builder's own holds.
    """

    key = "densenet_backbones.detector"
    kind = "detector"

    name: str
    args: JsonDict
    categories: Categories
    preprocessing: JsonDict | None = None

    def __post_init__(self) -> None:
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
        """Return the entry of the categories."""
        return {"categories": self.categories.to_dict()}

    @classmethod
    def from_entries(cls, state: JsonDict) -> "DetectorSpec":
        """Make a spec from the entries of `to_dict`, unchecked; `from_dict` calls it."""
        return cls(
            state["name"],
            dict(state["args"]),
            Categories.from_dict(state["categories"]),
            state["preprocessing"],
        )

    def build(self, **overrides: object) -> nn.Module:
        """Build the model with fresh weights; `overrides` replace single arguments."""
        args = {**self.args, **overrides}
        model = build_registered(self.kind, self.name, self.categories.num_classes, args)
        if self.preprocessing is not None:
            model.set_transform(self.preprocessing)  # type: ignore[operator]
        return model


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first.

    Attributes:
        boxes: (D, 4) float32 xyxy, absolute pixels of the image as shown.
        labels: (D,) int64 in ``1 .. K - 1``.
        scores: (D,) float32 in [0, 1].
        names: Class name of each.
        masks: D masks as COCO's run-length codes, or None for a detector of boxes alone.
        keypoints: (D, Kp, 3) float32 of x, y and 1, in pixels of the image as shown, or None.
        keypoint_scores: (D, Kp) float32, the higher the surer (no probabilities), or None.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    names: list[str]
    masks: list[RunLengths] | None = None
    keypoints: Tensor | None = None
    keypoint_scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def decode_mask(self, index: int) -> np.ndarray:
        """Return the mask of one detection, (H, W) bool.

        Raises:
            ValueError: The detector gives no masks.
        """
        if self.masks is None:
            raise ValueError("this detector gives boxes without masks; use a Mask R-CNN")
        return decode_mask(self.masks[index])


class Detector:
    """A model with its classes, ready to predict; made by `load`.

    Attributes:
        views: Views of an image to run the model on (test-time augmentation, Soft-NMS), or None
            for the image as it is. May be set.
    """

    def __init__(self, spec: DetectorSpec, model: nn.Module, device: torch.device | str) -> None:
        self.spec = spec
        self.categories = spec.categories
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.views: DetectionViews | None = None

    def read(self, file: str | Path) -> ReadImage:
        """Read an image file for this detector: at full size, unless that is far above its own.

        Raises:
            DataError: The file is missing or cannot be decoded.
        """
        facts = replace(
            read_model_input(self.model),
            largest_view=max(self.views.scales) if self.views else 1.0,
        )
        scales = getattr(self.model, "transform", None) is not None
        kinds = read_target_types(self.model)
        return read_for_model(file, facts.choose_read_size(kinds) if scales else None)

    def predict(self, image: str | Path | np.ndarray, score_thresh: float = 0.5) -> Detections:
        """Detect objects in one image.

        Args:
            image: A file, or (H, W, 3) uint8 RGB pixels.
            score_thresh: Detections below it are left out, in [0, 1].

        Raises:
            DataError: The file is missing or cannot be decoded.
            ValueError: The array is not (H, W, 3) uint8.
        """
        return self.predict_batch([image], score_thresh)[0]

    @torch.inference_mode()
    def predict_batch(
        self, images: Sequence[str | Path | np.ndarray | ReadImage], score_thresh: float = 0.5
    ) -> list[Detections]:
        """Detect objects in several images at once; see `predict`. `read` makes a `ReadImage`."""
        check_interval("score_thresh", score_thresh, "[0, 1]")
        read = [self.read(image) if isinstance(image, str | Path) else image for image in images]
        pixels = [
            to_image_tensor(image.pixels if isinstance(image, ReadImage) else image, self.device)
            for image in read
        ]
        detections = [
            enlarge(rows, image.factor, image.size) if isinstance(image, ReadImage) else rows
            for rows, image in zip(detect(self.model, pixels, self.views), read, strict=True)
        ]
        return [self._select(rows, score_thresh) for rows in detections]

    def _select(self, detections: RawDetections, score_thresh: float) -> Detections:
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
        )
