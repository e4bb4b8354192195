"""Evaluation metrics: COCO, VOC, segmentation, confusion matrices and boundary scores."""
