"""Write a trained detector or segmenter as an ONNX file."""

from densenet_backbones.export.export import main

if __name__ == "__main__":
    main()
