"""Plan of a sweep, as `sweep.yaml` in its folder has it: all that its workers agree on."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from densenet_backbones.file_writing import save_text
from densenet_backbones.messages import check_choice, check_whole, pluralize
from densenet_backbones.tuning.space import (
    MAX_GRID,
    Knob,
    check_space,
    count_points,
    parse_values,
)
from densenet_backbones.untrusted.plain_yaml import read_yaml

NAME = "sweep.yaml"
SAMPLERS = ("grid", "tpe", "random", "gp")
PRUNERS = ("none", "median", "halving", "hyperband")
MAX_TRIALS, MAX_SEEDS = 100_000, 100
FORMAT = 1


@dataclass(frozen=True)
class SweepPlan:
    """Plan of a sweep: its space, its trials, and the choice of them.

    Attributes:
        words: Words of ``densenet train`` that all trials share.
        knobs: Options that are tried.
        points: Number of points to try, each with all seeds.
        seeds: Seeds of the training; each point is trained with all of them.
        sampler: How points are chosen, one of `SAMPLERS`.
        pruner: How a trial is given up early, one of `PRUNERS`.
        sampler_seed: Seed of the choice of points.
        keep_checkpoints: Keep the checkpoints of trials that have ended.
    """

    words: tuple[str, ...]
    knobs: tuple[Knob, ...]
    points: int
    seeds: tuple[int, ...] = (0,)
    sampler: str = "tpe"
    pruner: str = "none"
    sampler_seed: int = 0
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        check_space(self.knobs)
        check_choice("--sampler", self.sampler, SAMPLERS)
        check_choice("--pruner", self.pruner, PRUNERS)
        size = count_points(self.knobs)
        if self.sampler == "grid":
            ranges = [knob.key for knob in self.knobs if not knob.choices]
            if size is None:
                raise ValueError(
                    f"--sampler grid takes lists of values, and {ranges[0]} has a range; give its "
                    "values, or --sampler tpe"
                )
            if size > MAX_GRID:
                raise ValueError(f"the grid has {pluralize(size, 'point')}, more than {MAX_GRID}")
        for name, number, most in (
            ("--trials", self.points, MAX_TRIALS),
            ("--seeds", len(self.seeds), MAX_SEEDS),
        ):
            check_whole(name, number)
            if number > most:
                raise ValueError(f"{name} must be at most {most}, got {number}")
        check_whole("--sampler-seed", self.sampler_seed, 0)

    @property
    def trials(self) -> int:
        """Trainings in all."""
        return self.points * len(self.seeds)

    def list_words(self, params: dict[str, Any], seed: int) -> list[str]:
        """Return the words of ``densenet train`` for a point and a seed."""
        return [
            *self.words,
            *(knob.write(params[knob.key]) for knob in self.knobs if knob.key in params),
            f"--seed={seed}",
        ]

    def save(self, folder: Path) -> None:
        """Write the plan into the sweep's folder."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        content |= {"words": list(self.words), "seeds": list(self.seeds)}
        content["knobs"] = {
            knob.key: list(knob.choices) if knob.choices else knob.describe() for knob in self.knobs
        }
        save_text(folder / NAME, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def find_differences(self, other: "SweepPlan") -> list[str]:
        """Return the parts, by their options, in which another plan cannot be the same sweep."""
        fields = {"words": "the training's options", "knobs": "--try", "sampler": "--sampler"}
        fields |= {"pruner": "--pruner", "sampler_seed": "--sampler-seed"}
        return [o for name, o in fields.items() if getattr(self, name) != getattr(other, name)]


def read_plan(folder: Path) -> SweepPlan:
    """Read the plan of a sweep.

    Raises:
        ValueError: The folder holds none, or a damaged one.
    """
    file = folder / NAME
    if not file.is_file():
        raise ValueError(f"{folder}: is no sweep (it has no {NAME}); give the folder of one")
    content = read_yaml(file, ValueError)
    try:
        if not isinstance(content, dict) or content.pop("format") != FORMAT:
            raise ValueError("its format is another")
        knobs = tuple(parse_values(str(k), v) for k, v in content.pop("knobs").items())
        words, seeds = map(str, content.pop("words")), map(int, content.pop("seeds"))
        return SweepPlan(tuple(words), knobs, seeds=tuple(seeds), **content)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file}: is damaged ({error}); correct it") from error
