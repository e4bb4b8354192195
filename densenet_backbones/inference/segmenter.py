"""A trained segmentation model, ready to predict.

Legend: H x W pixels, K classes, C channels of logits: K, or 1 for a binary task.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densenet_backbones.data.mask_samples import Color, MaskClasses, MaskTask
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.renamed_options import rename_options, rename_transform
from densenet_backbones.inference.image_tensors import to_image_tensor
from densenet_backbones.inference.image_windows import ImageWindows
from densenet_backbones.inference.model_file import ModelSpec, build_registered
from densenet_backbones.inference.tiling import Tiling, blend_tiles
from densenet_backbones.messages import check_choice

SMP = "smp:"
"""Names of segmentation_models.pytorch's decoders begin so."""

_TASKS = ("multiclass", "binary", "multilabel")


@dataclass(frozen=True)
class SegmenterSpec(ModelSpec):
    """All that turns weights back into a segmentation model.

    Attributes:
        name: A segmenter of torchvision's registry (`unet`, `fcdensenet103`, …), or ``smp:`` and a
            class of segmentation_models.pytorch.
        args: JSON-able keyword arguments of its builder, without the number of classes.
        classes: The classes it knows, two for a binary task.
        task: "multiclass", "binary" or "multilabel".
        preprocessing: `ImageNormalization.to_dict()`, or None where the builder's own holds.
    """

    key = "densenet_backbones.segmenter"
    kind = "segmenter"

    name: str
    args: dict[str, Any]
    classes: MaskClasses
    task: MaskTask = "multiclass"
    preprocessing: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.name.startswith(SMP):
            object.__setattr__(self, "args", rename_options(self.args))
        object.__setattr__(self, "preprocessing", rename_transform(self.preprocessing))

    @property
    def num_logits(self) -> int:
        """C."""
        return 1 if self.task == "binary" else self.classes.num_classes

    def classes_to_dict(self) -> dict[str, Any]:
        """The classes and how they share pixels."""
        return {"classes": self.classes.to_dict(), "task": self.task}

    @classmethod
    def from_entries(cls, state: dict[str, Any]) -> "SegmenterSpec":
        """`from_dict` without its checks."""
        check_choice("task", state["task"], _TASKS)
        classes = MaskClasses.from_dict(state["classes"])
        return cls(
            state["name"], dict(state["args"]), classes, state["task"], state["preprocessing"]
        )

    def without_downloads(self) -> dict[str, Any]:
        """Overrides for `build` where all weights are at hand: none must be fetched again."""
        if self.name.startswith(SMP):
            return {"encoder_weights": None}
        return super().without_downloads()

    def build(self, **overrides: Any) -> nn.Module:
        """The model with fresh weights; `overrides` replace single arguments of the builder."""
        args = {**self.args, **overrides}
        if self.name.startswith(SMP):
            # Imported where it is used: it takes seconds.
            from densenet_backbones.inference.smp_segmenters import build_smp

            model: nn.Module = build_smp(self.name.removeprefix(SMP), self.num_logits, args)
        else:
            model = build_registered("segmenter", self.name, self.num_logits, args)
        if self.preprocessing is not None:
            model.normalization = ImageNormalization(**self.preprocessing)
        return model


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The classes of an image's pixels.

    Attributes:
        labels: (H, W) uint8 in ``0 .. K - 1``; (K, H, W) of 0 and 1 for a multilabel model.
        scores: Float32 of the same shape: the model's probability of what `labels` says.
        names: The K class names.
        colors: RGB of each class.
    """

    labels: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    colors: tuple[Color, ...]

    def pixels(self, label: int) -> int:
        """How many pixels have a class."""
        return int(self._of(label).sum())

    def share(self, label: int) -> float:
        """The part of the image that a class covers, in [0, 1]."""
        return float(self._of(label).mean())

    def score(self, label: int) -> float:
        """Mean probability where the image has a class; NaN where it has none."""
        there = self._of(label)
        scores = self.scores if self.scores.ndim == 2 else self.scores[label]
        return float(scores[there].mean()) if there.any() else float("nan")

    def _of(self, label: int) -> np.ndarray:
        if self.labels.ndim == 2:
            return np.asarray(self.labels == label)
        return np.asarray(self.labels[label] == 1)


class SegmentationModel:
    """A segmenter with its classes, ready to predict; made by `load`."""

    def __init__(self, spec: SegmenterSpec, model: nn.Module, device: torch.device | str) -> None:
        self.spec = spec
        self.classes = spec.classes
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()

    def predict(
        self, image: str | Path | np.ndarray, tile: int | None = None, overlap: int | None = None
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: A file, or (H, W, 3) uint8 RGB pixels.
            tile: Side of the tiles that a larger image is cut into, in pixels; None takes any
                image as a whole. Uncompressed TIFF and PPM files are read tile by tile.
            overlap: Pixels that neighbouring tiles share; see `Tiling`.

        Raises:
            DataError: The file is missing or cannot be decoded.
            ValueError: The array is not (H, W, 3) uint8, or tiles are impossible.
        """
        if tile is None:
            pixels = to_image_tensor(image, self.device)
            height, width = pixels.shape[-2:]
            return self._merged([(0, self._scores(pixels).cpu())], (height, width))
        return self.predict_windows(ImageWindows(image), tile, overlap)

    def predict_windows(
        self, source: ImageWindows, tile: int, overlap: int | None = None
    ) -> Segmentation:
        """Segment an image by tiles, if it is larger than one; see `predict`."""
        tiling = Tiling(tile, overlap, stride=getattr(self.model, "stride", 1))
        if max(source.size) <= tiling.tile:
            height, width = source.size
            return self.predict(source.read((0, 0, height, width)))
        if any(getattr(m, "batch_statistics_in_eval", False) for m in self.model.modules()):
            warnings.warn(
                "this model norms each tile by the tile's own statistics, so that tiles of one "
                "image may not fit together; prefer a tile as large as the image, or train with "
                "batch_statistics_in_eval=False",
                stacklevel=2,
            )
        rows = blend_tiles(
            source.read,
            source.size,
            lambda window: self._scores(to_image_tensor(window, self.device)),
            tiling,
        )
        return self._merged(rows, source.size)

    @torch.inference_mode()
    def _scores(self, image: Tensor) -> Tensor:
        """(C, H, W) probabilities of an image (3, H, W)."""
        return compute_probabilities(self.model(image[None]), self.spec.task)[0]

    def _merged(self, rows: Any, size: tuple[int, int]) -> Segmentation:
        """Labels and scores from probabilities that come a few rows at a time."""
        k = self.classes.num_classes
        shape = (k, *size) if self.spec.task == "multilabel" else size
        labels, scores = np.empty(shape, np.uint8), np.empty(shape, np.float32)
        for top, found in rows:
            chosen, score = pick_labels(found[None], self.spec.task)
            place = (..., slice(top, top + found.shape[1]), slice(None))
            labels[place], scores[place] = chosen[0].numpy(), score[0].numpy()
        return Segmentation(labels, scores, self.classes.names, self.classes.colors)


def compute_probabilities(output: Tensor | Mapping[str, Any], task: MaskTask) -> Tensor:
    """(N, C, H, W) float32 probabilities of a segmenter's output."""
    logits = output if isinstance(output, Tensor) else output["logits"]
    return logits.float().softmax(1) if task == "multiclass" else logits.float().sigmoid()


def pick_labels(scores: Tensor, task: MaskTask) -> tuple[Tensor, Tensor]:
    """Labels, and the probability of each.

    Args:
        scores: (N, C, H, W) as `probabilities` returns them.
        task: What the channels are.

    Returns:
        uint8 labels and float32 probabilities, (N, H, W), or (N, K, H, W) for "multilabel".
    """
    if task == "multiclass":
        best = scores.max(1)
        return best.indices.to(torch.uint8), best.values
    there = scores > 0.5
    labels, sure = there.to(torch.uint8), torch.where(there, scores, 1 - scores)
    return (labels[:, 0], sure[:, 0]) if task == "binary" else (labels, sure)
