"""Evaluation metrics: COCO, Pascal VOC, segmentation, confusion matrices and boundary scores."""
