"""Compare trainings: their options, results and costs. The same as the command densenet-compare."""

from densenet_backbones.comparison.command import main

if __name__ == "__main__":
    main()
