"""Find which values of a training's options pay. The same as the command densenet-sweep."""

from densenet_backbones.tuning.command import main

if __name__ == "__main__":
    main()
