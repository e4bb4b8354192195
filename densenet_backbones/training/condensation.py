"""Condensation of CondenseNets in a training of any task: when inputs are dropped, and the lasso.

Huang et al. (1711.09224, section 3.1). What is dropped is state of the model (see `condensenet`),
and when is a function of the step, so that a resumed training equals an uninterrupted one.
"""

from collections.abc import Callable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from densenet_backbones.condensenet import (
    choose_stage,
    condense,
    find_learned_groups,
    group_lasso,
)
from densenet_backbones.messages import check_interval, pluralize
from densenet_backbones.reporting.console import say
from densenet_backbones.training.optimization import PLACES

__all__ = ["Condensation", "add_group_lasso"]


class Condensation(Callback):
    """Condenses all learned groups of a model over a part of the training, of steps or epochs.

    Tools add it where the model has some. A training of its own gives it other settings by
    ``trainer.callbacks``::

        trainer:
          callbacks:
            - class_path: densenet_backbones.training.condensation.Condensation
              init_args: {until: 0.4, lasso: 2.0e-5}

    Args:
        until: Part of the training's steps after which the last inputs are dropped, in (0, 1].
        lasso: Weight of the group lasso in the loss, at least 0; 1e-5 is the authors'.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, until: float = 0.5, lasso: float = 1e-5) -> None:
        check_interval("until", until, "(0, 1]")
        check_interval("lasso", lasso, "[0, inf)")
        self.until, self.lasso = until, lasso
        self._factors: list[int] = []
        self._stages: tuple[int, ...] = ()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at all layers once more: weights may have been loaded since."""
        self._factors = sorted({layer.condense_factor for layer in find_learned_groups(pl_module)})
        self._stages = ()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Drop inputs where a stage ends at this step, before the batch is run."""
        place: Callable[[int], int] | None = getattr(pl_module, "place", None)  # of a budget
        step, steps = trainer.global_step, trainer.estimated_stepping_batches
        progress = place(step) / PLACES if place else min(step / steps, 1.0)
        # Layers are looked at when a stage changes only: reading theirs waits for a GPU.
        stages = tuple(choose_stage(progress, factor, self.until) for factor in self._factors)
        if stages != self._stages:
            self._stages = stages
            changed = condense(pl_module, progress, self.until)
            if changed:
                step = trainer.global_step
                say(f"Condensation: {pluralize(changed, 'layer')} dropped inputs at step {step}.")


def add_group_lasso(losses: dict[str, Tensor], model: nn.Module, trainer: pl.Trainer) -> None:
    """Add ``group_lasso`` to a step's losses, where `Condensation` runs and the model has groups.

    Args:
        losses: Losses by name.
        model: The trained model.
        trainer: Its trainer, whose callback has the weight.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = next((callback for callback in callbacks if isinstance(callback, Condensation)), None)
    if found is not None and found.lasso > 0:
        lasso = group_lasso(model)
        if lasso is not None:
            losses["group_lasso"] = found.lasso * lasso
