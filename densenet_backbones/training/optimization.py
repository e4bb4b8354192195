"""Optimizers, parameter groups and learning rates over a run."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
import timm.optim.muon as timm_muon
import torch
from timm.optim import (  # type: ignore[attr-defined]
    Muon,
    create_optimizer_v2,
    list_optimizers,
    param_groups_layer_decay,
)
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from densenet_backbones.messages import check_interval, nearest

Group = dict[str, Any]
"""Parameters that share options of an optimizer, as torch takes them."""


class BatchedData(Protocol):
    """Data that comes in batches of one size."""

    batch: int


@dataclass
class Optimizer:
    """Options of the optimizer.

    Attributes:
        name: Any of timm's optimizers: "adamw", "momentum" (SGD as the papers of SSD and DSOD use
            it), "sgd" (with Nesterov's momentum), "muon" (Jordan et al. 2024: every kernel's step
            is made orthogonal; norms and biases take AdamW's), ….
        lr: Learning rate at `base_batch` images a step; scaled in proportion to the real number
            (images a process x processes x accumulated steps).
        base_batch: The batch that `lr` was chosen for; 0 turns the scaling off.
        momentum: Of the optimizers that have one.
        weight_decay: Not applied to what the model's `no_weight_decay()` names.
        layer_decay: Factor in (0, 1] from one group of layers to the one below it, by the model's
            `group_matcher`: the pretrained stem changes least (timm's `param_groups_layer_decay`).
            None gives all layers one rate.
    """

    name: str = "sgd"
    lr: float = 0.1
    base_batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        known = [str(name) for name in list_optimizers()]
        if self.name.lower() not in known:
            raise ValueError(
                f"model.optimizer.name: there is no {self.name!r}"
                f"{nearest(self.name.lower(), known)}"
            )
        for name in ("lr", "base_batch", "momentum", "weight_decay"):
            check_interval(f"model.optimizer.{name}", getattr(self, name), "[0, inf)")
        if self.layer_decay is not None:
            check_interval("model.optimizer.layer_decay", self.layer_decay, "(0, 1]")

    def scale_lr(self, images_per_step: int) -> float:
        """Return the learning rate at the real number of images a step."""
        return self.lr * images_per_step / self.base_batch if self.base_batch else self.lr

    def build(self, model: nn.Module, images_per_step: int) -> torch.optim.Optimizer:
        """Return the optimizer of a model's trained parameters.

        Args:
            model: May have `no_weight_decay()` and, for `layer_decay`, `group_matcher()`.
            images_per_step: Behind one optimizer step, see `count_images_per_step`.

        Raises:
            ValueError: `layer_decay` is given and the model has no `group_matcher`.
        """
        name_exempt: Callable[[], Collection[str]] = getattr(model, "no_weight_decay", tuple)
        exempt = set(name_exempt())
        rate = self.scale_lr(images_per_step)
        groups = (
            self._group_layers(model, exempt, rate)
            if self.layer_decay
            else _group_all(model, exempt)
        )
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups,
            opt=self.name,
            lr=rate,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
        )
        _adapt_to_cpu(optimizer)
        return optimizer

    def _group_layers(self, model: nn.Module, exempt: set[str], rate: float) -> list[Group]:
        """Return parameter groups with a rate each."""
        if not hasattr(model, "group_matcher"):
            raise ValueError(
                "model.optimizer.layer_decay needs a model that says which layers follow each "
                f"other, and {type(model).__name__} has no group_matcher; leave it out"
            )
        groups: list[Group] = param_groups_layer_decay(
            model,
            self.weight_decay,
            no_weight_decay_list=tuple(exempt),
            layer_decay=self.layer_decay or 1.0,
        )
        # timm's own schedulers read lr_scale; torch's read each group's rate.
        return [
            {
                "params": group["params"],
                "weight_decay": group["weight_decay"],
                "lr": rate * group["lr_scale"],
            }
            for group in groups
        ]


_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimizers of which torch has a form on a CPU that updates a tensor in one pass."""


def _adapt_to_cpu(optimizer: torch.optim.Optimizer) -> None:
    """Choose the form of an optimizer that is fast on a CPU, if that is where the tensors are.

    Torch's fused forms update a tensor in one pass. Checkpoints keep that choice with each group,
    so a run that began without goes on without.
    """
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    if not all(p.device.type == "cpu" and p.dtype == torch.float32 for p in tensors):
        return
    if type(optimizer) in _FUSED:
        for group in optimizer.param_groups:
            group["fused"] = True
    if type(optimizer) is Muon:
        optimizer.__class__ = _SingleMuon


class _SingleMuon(Muon):
    """Muon with products of float32.

    timm makes Newton and Schulz' iterations in bfloat16 and has no option for it. A CPU is faster
    in float32, with tiles for bfloat16 too, and most where it emulates that.
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Run timm's step."""
        iterate = timm_muon.zeropower_via_newtonschulz
        timm_muon.zeropower_via_newtonschulz = partial(iterate, dtype=torch.float32)
        try:
            return super().step(closure)  # type: ignore[no-untyped-call]
        finally:
            timm_muon.zeropower_via_newtonschulz = iterate


def _group_all(model: nn.Module, exempt: set[str]) -> list[Group]:
    """Return the parameters with weight decay, and those without."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[Group] = [
        {"params": [p for name, p in trained if name not in exempt]},
        {"params": [p for name, p in trained if name in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def count_images_per_step(data: BatchedData, trainer: pl.Trainer) -> int:
    """Return the images behind one optimizer step: a process's batch x processes x accumulation."""
    return int(data.batch * trainer.world_size * trainer.accumulate_grad_batches)


OPTIONS_OF_A_START = ("weight_decay", "momentum")
"""Options of an optimizer's groups that are those of this start, whatever a checkpoint has."""


PLACES = 100_000
"""Places of a run whose length is no number of steps, from its start to its end."""


class PlannedLR(LambdaLR):
    """Rates by the plan of this start of the run, also where a checkpoint has those of another.

    The plan is a function of the step: resumed with the same options, it gives the same rates.
    (torch's schedulers take the rates of the checkpoint, so that a longer run would keep them.)
    Where an epoch has another number of steps than before, the plan goes on from the same epoch.
    Weight decay and momentum are this start's, too.

    Args:
        optimizer: Its present rates are the top of the plan.
        factor: Share of the top rate at a step.
        epoch_steps: Optimizer steps of an epoch; None if the run's length is not one in epochs.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        factor: Callable[[int], float],
        epoch_steps: int | None = None,
    ) -> None:
        self.epoch_steps, self.offset = epoch_steps, 0
        self.options = [
            {name: group[name] for name in OPTIONS_OF_A_START if name in group}
            for group in optimizer.param_groups
        ]
        super().__init__(optimizer, lambda step: factor(step + self.offset))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the checkpoint's place in the run; rates and options stay those of this start."""
        own = {"base_lrs": self.base_lrs, "options": self.options, "epoch_steps": self.epoch_steps}
        before = state_dict.get("epoch_steps")
        super().load_state_dict({**state_dict, **own})
        if before and self.epoch_steps and before != self.epoch_steps:
            place = self.last_epoch + self.offset
            self.offset = round(place * self.epoch_steps / before) - self.last_epoch
        self._last_lr = [top * self.lr_lambdas[0](self.last_epoch) for top in self.base_lrs]
        groups = zip(
            self.optimizer.param_groups, self.base_lrs, self._last_lr, self.options, strict=True
        )
        for group, top, now, options in groups:
            group.update(options, initial_lr=top, lr=now)


@dataclass
class Schedule:
    """The learning rate over the run; fractions are of its total number of steps.

    Attributes:
        name: "step" multiplies by `gamma` at each of `milestones`; "exponential" after each epoch;
            "cosine" and "poly" (power 0.9) fall to zero; "constant" stays.
        milestones: Fractions in (0, 1), rising.
        gamma: Factor at a milestone, or of an epoch.
        warmup: Fraction over which the rate rises linearly from a thousandth.
    """

    name: Literal["step", "exponential", "cosine", "poly", "constant"] = "step"
    milestones: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.6, 0.8])
    gamma: float = 0.1
    warmup: float = 0.01

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        if not rising or not all(0 < m < 1 for m in self.milestones):
            raise ValueError(
                "model.schedule.milestones must be rising fractions in (0, 1), got "
                f"{self.milestones}"
            )
        check_interval("model.schedule.warmup", self.warmup, "[0, 1)")

    def build(
        self,
        optimizer: torch.optim.Optimizer,
        steps: int,
        epochs: int | None = None,
        epoch_steps: int | None = None,
        place: Callable[[int], int] | None = None,
    ) -> LRScheduler:
        """A scheduler that is stepped once an optimizer step.

        Args:
            optimizer: Its present rates are the top of the schedule.
            steps: Optimizer steps of the whole run.
            epochs: Of the whole run; "exponential" needs them.
            epoch_steps: As of `PlannedLR`.
            place: Place of a step in the run, from 0 to `PLACES`, in the stead of `steps`.

        Raises:
            ValueError: "exponential" without a number of epochs.
        """
        if self.name == "exponential" and (epochs or 0) < 1:
            raise ValueError(
                f"model.schedule.name exponential needs trainer.max_epochs (--epochs), got {epochs}"
            )
        if place is not None:
            return PlannedLR(optimizer, lambda step: self.factor(place(step), PLACES))
        return PlannedLR(optimizer, lambda step: self.factor(step, steps, epochs), epoch_steps)

    def factor(self, step: int, steps: int, epochs: int | None = None) -> float:
        """Return the share of the top rate at an optimizer step, a function of its number alone.

        So a resumed run has the rates of one never stopped, and one that is given more epochs
        those of the longer run.

        Args:
            step: From 0.
            steps: Of the whole run.
            epochs: Of the whole run.
        """
        warmup = min(math.ceil(self.warmup * steps), max(steps - 1, 0))
        if step < warmup:
            return 1e-3 + (1 - 1e-3) * step / warmup
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        if self.name == "step":
            passed = sum(step >= max(round(m * steps), warmup + 1) for m in self.milestones)
            return self.gamma**passed
        if self.name == "exponential":
            return float(self.gamma ** (step * (epochs or 1) // max(steps, 1)))
        if self.name == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        return float((1 - done) ** 0.9) if self.name == "poly" else 1.0
