"""The kinds of training there are: detection and segmentation."""

from rich.table import Table

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.instances import TargetType
from densenet_backbones.data.segmentation import SegmentationData
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.segmenter import SegmenterSpec
from densenet_backbones.metrics.learned import learned_by_name
from densenet_backbones.training import report, segmentation_report, summary
from densenet_backbones.training.arguments import DETECTION_FORM, SEGMENTATION_FORM
from densenet_backbones.training.detection_task import DetectionTask
from densenet_backbones.training.kind import Kind
from densenet_backbones.training.segmentation_task import SegmentationTask


def _keep_matched(task: DetectionTask, data: DetectionData) -> None:
    if data.overfit_images is None:
        return
    if hasattr(task.model, "unmatchable"):
        data.keep_for_overfitting(summary.all_objects_matched(task.model))
    else:  # no matter what its anchors reach
        data.keep_first(lambda record: len(record.boxes) > 0, "have objects")


def learned_by_detector(detector: str) -> list[TargetType]:
    """What the data must have for a detector, by its name."""
    return list(learned_by_name(detector))


def _detection_table(data: DetectionData) -> Table:
    return summary.data_table(data.train_set, data.val_set)


def _detection_configs(task: DetectionTask) -> tuple[str, str]:
    if task.target_types == ("boxes",):
        return "dsod300_voc", "dsod300_coco for COCO layout"
    kind = "maskrcnn" if "masks" in task.target_types else "keypointrcnn"
    return f"{kind}_densenet121_fpn_coco", f"COCO layout with {task.target_types[-1]}"


DETECTION = Kind(
    form=DETECTION_FORM,
    task=DetectionTask,
    data=DetectionData,
    spec=DetectorSpec,
    told_by_data=("categories",),
    told_by_model={"target_types": ("detector", learned_by_detector)},
    prepare=_keep_matched,
    data_table=_detection_table,
    remarks=lambda task, data: summary.unmatched_objects(task.model, data.train_set),
    write_evaluation=lambda task, part, folder: report.write_evaluation(task.metric, part, folder),
    doing="Detect in pictures",
    tool="train_det",
    own_data=_detection_configs,
)


def _weigh_classes(task: SegmentationTask, data: SegmentationData) -> None:
    task.weigh_classes(data.train_set)


SEGMENTATION = Kind(
    form=SEGMENTATION_FORM,
    task=SegmentationTask,
    data=SegmentationData,
    spec=SegmenterSpec,
    told_by_data=("mask_classes", "task"),
    told_by_model={},
    prepare=_weigh_classes,
    data_table=segmentation_report.data_table,
    remarks=lambda task, data: (),
    write_evaluation=segmentation_report.write_evaluation,
    doing="Segment pictures",
    tool="train_seg",
    own_data=lambda task: ("unet_densenet121_voc", "unet_densenet121_coco for COCO layout"),
)
