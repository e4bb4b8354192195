"""Training and evaluation of an image classifier: cross-entropy, mixing, accuracy, calibration.

Legend: N images, K classes, S pixels of a side.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningArgumentParser
from rich.table import Table
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.classification.data import ClassificationData
from densenet_backbones.data.samples import Sample
from densenet_backbones.heads.classification.classifier import Classifier
from densenet_backbones.inference.classifier import ClassifierSpec, ImageClassifier
from densenet_backbones.inference.inputs.image_tensors import to_float
from densenet_backbones.messages import check_interval
from densenet_backbones.metrics.classification import ClassificationMetric
from densenet_backbones.reporting.classification import report
from densenet_backbones.reporting.pictures import to_pixels
from densenet_backbones.training.arguments import CLASSIFICATION_FORM
from densenet_backbones.training.optimization import Optimizer, Schedule
from densenet_backbones.training.tasks.task import (
    MemoryOption,
    Outputs,
    Task,
    refuse_other_names,
)

PUBLISHED = Optimizer("sgd", 0.1, 64, weight_decay=1e-4)
"""Of the DenseNet paper (1608.06993, section 4.2): Nesterov's momentum 0.9, batches of 64."""


@dataclass
class Regularization:
    """Options that make training harder than the data; timm's `Mixup` and `RandomErasing`.

    Attributes:
        label_smoothing: Share of the target that all classes get, in [0, 1).
        mixup: Alpha of mixup's Beta distribution (1710.09412); 0 for none.
        cutmix: The same of CutMix (1905.04899); where both are given, either is taken by chance.
        mix_prob: Share of the batches that are mixed.
        erasing: Share of the images of which a random part is erased (1708.04896).
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        bounds = {"label_smoothing": "[0, 1)", "mixup": "[0, inf)", "cutmix": "[0, inf)"}
        for name, bound in (bounds | {"mix_prob": "[0, 1]", "erasing": "[0, 1]"}).items():
            check_interval(f"model.regularization.{name}", getattr(self, name), bound)


class ClassificationTask(Task[ClassificationData, Sample, ClassificationMetric]):
    """Trains any image classifier and evaluates its accuracy and calibration.

    Args:
        classifier: Name of the network: one of ours (`densenet40_k12`, `densenet121_features`), any
            of timm (`densenet121` is timm's own), or `torchvision:` and one of torchvision.
        args: Keyword arguments of it: `image_size`, `in_chans` (1 for gray), `weights`,
            `growth_rate`, `drop_rate`, ...; without the number of classes.
        regularization: Label smoothing, mixup, CutMix and random erasing.
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
        categories: The classes; given by the data.
    """

    form = CLASSIFICATION_FORM
    tool = "train_cls"
    data_type = ClassificationData
    spec_type = ClassifierSpec
    use = "Classify pictures"
    look_at = "labels"
    headline = ("accuracy", "top5")
    spec: ClassifierSpec
    model: Classifier

    def __init__(
        self,
        classifier: str = "densenet121_features",
        args: dict[str, Any] | None = None,
        regularization: Regularization = Regularization(),  # noqa: B008 - never changed
        optimizer: Optimizer = PUBLISHED,
        schedule: Schedule = Schedule("step", [0.5, 0.75], warmup=0.0),  # noqa: B008
        channels_last: bool = True,
        seed: int = 0,
        memory: MemoryOption | None = None,
        memory_budget: float | None = None,
        categories: Categories | None = None,
    ) -> None:
        assert categories is not None, "linked from the data"
        spec = ClassifierSpec(classifier, dict(args or {}), categories)
        super().__init__(spec, optimizer, schedule, channels_last, seed, memory, memory_budget)
        self.regularization = regularization
        self.mix = _make_mixing(regularization, len(categories.names))

    @classmethod
    def from_model(cls, trained: ImageClassifier, **options: Any) -> Self:
        """A task that evaluates a loaded model (or goes on training it)."""
        spec = trained.spec
        args = {**spec.args, **spec.without_downloads()}
        task = cls(spec.name, args, categories=spec.categories, **options)
        task.adopt(spec, trained.model, options.get("channels_last", True))
        return task

    @classmethod
    def link_arguments(cls, parser: LightningArgumentParser) -> None:
        """Build the classifier for the data's classes."""
        super().link_arguments(parser)
        parser.link_arguments("data.categories", "model.categories", apply_on="instantiate")

    def describe_input(self) -> ModelInput:
        """Return the size of the network's images, and how evaluation brings images to it."""
        side = self.model.image_size
        fill = self.model.normalization.fill_color
        return ModelInput(size=(side, side), fill_color=fill, crop_pct=self.model.crop_pct)

    def tabulate_data(self, data: ClassificationData) -> Table:
        """Return a table of the images of each class."""
        return report.tabulate_data(data.train_set, data.val_set)

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the cross-entropy of a batch, mixed and erased as the options say."""
        images, labels = stack(batch)
        # timm draws from Python's and numpy's global streams; torch's was seeded for this step.
        seed = int(torch.randint(2**31, ()))
        random.seed(seed)
        np.random.seed(seed)
        x = self.model.normalize(to_float(images))
        if self.regularization.erasing:
            x = _erase(x, self.regularization.erasing)
        if self.mix is None:
            smoothing = self.regularization.label_smoothing
            loss = F.cross_entropy(self.model.net(x), labels, label_smoothing=smoothing)
            return {"cross_entropy": loss}
        even = len(x) - len(x) % 2  # timm mixes pairs
        mixed, targets = self.mix(x[:even], labels[:even])
        if even < len(x):
            classes, smoothing = len(self.spec.class_names), self.regularization.label_smoothing
            last = F.one_hot(labels[even:], classes).float() * (1 - smoothing) + smoothing / classes
            mixed, targets = torch.cat((mixed, x[even:])), torch.cat((targets, last))
        return {"cross_entropy": F.cross_entropy(self.model.net(mixed), targets)}

    def make_example(self, data: ClassificationData) -> tuple[Tensor, tuple[int, int]]:
        """Return an image of the network's size."""
        size = self.training_size(data)
        return torch.rand(1, 3, *size, device=next(self.model.parameters()).device), size

    def training_size(self, data: ClassificationData) -> tuple[int, int]:
        """Return (S, S)."""
        return self.model.image_size, self.model.image_size

    def planned_part(self, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
        """Return the whole model."""
        return self.model, size

    def check_names(self, data: ClassificationData) -> None:
        """Refuse evaluated images whose labels are not the model's."""
        part = data.val_set
        refuse_other_names(part.name, "classes", part.categories.names, self.spec.class_names)

    def make_metric(self, data: ClassificationData) -> ClassificationMetric:
        """Return the evaluation by accuracy and calibration."""
        return ClassificationMetric(self.spec.class_names)

    def write_evaluation(self, data: ClassificationData, folder: Path) -> None:
        """Print and write the evaluation; see `report.write_evaluation`."""
        assert self.metric is not None and self.metric.evaluation is not None
        report.write_evaluation(self.metric.evaluation, data.val_set, folder)

    def validation_step(self, batch: list[Sample], batch_idx: int) -> dict[str, Any]:
        """Return the probabilities of a batch, added to the evaluation."""
        assert self.metric is not None
        if not batch:  # all of its images were unusable
            return {"predictions": []}
        images, labels = stack(batch)
        probabilities = self.model(to_float(images)).float().softmax(1)
        if self.counts_images:
            indices = torch.tensor([sample.index for sample in batch], device=labels.device)
            self.metric.update(probabilities, labels, indices)
        return {"predictions": list(probabilities)}

    def draw_batch(self, batch: Sequence[Sample]) -> np.ndarray:
        """Return the images under the names of their classes, as augmented (before mixing)."""
        titles = [self.spec.class_names[int(sample.labels[0]) - 1] for sample in batch]
        return report.draw_labelled([to_pixels(sample.image) for sample in batch], titles)

    def draw_predictions(self, batch: Sequence[Sample], outputs: Outputs) -> np.ndarray:
        """Return the images under their class and what is predicted, with its probability."""
        names, titles = self.spec.class_names, []
        for sample, scores in zip(batch, outputs["predictions"], strict=False):
            best, own = int(scores.argmax()), int(sample.labels[0]) - 1
            wrong = "" if best == own else f", is {names[own]}"
            titles.append(f"{names[best]} {float(scores[best]):.2f}{wrong}")
        images = [to_pixels(sample.image) for sample in batch]
        return report.draw_labelled(images[: len(titles)], titles)


def stack(batch: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return one tensor of images, (N, 3, S, S) uint8, and labels (N,) int64 from 0."""
    images = torch.stack([sample.image for sample in batch])
    return images, torch.cat([sample.labels for sample in batch]) - 1


def _erase(x: Tensor, share: float) -> Tensor:
    """Put noise in the place of a part of some images, as timm does."""
    erasing: Any = RandomErasing
    erased: Tensor = erasing(share, mode="pixel", device=x.device)(x)
    return erased


def _make_mixing(options: Regularization, classes: int) -> Mixup | None:
    """Return timm's mixing of a batch; None where nothing is mixed."""
    if not (options.mixup or options.cutmix):
        return None
    make: Any = Mixup
    return make(  # type: ignore[no-any-return]
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        prob=options.mix_prob,
        label_smoothing=options.label_smoothing,
        num_classes=classes,
    )
