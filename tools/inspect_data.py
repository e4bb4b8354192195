"""Look at a data set: counts, faults, duplicates and pictures; convert it, or clean a copy."""

from densenet_backbones.inspection.command import main

if __name__ == "__main__":
    main()
