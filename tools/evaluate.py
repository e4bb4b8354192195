"""Evaluate a trained detector or segmenter on annotated data."""

from densenet_backbones.training.evaluate import main

if __name__ == "__main__":
    main()
