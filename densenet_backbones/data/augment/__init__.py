"""Random augmentation of training images, every choice a function of (seed, epoch, index)."""

import os

# albumentations reads this when it is imported, and asks the package index for updates without it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
