"""Measure the backbone and the training input, each against its peers in one run."""

from densenet_backbones.analysis.benchmark import main

if __name__ == "__main__":
    main()
