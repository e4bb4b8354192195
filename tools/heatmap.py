"""Draw which layer of a net uses which. The same as the command densenet-heatmap."""

from densenet_backbones.anatomy.heatmap import main

if __name__ == "__main__":
    main()
