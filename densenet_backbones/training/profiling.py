"""Profile of a training: the share of each part of the main loop in its time.

Lightning tells a profiler when the steps of its loop begin and end. `PartsProfiler` gives each
moment to the innermost part that is open, so that the shares add up to the whole, and
`profile_training` opens parts inside the model as well: backbone, head, matching, loss, NMS.
"""

import functools
import io
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from pathlib import Path
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler
from rich import box
from rich.table import Table
from torchmetrics import Metric

from densenet_backbones.data.loading import AnyData
from densenet_backbones.file_writing import save_json, save_text
from densenet_backbones.reporting.console import PlainConsole, is_first_process, say
from densenet_backbones.training.tasks.task import AnyTask

INPUT = "waiting for input"
TO_MODEL = "to device, normalize, resize"
BACKBONE = "forward: backbone"
HEAD = "forward: neck and head"
TARGETS = "anchors and target assignment"
LOSS = "loss"
BACKWARD = "backward"
OPTIMIZER = "optimizer, clipping, averaged weights"
EVALUATED = "evaluation: forward"
SELECTION = "post-processing, NMS"
METRICS = "evaluation: metrics"
CHECKPOINTS = "checkpoints"
LOGGING = "logging and pictures"
REST = "rest"

PARTS = (
    *(INPUT, TO_MODEL, BACKBONE, HEAD, TARGETS, LOSS, BACKWARD, OPTIMIZER),
    *(EVALUATED, SELECTION, METRICS, CHECKPOINTS, LOGGING, REST),
)

# Parts of a step that are the evaluation's forward pass where there is nothing to learn.
_FORWARD = {TO_MODEL, BACKBONE, HEAD, TARGETS, LOSS}

_ACTIONS = [
    (re.compile(pattern), part)
    for pattern, part in (
        (r"_next$|_dataloader$", INPUT),
        (r"batch_to_device|transfer_batch", TO_MODEL),
        (r"\.training_step$", REST),  # its own; it runs inside the optimizer's
        (r"\.backward$", BACKWARD),
        (r"optimizer_step|optimizer_zero_grad|gradient_clipping|lr_scheduler_step", OPTIMIZER),
        (r"^\[Callback\]EMA\b", OPTIMIZER),
        (r"\.validation_step$", EVALUATED),
        (r"^\[LightningModule\].*\.on_validation_epoch_(start|end)$", METRICS),
        (r"Checkpoint|save_checkpoint", CHECKPOINTS),
        (r"^\[Callback\](TrainingPictures|EpochLines|.*Progress)", LOGGING),
    )
]
"""Lightning's names of what it does -> part; the first that fits. What fits none belongs to the
part that is open around it."""

PLACES = (
    ("losses", TO_MODEL),  # itself: bytes to floats; the model's calls inside are parts of theirs
    ("loss.forward", LOSS),
    ("model.forward", HEAD),
    ("model.transform.forward", TO_MODEL),
    ("model.normalization.forward", TO_MODEL),
    ("model.backbone.forward", BACKBONE),
    ("model.backbone.body.forward", BACKBONE),
    ("model.backbone.adapter.forward", HEAD),
    ("model.net.backbone.forward", BACKBONE),
    ("model.net.encoder.forward", BACKBONE),
    ("model.adapter.forward", HEAD),
    ("model.head.forward", HEAD),
    ("model.anchor_generator.forward", TARGETS),
    ("model.assign", TARGETS),
    ("model.losses", LOSS),
    # torchvision's one-stage detectors match here, and their heads compute the losses.
    ("model.compute_loss", TARGETS),
    ("model.head.compute_loss", LOSS),
    ("model.rpn.anchor_generator.forward", TARGETS),
    ("model.rpn.assign_targets_to_anchors", TARGETS),
    ("model.rpn.compute_loss", LOSS),
    ("model.rpn.filter_proposals", SELECTION),
    ("model.roi_heads.select_training_samples", TARGETS),
    ("model.roi_heads.postprocess_detections", SELECTION),
    ("model.detections", SELECTION),
    ("model.postprocess_detections", SELECTION),
    ("model.transform.postprocess", SELECTION),
    ("select_labels", SELECTION),
)
"""Methods below a task -> part; a model has some of them."""


