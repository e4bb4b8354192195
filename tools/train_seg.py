"""Train a segmentation model; without arguments, on a small drawn data set."""

from densenet_backbones.training.cli import train_seg

if __name__ == "__main__":
    train_seg()
