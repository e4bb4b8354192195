"""Work on a sweep: choose a trial, train it, tell the study, until nothing is left."""

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from optuna.trial import Trial, TrialState
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densenet_backbones.comparison.runs import read_run
from densenet_backbones.reporting.console import has_terminal, say
from densenet_backbones.training.progress.clock import RunClock, format_duration, format_end
from densenet_backbones.tuning.choosing import SweepStudy
from densenet_backbones.tuning.results import COSTS, count_left_out, shorten_key
from densenet_backbones.tuning.trial import Place, TrialError, read_values, train_trial


class Stopped(KeyboardInterrupt):
    """SIGTERM reached the sweep."""


def work(sweep: SweepStudy) -> None:
    """Train trials until no worker can take another one.

    Raises:
        KeyboardInterrupt: The sweep was stopped; its trial can go on.
    """
    with _raising_on_termination(), _Bar(sweep) as bar:
        while (trial := sweep.choose()) is not None:
            bar.begin(trial)
            try:
                bar.end(trial, _run(sweep, trial))
            finally:
                sweep.release()


def _run(sweep: SweepStudy, trial: Trial) -> str:
    """Train a trial to its end and tell the study; return what came of it."""
    place = Place(sweep.folder, trial.number)
    seed = int(trial.user_attrs["seed"])
    words = sweep.plan.list_words(trial.params, seed)
    # A point whose first seed was not given up is trained with all of them.
    is_pruned = sweep.plan.pruner != "none" and seed == sweep.plan.seeds[0]

    def watch(values: list[float]) -> bool:
        known = sweep.count_reports(trial)  # of an earlier start, too
        for step, value in enumerate(values[known:], start=known):
            trial.report(value, step)
        return is_pruned and trial.should_prune()

    trial.set_user_attr("run", place.run.relative_to(sweep.folder).as_posix())
    try:
        is_whole = train_trial(place, words, watch)
        if is_whole:
            value = _take_down(trial, place)
    except TrialError as error:
        trial.set_user_attr("failed", str(error))
        sweep.study.tell(trial, state=TrialState.FAIL)
        return f"failed: {error}"
    if not is_whole:
        sweep.study.tell(trial, state=TrialState.PRUNED)
        return f"given up at {max(read_values(place.run), default=0.0):.4g}"
    sweep.study.tell(trial, value)
    if not sweep.plan.keep_checkpoints:
        shutil.rmtree(place.run / "checkpoints", ignore_errors=True)
    return f"{trial.user_attrs['monitor']} {value:.4g}"


def _take_down(trial: Trial, place: Place) -> float:
    """Keep what a run has cost with its trial, and return its quality."""
    try:
        run = read_run(place.run)
    except ValueError as error:
        raise TrialError(str(error)) from error
    if run.best is None:
        raise TrialError(f"its evaluation has no {run.monitor or 'number'}")
    for cost in COSTS:
        trial.set_user_attr(cost.name, cost.measure(run))
    trial.set_user_attr("monitor", run.monitor)
    trial.set_user_attr("seconds", run.seconds)
    trial.set_user_attr("epoch", run.best[0])
    return run.best[1]


@contextmanager
def _raising_on_termination() -> Iterator[None]:
    """Let SIGTERM stop the sweep as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Bar:
    """Progress bar of all trials, and a line for each that this worker has ended."""

    def __init__(self, sweep: SweepStudy) -> None:
        self.sweep, self.clock, self.ended = sweep, RunClock(), 0
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), disable=not has_terminal())
        self._task = self._bar.add_task("sweep", total=sweep.plan.trials, completed=self._count())

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._bar.stop()

    def _count(self) -> int:
        return sum(trial.state.is_finished() for trial in self.sweep.list_trials())

    def begin(self, trial: Trial) -> None:
        """Show the trial that is trained now."""
        self._bar.update(self._task, description=f"trial {trial.number}")

    def end(self, trial: Trial, outcome: str) -> None:
        """Print what came of a trial, and when the sweep will end."""
        self.ended += 1
        plan, done = self.sweep.plan, self._count()
        total = plan.trials - count_left_out(self.sweep.list_trials(), plan)
        self._bar.update(self._task, completed=done, total=total)
        params = ", ".join(f"{shorten_key(k)} {v}" for k, v in trial.params.items())
        line = f"trial {trial.number}: {params}, seed {trial.user_attrs['seed']}: {outcome}"
        left = (total - done) * self.clock.passed / self.ended
        end = f"; {format_duration(left)} left, ends about {format_end(left)}" if left > 0 else ""
        say(f"{line} ({done}/{total}{end})")
