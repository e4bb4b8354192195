"""Predict with a trained segmenter, and describe it for its file.

Legend: H x W pixels, K classes, C channels of logits: K, or 1 for a binary task.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from densenet_backbones.data.mask_samples import MaskClasses, MaskTask
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.renamed_options import rename_options, rename_transform
from densenet_backbones.inference.inputs.downloads import is_url
from densenet_backbones.inference.inputs.image_tensors import (
    ImageInput,
    ReadImage,
    convert_image,
    read_for_model,
    to_image_tensor,
)
from densenet_backbones.inference.inputs.image_windows import ImageWindows
from densenet_backbones.inference.merging.tiling import Tiling, blend_tiles
from densenet_backbones.inference.model_file import JsonDict, ModelSpec, build_registered
from densenet_backbones.inference.predictor import Predictor, predict_each
from densenet_backbones.inference.results.base import LARGEST_PICTURE
from densenet_backbones.inference.results.segmentation import Segmentation
from densenet_backbones.messages import check_choice

__all__ = [
    "SMP",
    "Segmentation",
    "SegmentationModel",
    "SegmenterSpec",
    "compute_probabilities",
    "pick_labels",
]

SMP = "smp:"
"""Names of segmentation_models.pytorch's decoders begin so."""

_TASKS = ("multiclass", "binary", "multilabel")


