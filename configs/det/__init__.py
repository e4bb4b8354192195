"""Detection experiments; run one with `tools/train_det.py --config NAME`."""
