"""Report on a model: levels, fields, costs, memory, priors. The same as densenet-report."""

from densenet_backbones.anatomy.report import main

if __name__ == "__main__":
    main()
