"""Training and evaluation of a detector as a Lightning module."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    list_optimizers,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.files import nearest
from densenet_backbones.data.samples import Categories, Sample
from densenet_backbones.training.coco_metric import CocoMetric
from densenet_backbones.training.detector import KEY, Detector, DetectorSpec, to_float


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the message names the step, the losses and the images."""


@dataclass
class Optimizer:
    """What steps the weights.

    Attributes:
        name: Any of timm's optimisers: "adamw", "momentum" (SGD as the papers of SSD and DSOD use
            it), "sgd" (with Nesterov's momentum), ….
        lr: Learning rate at `base_batch` images a step; scaled in proportion to the real number
            (images a process x processes x accumulated steps).
        base_batch: The batch that `lr` was chosen for; 0 turns the scaling off.
        momentum: Of the optimisers that have one.
        weight_decay: Not applied to what the model's `no_weight_decay()` names.
    """

    name: str = "sgd"
    lr: float = 0.1
    base_batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        known: Any = list_optimizers()
        if self.name.lower() not in known:
            raise ValueError(
                f"optimizer.name: there is no {self.name!r}{nearest(self.name.lower(), known)}"
            )
        for name in ("lr", "base_batch", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"optimizer.{name} must be 0 or more, got {value}")

    def scaled_lr(self, images_per_step: int) -> float:
        """The learning rate at the real number of images a step."""
        return self.lr * images_per_step / self.base_batch if self.base_batch else self.lr


def images_per_step(data: DetectionData, trainer: pl.Trainer) -> int:
    """Images behind one optimiser step: a process's batch x processes x accumulation."""
    return int(data.batch_size * trainer.world_size * trainer.accumulate_grad_batches)


class PlannedLR(LambdaLR):
    """Rates by the plan of this start of the run, also where a checkpoint has those of another.

    The plan is a function of the step: resumed with the same options, it gives the same rates.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the checkpoint's step; the top rates stay those of the options."""
        top = self.base_lrs
        super().load_state_dict({**state_dict, "base_lrs": top})
        self._last_lr = [rate * self.lr_lambdas[0](self.last_epoch) for rate in top]
        for group, rate, now in zip(self.optimizer.param_groups, top, self._last_lr, strict=True):
            group["initial_lr"], group["lr"] = rate, now


