"""Segmentation experiments; run one with `tools/train_seg.py --config NAME`."""
