"""Arithmetic that the hardware does fast: what ``precision: auto`` takes, and a word on others."""

from collections.abc import Iterator
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT

Precision = _PRECISION_INPUT | Literal["auto"]
"""Precisions of Lightning's trainer, and "auto"."""


def choose_precision(precision: Precision | None, accelerator: object = "auto") -> Any:
    """Return "bf16-mixed" for "auto" where bfloat16 is fast, else "32-true"; others as they are.

    Each process asks its own machine: name the precision where machines differ.

    Args:
        precision: Option of a trainer.
        accelerator: Likewise.
    """
    if precision != "auto":
        return precision
    on_gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    if on_gpu:
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = accelerator in ("auto", "cpu") and has_fast_half()
    return "bf16-mixed" if is_fast else "32-true"


def has_fast_half() -> bool:
    """Return True if this machine's processor multiplies in bfloat16.

    Others convert every number by several instructions. oneDNN, which computes convolutions, asks
    for the same: https://uxlfoundation.github.io/oneDNN/dev_guide_data_types.html
    """
    cpu = cast(Any, torch.cpu)
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def name_precision(trainer: pl.Trainer) -> str:
    """Return a trainer's precision, with a word if it was chosen by "auto"."""
    is_chosen = isinstance(trainer, PrecisionTrainer) and trainer.has_chosen
    return f"{trainer.precision} (auto)" if is_chosen else str(trainer.precision)


def remark_on_precision(trainer: pl.Trainer) -> Iterator[str]:
    """Yield a line where a trainer's precision is one that its processor is slow at."""
    halves = ("bf16-mixed", "16-mixed", "bf16-true", "16-true")
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.precision in halves and not has_fast_half():
        yield (
            f"This processor has no instructions for {trainer.precision}: training takes several "
            "times as long as with 32-true, which --trainer.precision auto takes here."
        )


class PrecisionTrainer(pl.Trainer):
    """Lightning's trainer, whose precision may be "auto"; see `choose_precision`.

    Attributes:
        has_chosen: The precision was "auto".
    """

    def __init__(self, *, precision: Precision | None = None, **options: Any) -> None:
        chosen = choose_precision(precision, options.get("accelerator", "auto"))
        self.has_chosen = precision == "auto"
        super().__init__(precision=chosen, **options)
