"""Classifiers: any network of timm's or torchvision's registry behind one normalization."""
