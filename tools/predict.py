"""Detect objects in pictures with a trained detector."""

from densenet_backbones.training.predict import main

if __name__ == "__main__":
    main()
