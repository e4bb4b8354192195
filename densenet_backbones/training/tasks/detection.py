"""Training and evaluation of a detector: boxes, and masks or keypoints where it has them."""

import copy
import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast, runtime_checkable

import numpy as np
import torch
import torchvision.models
from lightning.pytorch.cli import LightningArgumentParser
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import KeypointRCNN, MaskRCNN

from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.instances import TargetType
from densenet_backbones.data.samples import ImageRecord, Sample
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.inference.detector import Detector, DetectorSpec
from densenet_backbones.inference.detector_facts import read_model_input, read_target_types
from densenet_backbones.inference.inputs.image_tensors import to_float
from densenet_backbones.inference.merging.detection_views import DetectionViews, detect, enlarge
from densenet_backbones.messages import pluralize
from densenet_backbones.metrics.coco import PREFIXES, CocoMetric
from densenet_backbones.metrics.coco_truth import (
    COCO_KEYPOINTS,
    IOU_TYPES,
    choose_sigmas,
    complete_truth,
)
from densenet_backbones.reporting import detection_report
from densenet_backbones.reporting.instance_pictures import (
    collect_annotations,
    draw_beside_ground_truth,
    draw_instances,
    select_confident,
)
from densenet_backbones.reporting.pictures import make_sheet, to_pixels
from densenet_backbones.stages import DenseStages
from densenet_backbones.training.arguments import DETECTION_FORM
from densenet_backbones.training.optimization import Optimizer, Schedule
from densenet_backbones.training.tasks.task import MemoryOption, Outputs, Task, refuse_other_names

IMAGES_MATCHED = 2000
"""Matching takes a millisecond an image: all of COCO's would be two minutes of waiting."""


