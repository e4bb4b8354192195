"""Evaluate a trained detector on COCO or VOC data."""

from densenet_backbones.training.evaluate import main

if __name__ == "__main__":
    main()
