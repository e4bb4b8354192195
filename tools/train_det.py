"""Train a detector; without arguments, on a small drawn data set."""

from densenet_backbones.training.cli import train_det

if __name__ == "__main__":
    train_det()
