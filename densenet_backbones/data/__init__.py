"""Detection data: COCO and VOC readers, one sample type, augmentation, loaders, a generator."""