@dataclass
class Schedule:
    """The learning rate over the run; fractions are of its total number of steps.

    Attributes:
        name: "step" multiplies by `gamma` at each of `milestones`; "cosine" and "poly" (power
            0.9) fall to zero; "constant" stays.
        milestones: Fractions in (0, 1), rising.
        gamma: Factor at a milestone.
        warmup: Fraction over which the rate rises linearly from a thousandth.
    """

    name: Literal["step", "cosine", "poly", "constant"] = "step"
    milestones: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.6, 0.8])
    gamma: float = 0.1
    warmup: float = 0.01

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        if not rising or not all(0 < m < 1 for m in self.milestones):
            raise ValueError(
                f"schedule.milestones must be rising fractions in (0, 1), got {self.milestones}"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"schedule.warmup must lie in [0, 1), got {self.warmup}")

    def build(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        """A scheduler that is stepped once an optimiser step.

        Args:
            optimizer: Its present rate is the top of the schedule.
            steps: Optimiser steps of the whole run.
        """
        return PlannedLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """Share of the top rate at an optimiser step: nothing but its number and theirs counts.

        So a resumed run has the rates of one never stopped, and one that is given more epochs
        those of the longer run.

        Args:
            step: From 0.
            steps: Of the whole run.
        """
        warmup = min(math.ceil(self.warmup * steps), max(steps - 1, 0))
        if step < warmup:
            return 1e-3 + (1 - 1e-3) * step / warmup
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        if self.name == "step":
            passed = sum(step >= max(round(m * steps), warmup + 1) for m in self.milestones)
            return self.gamma**passed
        if self.name == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        return float((1 - done) ** 0.9) if self.name == "poly" else 1.0


class DetectionTask(pl.LightningModule):
    """Trains any detector with torchvision's interface and evaluates it as COCO does.

    Args:
        detector: Name in torchvision's registry: `dsod300`, `dsod300_smallest`, `dsod_tiny`, ….
        args: Keyword arguments of that detector, without `num_classes`.
        optimizer: What steps the weights.
        schedule: The learning rate over the run.
        channels_last: Keep maps in memory with their channels side by side: several times faster
            for convolutions on CPUs and for half precision on GPUs.
        seed: Everything random inside the model is a function of (seed, step, process).
        evaluator: "pycocotools", or "faster_coco_eval" for equal numbers in less time.
        categories: The classes; given by the data.
    """

    def __init__(
        self,
        detector: str = "dsod300",
        args: dict[str, Any] | None = None,
        optimizer: Optimizer = Optimizer(),  # noqa: B008 - never changed; --help shows them
        schedule: Schedule = Schedule(),  # noqa: B008
        channels_last: bool = True,
        seed: int = 0,
        evaluator: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        categories: Categories | None = None,
    ) -> None:
        super().__init__()
        assert categories is not None, "linked from the data"
        self.spec = DetectorSpec(detector, dict(args or {}), categories)
        model: Any = self.spec.build()  # torchvision's interface, which has no type
        self.model = model
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if hasattr(self.model, "preprocessing"):
            described = model.preprocessing.to_dict()
            self.spec = DetectorSpec(detector, dict(args or {}), categories, described)
        self.optimizer_options, self.schedule, self.seed = optimizer, schedule, seed
        self.evaluator = evaluator
        self.metric: CocoMetric | None = None

    @classmethod
    def from_detector(cls, detector: Detector, **options: Any) -> "DetectionTask":
        """A task that evaluates a loaded detector (or goes on training it)."""
        task = cls(
            detector.spec.name,
            {**detector.spec.args, "pretrained_backbone": False}
            if "pretrained_backbone" in detector.spec.args
            else detector.spec.args,
            categories=detector.categories,
            **options,
        )
        task.spec, task.model = detector.spec, detector.model
        if options.get("channels_last", True):  # as in training: the same sums in the same order
            task.model.to(memory_format=torch.channels_last)
        return task

    # -- training ------------------------------------------------------------------------------

    def training_step(self, batch: list[Sample], batch_idx: int) -> Tensor:
        """Sum of the model's losses, each logged by name."""
        # Randomness as a function of the step makes a resumed run equal an uninterrupted one.
        rank_seed = np.random.SeedSequence(
            (self.seed, self.global_step, batch_idx, self.global_rank)
        )
        torch.manual_seed(int(rank_seed.generate_state(1)[0]))
        images = [to_float(sample.image) for sample in batch]
        targets = [{"boxes": sample.boxes, "labels": sample.labels} for sample in batch]
        losses: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self._stop_if_not_finite(loss, losses, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log_dict({f"train/{k}": v for k, v in losses.items()}, batch_size=len(batch))
        self.log("lr", self.optimizers().param_groups[0]["lr"], prog_bar=True)  # type: ignore[union-attr]
        return loss

    def _stop_if_not_finite(
        self, loss: Tensor, losses: dict[str, Tensor], batch: list[Sample]
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
            "trainer.gradient_clip_val, or look at these images' boxes; last.ckpt, where there is "
            "one, is of an earlier step"
        )

    def configure_optimizers(self) -> Any:
        """Optimiser with the rate scaled to the real batch, and the schedule stepped per step."""
        options = self.optimizer_options
        exempt = (
            set(self.model.no_weight_decay()) if hasattr(self.model, "no_weight_decay") else set()
        )
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (plain if name in exempt else decayed).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimizer = create_optimizer_v2(
            [group for group in groups if group["params"]],
            opt=options.name,
            lr=options.scaled_lr(images_per_step(self.trainer.datamodule, self.trainer)),  # type: ignore[attr-defined]
            weight_decay=options.weight_decay,
            momentum=options.momentum,
        )
        scheduler = self.schedule.build(optimizer, int(self.trainer.estimated_stepping_batches))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # -- evaluation ----------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation against the data's own annotations."""
        if self.metric is None:  # made late: copies of this module (EMA) need none
            ground_truth = self.trainer.datamodule.val_set.ground_truth()  # type: ignore[attr-defined]
            self.metric = CocoMetric(ground_truth, self.spec.categories, backend=self.evaluator).to(
                self.device
            )
        self.metric.reset()

    def validation_step(self, batch: list[Sample], batch_idx: int) -> dict[str, Any]:
        """Detections of a batch, added to the evaluation."""
        found = self.model([to_float(sample.image) for sample in batch])
        predictions = [
            {
                **{k: v.float() if v.is_floating_point() else v for k, v in f.items()},
                "image_id": sample.image_id,
            }
            for sample, f in zip(batch, found, strict=True)
        ]
        assert self.metric is not None
        self.metric.update(predictions)
        return {"predictions": predictions}

    def on_validation_epoch_end(self) -> None:
        """COCO's twelve numbers."""
        assert self.metric is not None
        numbers = self.metric.compute()
        shown = {"AP", "AP50"}
        for name, value in numbers.items():
            # every process computed the same from the gathered results
            self.log(f"val/{name}", float(value), prog_bar=name in shown, rank_zero_only=False)

    # -- checkpoints ---------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe the detector it holds."""
        checkpoint[KEY] = self.spec.to_dict()
