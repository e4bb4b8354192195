"""Readers of annotation formats: COCO, VOC, SBD and mask folders, one file a format."""
