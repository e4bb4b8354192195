"""Choice of the next trial: one that was broken off, a repetition, or a new point of Optuna's.

Several workers share a sweep's folder. One at a time chooses (`sweep.lock`), and each holds the
lock of its trial (``trials/0007.lock``) until that has ended: a lock that is free says that its
worker is gone.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.samplers import BaseSampler, GPSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL

from densenet_backbones.file_writing import is_dead
from densenet_backbones.tuning.plan import SweepPlan

STUDY = "sweep"
STORAGE = "study.sqlite3"
_MOST_REPEATED = 30
"""Points in a row that were tried before, after which a space counts as used up."""
_SECONDS = 120
"""Seconds that a worker waits for others that write to the storage or choose."""


class _Grid(GridSampler):
    """Grid whose end is the sweep's to see: Optuna's own calls its loop, which is not used."""

    def after_trial(self, *args: Any) -> None:
        """Leave the study as it is."""


class SweepStudy:
    """Study of a sweep: Optuna's storage in the sweep's folder, and the choice of trials.

    Args:
        folder: The sweep's.
        plan: Its plan.

    Attributes:
        study: Optuna's.
    """

    def __init__(self, folder: Path, plan: SweepPlan) -> None:
        self.folder, self.plan = folder, plan
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        url = URL.create("sqlite", database=str(folder / STORAGE))
        wait = {"connect_args": {"timeout": _SECONDS}}
        with self.choosing():  # two workers may make the tables at the same time
            storage = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=wait)
            self.study: Study = optuna.create_study(
                storage=storage,
                study_name=STUDY,
                direction="maximize",
                load_if_exists=True,
                pruner=_make_pruner(plan.pruner),
            )
        self.distributions = {knob.key: knob.distribution for knob in plan.knobs}
        self._lock: FileLock | None = None

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Keep other workers from choosing."""
        with FileLock(self.folder / "sweep.lock", timeout=_SECONDS):
            yield

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Keep other workers from reporting: who writes later has read later, and knows more."""
        with FileLock(self.folder / "report.lock", timeout=_SECONDS):
            yield

    def list_trials(self) -> list[FrozenTrial]:
        """Return all trials but points that were tried before."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if not trial.user_attrs.get("repeated")]

    def count_reports(self, trial: Trial) -> int:
        """Return the evaluations of a trial that the study knows."""
        return len(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def choose(self) -> Trial | None:
        """Return a trial to run, whose lock is held until `release`; None where there is none."""
        with self.choosing():
            trial = self._take_over() or self._repeat_or_ask()
            if trial is not None and self._lock is None:
                self._hold(trial.number)
            return trial

    def release(self) -> None:
        """Leave the trial of this worker to others."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _hold(self, number: int) -> bool:
        lock = FileLock(self.folder / "trials" / f"{number:04d}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._lock = lock
        return True

    def _take_over(self) -> Trial | None:
        """Return a trial whose worker is gone, and its training too."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.params.keys() != self.distributions.keys():  # killed while it was made
                Trial(self.study, trial._trial_id).set_user_attr("repeated", True)
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif self._hold(trial.number):
                if not is_training(self.folder, trial.number):
                    return Trial(self.study, trial._trial_id)
                self.release()
        return None

    def _repeat_or_ask(self) -> Trial | None:
        # A grid is gone through once before it is repeated: what is there at any time is whole.
        # Other samplers learn from every point, and are told its mean.
        first, second = self._ask, self._repeat
        if self.plan.sampler != "grid":
            first, second = second, first
        return first() or second()

    def _repeat(self) -> Trial | None:
        """Return a point that was trained, with a seed that it was not trained with."""
        points: dict[str, dict[int, FrozenTrial]] = {}
        for trial in self.list_trials():
            of_point = points.setdefault(name_point(trial.params), {})
            of_point[trial.user_attrs.get("seed", self.plan.seeds[0])] = trial
        for seed in self.plan.seeds[1:]:
            for of_point in points.values():
                first = of_point.get(self.plan.seeds[0])
                if first and first.state == TrialState.COMPLETE and seed not in of_point:
                    self.study.enqueue_trial(first.params, user_attrs={"seed": seed})
                    return self.study.ask(self.distributions)
        return None

    def _ask(self) -> Trial | None:
        """Return a new point."""
        for _ in range(_MOST_REPEATED):
            trials = self.list_trials()
            points = {name_point(trial.params) for trial in trials}
            if len(points) >= self.plan.points:
                return None
            count = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = _make_sampler(self.plan, self.distributions, count)
            trial = self.study.ask(self.distributions)
            if name_point(trial.params) not in points:
                trial.set_user_attr("seed", trial.user_attrs.get("seed", self.plan.seeds[0]))
                return trial
            if "seed" in trial.user_attrs:  # a repetition that a killed worker had put in line
                return trial
            trial.set_user_attr("repeated", True)
            self.study.tell(trial, state=TrialState.FAIL)
        return None


def _make_sampler(plan: SweepPlan, distributions: dict[str, Any], count: int) -> BaseSampler:
    """Return the sampler of the next point.

    Its random numbers are a function of the number of trials: a sweep that goes on after a kill
    chooses as one that was never stopped, and two workers do not choose alike.
    """
    if plan.sampler == "grid":
        return _Grid({knob.key: knob.choices for knob in plan.knobs}, seed=plan.sampler_seed)
    seed = int(np.random.SeedSequence((plan.sampler_seed, count)).generate_state(1)[0])
    if plan.sampler == "random":
        return RandomSampler(seed)
    if plan.sampler == "gp":
        return GPSampler(seed=seed)
    # Running trials of other workers count as bad ones: their neighborhood is left out.
    return TPESampler(seed=seed, constant_liar=True)


def _make_pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


def name_point(params: dict[str, Any]) -> str:
    """Return a text that is the same for the same values."""
    return json.dumps(params, sort_keys=True)


def is_training(folder: Path, number: int) -> bool:
    """Return True if the training of a trial runs on this machine, though its sweep was killed."""
    try:
        process = int((folder / "trials" / f"{number:04d}.pid").read_text())
    except (OSError, ValueError):
        return False
    return not is_dead(process)
