"""Train an image classifier; without arguments, on the objects of a small drawn data set."""

from densenet_backbones.training.cli import train_cls

if __name__ == "__main__":
    train_cls()
