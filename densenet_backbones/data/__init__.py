"""Detection and segmentation data: readers, sample types, augmentation, loaders, a generator."""
