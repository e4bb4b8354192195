"""Experiments of classifiers; run one with `tools/train_cls.py --config NAME`."""
