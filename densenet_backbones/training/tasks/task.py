"""Base of the trainings of all kinds of models: a Lightning module.

`Task` runs the steps, the schedule and the evaluation; `DetectionTask`, `SegmentationTask` and
`ClassificationTask` say what is special about their models, data, metrics, reports and command
lines.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import Metric

from densenet_backbones.analysis.plan import plan_inputs
from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote
from densenet_backbones.data.loading import AnyData
from densenet_backbones.dense_block import Memory, has_shared_buffer, use_compiled_convolutions
from densenet_backbones.inference.model_file import ModelSpec
from densenet_backbones.layers import set_memory
from densenet_backbones.training.arguments import ShortForm
from densenet_backbones.training.condensation import add_group_lasso
from densenet_backbones.training.optimization import (
    PLACES,
    Optimizer,
    Schedule,
    count_images_per_step,
)

MemoryOption = Memory | Literal["auto"]


class IndexedSample(Protocol):
    """A training image that knows its place in the data set: `Sample` or `MaskSample`."""

    index: int


DataT = TypeVar("DataT", bound=AnyData)
SampleT = TypeVar("SampleT", bound=IndexedSample)
MetricT = TypeVar("MetricT", bound=Metric)
Outputs = Mapping[str, Any]
"""Results of a validation step: "predictions" has one entry an image."""


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the message names the step, the losses and the images."""


@dataclass(frozen=True)
class ModelCost:
    """Size of a model.

    Attributes:
        parameters: Learnable values.
        trained: Those of them that are trained.
        macs: Multiply-adds of one image.
        size: (H, W) of that image, in pixels.
    """

    parameters: int
    trained: int
    macs: int
    size: tuple[int, int]


