"""Run a script with our networks registered: ``python -m densenet_backbones.run``."""

from densenet_backbones.run import main

if __name__ == "__main__":
    main()
