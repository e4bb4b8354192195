"""Run a command: ``python -m densenet_backbones train``, as ``densenet train`` does."""

import sys

from densenet_backbones.command.main import main

if __name__ == "__main__":
    sys.exit(main())
