"""Segmenters: U-Net, FC-DenseNet and their losses."""