@dataclass(frozen=True)
class SegmenterSpec(ModelSpec):
    """Description that turns weights back into a segmenter.

    Attributes:
        name: Name in torchvision's registry (`unet`, `fcdensenet103`, …), or ``smp:`` and a class
            of segmentation_models.pytorch.
        args: JSON-able keyword arguments of its builder, without the number of classes.
        classes: Classes it was trained on, two for a binary task.
        task: "multiclass", "binary" or "multilabel": how classes share pixels.
        preprocessing: `ImageNormalization.to_dict()`, or None where the builder's own holds.
    """

    key = "densenet_backbones.segmenter"
    kind = "segmenter"

    name: str
    args: JsonDict
    classes: MaskClasses
    task: MaskTask = "multiclass"
    preprocessing: JsonDict | None = None

    def __post_init__(self) -> None:
        if not self.name.startswith(SMP):
            object.__setattr__(self, "args", rename_options(self.args))
        object.__setattr__(self, "preprocessing", rename_transform(self.preprocessing))

    @property
    def num_logits(self) -> int:
        """Number of channels of the logits, C."""
        return 1 if self.task == "binary" else self.classes.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels from 0 on."""
        return self.classes.names

    def classes_to_dict(self) -> JsonDict:
        """Return the entries of the classes and the task."""
        return {"classes": self.classes.to_dict(), "task": self.task}

    @classmethod
    def from_entries(cls, state: JsonDict) -> "SegmenterSpec":
        """Make a spec from the entries of `to_dict`, unchecked; `from_dict` calls it."""
        check_choice("task", state["task"], _TASKS)
        classes = MaskClasses.from_dict(state["classes"])
        return cls(
            state["name"], dict(state["args"]), classes, state["task"], state["preprocessing"]
        )

    def without_downloads(self) -> JsonDict:
        """Return overrides for `build` when all weights are at hand: none is downloaded."""
        if self.name.startswith(SMP):
            return {"encoder_weights": None}
        return super().without_downloads()

    def build(self, **overrides: object) -> nn.Module:
        """Build the model with fresh weights; `overrides` replace single arguments."""
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


class SegmentationModel(Predictor):
    """A segmenter with its classes, ready to predict; made by `load`.

    Attributes:
        size: Pixels of the shorter side to which larger images are reduced, while masks keep the
            images' own size; None takes images as they are.
    """

    spec: SegmenterSpec
    size: int | None = None

    def __init__(self, spec: SegmenterSpec, model: nn.Module, device: torch.device | str) -> None:
        super().__init__(model, device)
        self.spec = spec
        self.classes = spec.classes

    @overload
    def predict(  # type: ignore[overload-overlap] # a text is a sequence of texts, too
        self, image: ImageInput, tile: int | None = None, overlap: int | None = None
    ) -> Segmentation: ...
    @overload
    def predict(
        self, image: Iterator[ImageInput], tile: int | None = None, overlap: int | None = None
    ) -> Iterator[Segmentation]: ...
    @overload
    def predict(
        self, image: Sequence[ImageInput], tile: int | None = None, overlap: int | None = None
    ) -> list[Segmentation]: ...
    def predict(
        self,
        image: ImageInput | Iterable[ImageInput],
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Segmentation | list[Segmentation] | Iterator[Segmentation]:
        """Segment an image, or several one after the other.

        Args:
            image: A file or its http(s) address, a picture of Pillow, (H, W, 3) uint8 RGB pixels,
                or a tensor (3, H, W) RGB of uint8 or of floats in [0, 1]. A list gives a list, a
                generator a generator, which takes an image when its result is asked for.
            tile: Side of the tiles that a larger image is cut into, in pixels; None takes any
                image as a whole. TIFF and PPM files are read tile by tile where their compression
                allows it.
            overlap: Pixels that neighboring tiles share; see `Tiling`.

        Raises:
            DataError: The file is missing or cannot be decoded.
            ValueError: The image is of another kind, shape or type, or tiles are impossible.
        """
        return predict_each(lambda one: self._predict_one(one, tile, overlap), image)

    __call__ = predict

    def _predict_one(
        self, image: ImageInput, tile: int | None, overlap: int | None
    ) -> Segmentation:
        if isinstance(image, str | Path):
            if self.size is None and tile is not None and not is_url(image):
                return self.predict_windows(ImageWindows(image), tile, overlap)
            read = self.read(image)
        else:
            read = convert_image(image)
        if self.size is not None and (read.factor > 1 or min(read.size) > self.size):
            return self.predict_reduced(read, tile, overlap)
        if tile is not None:
            return self.predict_windows(ImageWindows(read.pixels, name=read.name), tile, overlap)
        scores = self._predict_scores(to_image_tensor(read.pixels, self.device)).cpu()
        return self._join([(0, scores)], read.size, read)

    def read(self, file: str | Path, content: bytes | None = None) -> ReadImage:
        """Read an image file no larger than the segmenter can use.

        Args:
            file: The file, or its http(s) address.
            content: Its bytes where they are at hand.

        Raises:
            DataError: The file is missing or cannot be decoded.
        """
        at_least = None if self.size is None else (self.size, self.size)
        return read_for_model(file, at_least, content)

    def predict_reduced(
        self, read: ReadImage, tile: int | None = None, overlap: int | None = None
    ) -> Segmentation:
        """Segment an image at `size`, if it is larger; labels and scores are of its own size."""
        height, width = read.size
        scale = min(1.0, (self.size or height) / min(height, width))
        shape = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(Image.fromarray(read.pixels).resize(shape, Image.Resampling.BILINEAR))
        small = self._predict_one(pixels, tile, overlap)
        # Classes are no numbers that could be averaged; the pixel that is nearest has both.
        rows, columns = (
            ((np.arange(there) + 0.5) * here / there).astype(np.int64)
            for there, here in zip(read.size, small.size, strict=True)
        )
        labels, scores = (
            np.take(np.take(maps, rows, -2), columns, -1) for maps in (small.labels, small.scores)
        )
        return replace(small, labels=labels, scores=scores, image=read)

    def predict_windows(
        self, source: ImageWindows, tile: int, overlap: int | None = None
    ) -> Segmentation:
        """Segment an image by tiles, if it is larger than one; see `predict`."""
        tiling = Tiling(tile, overlap, stride=getattr(self.model, "stride", 1))
        if max(source.size) <= tiling.tile:
            height, width = source.size
            whole = self._predict_one(source.read((0, 0, height, width)), None, None)
            return replace(whole, image=source.shrink(LARGEST_PICTURE))
        if any(getattr(m, "batch_statistics_in_eval", False) for m in self.model.modules()):
            warnings.warn(
                "this model norms each tile by the tile's own statistics, so that tiles of one "
                "image may not fit together; prefer a tile as large as the image, or train with "
                "batch_statistics_in_eval=False",
                stacklevel=2,
            )
        # Rows come as soon as they are finished, so that no whole image of scores is held.
        rows = blend_tiles(
            source.read,
            source.size,
            lambda window: self._predict_scores(to_image_tensor(window, self.device)),
            tiling,
        )
        return self._join(rows, source.size, source.shrink(LARGEST_PICTURE))

    @torch.inference_mode()
    def _predict_scores(self, image: Tensor) -> Tensor:
        """Return (C, H, W) probabilities of an image (3, H, W)."""
        with self.running:
            return compute_probabilities(self.model(image[None]), self.spec.task)[0]

    def _join(
        self,
        parts: Iterable[tuple[int, Tensor]],
        size: tuple[int, int],
        image: ReadImage,
    ) -> Segmentation:
        """Join probabilities (C, rows, W) that come with their first row; `size` is (H, W)."""
        # Only labels and their scores are held of the whole image, not all K probabilities.
        k = self.classes.num_classes
        shape = (k, *size) if self.spec.task == "multilabel" else size
        labels, scores = np.empty(shape, np.uint8), np.empty(shape, np.float32)
        for top, part in parts:
            part_labels, part_scores = pick_labels(part[None], self.spec.task)
            place = (..., slice(top, top + part.shape[1]), slice(None))
            labels[place], scores[place] = part_labels[0].numpy(), part_scores[0].numpy()
        return Segmentation(labels, scores, self.classes.names, self.classes.colors, image)


def compute_probabilities(output: Tensor | Mapping[str, Tensor], task: MaskTask) -> Tensor:
    """Turn a segmenter's output into (N, C, H, W) float32 probabilities."""
    logits = output if isinstance(output, Tensor) else output["logits"]
    return logits.float().softmax(1) if task == "multiclass" else logits.float().sigmoid()


def pick_labels(scores: Tensor, task: MaskTask) -> tuple[Tensor, Tensor]:
    """Pick the most probable label of each pixel.

    Args:
        scores: (N, C, H, W) as `compute_probabilities` returns them.
        task: How classes share pixels.

    Returns:
        uint8 labels and the float32 probability of each, (N, H, W), or (N, K, H, W) for
        "multilabel".
    """
    if task == "multiclass":
        best = scores.max(1)
        return best.indices.to(torch.uint8), best.values
    positive = scores > 0.5
    labels, probable = positive.to(torch.uint8), torch.where(positive, scores, 1 - scores)
    return (labels[:, 0], probable[:, 0]) if task == "binary" else (labels, probable)
