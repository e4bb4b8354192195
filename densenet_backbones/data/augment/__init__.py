"""Augmentations of detection, instance and segmentation samples, seeded by (seed, epoch, index)."""