class Task(pl.LightningModule, Generic[DataT, SampleT, MetricT]):
    """Trains and evaluates one kind of model.

    Args:
        spec: Description of the model that is trained; its pre-processing is added to it.
        optimizer: Options of the optimizer.
        schedule: The learning rate over the run.
        channels_last: Keep maps in memory with their channels side by side.
        seed: Everything random inside the model is a function of (seed, step, process).
        memory: What dense blocks keep for the backward pass; "auto" for the fastest mode that fits
            `memory_budget`; None for the fastest, if the model has no other.
        memory_budget: GiB that may be kept; None for half of what is free.

    Attributes:
        form: Short command line of this kind of training.
        tool: Command that trains it.
        data_type: Lightning data module of this kind of training.
        spec_type: Description of its models in files.
        use: What a trained model does, for the last lines of a run.
        look_at: Annotations to look at when the loss is not finite.
        headline: Names of the numbers that are shown after each evaluation.
        chosen: The mode that was chosen, once it is; see `memory_choice.settle_memory`.
        metric: The evaluation, from the first one on.
    """

    form: ClassVar[ShortForm]
    tool: ClassVar[str]
    data_type: ClassVar[type[AnyData]]
    spec_type: ClassVar[type[ModelSpec]]
    use: ClassVar[str]
    look_at: ClassVar[str]
    headline: tuple[str, ...]

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
        self.kept_bytes: int | None = None
        self.place: Callable[[int], int] | None = None
        self._cost: ModelCost | None = None
        self.model, self.spec = spec.build(), spec
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.spec = spec.with_preprocessing_of(self.model)
        self.optimizer_options, self.schedule, self.seed = optimizer, schedule, seed
        self.metric: MetricT | None = None

    def adopt(self, spec: ModelSpec, model: nn.Module, channels_last: bool) -> None:
        """Take a loaded model in the place of the one that was built."""
        self.spec, self.model = spec, model
        if channels_last:  # as in training: the same sums in the same order
            self.model.to(memory_format=torch.channels_last)

    # -- the command line and the data -------------------------------------------------------------

    @classmethod
    def link_arguments(cls, parser: LightningArgumentParser) -> None:
        """Give model and data the options that follow from each other's."""
        parser.link_arguments("data.seed", "model.seed")

    @classmethod
    def name_model(cls) -> tuple[str, str]:
        """Return the option that names the model, and the name it has by default."""
        names = inspect.signature(cls).parameters
        return next(
            (n, names[n].default) for n in ("detector", "segmenter", "classifier") if n in names
        )

    def describe_input(self) -> ModelInput:
        """Return what the data must know of the model before it makes training images."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Tell the data what the model takes."""
        self.datamodule.model_input = self.describe_input()

    def prepare(self, data: DataT) -> None:
        """Settle what task and data must agree on, before anything is written."""

    def tabulate_data(self, data: DataT) -> Table:
        """Return a table of the classes and their numbers in both parts of the data."""
        raise NotImplementedError

    def remark_on(self, data: DataT) -> Iterable[str]:
        """Return further lines that are worth reading before a long training."""
        return ()

    # -- the model and its evaluation --------------------------------------------------------------

    @property
    def monitor(self) -> str:
        """Name of the logged number that says which weights are best: the highest."""
        return f"val/{self.headline[0]}"

    def losses(self, batch: Sequence[SampleT]) -> dict[str, Tensor]:
        """Return the model's losses of a batch, by name."""
        raise NotImplementedError

    def check_names(self, data: DataT) -> None:
        """Refuse evaluated images whose labels have other names than the model's."""
        raise NotImplementedError

    def make_metric(self, data: DataT) -> MetricT:
        """Return the evaluation against the annotations of the evaluated images."""
        raise NotImplementedError

    def write_evaluation(self, data: DataT, folder: Path) -> None:
        """Print the evaluation that has just ended and write it to a folder."""
        raise NotImplementedError

    def describe_evaluated(self) -> ModelSpec:
        """Return the model's description with what the last evaluation says of its use."""
        return self.spec

    def training_size(self, data: DataT) -> tuple[int, int]:
        """Return (H, W) of the images that the model is trained on, as far as it can be told."""
        raise NotImplementedError

    def planned_part(self, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
        """Return the part whose memory is planned, and the (H, W) it sees of images of that size.

        It maps a tensor (N, 3, H, W) without looking at its values.
        """
        raise NotImplementedError

    def make_example(self, data: DataT) -> tuple[Tensor | list[Tensor], tuple[int, int]]:
        """Return an input of the model and its (H, W), to count operations with."""
        raise NotImplementedError

    def measure_cost(self, data: DataT) -> ModelCost:
        """Return the size of the model at the image size that is trained on; counted once.

        It sets both time and memory.
        """
        if self._cost is None:
            images, size = self.make_example(data)
            parameters = list(self.model.parameters())
            self._cost = ModelCost(
                sum(p.numel() for p in parameters),
                sum(p.numel() for p in parameters if p.requires_grad),
                plan_inputs(self.model, images).macs,
                size,
            )
        return self._cost

    def draw_batch(self, batch: Sequence[SampleT]) -> np.ndarray:
        """Return a sheet of training images as the model is given them, (H, W, 3) uint8 RGB."""
        raise NotImplementedError

    def draw_predictions(self, batch: Sequence[SampleT], outputs: Outputs) -> np.ndarray:
        """Return a sheet of predictions of `validation_step` beside the annotations, likewise."""
        raise NotImplementedError

    @property
    def datamodule(self) -> DataT:
        """The data that the trainer was given."""
        data: DataT = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    # -- training ------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Give all processes the memory mode and the images a step that the first one chose.

        Each counted its own free memory; but when synchronized norms talk to each other, and what
        they exchange, depends on the mode.
        """
        self.datamodule.batch = self.trainer.strategy.broadcast(self.datamodule.batch)
        if self.chosen is not None:
            set_memory(self.model, self.trainer.strategy.broadcast(self.chosen))

    def training_step(self, batch: Sequence[SampleT], batch_idx: int) -> Tensor:
        """Return the sum of the model's losses, each logged by name."""
        # Randomness as a function of the step makes a resumed run equal an uninterrupted one.
        rank_seed = np.random.SeedSequence(
            (self.seed, self.global_step, batch_idx, self.global_rank)
        )
        torch.manual_seed(int(rank_seed.generate_state(1)[0]))
        try:
            # Without dense blocks, and in the modes with one buffer, the kernels run what they know
            # of the rest as well. The other modes are plain operators.
            with use_compiled_convolutions(self.chosen is None or has_shared_buffer(self.chosen)):
                losses = self.losses(batch)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise DataError(
                    "a batch norm of the model sees one value of each channel, which has no "
                    "spread; give a --batch-size of 2 or more, or larger images"
                ) from error
            raise
        add_group_lasso(losses, self.model, self.trainer)
        loss = torch.stack(list(losses.values())).sum()
        self._stop_if_not_finite(loss, losses, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log_dict({f"train/{k}": v for k, v in losses.items()}, batch_size=len(batch))
        groups = self.optimizers().param_groups  # type: ignore[union-attr]
        self.log("lr", max(group["lr"] for group in groups), prog_bar=True)
        return loss

    def _stop_if_not_finite(
        self, loss: Tensor, losses: dict[str, Tensor], batch: Sequence[SampleT]
    ) -> None:
        bad = (~loss.detach().isfinite()).float()
        if self.trainer.world_size > 1:  # every process must stop, or the others would wait
            torch.distributed.all_reduce(bad)
        if not bad.item():
            return
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        records = self.datamodule.train_set.records
        names = ", ".join(str(records[sample.index].path) for sample in batch)
        raise NonFiniteLossError(
            f"the loss is not finite at step {self.global_step} ({values}); images of this batch: "
            f"{names}. Lower model.optimizer.lr, lengthen model.schedule.warmup, set "
            f"trainer.gradient_clip_val, or look at these images' {self.look_at}; last.ckpt, where "
            "there is one, is of an earlier step"
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer at the rate of the real batch, and the schedule of every step."""
        batch = count_images_per_step(self.datamodule, self.trainer)
        optimizer = self.optimizer_options.build(self.model, batch)
        epochs = self.trainer.max_epochs if self.schedule.name == "exponential" else None
        steps = PLACES if self.place else int(self.trainer.estimated_stepping_batches)
        # A run of a number of steps, or of a budget, has its plan whatever an epoch is.
        epoch_steps = None
        if self.trainer.max_steps < 0 and self.place is None:
            batches = self.trainer.num_training_batches
            epoch_steps = math.ceil(batches / self.trainer.accumulate_grad_batches)
        scheduler = self.schedule.build(optimizer, steps, epochs, epoch_steps, self.place)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # -- evaluation ----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation against the data's own annotations."""
        if self.metric is None:  # made late: copies of this module (EMA) need none
            self.check_names(self.datamodule)
            self.metric = self.make_metric(self.datamodule).to(self.device)
        self.metric.reset()

    @property
    def counts_images(self) -> bool:
        """False in a process that evaluates images of others alone; see the data's loader."""
        trainer = self.trainer
        return trainer.world_size == 1 or trainer.global_rank < len(self.datamodule.val_set)

    def on_validation_epoch_end(self) -> None:
        """Log all numbers of the evaluation."""
        assert self.metric is not None
        for name, value in self.metric.compute().items():
            # Every process computed the same from the gathered results. Lightning warns of what it
            # does not gather; the largest of equal numbers is their bits, as a mean may not be.
            self.log(
                f"val/{name}",
                float(value),
                prog_bar=name in self.headline,
                sync_dist=True,
                reduce_fx="max",
            )

    # -- checkpoints ---------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe the model it holds, and how it was computed."""
        checkpoint[self.spec.key] = self.spec.to_dict()
        checkpoint["precision"] = str(self.trainer.precision)


def refuse_other_names(part: str, what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise a `DataError` if the names of a set, in label order, are not those of the model."""
    if tuple(names) != tuple(known):
        raise DataError(
            f"{part}: its {what} are {quote(names, 20)}, the model's are {quote(known, 20)}, in "
            "this order; read the images with the model's names (`use_classes` of the data)"
        )


AnyTask = Task[Any, Any, Any]
"""Task of any kind of data, sample and metric."""