class PartsProfiler(Profiler):
    """Shares of a training's wall time, as the process that runs the loop sees it.

    Other processes that load images are seen only where the loop waits for them. On a GPU each
    beginning and end of a part waits for the device: a part's time is then that of its kernels as
    well, and the whole is slower than unprofiled, where they run beside Python's own time.

    Attributes:
        seconds: Of each (part, Lightning's or the method's own name), without what is inside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._open: list[tuple[str, str]] = []
        self._since: float | None = None
        self._synchronize: Callable[[], None] = lambda: None

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count the time inside of this context; nothing outside of it is."""
        if device.type != "cpu":
            self._synchronize = functools.partial(torch.accelerator.synchronize, device)
        self._since, self._open = time.perf_counter(), [(REST, REST)]
        try:
            yield
        finally:
            self._account()
            self._since, self._open = None, []

    def start(self, action_name: str) -> None:
        """An action begins, in the part that its name says or in the one that is open."""
        self.open(action_name, _find_part(action_name))

    def open(self, action: str, part: str | None) -> None:
        """An action of a part begins; None: of the part that is open."""
        if self._since is None:
            return
        self._account()
        if part in _FORWARD and any(around == EVALUATED for around, _ in self._open):
            part = EVALUATED
        self._open.append((part or self._open[-1][0], action))

    def stop(self, action_name: str) -> None:
        """An action ends, and with it what an exception may have left open inside."""
        if self._since is None or all(action != action_name for _, action in self._open[1:]):
            return
        self._account()
        while self._open.pop()[1] != action_name:
            pass

    def describe(self) -> None:
        """Nothing: Lightning asks after each of its stages, the table is that of the training."""

    def shares(self) -> dict[str, tuple[float, float]]:
        """Return seconds and share of the whole, 0..1, of each part."""
        whole = sum(self.seconds.values()) or 1.0
        sums = dict.fromkeys(PARTS, 0.0)
        for (part, _), seconds in self.seconds.items():
            sums[part] += seconds
        return {part: (seconds, seconds / whole) for part, seconds in sums.items()}

    def to_dict(self) -> dict[str, object]:
        """Return all parts and actions for JSON, the longest action of a part first."""
        actions: dict[str, dict[str, float]] = {part: {} for part in PARTS}
        for (part, action), seconds in sorted(self.seconds.items(), key=lambda s: -s[1]):
            actions[part][action] = seconds
        return {
            "seconds": sum(self.seconds.values()),
            "parts": {
                part: {"seconds": seconds, "share": share, "actions": actions[part]}
                for part, (seconds, share) in self.shares().items()
            },
        }

    def _account(self) -> None:
        assert self._since is not None
        self._synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


def _find_part(action: str) -> str | None:
    return next((part for pattern, part in _ACTIONS if pattern.search(action)), None)


@contextmanager
def profile_training(trainer: pl.Trainer, task: AnyTask, file: Path) -> Iterator[None]:
    """Profile what runs inside, if the trainer has a `PartsProfiler`; print and write the table.

    Args:
        trainer: Of the training.
        task: What it trains.
        file: Where the table goes, as ``.txt`` and ``.json``; a dry run prints it only.
    """
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if not isinstance(profiler, PartsProfiler):
        yield
        return
    try:
        with profiler.running(trainer.strategy.root_device), ExitStack() as until_the_end:
            for place, part in PLACES:
                time_method(task, place, part, profiler, until_the_end)
            for logger in trainer.loggers:
                for name in ("log_metrics", "save"):
                    time_method(logger, name, LOGGING, profiler, until_the_end)
            _time_updates(task, profiler, until_the_end)
            yield
    finally:
        if is_first_process():
            _report(profiler, trainer, file)


def time_method(
    root: object, place: str, part: str, profiler: PartsProfiler, until_the_end: ExitStack
) -> None:
    """Open a part around each call of a method below `root`, if there is such a method.

    Methods that hide one another, as mask coding does, come back in turn: `patch` sees to it.
    """
    *path, name = place.split(".")
    try:
        owner = attrgetter(".".join(path))(root) if path else root
    except AttributeError:
        return
    method = getattr(owner, name, None)
    if method is None or hasattr(method, "timed_as"):  # one object may be found in two places
        return

    @functools.wraps(method)
    def timed(*args: object, **kwargs: object) -> object:
        profiler.open(place, part)
        try:
            return method(*args, **kwargs)
        finally:
            profiler.stop(place)

    timed.timed_as = part  # type: ignore[attr-defined]
    until_the_end.enter_context(patch.object(owner, name, timed))


def _time_updates(task: AnyTask, profiler: PartsProfiler, until_the_end: ExitStack) -> None:
    """The same for the evaluation's own work on each batch; it is made when first needed."""
    make = task.make_metric

    def make_timed(data: AnyData) -> Metric:
        metric: Metric = make(data)
        time_method(metric, "update", METRICS, profiler, until_the_end)
        return metric

    until_the_end.enter_context(patch.object(task, "make_metric", make_timed))


def _report(profiler: PartsProfiler, trainer: pl.Trainer, file: Path) -> None:
    results = {
        "device": str(trainer.strategy.root_device),
        "step": trainer.global_step,
        **profiler.to_dict(),
    }
    say(table := _table(profiler, f"{results['seconds']:.1f} s until step {results['step']}"))
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    save_json(file.with_suffix(".json"), results, indent=2)
    text = io.StringIO()
    PlainConsole(file=text, width=80).print(table)
    save_text(file.with_suffix(".txt"), text.getvalue())


def _table(profiler: PartsProfiler, title: str) -> Table:
    table = Table("part", title=f"Where the time went: {title}", box=box.SIMPLE)
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    table.caption = "as the process that trains sees it; left out: parts that took no time"
    for part, (seconds, share) in profiler.shares().items():
        if seconds:
            table.add_row(part, f"{seconds:.2f}", f"{share:.1%}")
    return table
