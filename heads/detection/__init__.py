"""Detectors: DSOD, SSD and torchvision's own classes on DenseNet backbones."""
