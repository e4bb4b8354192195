"""Trained models at work: model files, detectors, segmenters, tiling and prediction."""
