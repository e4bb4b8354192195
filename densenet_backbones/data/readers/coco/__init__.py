"""Readers of COCO: boxes and keypoints, masks of instances, panoptic pictures."""
