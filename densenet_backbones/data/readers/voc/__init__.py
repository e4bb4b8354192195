"""Readers of VOC: boxes, masks, and SBD's further masks of VOC's images."""
