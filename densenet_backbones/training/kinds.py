"""The kinds of training there are: detection and segmentation."""

from rich.table import Table

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.training import report, summary
from densenet_backbones.training.arguments import DETECTION_FORM
from densenet_backbones.training.detection_task import DetectionTask
from densenet_backbones.training.detector import DetectorSpec
from densenet_backbones.training.kind import Kind


def _keep_matched(task: DetectionTask, data: DetectionData) -> None:
    if data.overfit_images is not None:
        data.keep_for_overfitting(summary.all_objects_matched(task.model))


def _detection_table(data: DetectionData) -> Table:
    return summary.data_table(data.train_set, data.val_set)


DETECTION = Kind(
    form=DETECTION_FORM,
    task=DetectionTask,
    data=DetectionData,
    spec=DetectorSpec,
    told_by_data=("categories",),
    prepare=_keep_matched,
    data_table=_detection_table,
    remarks=lambda task, data: summary.unmatched_objects(task.model, data.train_set),
    write_evaluation=lambda *found: report.write_evaluation(*found),
    doing="Detect in pictures",
    tool="train_det",
    own_data=("dsod300_voc", "dsod300_coco for COCO layout"),
)
