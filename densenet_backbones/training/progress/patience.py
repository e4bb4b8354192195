"""Early end of a training whose evaluations no longer become better."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping

from densenet_backbones.messages import check_whole, pluralize
from densenet_backbones.reporting.console import say


class Patience(EarlyStopping):
    """Ends a run after a number of evaluations that brought no better number than before.

    What it counted is in every checkpoint, so that a resumed run ends where an uninterrupted one
    does. The number of evaluations is always that of this start.

    Args:
        evaluations: How many are waited for, 1 or more.
        monitor: Logged number of which the highest is best.

    Raises:
        ValueError: `evaluations` is out of range.
    """

    def __init__(self, evaluations: int, monitor: str) -> None:
        check_whole("patience", evaluations)
        super().__init__(
            monitor,
            patience=evaluations,
            mode="max",
            check_finite=False,  # a number may be undefined, as of images without objects
            check_on_train_epoch_end=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was counted; that an earlier start ended so is not this one's end."""
        super().load_state_dict({**state_dict, "patience": self.patience, "stopped_epoch": 0})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why the run has ended."""
        if self.stopped_epoch:
            name = str(self.monitor).partition("/")[2]
            say(
                f"Ended early, after epoch {self.stopped_epoch + 1}: "
                f"{pluralize(self.wait_count, 'evaluation')} brought no better {name} than "
                f"{float(self.best_score):.3f} (patience)."
            )
