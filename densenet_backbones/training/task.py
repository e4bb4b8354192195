"""What every kind of training has in common, as a Lightning module."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torchmetrics import Metric

from densenet_backbones.dense_block import Memory
from densenet_backbones.inference.model_file import ModelSpec
from densenet_backbones.layers import set_memory
from densenet_backbones.training.optimization import Optimizer, Schedule, images_per_step

MemoryOption = Memory | Literal["auto"]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the message names the step, the losses and the images."""


class Task(pl.LightningModule):
    """Trains and evaluates one kind of model; what it is given and what is counted is the kind's.

    Args:
        spec: What is trained; the model's own pre-processing is added to it.
        optimizer: What steps the weights.
        schedule: The learning rate over the run.
        channels_last: Keep maps in memory with their channels side by side.
        seed: Everything random inside the model is a function of (seed, step, process).
        memory: What dense blocks keep for the backward pass; "auto" for the fastest mode that fits
            `memory_budget`; None leaves the model as it was built.
        memory_budget: GiB that may be kept; None for half of what is free.

    Attributes:
        chosen: The mode that "auto" found, once it has; see `memory_choice.settle_memory`.
        headline: Names of the numbers that are shown.
        look_at: What of an image to look at when the loss is not finite.
        metric: The evaluation, from the first one on.
    """

    headline: tuple[str, ...]
    look_at: ClassVar[str]

    def __init__(
        self,
        spec: ModelSpec,
        optimizer: Optimizer,
        schedule: Schedule,
        channels_last: bool,
        seed: int,
        memory: MemoryOption | None = None,
        memory_budget: float | None = None,
    ) -> None:
        super().__init__()
        if memory_budget is not None and (memory != "auto" or not memory_budget > 0):
            raise ValueError(
                "model.memory_budget is a number of GiB above 0, for model.memory auto; got "
                f"{memory_budget} for {memory}"
            )
        self.memory, self.memory_budget = memory, memory_budget
        self.chosen: Memory | None = None
        model: Any = spec.build()
        self.model, self.spec = model, spec
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if hasattr(self.model, "preprocessing"):
            self.spec = spec.with_preprocessing(model.preprocessing.to_dict())
        self.optimizer_options, self.schedule, self.seed = optimizer, schedule, seed
        self.metric: Any = None

    def adopt(self, spec: ModelSpec, model: Any, channels_last: bool) -> None:
        """Take a loaded model in the place of the one that was built."""
        self.spec, self.model = spec, model
        if channels_last:  # as in training: the same sums in the same order
            self.model.to(memory_format=torch.channels_last)

    # -- what a kind says ----------------------------------------------------------------------

    @property
    def monitor(self) -> str:
        """Name of the logged number that says which weights are best: the highest."""
        return f"val/{self.headline[0]}"

    def losses(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """The model's losses of a batch, by name."""
        raise NotImplementedError

    def make_metric(self, val_set: Any) -> Metric:
        """The evaluation against a data set's own annotations."""
        raise NotImplementedError

    def training_size(self, data: Any) -> tuple[int, int]:
        """(H, W) of the images that the model is trained on, as far as it can be told."""
        raise NotImplementedError

    def planned_part(self, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
        """The part whose memory is planned, and the (H, W) it sees of images of that size.

        It maps a tensor (N, 3, H, W) without looking at its values.
        """
        raise NotImplementedError

    def example(self, data: Any) -> tuple[Any, tuple[int, int]]:
        """An input of the model and its (H, W), to count operations with."""
        raise NotImplementedError

    def draw_batch(self, batch: Sequence[Any]) -> np.ndarray:
        """A sheet of training images as the model is given them, (H, W, 3) uint8 RGB."""
        raise NotImplementedError

    def draw_predictions(self, batch: Sequence[Any], outputs: dict[str, Any]) -> np.ndarray:
        """A sheet of predictions of `validation_step` beside the annotations, likewise."""
        raise NotImplementedError

    # -- training ------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Give all processes the memory mode that the first one chose.

        Each counted its own free memory; but what norms that are synchronised tell each other, and
        when, depends on the mode.
        """
        if self.chosen is not None:
            set_memory(self.model, self.trainer.strategy.broadcast(self.chosen))

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Sum of the model's losses, each logged by name."""
        # Randomness as a function of the step makes a resumed run equal an uninterrupted one.
        rank_seed = np.random.SeedSequence(
            (self.seed, self.global_step, batch_idx, self.global_rank)
        )
        torch.manual_seed(int(rank_seed.generate_state(1)[0]))
        losses = self.losses(batch)
        loss = torch.stack(list(losses.values())).sum()
        self._stop_if_not_finite(loss, losses, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log_dict({f"train/{k}": v for k, v in losses.items()}, batch_size=len(batch))
        groups = self.optimizers().param_groups  # type: ignore[union-attr]
        self.log("lr", max(group["lr"] for group in groups), prog_bar=True)
        return loss

    def _stop_if_not_finite(
        self, loss: Tensor, losses: dict[str, Tensor], batch: Sequence[Any]
    ) -> None:
        bad = (~loss.detach().isfinite()).float()
        if self.trainer.world_size > 1:  # every process must stop, or the others would wait
            torch.distributed.all_reduce(bad)
        if not bad.item():
            return
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        records = self.trainer.datamodule.train_set.records  # type: ignore[attr-defined]
        names = ", ".join(str(records[sample.index].path) for sample in batch)
        raise NonFiniteLossError(
            f"the loss is not finite at step {self.global_step} ({values}); images of this batch: "
            f"{names}. Lower model.optimizer.lr, lengthen model.schedule.warmup, set "
            f"trainer.gradient_clip_val, or look at these images' {self.look_at}; last.ckpt, where "
            "there is one, is of an earlier step"
        )

    def configure_optimizers(self) -> Any:
        """Optimiser with the rate scaled to the real batch, and the schedule stepped per step."""
        batch = images_per_step(self.trainer.datamodule, self.trainer)  # type: ignore[attr-defined]
        optimizer = self.optimizer_options.build(self.model, batch)
        epochs = self.trainer.max_epochs if self.schedule.name == "exponential" else None
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.schedule.build(optimizer, steps, epochs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # -- evaluation ----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation against the data's own annotations."""
        if self.metric is None:  # made late: copies of this module (EMA) need none
            val_set = self.trainer.datamodule.val_set  # type: ignore[attr-defined]
            self.metric = self.make_metric(val_set).to(self.device)
        self.metric.reset()

    def on_validation_epoch_end(self) -> None:
        """All numbers of the evaluation."""
        for name, value in self.metric.compute().items():
            # every process computed the same from the gathered results
            shown = name in self.headline
            self.log(f"val/{name}", float(value), prog_bar=shown, rank_zero_only=False)

    # -- checkpoints ---------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe the model it holds."""
        checkpoint[self.spec.key] = self.spec.to_dict()
