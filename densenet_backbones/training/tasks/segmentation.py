"""Training and evaluation of a segmentation model: losses by pixel, IoU and boundary scores.

Legend: N images, K classes, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning.pytorch.cli import LightningArgumentParser
from rich.table import Table
from torch import Tensor, nn

from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.mask_samples import (
    IGNORED,
    MaskClasses,
    MaskSample,
    MaskTask,
    SegmentationSet,
)
from densenet_backbones.data.masks.statistics import (
    compute_median_frequency_weights,
    count_class_pixels,
)
from densenet_backbones.data.segmentation import SegmentationData
from densenet_backbones.heads import Segmenter
from densenet_backbones.heads.segmentation.losses import SegmentationLoss
from densenet_backbones.inference.inputs.image_tensors import to_float
from densenet_backbones.inference.segmenter import (
    SegmentationModel,
    SegmenterSpec,
    compute_probabilities,
    pick_labels,
)
from densenet_backbones.metrics.boundary import TOLERANCE
from densenet_backbones.metrics.segmentation import SegmentationMetric
from densenet_backbones.reporting import segmentation_report
from densenet_backbones.reporting.mask_pictures import draw_masks_sheet, draw_masks_side_by_side
from densenet_backbones.reporting.pictures import to_pixels
from densenet_backbones.training.arguments import SEGMENTATION_FORM
from densenet_backbones.training.optimization import Optimizer, Schedule
from densenet_backbones.training.tasks.task import MemoryOption, Outputs, Task, refuse_other_names

CountedWeights = Literal["median_frequency", "sqrt_median_frequency"]


@dataclass
class Loss:
    """Terms of the loss and their settings; see `SegmentationLoss`.

    Attributes:
        terms: Weight of each term: "cross_entropy", "dice", "focal", "lovasz", "ohem".
        class_weights: Of cross-entropy: "median_frequency" counts the training masks' pixels,
            "sqrt_median_frequency" takes the square roots of those weights; or one number a class.
        label_smoothing: Of cross-entropy, in [0, 1).
        focal_gamma: Of focal, 0 or more.
        dice_smooth: Of dice, 0 or more.
        ohem_threshold: Of ohem, in (0, 1]: pixels of a higher probability are easy.
        ohem_share: Of ohem, in (0, 1]: at least this part of the pixels counts.
        aux_weight: Of the losses of coarser maps, where the model has deep supervision.
    """

    terms: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0})
    class_weights: CountedWeights | list[float] | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    dice_smooth: float = 0.0
    ohem_threshold: float = 0.7
    ohem_share: float = 1 / 16
    aux_weight: float = 0.4

    def build(self, task: MaskTask, train_set: SegmentationSet | None) -> SegmentationLoss:
        """Return the loss; `train_set` is counted for median-frequency weights.

        Raises:
            ValueError: An option is out of range.
        """
        options = asdict(self)
        if isinstance(self.class_weights, str):
            options["class_weights"] = None
            if train_set is not None:
                counts = count_class_pixels(train_set, skip=True)
                root = self.class_weights == "sqrt_median_frequency"
                options["class_weights"] = compute_median_frequency_weights(counts, root=root)
        try:
            return SegmentationLoss(task, **options)
        except ValueError as error:
            raise ValueError(f"model.loss: {error}") from error


class SegmentationTask(Task[SegmentationData, MaskSample, SegmentationMetric]):
    """Trains any segmenter and evaluates it by mIoU, accuracies and boundaries.

    Args:
        segmenter: Name in torchvision's registry: `unet`, `fcdensenet56`, `fcdensenet67`,
            `fcdensenet103`; or `smp:` and a class of segmentation_models.pytorch, such as
            `smp:DeepLabV3Plus`.
        args: Keyword arguments of that model, without the number of classes.
        loss: Terms of the loss and their settings.
        optimizer: Options of the optimizer.
        schedule: The learning rate over the run.
        channels_last: Keep maps in memory with their channels side by side: several times faster
            for convolutions on CPUs and for half precision on GPUs.
        seed: Everything random inside the model is a function of (seed, step, process).
        memory: What dense blocks keep for the backward pass: "none" (all), "shared", "bottleneck",
            "shared_lean", "layer" or "block"; "auto" takes the fastest one that fits
            `memory_budget`; null takes what `args` say, or the fastest one. Losses and gradients
            stay the same.
        memory_budget: GiB that "auto" lets the network keep between forward and backward pass; null
            for half of the memory that is free beside the weights.
        boundary_tolerance: Distance by which a border may be off in the boundary F-score, as a
            share of the image's diagonal; null leaves that score out.
        mask_classes: The classes; given by the data.
        task: How classes share pixels; given by the data.
    """

    form = SEGMENTATION_FORM
    tool = "train_seg"
    data_type = SegmentationData
    spec_type = SegmenterSpec
    use = "Segment pictures"
    look_at = "masks"
    headline = ("mIoU", "boundary_F")
    spec: SegmenterSpec
    model: Segmenter

    def __init__(
        self,
        segmenter: str = "unet",
        args: dict[str, Any] | None = None,
        loss: Loss = Loss(),  # noqa: B008 - never changed; --help shows them
        optimizer: Optimizer = Optimizer("adamw", 5e-4, 16, weight_decay=0.05),  # noqa: B008
        schedule: Schedule = Schedule("cosine", warmup=0.05),  # noqa: B008
        channels_last: bool = True,
        seed: int = 0,
        memory: MemoryOption | None = None,
        memory_budget: float | None = None,
        boundary_tolerance: float | None = TOLERANCE,
        mask_classes: MaskClasses | None = None,
        task: MaskTask = "multiclass",
    ) -> None:
        assert mask_classes is not None, "linked from the data"
        spec = SegmenterSpec(segmenter, dict(args or {}), mask_classes, task)
        super().__init__(spec, optimizer, schedule, channels_last, seed, memory, memory_budget)
        if boundary_tolerance is not None and not 0 < boundary_tolerance < 1:
            raise ValueError(
                f"model.boundary_tolerance must lie in (0, 1) or be null, got {boundary_tolerance}"
            )
        self.boundary_tolerance = boundary_tolerance
        self.loss_options = loss
        self.loss = loss.build(task, None)

    @classmethod
    def from_model(cls, trained: SegmentationModel, **options: Any) -> Self:
        """A task that evaluates a loaded model (or goes on training it)."""
        spec = trained.spec
        args = {**spec.args, **spec.without_downloads()}
        task = cls(spec.name, args, mask_classes=spec.classes, task=spec.task, **options)
        task.adopt(spec, trained.model, options.get("channels_last", True))
        return task

    @classmethod
    def link_arguments(cls, parser: LightningArgumentParser) -> None:
        """Build the segmenter for the data's classes."""
        super().link_arguments(parser)
        for name in ("mask_classes", "task"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def prepare(self, data: SegmentationData) -> None:
        """Give the loss the weights that are to come from the training masks."""
        if isinstance(self.loss_options.class_weights, str):
            self.loss = self.loss_options.build(self.spec.task, data.train_set)

    def describe_input(self) -> ModelInput:
        """Return the mean color; images may have any size."""
        return ModelInput(fill_color=self.model.normalization.fill_color)

    def tabulate_data(self, data: SegmentationData) -> Table:
        """Return a table of the images and pixels of each class."""
        return segmentation_report.tabulate_data(data.train_set, data.val_set)

    def losses(self, batch: Sequence[MaskSample]) -> dict[str, Tensor]:
        """Return the terms of the loss, by name."""
        images, masks = stack_padded(batch, self.model.normalization.fill_color)
        return dict(self.loss(self.model(images), masks))

    def make_example(self, data: SegmentationData) -> tuple[Tensor, tuple[int, int]]:
        """Return an image of the size that is trained on."""
        size = self.training_size(data)
        return torch.rand(1, 3, *size, device=next(self.model.parameters()).device), size

    def training_size(self, data: SegmentationData) -> tuple[int, int]:
        """Return the crop's size; the first image's where whole images are trained on."""
        first = data.train_set.records[0]
        cropped = data.overfit_images is None and data.augmentation not in ("full_size", "none")
        height, width = data.crop if cropped else (first.height, first.width)
        return height, width

    def planned_part(self, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
        """Return all but the normalization, which looks at values; images are padded for it."""
        height, width = self.model.padded(torch.empty(1, 3, *size, device="meta")).shape[-2:]
        return self.model.net, (height, width)

    def check_names(self, data: SegmentationData) -> None:
        """Refuse evaluated masks whose labels are not the model's."""
        part = data.val_set
        refuse_other_names(part.name, "classes", part.classes.names, self.spec.classes.names)

    def make_metric(self, data: SegmentationData) -> SegmentationMetric:
        """Return the evaluation by IoU, accuracies and boundary scores."""
        names, tolerance = self.spec.classes.names, self.boundary_tolerance
        return SegmentationMetric(names, self.spec.task, tolerance, records=len(data.val_set))

    def write_evaluation(self, data: SegmentationData, folder: Path) -> None:
        """Print and write the evaluation; see `segmentation_report.write_evaluation`."""
        assert self.metric is not None and self.metric.evaluation is not None
        self.model.eval()
        segmentation_report.write_evaluation(
            self.metric.evaluation, data.val_set, folder, self.predict
        )

    def validation_step(self, batch: list[MaskSample], batch_idx: int) -> dict[str, list[Tensor]]:
        """Return the labels of a batch, added to the evaluation.

        Images are taken one by one: they differ in size, and no image's labels depend on which
        others are beside it.
        """
        assert self.metric is not None
        predictions = [self.predict_labels(sample.image) for sample in batch]
        counted = zip(predictions, batch, strict=True) if self.counts_images else ()
        for labels, sample in counted:
            self.metric.update(labels[None], sample.mask[None], [sample.index])
        return {"predictions": predictions}

    @torch.no_grad()
    def predict_labels(self, image: Tensor) -> Tensor:
        """Return the labels of an image (3, H, W) uint8: (H, W) uint8, or (K, H, W) multilabel."""
        return self.select_labels(self.model(to_float(image)[None]))[0]

    def select_labels(self, output: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the labels of the model's output for N images."""
        return pick_labels(compute_probabilities(output, self.spec.task), self.spec.task)[0]

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Return the same of an array (H, W, 3) uint8 RGB, computed where the model is."""
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        labels = self.predict_labels(pixels.to(self.device))
        return labels.cpu().numpy()

    def draw_batch(self, batch: Sequence[MaskSample]) -> np.ndarray:
        """Return the images with their masks, as augmented."""
        images = [to_pixels(sample.image) for sample in batch]
        return draw_masks_sheet(
            images, [s.mask.cpu().numpy() for s in batch], self.spec.classes.colors
        )

    def draw_predictions(self, batch: Sequence[MaskSample], outputs: Outputs) -> np.ndarray:
        """Return image, annotation and prediction side by side."""
        return draw_masks_side_by_side(
            [to_pixels(sample.image) for sample in batch],
            [sample.mask.cpu().numpy() for sample in batch],
            [labels.cpu().numpy() for labels in outputs["predictions"][: len(batch)]],
            self.spec.classes.colors,
        )


def stack_padded(
    batch: Sequence[MaskSample], fill: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """Return one tensor of images and one of masks.

    Images of different sizes are padded at the right and the bottom to the largest: with a color,
    and their masks with ignored pixels.

    Args:
        batch: N samples.
        fill: RGB in 0..255, the model's mean.

    Returns:
        (N, 3, H, W) float32 in [0, 1] and (N, H, W) or (N, K, H, W) int64.
    """
    # Filled with the mean and with ignored pixels, so that padding counts for nothing.
    height = max(sample.image.shape[-2] for sample in batch)
    width = max(sample.image.shape[-1] for sample in batch)
    first = batch[0]
    color = first.image.new_tensor(fill, dtype=torch.float32) / 255
    images = color[None, :, None, None].repeat(len(batch), 1, height, width)
    size = (len(batch), *first.mask.shape[:-2], height, width)
    masks = torch.full(size, IGNORED, dtype=torch.int64, device=first.mask.device)
    for number, sample in enumerate(batch):
        h, w = sample.image.shape[-2:]
        images[number, :, :h, :w] = to_float(sample.image)
        masks[number, ..., :h, :w] = sample.mask
    return images, masks
