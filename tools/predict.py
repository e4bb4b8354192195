"""Detect objects in pictures, or segment them, with a trained model."""

from densenet_backbones.inference.predict import main

if __name__ == "__main__":
    main()
