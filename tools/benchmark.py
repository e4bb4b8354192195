"""Measure the backbone and the training input, each against its peers in one run."""

from densenet_backbones.benchmark.command import main

if __name__ == "__main__":
    main()