@runtime_checkable
class PriorDetector(Protocol):
    """A detector that can say which objects none of its priors matches."""

    def find_unmatchable(
        self, boxes_per_image: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Return (B,) bool for each image, from boxes (B, 4) and (H, W) of the image."""


class DetectionTask(Task[DetectionData, Sample, CocoMetric]):
    """Trains any detector with torchvision's interface and evaluates it as COCO does.

    Args:
        detector: Name in torchvision's registry: `dsod300`, `retinanet_densenet121_fpn`,
            `maskrcnn_densenet121_fpn`, ….
        args: Keyword arguments of that detector, without `num_classes`.
        optimizer: Options of the optimizer.
        schedule: The learning rate over the run.
        channels_last: Keep maps in memory with their channels side by side: several times faster
            for convolutions on CPUs and for half precision on GPUs.
        seed: Everything random inside the model is a function of (seed, step, process).
        memory: What dense blocks keep for the backward pass: "none" (all), "shared", "bottleneck",
            "shared_lean", "layer" or "block"; "auto" takes the fastest one that fits
            `memory_budget`; null takes what `args` say, or the fastest one. Losses and gradients
            stay the same.
        memory_budget: GiB that "auto" lets the DenseNet, without neck and heads, keep between
            forward and backward pass; null for half of the memory that is free beside the weights.
        evaluator: "pycocotools", or "faster_coco_eval" for equal numbers in less time.
        categories: The classes; given by the data.

    Attributes:
        target_types: Annotations that the detector learns from: boxes, and perhaps masks or
            keypoints. All are evaluated, and the last one says which weights are best.
        views: Test-time augmentation and Soft-NMS of the evaluated images; None for the
            detector as it is.
    """

    form = DETECTION_FORM
    tool = "train_det"
    data_type = DetectionData
    spec_type = DetectorSpec
    use = "Detect in pictures"
    look_at = "boxes"
    headline: tuple[str, ...] = ("AP", "AP50")
    spec: DetectorSpec

    def __init__(
        self,
        detector: str = "dsod300",
        args: dict[str, Any] | None = None,
        optimizer: Optimizer = Optimizer(),  # noqa: B008 - never changed; --help shows them
        schedule: Schedule = Schedule(),  # noqa: B008
        channels_last: bool = True,
        seed: int = 0,
        memory: MemoryOption | None = None,
        memory_budget: float | None = None,
        evaluator: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        categories: Categories | None = None,
    ) -> None:
        assert categories is not None, "linked from the data"
        args = add_num_keypoints(detector, dict(args or {}), categories)
        spec = DetectorSpec(detector, args, categories)
        super().__init__(spec, optimizer, schedule, channels_last, seed, memory, memory_budget)
        self.evaluator = evaluator
        allow_channels_last(self.model)
        self.target_types = read_target_types(self.model)
        if len(self.target_types) > 1:
            self.headline = name_headline(self.target_types)
        self.views: DetectionViews | None = None

    @classmethod
    def from_detector(cls, detector: Detector, **options: Any) -> Self:
        """A task that evaluates a loaded detector (or goes on training it)."""
        task = cls(
            detector.spec.name,
            {**detector.spec.args, **detector.spec.without_downloads()},
            categories=detector.categories,
            **options,
        )
        task.adopt(detector.spec, detector.model, options.get("channels_last", True))
        return task

    @classmethod
    def link_arguments(cls, parser: LightningArgumentParser) -> None:
        """Read annotations as the detector needs them, and build it for the data's classes."""
        super().link_arguments(parser)
        parser.link_arguments("data.categories", "model.categories", apply_on="instantiate")
        parser.link_arguments(
            "model.detector", "data.target_types", compute_fn=list_builder_target_types
        )

    def prepare(self, data: DetectionData) -> None:
        """Choose the images to overfit on: those of which the detector matches every object."""
        if data.overfit_images is None:
            return
        matches = isinstance(self.model, PriorDetector)  # else no matter what its anchors reach
        data.keep_for_overfitting(partial(has_all_matched, self.model) if matches else None)

    def describe_input(self) -> ModelInput:
        """Return the detector's size or scale, its mean color and its target types."""
        largest = max(self.views.scales) if self.views else 1.0
        return dataclasses.replace(read_model_input(self.model), largest_view=largest)

    def setup(self, stage: str) -> None:
        """Leave the resizing in training to the augmentation where that scales images."""
        super().setup(stage)
        if stage != "fit":
            return
        smallest = getattr(self.model, "smallest_batch", 1)
        if smallest > 1 and len(self.datamodule.train_set) < smallest:
            raise DataError(
                f"{self.datamodule.train_set.name}: has one training image, and batch norm of "
                f"{self.spec.name}, whose last map is a single cell, needs two; add images, or "
                "take another detector"
            )
        if self.datamodule.scales_training_images:
            switch_training_resize_off(self.model)

    def tabulate_data(self, data: DetectionData) -> Table:
        """Return a table of the images and objects of each class."""
        return detection_report.tabulate_data(data.train_set, data.val_set)

    def remark_on(self, data: DetectionData) -> Iterator[str]:
        """Yield a line about the training objects that no prior matches, where that is known."""
        if not isinstance(self.model, PriorDetector):
            return
        step = math.ceil(len(data.train_set) / IMAGES_MATCHED)
        records = data.train_set.records[::step]
        missed = sum(int(out.sum()) for out in find_unmatchable(self.model, records))
        total = sum(len(record.boxes) for record in records)
        yield (
            f"{missed} of {pluralize(total, 'training object')}"
            f"{f' (of every {step}th image)' if step > 1 else ''} are matched by no prior above "
            "the threshold (each still trains its best one)."
        )

    @property
    def monitor(self) -> str:
        """AP of the last of the target types."""
        return f"val/{name_headline(self.target_types)[-1]}"

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the detector's own losses, by name."""
        images = [to_float(sample.image) for sample in batch]
        targets = [
            {name: getattr(sample, name) for name in ("boxes", "labels", *self.target_types[1:])}
            for sample in batch
        ]
        return dict(self.model(images, targets))

    def make_example(self, data: DetectionData) -> tuple[list[Tensor], tuple[int, int]]:
        """Return an image of the detector's size, or of that to which it brings the first one."""
        size = self.training_size(data)
        return [torch.rand(3, *size, device=next(self.model.parameters()).device)], size

    def training_size(self, data: DetectionData) -> tuple[int, int]:
        """Return the detector's own size, or that to which it brings the first image."""
        size = read_model_input(self.model).size
        if size is None:
            first = data.train_set.records[0]
            device = next(self.model.parameters()).device
            image = torch.zeros(3, first.height, first.width, device=device)
            # In evaluation mode the transform draws no size.
            transform = copy.deepcopy(cast(nn.Module, self.model.transform)).eval()
            size = transform([image])[0].image_sizes[0]
        height, width = size
        return height, width

    def planned_part(self, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
        """Return the DenseNet: what the heads keep depends on the boxes."""
        part = next((m for m in self.model.modules() if isinstance(m, DenseStages)), self.model)
        # Batches are padded to multiples of this.
        divisor = getattr(getattr(self.model, "transform", None), "size_divisible", 1)
        height, width = (side + -side % divisor for side in size)
        return part, (height, width)

    def check_names(self, data: DetectionData) -> None:
        """Refuse evaluated images whose labels, or keypoints, are not the model's."""
        part, known = data.val_set, self.spec.categories
        refuse_other_names(part.name, "classes", part.categories.names, known.names)
        if "keypoints" in self.target_types and known.keypoints:
            own = part.categories.keypoints
            refuse_other_names(part.name, "keypoints", own, known.keypoints)

    def make_metric(self, data: DetectionData) -> CocoMetric:
        """Return COCO's evaluation of all target types."""
        keypoints = self.spec.args.get("num_keypoints", COCO_KEYPOINTS)
        learned = "keypoints" in self.target_types
        # Labels are the model's; ids belong to the file that is evaluated.
        part = data.val_set
        return CocoMetric(
            complete_truth(part, self.target_types, keypoints),
            part.categories,
            [IOU_TYPES[target_type] for target_type in self.target_types],
            backend=self.evaluator,
            keypoint_sigmas=choose_sigmas(keypoints, part.categories) if learned else None,
        )

    def write_evaluation(
        self,
        data: DetectionData,
        folder: Path,
        voc_iou: float = 0.5,
        count_difficult: bool = False,
    ) -> None:
        """Print and write the evaluation; see `detection_report.write_evaluation`."""
        assert self.metric is not None
        detection_report.write_evaluation(
            self.metric, data.val_set, folder, voc_iou, count_difficult
        )

    def describe_evaluated(self) -> DetectorSpec:
        """Return the description with the score from which detections were best."""
        assert self.metric is not None and self.metric.evaluation is not None
        best = self.metric.evaluation.find_best_score()
        return dataclasses.replace(self.spec, best_score=best[0] if best else None)

    def validation_step(self, batch: list[Sample], batch_idx: int) -> dict[str, Any]:
        """Return the detections of a batch, added to the evaluation; masks as run-length codes."""
        assert self.metric is not None
        images = [to_float(sample.image) for sample in batch]
        detections = detect(self.model, images, self.views) if images else []
        predictions = [
            {**convert_to_float32(rows), "image_id": sample.image_id}
            for sample, rows in zip(batch, detections, strict=True)
        ]
        # Annotations are in the frame of the full image; pictures are drawn of the one at hand.
        results = list(map(self._enlarge, batch, predictions))
        if self.counts_images:
            self.metric.update(results)
        return {"predictions": predictions, "results": results}

    def _enlarge(self, sample: Sample, prediction: dict[str, Any]) -> dict[str, Any]:
        """Return the detections of an image, perhaps read smaller, in the frame of its record."""
        if sample.factor == 1:
            return prediction
        record = self.datamodule.val_set.records[sample.index]
        return enlarge(prediction, sample.factor, (record.height, record.width))

    def draw_batch(self, batch: Sequence[Sample]) -> np.ndarray:
        """Return the images with their objects, as augmented."""
        names, skeleton = self.spec.categories.names, self.spec.categories.skeleton
        return make_sheet(
            [
                draw_instances(to_pixels(s.image), collect_annotations(s), names, skeleton)
                for s in batch
            ]
        )

    def draw_predictions(self, batch: Sequence[Sample], outputs: Outputs) -> np.ndarray:
        """Return annotated objects on the left, detected ones on the right."""
        return draw_beside_ground_truth(
            [to_pixels(s.image) for s in batch],
            [collect_annotations(s) for s in batch],
            [select_confident(p) for p in outputs["predictions"][: len(batch)]],
            self.spec.categories.names,
            skeleton=self.spec.categories.skeleton,
        )


def convert_to_float32(detections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the detections of one image with numbers of half precision as float32."""
    return {
        name: values.float()
        if isinstance(values, Tensor) and values.is_floating_point()
        else values
        for name, values in detections.items()
    }


def find_unmatchable(model: PriorDetector, records: Sequence[ImageRecord]) -> list[Tensor]:
    """Return for each image (B,) bool: its objects that no prior matches."""
    boxes = [torch.from_numpy(record.boxes) for record in records]
    return model.find_unmatchable(boxes, [(record.height, record.width) for record in records])


def has_all_matched(model: nn.Module, record: ImageRecord) -> bool:
    """Return True if a prior matches every object of an image, or nothing is known of that."""
    if not isinstance(model, PriorDetector):
        return True
    return not bool(find_unmatchable(model, [record])[0].any())


# -- what a detector does with images --------------------------------------------------------------


def switch_training_resize_off(model: nn.Module) -> None:
    """Let a detector take training images at the size they have; evaluation goes on resizing."""
    transform = model.transform
    if isinstance(transform, DetectionTransform):
        transform.resize_in_training = False
    else:  # torchvision's own can only be told when it is built, or so
        transform._skip_resize = True  # type: ignore[union-attr]


# -- what a detector learns from -------------------------------------------------------------------


def read_builder_target_types(detector: str) -> tuple[TargetType, ...]:
    """Return the same of the class that a builder of torchvision's registry says it makes.

    Nothing is built: the class is the builder's return annotation. Unknown names and builders
    without an annotation count as detectors of boxes; the task is the one to refuse them.
    """
    try:
        builder = torchvision.models.get_model_builder(detector)
        made = inspect.signature(builder, eval_str=True).return_annotation
    except (ValueError, NameError):
        return ("boxes",)
    if hasattr(made, "target_types"):
        return tuple(made.target_types)
    for kind, target_type in ((MaskRCNN, "masks"), (KeypointRCNN, "keypoints")):
        if isinstance(made, type) and issubclass(made, kind):
            return ("boxes", cast(TargetType, target_type))
    return ("boxes",)


def list_builder_target_types(detector: str) -> list[TargetType]:
    """Return `read_builder_target_types` as the list that the data's option is."""
    return list(read_builder_target_types(detector))


def add_num_keypoints(
    detector: str, args: dict[str, Any], categories: Categories
) -> dict[str, Any]:
    """Return the arguments of a keypoint detector with the number of keypoints of the data.

    Raises:
        ValueError: Another number is asked for.
    """
    count = len(categories.keypoints)
    if "keypoints" not in read_builder_target_types(detector) or not count:
        return args
    if args.get("num_keypoints", count) != count:
        raise ValueError(
            f"model.args: num_keypoints is {args['num_keypoints']}, but an object of the data has "
            f"{pluralize(count, 'keypoint')} ({', '.join(categories.keypoints)}); leave it out"
        )
    return {**args, "num_keypoints": count}


def name_headline(target_types: Sequence[TargetType]) -> tuple[str, ...]:
    """Return the names of the numbers that are shown: the last one says which weights are best."""
    return tuple(f"{PREFIXES[IOU_TYPES[target_type]]}AP" for target_type in target_types)


def allow_channels_last(model: nn.Module) -> None:
    """Let a keypoint detector keep its maps with their channels side by side.

    torchvision's `keypointrcnn_loss` takes views of the predicted heat maps, which must be
    contiguous for that.
    """
    predictor = getattr(getattr(model, "roi_heads", None), "keypoint_predictor", None)
    if predictor is not None:
        predictor.register_forward_hook(_make_contiguous)


def _make_contiguous(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output.contiguous()
