"""Subcommands of ``tools/benchmark.py``: their options, and what they measure.

To add a measurement, write a `Subcommand` and list it in the file that its kind has. What measures
is imported where it runs: ``--help`` and typos are answered at once.
"""

from densenet_backbones.benchmark.subcommands.form import Subcommand
from densenet_backbones.benchmark.subcommands.inference import INFERENCE
from densenet_backbones.benchmark.subcommands.others import OTHERS, TIMM_NETS
from densenet_backbones.benchmark.subcommands.steps import STEPS

__all__ = ["SUBCOMMANDS", "TIMM_NETS", "Subcommand"]

SUBCOMMANDS: tuple[Subcommand, ...] = (*INFERENCE, *STEPS, *OTHERS)
"""All of them, in the order in that ``all`` measures."""
